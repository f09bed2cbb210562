"""How often the oracle is wrong: rows drawn by chance, answered a second time by other means, and read by a person.

`second` answers without `ast` and without Punie's code. What it cannot confirm is an error until a person has read
it; `training/audit.toml` holds what was read, with the reason. General questions have no oracle and are left out.
"""

import json
import random
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from punie.errors import UsageError
from punie.wire import expand
from punie_training import corpora, jsonl, rows
from punie_training.measures import Rate

Automatic = Literal["agrees", "differs", "unknown"]
_SHOWN_LINES = 14
_LONGEST = 160


class AuditRow(rows.Row):
    """A row with what its last answer must hold."""

    expect: dict[str, Any] | None = None

    @property
    def uses_tools(self) -> bool:
        """Whether an oracle stands behind any of its answers."""
        return any(turn.calls for turn in self.messages)


class Read(BaseModel):
    """What a person made of one row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    verdict: Literal["right", "wrong"]
    why: str


@dataclass(frozen=True)
class Judged:
    """One row with both verdicts."""

    row: AuditRow
    automatic: Automatic
    reason: str
    read: Read | None

    @property
    def is_error(self) -> bool:
        """Whether a person says so, or nothing has confirmed the answer."""
        return self.read.verdict == "wrong" if self.read else self.automatic != "agrees"


def load(path: Path) -> tuple[AuditRow, ...]:
    """Read the rows that call tools. Raises UsageError that names file and line of what is no row."""
    found: list[AuditRow] = []
    for number, record in jsonl.records(path):
        try:
            row = AuditRow.model_validate(record)
        except ValidationError as error:
            raise UsageError(f"{path}:{number} is no row: {error.errors()[0]['msg']}.") from error
        if row.uses_tools:
            found.append(row)
    return tuple(found)


def draw(found: Sequence[AuditRow], *, count: int, seed: int) -> tuple[AuditRow, ...]:
    """Draw from every family as many rows as its share of all, so that the plain error rate is that of the file."""
    families: dict[str, list[AuditRow]] = {}
    for row in found:
        families.setdefault(row.family, []).append(row)
    count = min(count, len(found))
    exact = {name: count * len(group) / len(found) for name, group in families.items()}
    wanted = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(families, key=lambda name: wanted[name] - exact[name])
    for name in by_remainder[: count - sum(wanted.values())]:
        wanted[name] += 1
    rng = random.Random(seed)
    return tuple(row for name, group in sorted(families.items()) for row in rng.sample(group, wanted[name]))


def verdicts(path: Path) -> Mapping[str, Read]:
    """Read what people have judged: row -> verdict. Raises UsageError for a file of another form."""
    try:
        tables = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
        return {read.id: read for read in TypeAdapter(tuple[Read, ...]).validate_python(tables.get("row", ()))}
    except (ValidationError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise UsageError(
            f"{path}: {cause}.", "Every [[row]] has an id, a verdict (right or wrong) and a why."
        ) from error


def judge(drawn: Sequence[AuditRow], *, roots: Mapping[str, Path], read: Mapping[str, Read]) -> Iterator[Judged]:
    """Answer each row anew in one fresh process; in order, as soon as each is done."""
    lines = "".join(json.dumps(question(row, roots[row.project])) + "\n" for row in drawn)
    command = [sys.executable, "-I", "-m", "punie_training.second"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, encoding="utf-8")
    for row, line in zip(drawn, done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        yield Judged(row, found["verdict"], found["reason"], read.get(row.id))


def question(row: AuditRow, root: Path) -> Mapping[str, Any]:
    """The row as `second` takes it: questions, calls, and answers with their result lines in place."""
    turns: list[dict[str, object]] = []
    plain = [turn.plain() for turn in row.messages]
    calls: list[object] = []
    for at, turn in enumerate(row.messages):
        if turn.role == "user":
            calls = []
            turns.append({"question": turn.content, "calls": calls, "answer": "", "expect": None})
        calls += [{"name": c.name, "arguments": c.arguments} for c in turn.calls]
        if turn.role == "assistant" and not turn.calls:
            turns[-1]["answer"] = expand(turn.content, plain[:at])
    turns[-1]["expect"] = row.expect
    return {"id": row.id, "root": str(root), "turns": turns}


def audit(path: Path, *, count: int, seed: int, cache_dir: Path, read: Mapping[str, Read]) -> tuple[Judged, ...]:
    """Draw rows of a data file and judge them. Raises UsageError where a row's project is not a known one."""
    homes = corpora.workspaces(corpora.manifest(), cache_dir=cache_dir)
    drawn = draw(load(path), count=count, seed=seed)
    strange = {row.project for row in drawn} - homes.keys()
    if strange or not drawn:
        cause = f"{path} has rows about {', '.join(sorted(strange))}" if strange else f"{path} has no row with a tool"
        raise UsageError(f"{cause}, which cannot be answered again.", "Audit what `punie train data` has written.")
    return tuple(judge(drawn, roots=homes, read=read))


