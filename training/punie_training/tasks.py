"""What a question is: its wording, the calls that lead to the answer, the answer, and what makes an answer right."""

import hashlib
import json
import random
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from punie.wire import RESULT
from punie_training.oracle import Oracle
from punie_training.sources.direct import Topic

PHRASINGS = Path(__file__).with_name("phrasings.toml")
HERE = ("", "", "", " in this project", " in this repo", " in this codebase", " here", " in the code")
OPENINGS = ("Hi! ", "OK, ", "Hello, ", "Quick question: ")
Value = str | int
T = TypeVar("T")
Kind = Literal["places", "paths", "count", "lines", "output", "nothing", "words", "file"]


@dataclass(frozen=True)
class Step:
    """One tool call of a plan."""

    tool: str
    arguments: Mapping[str, Value]


@dataclass(frozen=True)
class Expect:
    """What the answer, with its result lines in place, must hold.

    places: exactly these `path:line`; paths: exactly these files; lines: exactly these `number<TAB>text`;
    output: these lines of a command; count: `total` is the first number; nothing: a "no" and not one place;
    words: only `says`; file: `values` is a path and the SHA-256 of its text.
    """

    kind: Kind
    values: tuple[str, ...] = ()
    total: int | None = None
    says: tuple[str, ...] = ()
    """Strings that must stand in the answer besides."""


@dataclass(frozen=True)
class Turn:
    """One question with the plan for it. `subject` is the name or path it is about; for follow-up questions."""

    template: str
    question: str
    steps: tuple[Step, ...]
    answer: str
    expect: Expect
    subject: str = ""


@dataclass(frozen=True)
class Task:
    """A conversation about one project."""

    family: str
    project: str
    turns: tuple[Turn, ...]
    seen_wording: bool = True

    @property
    def id(self) -> str:
        """Stable for the same questions about the same project."""
        text = json.dumps([self.project, *(t.question for t in self.turns)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def template(self) -> str:
        """The wording of the last question, which the family is named after."""
        return self.turns[-1].template


@cache
def wordings() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Template -> {"train": [...], "held_out": [...]}."""
    return tomllib.loads(PHRASINGS.read_text("utf-8"))


@dataclass(frozen=True)
class Voice:
    """Puts questions into words. `held_out` takes the wordings that training never shows."""

    rng: random.Random
    held_out: bool = False
    recent: dict[str, list[int]] = field(default_factory=dict)

    def put(self, template: str, **values: Value) -> tuple[str, str]:
        """Return (template id, question)."""
        choices = wordings()[template]["held_out" if self.held_out else "train"]
        index = self._next(template, len(choices))
        pattern = self._roughen(choices[index])
        mark = "held" if self.held_out else "seen"
        return f"{template}/{mark}{index}", pattern.format(here=self.rng.choice(HERE), **values)

    def name(self, name: str) -> str:
        """Return the name as a person writes it; a plain English word needs its backticks."""
        return f"`{name}`" if (name.isalpha() and name.islower()) or self.rng.random() < 0.25 else name

    def _next(self, template: str, count: int) -> int:
        """Deal the wordings like cards, so that each is used equally often."""
        deck = self.recent.setdefault(template, [])
        if not deck:
            deck.extend(self.rng.sample(range(count), count))
        return deck.pop()

    def _roughen(self, pattern: str) -> str:
        if pattern[0].isupper() and self.rng.random() < 0.2:
            pattern = pattern[0].lower() + pattern[1:]
        if pattern[-1] in "?." and self.rng.random() < 0.15:
            pattern = pattern[:-1]
        return self.rng.choice(OPENINGS) + pattern if self.rng.random() < 0.03 else pattern


def several(total: int, one: str, many: str) -> str:
    """Return `1 class inherits` or `5 classes inherit`."""
    return f"{total} {one if total == 1 else many}"


def with_result(head: str) -> str:
    """Return an answer whose result lines Punie puts in."""
    return f"{head}:\n{RESULT}"


@dataclass(frozen=True)
class Subject:
    """One project as the families see it: its oracle, a voice, and names that it does not have."""

    project: str
    oracle: Oracle
    voice: Voice
    strangers: Sequence[str]
    twins: Sequence[Topic] = ()

    @property
    def rng(self) -> random.Random:
        """The one source of chance."""
        return self.voice.rng

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        return self.rng.sample(list(items), len(items))

    def dealt(self, streams: Iterable[Iterator[T]]) -> Iterator[T]:
        """Yield from streams in random order until each is at its end."""
        left = list(streams)
        while left:
            stream = self.rng.choice(left)
            try:
                item = next(stream)
            except StopIteration:
                left.remove(stream)
            else:
                yield item
