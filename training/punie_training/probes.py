"""Real conversations that two forms of one model are compared on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from punie.backends.catalogue import EMBEDDED
from punie.wire import Example, Message
from punie_training.examples import declarations, example, read, renderer_for
from punie_training.served import served
from punie_training.sources import direct

T = TypeVar("T")


def probes(
    base: Path, *, template: str, data: Path | None = None, count: int = 8, name: str = EMBEDDED
) -> tuple[Example, ...]:
    """Conversations out of a data file, spread over it; without one, general questions of the test split.

    They stand in the chat template given, if any, and look as those of the base of this name, or path, are served.
    """
    how = served(name, base)
    renderer = renderer_for(base, template=template or how.template, view=how.view)
    if data:
        return tuple(example(row, renderer, how) for row in _spread(read(data), count))
    offered = declarations()
    return tuple(renderer.example(how.messages(talk), offered) for talk in _spread(tuple(_topics()), count))


def _spread(items: Sequence[T], count: int) -> Sequence[T]:
    return items[:: max(1, len(items) // count)][:count]


def _topics() -> Iterator[tuple[Message, ...]]:
    for topic in direct.load("test"):
        yield Message("user", topic.questions[0]), Message("assistant", topic.answer)