# --- what it comes to ----------------------------------------------------------------------------------------------


def rate(judged: Iterable[Judged]) -> Rate:
    """The share of wrong answers."""
    wrong = [j.is_error for j in judged]
    return Rate(sum(wrong), len(wrong))


def record(judged: Sequence[Judged], *, data: Path, seed: int) -> Mapping[str, object]:
    """The audit as JSON."""
    families = dict.fromkeys(j.row.family for j in judged)
    return {
        "data": data.name,
        "seed": seed,
        "error_rate": rate(judged).record(),
        "automatic": dict(Counter(j.automatic for j in judged)),
        "read": dict(Counter(f"{j.automatic}, {j.read.verdict}" for j in judged if j.read)),
        "families": {name: rate([j for j in judged if j.row.family == name]).record() for name in families},
        "rows": [
            {
                "id": j.row.id,
                "family": j.row.family,
                "project": j.row.project,
                "automatic": j.automatic,
                "reason": j.reason,
                "read": j.read and j.read.verdict,
                "why": j.read and j.read.why,
            }
            for j in judged
        ],
    }


def page(judged: Sequence[Judged], *, data: Path, seed: int) -> str:
    """The audit for people, what was not confirmed first."""
    automatic = Counter(j.automatic for j in judged)
    read = [j for j in judged if j.read]
    lines = [
        "# Audit of the oracle",
        "",
        f"- {len(judged)} rows of {data.name}, drawn with seed {seed}, every family by its share",
        f"- wrong answers: {rate(judged)}",
        f"- second method: {automatic['agrees']} agree, {automatic['differs']} differ, "
        f"{automatic['unknown']} have no second method",
        f"- read by a person: {len(read)}, of them {sum(j.automatic != 'agrees' for j in read)} not confirmed; "
        f"an unconfirmed row that nobody has read counts as wrong",
    ]
    order: tuple[Automatic, ...] = ("differs", "unknown", "agrees")
    for j in sorted(judged, key=lambda j: order.index(j.automatic)):
        lines += ["", *_entry(j)]
    return "\n".join([*lines, ""])


def _entry(judged: Judged) -> Iterator[str]:
    row = judged.row
    yield f"## {row.id} {row.family} ({row.project}): {judged.automatic}"
    yield ""
    yield f"- reason: {judged.reason}"
    yield f"- read: {judged.read.verdict}, {judged.read.why}" if judged.read else "- read: not yet"
    yield ""
    for turn in row.messages:
        text = turn.content or "; ".join(f"{c.name} {json.dumps(c.arguments)}" for c in turn.calls)
        shown = text.split("\n")
        lines = [line[:_LONGEST] for line in shown[:_SHOWN_LINES]]
        rest = [f"... {len(shown) - _SHOWN_LINES} more lines"] if len(shown) > _SHOWN_LINES else []
        yield from (f"    {turn.role if not at else '':9} {line}".rstrip() for at, line in enumerate([*lines, *rest]))


def write(judged: Sequence[Judged], out: Path, *, data: Path, seed: int) -> Path:
    """Write `audit.json` and `audit.md`; returns the latter."""
    out.mkdir(parents=True, exist_ok=True)
    found = record(judged, data=data, seed=seed)
    (out / "audit.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (out / "audit.md").write_text(page(judged, data=data, seed=seed), "utf-8")
    return out / "audit.md"
