"""`punie train data check FILE`: the mistakes in training rows that cost whole training runs, each with its line."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from punie import wire
from punie.backends import _weights
from punie.errors import NetworkRefused, UsageError, WeightsMissing
from punie_training import examples, jsonl, licences, rules
from punie_training.recipe import Data
from punie_training.rows import Row
from punie_training.rules import Subject
from punie_training.sources.direct import normalised
from punie_training.transcript import CALLS

Severity = Literal["error", "warning"]
LEAST_TOOLS, MOST_TOOLS = 0.60, 0.85
FEWEST_ROWS = 20
SHOWN = 10
"""Findings of one rule that are printed unless all are asked for."""


@dataclass(frozen=True)
class Rule:
    """How much a finding weighs and what to do about it."""

    severity: Severity
    advice: str


RULES: Mapping[str, Rule] = {
    "format": Rule("error", "Bring it into this form: punie train data import FILE --out ROWS"),
    "wrong-key": Rule("error", "Write calls as {name, arguments}."),
    "placeholder": Rule("error", "Put the real text there, or drop the row."),
    "missing-answer": Rule("error", "End each question with an answer in words."),
    "missing-result": Rule("error", "Give each call its result, in order, in turns of the role tool."),
    "unknown-tool": Rule("error", "Use a declared tool, or declare the row's own under `tools`."),
    "arguments": Rule("error", "Make the arguments fit the tool's declaration."),
    "call-in-text": Rule("error", "Move it to `calls`: punie train data import FILE --out ROWS"),
    "mixed-dialects": Rule("error", "Write the calls of one file in one way, under `calls`."),
    "repeated-call": Rule("warning", "Drop one of the two."),
    "secret": Rule("error", "Drop the row, and have the key revoked if it is real."),
    "nothing-learned": Rule("error", "Shorten the row, or drop it."),
    "too-long": Rule("warning", "The trainer leaves the row out; shorten it or raise data.max_tokens."),
    "duplicate": Rule("error", "Keep one."),
    "duplicate-id": Rule("warning", "Give every row an id of its own."),
    "leak": Rule("error", "Take the question out of one of the files."),
    "same-wording": Rule("warning", "Fine if the answers differ by project; hold wordings out to be sure."),
    "mix": Rule("warning", f"Aim for {LEAST_TOOLS:.0%} to {MOST_TOOLS:.0%} rows that call a tool."),
    "few-rows": Rule("warning", "So few rows are learned by heart."),
    "licence": Rule("error", "Leave out what is not under a permissive licence."),
    "licence-unknown": Rule("warning", "Write the licence into the card beside the file."),
    "not-measured": Rule("warning", "Fetch the weights with `punie models pull`, or name some with --base."),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `line` counts from 1; 0 is the file as a whole."""

    file: Path
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        rule = RULES[self.rule]
        return f"{place}: {rule.severity} [{self.rule}] {self.text}. {rule.advice}"


@dataclass(frozen=True)
class Settings:
    """What rows are measured against."""

    against: Path | None = None
    """Another split, which must not share questions with this one."""
    base: Path | None = None
    max_tokens: int = Data().max_tokens
    cache_dir: Path = field(default_factory=_weights.default_cache_dir)


