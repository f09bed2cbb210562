"""A teacher's conversation as a row: kept where the oracle agrees, in the form that the embedded model is shown."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelRequest

from punie import tools
from punie.agent.citations import UNVERIFIED
from punie.wire import Message, View, conversation, expand
from punie_training import rules
from punie_training.generate import LONGEST_ROW, Row, is_refusal, size
from punie_training.score import mark
from punie_training.sources.copied import abbreviated
from punie_training.tasks import Task, Turn

SOURCE = "teacher:"
"""Begins the `source` of a row that a teacher gave; the name of the model follows."""


class Unfit(Exception):  # noqa: N818 - says what the conversation is
    """A conversation that gives no row; the text is the reason it is counted under."""


@dataclass(frozen=True)
class TaughtRow(Row):
    """A row that names who gave it."""

    source: str = ""


def row_of(task: Task, history: Sequence[ModelMessage], *, root: Path, teacher: str) -> TaughtRow:
    """The row of a finished conversation about `task` in the workspace `root`. Raises Unfit.

    What a row never holds is taken out without a loss: system texts, what was said beside a call, lines of the last
    result that the answer repeats (they become the marker), and calls made side by side come one after the other.
    """
    if any(is_refusal(part) for m in history if isinstance(m, ModelRequest) for part in m.parts):
        raise Unfit("a tool refused the call")
    talk = [m for m in conversation(history) if m.role != "system"]
    messages: list[Message] = []
    for turn, said in zip(task.turns, _questions(talk), strict=True):
        _refuse_needless_or_missing(turn, said)
        messages += _one_by_one(said[:-1])
        messages.append(_answer(turn, said[-1], messages, root=root))
    last = task.turns[-1]
    row = TaughtRow(
        *(task.id, task.family, task.project, task.template, last.question, tuple(messages), last.expect),
        source=f"{SOURCE}{teacher}",
    )
    _refuse_what_the_check_finds(row)
    if size(messages) > LONGEST_ROW:
        raise Unfit("too long")
    return row


def _questions(talk: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Each question with all that follows it up to the next."""
    starts = [at for at, message in enumerate(talk) if message.role == "user"]
    for start, end in zip(starts, [*starts[1:], len(talk)], strict=True):
        yield talk[start:end]


def _refuse_needless_or_missing(turn: Turn, said: Sequence[Message]) -> None:
    """An answer without evidence teaches to guess, a call for what was said before teaches to call for everything."""
    called = any(message.calls for message in said)
    if turn.steps and not called:
        raise Unfit("no tool was called")
    if called and not turn.steps:
        raise Unfit("a tool was called for what was known")


def _one_by_one(said: Sequence[Message]) -> Iterator[Message]:
    """Calls without the words beside them, each right before its result."""
    results = iter([message for message in said if message.role == "tool"])
    for message in said:
        if message.role != "tool" and not message.calls:
            yield message
        if len(message.calls) > 1 and any(call.name not in tools.READ_ONLY for call in message.calls):
            raise Unfit("changes side by side")
        for call in message.calls:
            yield Message("assistant", "", (call,))
            yield next(results)


def _answer(turn: Turn, final: Message, earlier: Sequence[Message], *, root: Path) -> Message:
    """The answer with the marker if it is right so, else as it was said, if that is right."""
    if UNVERIFIED in final.content:
        raise Unfit("names places that no tool has shown")
    for text in (abbreviated(final.content, earlier), final.content):
        if mark(expand(text, earlier), turn.expect, root=root).right:
            _refuse_unseen(turn, text, earlier)
            return replace(final, content=text)
    marked = mark(expand(final.content, earlier), turn.expect, root=root)
    raise Unfit(f"answer differs: precision {marked.precision:.1f} recall {marked.recall:.1f}")


def _refuse_unseen(turn: Turn, text: str, earlier: Sequence[Message]) -> None:
    """A small model sees long results shortened: naming what it does not see teaches it to make things up."""
    view = View()
    seen = "\n".join(view.of(m.content) if m.role == "tool" else m.text for m in earlier)
    named = turn.expect.values if turn.expect.kind in {"places", "paths", "lines", "output"} else ()
    if any(value.strip() in text and value.strip() not in seen for value in named):
        raise Unfit("names what a small model is not shown")


def _refuse_what_the_check_finds(row: Row) -> None:
    subject = rules.Subject(json.loads(row.line()))
    for rule, find in rules.OF_ONE_ROW.items():
        if any(find(subject)):
            raise Unfit(f"fails the check: {rule}")
