"""Questions that need no tool, each with the short answer to give.

A topic with a twin also carries the question that sounds alike and does need a tool: "What is a Protocol?" is answered
directly, "Find all classes that inherit from {name}" is not. The files in `direct/` begin with the name of their split.
"""

import re
import string
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from punie.errors import PunieError

Split = Literal["train", "dev", "test"]
Category = Literal["concept", "comparison", "best_practice", "syntax", "documentation", "about_punie", "chitchat"]
ToolFamily = Literal[
    "subclasses",
    "definition",
    "references",
    "read",
    "outline",
    "count",
    "signature",
    "list_files",
    "search",
    "command",
    "two_hop",
]
DIRECTORY = Path(__file__).with_name("direct")
SPLITS: tuple[Split, ...] = get_args(Split)
MOST_WORDS = 45
FEWEST_QUESTIONS, MOST_QUESTIONS = 3, 5
PLACEHOLDERS = frozenset({"name", "path"})
NEEDS_NAME = frozenset({"subclasses", "definition", "references", "signature", "two_hop"})
NEEDS_PATH = frozenset({"read", "outline"})
LURE = re.compile(
    r"(find|show|list|search|count|where|(in |on |from )?which|how many|tell me|look up)\b", re.IGNORECASE
)


class InvalidTopics(PunieError):  # noqa: N818 - says what happened, like its siblings in punie.errors
    """The material breaks its own rules; the text names the first topics that do."""


@dataclass(frozen=True)
class Topic:
    """One thing that can be asked about, in several wordings with one answer."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    category: Category
    questions: tuple[str, ...]
    answer: str
    twin: bool = False
    tool_twin: str = ""
    """With `{name}` for a symbol or word of the code and `{path}` for a file or directory."""
    tool_family: ToolFamily | None = None

    @property
    def lures(self) -> tuple[str, ...]:
        """The questions that begin like a request to look at the code."""
        return tuple(q for q in self.questions if LURE.match(q))


Splits = Mapping[Split, Sequence[Topic]]
_ROWS: TypeAdapter[tuple[Topic, ...]] = TypeAdapter(tuple[Topic, ...])


def load(split: Split) -> tuple[Topic, ...]:
    """Return the topics of a split; refuses the whole material if any split breaks a rule."""
    return load_all(DIRECTORY)[split]


@cache
def load_all(directory: Path) -> Mapping[Split, tuple[Topic, ...]]:
    """Read every split and check them together, since a leak between two shows in neither."""
    splits: Mapping[Split, tuple[Topic, ...]] = MappingProxyType(
        {split: _read_split(directory, split) for split in SPLITS}
    )
    faults = tuple(problems(splits))
    if faults:
        raise InvalidTopics(f"{len(faults)} problems in {directory.name}/: {'; '.join(faults[:3])}", "Mend the files.")
    return splits


def problems(splits: Splits) -> Iterator[str]:
    """Describe everything that breaks a rule."""
    topics = tuple(chain.from_iterable(splits.values()))
    yield from (f"{topic}: id used twice" for topic in _repeated(t.id for t in topics))
    yield from (f"asked twice: {question}" for question in _repeated(_all_questions(topics)))
    for topic in topics:
        yield from (f"{topic.id}: {fault}" for fault in chain(_text_faults(topic), _twin_faults(topic)))


def normalised(question: str) -> str:
    """Return the words of a question without case, punctuation and spacing; symbols count if they are all it has."""
    words = question.lower().translate(str.maketrans("", "", "`'\"")).split()
    return " ".join(word.strip(string.punctuation) or word for word in words)


def _read_split(directory: Path, split: Split) -> tuple[Topic, ...]:
    paths = sorted(directory.glob(f"{split}*.toml"))
    return tuple(chain.from_iterable(_read(path) for path in paths))


def _read(path: Path) -> tuple[Topic, ...]:
    try:
        # Lax: TOML has arrays, no tuples.
        return _ROWS.validate_python(tomllib.loads(path.read_text("utf-8")).get("topic", []))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise InvalidTopics(f"{path.name}: {error}") from error


def _all_questions(topics: Sequence[Topic]) -> Iterator[str]:
    """Twins count too: the same words must not ask for a tool in one place and for none in another."""
    for topic in topics:
        yield from (normalised(q) for q in topic.questions)
    yield from {normalised(t.tool_twin) for t in topics if t.tool_twin}


def _repeated(values: Iterator[str]) -> Iterator[str]:
    return (value for value, times in Counter(values).items() if times > 1)


def _text_faults(topic: Topic) -> Iterator[str]:
    words = len(topic.answer.split())
    if not FEWEST_QUESTIONS <= len(topic.questions) <= MOST_QUESTIONS:
        yield f"{len(topic.questions)} questions"
    if not 1 <= words <= MOST_WORDS:
        yield f"{words} words in the answer"
    if topic.answer[-1:] not in (".", "?", "!"):
        yield "the answer does not end like a sentence"
    if "\n" in topic.answer or "```" in topic.answer or topic.answer.count("`") % 2:
        yield "the answer is not one plain paragraph"
    for text in (topic.id, *topic.questions, topic.answer, topic.tool_twin):
        if not text.isascii() or text != text.strip():
            yield f"not plain ASCII: {text!r}"


def _twin_faults(topic: Topic) -> Iterator[str]:
    if not topic.twin == bool(topic.tool_twin) == (topic.tool_family is not None):
        yield "twin, tool_twin and tool_family go together"
        return
    found = {name for _, name, _, _ in string.Formatter().parse(topic.tool_twin) if name is not None}
    if not found <= PLACEHOLDERS or len(found) > 1:
        yield f"placeholders {sorted(found)}"
    if topic.tool_family in NEEDS_NAME and found != {"name"}:
        yield f"{topic.tool_family} needs a name"
    if topic.tool_family in NEEDS_PATH and found != {"path"}:
        yield f"{topic.tool_family} needs a path"
