"""Real conversations that two forms of one model are compared on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from punie.backends import _gguf, _weights
from punie.wire import Example, Message, View, Wire
from punie_training.examples import declarations, read
from punie_training.sources import direct


def probes(base: Path, *, template: str, data: Path | None = None, count: int = 8) -> tuple[Example, ...]:
    """Conversations out of a data file, spread over it; without one, general questions of the test split."""
    talks = tuple(_rows(data) if data else _topics())
    wire = Wire(_tokenizer(base), template=template or _weights.shipped_template(), view=View())
    offered = declarations()
    return tuple(wire.example(talk, offered) for talk in talks[:: max(1, len(talks) // count)][:count])


def _rows(data: Path) -> Iterator[Sequence[Message]]:
    yield from ([message.plain() for message in row.messages] for row in read(data))


def _topics() -> Iterator[Sequence[Message]]:
    for topic in direct.load("test"):
        yield [Message("user", topic.questions[0]), Message("assistant", topic.answer)]


def _tokenizer(base: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base / "tokenizer.json")) if base.is_dir() else _gguf.tokenizer(base)