@dataclass(frozen=True)
class Report:
    """What a check found."""

    file: Path
    rows: int
    tool_rows: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings make the file unfit."""
        return sum(RULES[f.rule].severity == "error" for f in self.findings)

    @property
    def exit_code(self) -> int:
        """1 if there is any error; warnings alone are none."""
        return int(self.errors > 0)

    def render(self, *, everything: bool = False) -> str:
        """The findings, grouped by rule, then a table of them."""
        counts = Counter(f.rule for f in self.findings)
        lines: list[str] = []
        for rule, count in counts.items():
            of_rule = [str(f) for f in self.findings if f.rule == rule]
            lines += of_rule if everything else of_rule[:SHOWN]
            if len(lines) and count > SHOWN and not everything:
                lines.append(f"{self.file}: {count - SHOWN} more [{rule}]; --all shows them")
        return "\n".join([*lines, *([""] if lines else []), *self._table(counts)])

    def _table(self, counts: Mapping[str, int]) -> Iterator[str]:
        share = self.tool_rows / self.rows
        yield f"{self.file}: {self.rows} rows, {self.tool_rows} with tools ({share:.1%}), {1 - share:.1%} direct"
        for rule in RULES:
            if rule in counts:
                yield f"  {RULES[rule].severity:8} {rule:16} {counts[rule]:6}"
        yield f"{self.errors} errors, {len(self.findings) - self.errors} warnings"


def check(file: Path, settings: Settings | None = None) -> Report:
    """Examine every row. Raises UsageError when the file cannot be read at all."""
    settings = settings or Settings()
    book = _Book(file)
    if settings.against:
        book.read_other(settings.against)
    measure = _measure(settings)
    if measure is None:
        book.note(0, "not-measured", ["the weights are not here, so no row was measured in tokens"])
    for number, record in jsonl.records(file):
        book.add(number, Subject(record), measure)
    book.close()
    ordered = sorted(book.findings, key=lambda f: (list(RULES).index(f.rule), f.line))
    return Report(file, book.rows, book.tool_rows, tuple(ordered))


@dataclass(frozen=True)
class _Measure:
    """Counts the tokens of a row as the trainer does."""

    renderer: wire.Wire
    max_tokens: int

    def faults(self, row: Row) -> Iterator[tuple[str, str]]:
        """Yield (rule, what is wrong)."""
        example = examples.example(row, self.renderer)
        length = len(example.tokens)
        learned = [at for at, weight in enumerate(example.mask) if weight]
        if not learned:
            yield "nothing-learned", "no turn of the assistant, so nothing is learned from it"
        elif learned[0] >= self.max_tokens:
            yield (
                "nothing-learned",
                f"all it teaches lies beyond the window: {length} tokens, the first learned one is "
                f"{learned[0]}, the window is {self.max_tokens}",
            )
        elif length > self.max_tokens:
            yield "too-long", f"{length} tokens where the window is {self.max_tokens}"


def _measure(settings: Settings) -> _Measure | None:
    if settings.base is not None and not settings.base.exists():
        raise UsageError(f"There is no base model {settings.base}.", "Name a GGUF file or an MLX directory.")
    try:
        base = settings.base or _weights.ensure_base(settings.cache_dir)
    except (WeightsMissing, NetworkRefused):
        return None
    return _Measure(examples.renderer_for(base, template=_weights.shipped_template()), settings.max_tokens)


class _Book:
    """What has been seen so far, which later rows are compared with."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.findings: list[Finding] = []
        self.rows = self.tool_rows = 0
        self._conversations: dict[str, int] = {}
        self._ids: dict[str, int] = {}
        self._dialects: dict[str, list[int]] = {}
        self._projects: dict[str, int] = {}
        self._other: Path | None = None
        self._elsewhere: dict[str, tuple[int, frozenset[str]]] = {}

    def note(self, line: int, rule: str, texts: Iterable[str]) -> None:
        """Keep findings of a rule, each text once a line."""
        self.findings += [Finding(self.file, line, rule, text) for text in dict.fromkeys(texts)]

    def read_other(self, path: Path) -> None:
        """Remember every question of another split: its first line and the projects it is about."""
        self._other = path
        for number, record in jsonl.records(path):
            about = str(record.get("project") or "")
            for question in _asked(Subject(record)):
                line, projects = self._elsewhere.get(question, (number, frozenset[str]()))
                self._elsewhere[question] = (line, projects | {about})

    def add(self, line: int, subject: Subject, measure: _Measure | None) -> None:
        """Hold a row against every rule."""
        self.rows += 1
        self.tool_rows += subject.calls_a_tool
        for rule, find in rules.OF_ONE_ROW.items():
            self.note(line, rule, find(subject))
        if measure and isinstance(subject.row, Row):
            for rule, text in measure.faults(subject.row):
                self.note(line, rule, [text])
        self._compare(line, subject)

    def _compare(self, line: int, subject: Subject) -> None:
        record = subject.record
        first = self._conversations.setdefault(_digest(record, subject), line)
        if first != line:
            self.note(line, "duplicate", [f"the same conversation as in line {first}"])
        elif (name := str(record.get("id") or "")) and (first := self._ids.setdefault(name, line)) != line:
            self.note(line, "duplicate-id", [f"the id of line {first}: {name}"])
        for dialect in {call.dialect for turn in subject.said for call in turn.calls}:
            self._dialects.setdefault(dialect, []).append(line)
        self._projects.setdefault(str(record.get("project") or ""), line)
        for question in dict.fromkeys(_asked(subject)):
            if question in self._elsewhere:
                self._leak(line, question, str(record.get("project") or ""))

    def _leak(self, line: int, question: str, project: str) -> None:
        other, projects = self._elsewhere[question]
        elsewhere_only = bool(project) and "" not in projects and project not in projects
        rule = "same-wording" if elsewhere_only else "leak"
        self.note(line, rule, [f"asked in {self._other}:{other} too: {question[:80]!r}"])

    def close(self) -> None:
        """Judge the file as a whole."""
        self._judge_dialects()
        share = self.tool_rows / self.rows
        if self.rows < FEWEST_ROWS:
            self.note(0, "few-rows", [f"{self.rows} row{'s' * (self.rows > 1)}"])
        if not LEAST_TOOLS <= share <= MOST_TOOLS:
            self.note(0, "mix", [f"{share:.1%} of the rows call a tool"])
        for rule, line, text in _licence_faults(card_of(self.file), self._projects):
            self.note(line, rule, [text])

    def _judge_dialects(self) -> None:
        if len(self._dialects) < 2:
            return
        usual = CALLS if CALLS in self._dialects else max(self._dialects, key=lambda d: len(self._dialects[d]))
        for dialect, lines in self._dialects.items():
            if dialect != usual:
                for line in lines:
                    self.note(line, "mixed-dialects", [f"calls as {dialect}, elsewhere in this file as {usual}"])


