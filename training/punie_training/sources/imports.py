"""Public tool-calling sets as rows: glaive's texts, ShareGPT conversations, and OpenAI messages."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from punie import wire
from punie.errors import PunieError, UsageError
from punie_training import jsonl, rules
from punie_training.rows import declarations
from punie_training.sources.formats import READERS, Talk, Unusable, declaration

Format = Literal["auto", "glaive", "sharegpt", "openai"]
_SECONDS_BETWEEN_LINES = 2.0


@dataclass(frozen=True)
class Wanted:
    """What to take and how."""

    format: Format = "auto"
    licence: str = ""
    limit: int | None = None
    keep_system: bool = False


@dataclass
class Summary:
    """What became of a set."""

    source: Path
    format: str = ""
    read: int = 0
    kept: int = 0
    tool_rows: int = 0
    own_tools: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    licence: str = ""

    def render(self) -> str:
        """For people."""
        lines = [
            f"{self.source.name} ({self.format}): {self.kept} of {self.read} rows kept, {self.tool_rows} with tools"
        ]
        lines += [f"  {count:7} rejected: {reason}" for reason, count in self.rejected.most_common()]
        return "\n".join(lines)

    def card(self) -> Mapping[str, object]:
        """For the data card beside the rows."""
        name = _name(self.source)
        return {
            "source": self.source.name,
            "format": self.format,
            "read": self.read,
            "rows": self.kept,
            "tool_rows": self.tool_rows,
            "own_tools": self.own_tools,
            "rejected": dict(self.rejected.most_common()),
            "licences": {name: self.licence, "": self.licence} if self.licence else {},
        }


def convert(source: Path, target: Path, wanted: Wanted | None = None, *, stream: TextIO | None = None) -> Summary:
    """Write the usable records of `source` as rows, with a data card beside them; says on `stream` how far it is.

    Raises UsageError when `source` is no JSON, or of no known format. What is there already stays until the new file
    is whole.
    """
    wanted = wanted or Wanted()
    summary = Summary(source, licence=wanted.licence)
    if source.exists() and target.exists() and source.samefile(target):
        raise UsageError(f"{target} is the set itself.", "Name another file with --out.")
    scratch = target.with_suffix(".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8") as out:
            for row in _rows(summary, wanted, stream):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not summary.kept:
            raise UsageError(f"No row of {source} can be used.", "\n".join(summary.render().splitlines()[1:3]))
        scratch.replace(target)
        target.with_suffix(".card.json").write_text(json.dumps(summary.card(), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise PunieError(f"{target} cannot be written: {error.strerror}.", "What was there is unchanged.") from error
    finally:
        with suppress(OSError):  # it is not there when all went well
            scratch.unlink()
    return summary


def _rows(summary: Summary, wanted: Wanted, stream: TextIO | None) -> Iterator[dict[str, object]]:
    seen: set[bytes] = set()
    spoke = time.monotonic()
    for number, record in jsonl.records(summary.source):
        reader = _reader(record, wanted.format, place=f"{summary.source}:{number}")
        summary.format = summary.format or reader
        summary.read += 1
        try:
            row = _row(READERS[reader](record), _name(summary.source), wanted)
            _refuse_again(row, seen)
        except Unusable as reason:
            summary.rejected[str(reason)] += 1
        else:
            _count(summary, row)
            yield row
        if stream and time.monotonic() - spoke > _SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            stream.write(f"{summary.read} read, {summary.kept} kept\n")
            stream.flush()
        if wanted.limit and summary.kept >= wanted.limit:
            return


def _count(summary: Summary, row: Mapping[str, Any]) -> None:
    summary.kept += 1
    summary.tool_rows += bool(row["project"])
    summary.own_tools += "tools" in row


def _refuse_again(row: Mapping[str, Any], seen: set[bytes]) -> None:
    digest = hashlib.sha256(json.dumps(row["messages"], sort_keys=True).encode()).digest()
    if digest in seen:
        raise Unusable("the same conversation again")
    seen.add(digest)


def _name(source: Path) -> str:
    return re.sub(r"[^\w-]+", "-", source.stem)


# --- which format ---------------------------------------------------------------------------------------------------


def _reader(record: jsonl.Record, wanted: Format, *, place: str) -> str:
    if wanted != "auto":
        return wanted
    if "conversations" in record:
        return "sharegpt"
    if isinstance(record.get("messages"), list):
        return "openai"
    if "chat" in record or "USER:" in str(record.get("sample") or record.get("text") or ""):
        return "glaive"
    raise UsageError(
        f"{place}: neither `conversations`, nor `messages`, nor a `chat` text.",
        "Say what it is with --format glaive, sharegpt or openai.",
    )


def _row(talk: Talk, name: str, wanted: Wanted) -> dict[str, object]:
    """The row of a record. Raises Unusable."""
    turns = tuple(t for t in talk.turns if t.role != "system" or wanted.keep_system)
    tools = tuple(declaration(tool) for tool in talk.tools)
    plain = [_plain(t) for t in turns]
    questions = [t.content for t in turns if t.role == "user"]
    if not questions:
        raise Unusable("no question")
    has_calls = any(t.calls for t in turns)
    identity = hashlib.sha256(json.dumps([plain, tools], sort_keys=True).encode()).hexdigest()[:12]
    row: dict[str, object] = {
        "id": identity,
        "family": "imported" if has_calls else "direct",
        "project": name if has_calls else "",
        "template": f"imported/{name}",
        "source": name,
        "question": questions[-1],
        "messages": plain,
        "expect": None,
    }
    if tools and _differs(tools):
        row["tools"] = list(tools)
    _refuse(row)
    return row


def _differs(tools: tuple[dict[str, Any], ...]) -> bool:
    return sorted(map(json.dumps, tools)) != sorted(map(json.dumps, declarations()))


def _plain(turn: wire.Message) -> dict[str, object]:
    calls = [{"name": c.name, "arguments": json.loads(c.arguments)} for c in turn.calls]
    return {"role": turn.role, "content": turn.content, "calls": calls}


_REASONS = {
    "format": "not of the row's form",
    "placeholder": "a placeholder in place of a result or answer",
    "missing-answer": "no final answer",
    "missing-result": "calls and results do not match",
    "unknown-tool": "a call of a tool that is not declared",
    "arguments": "arguments that do not fit the declaration",
    "call-in-text": "a call inside a text",
    "secret": "a key or token",
}


def _refuse(row: Mapping[str, Any]) -> None:
    """Raise Unusable for what `punie train data check` would call an error."""
    subject = rules.Subject(row)
    for rule, reason in _REASONS.items():
        if any(rules.OF_ONE_ROW[rule](subject)):
            raise Unusable(reason)