def _asked(subject: Subject) -> tuple[str, ...]:
    return tuple(text for text in map(normalised, subject.questions) if text)


def _digest(record: Mapping[str, Any], subject: Subject) -> str:
    said = [(t.speaker, " ".join(t.content.split()), [c.key for c in t.calls]) for t in subject.said]
    text = json.dumps(said or record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


# --- licences ------------------------------------------------------------------------------------------------------


def card_of(file: Path) -> Path | None:
    """The data card beside a file: `NAME.card.json`, else `card.json`."""
    found = (file.with_suffix(".card.json"), file.with_name("card.json"))
    return next((path for path in found if path.is_file()), None)


def _licence_faults(card: Path | None, projects: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
    """Yield (rule, line, what is wrong) for each project of the rows."""
    if card is None:
        yield "licence-unknown", 0, "no data card lies beside the file"
        return
    stated = _stated(card)
    for project, line in projects.items():
        licence = stated.get(project, "")
        if not licence and project:
            yield "licence-unknown", line, f"{card.name} names no licence of {project}"
        elif licence and not licences.is_permissive(licence):
            yield "licence", line, f"{project or 'the direct answers'} are under {licence}, says {card.name}"


def _stated(card: Path) -> Mapping[str, str]:
    """Project -> licence, as a card states them: a text, or an object with `licence`."""
    try:
        written = json.loads(card.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The data card {card} cannot be read: {error}.", "Mend it or delete it.") from error
    stated = written.get("licences", {}) if isinstance(written, dict) else {}
    pairs = stated.items() if isinstance(stated, dict) else ()
    return {str(k): str(v.get("licence", "")) if isinstance(v, dict) else str(v) for k, v in pairs}


__all__ = ["RULES", "Finding", "Report", "Settings", "check"]
