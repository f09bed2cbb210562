"""Rows with part of what they teach taken away, and rows that come in pairs: what the rungs of the ladder differ in.

Rows without calls teach answers by heart. Rows that end with a result, and results that say nothing, teach calls and no
end: what to make of a result, and when to stop, is learned from the turn that follows a real one.
"""

from collections.abc import Sequence
from functools import cache
from itertools import islice

from punie import wire
from punie_training.recipe import Trace
from punie_training.rows import Row, Turn
from punie_training.sources import direct

PLACEHOLDER = "[Tool execution completed]"
"""What stood in place of every result in the seed's second phase."""


def viewed(row: Row, *, trace: Trace = "real", answers: bool = True, copied: bool = False) -> Row:
    """The row with its results, and its answers, as wanted; a row that calls no tool stays as it is.

    Where the real result is gone, `[[result]]` has nothing to stand for: the answer holds its lines as shown, and so it
    does where it is to copy them.
    """
    if not any(turn.calls for turn in row.messages):
        return row
    turns = row.messages if answers else row.messages[: _first_answer(row.messages)]
    if copied or trace != "real":
        turns = _spelled_out(turns, trace=trace)
    return row.model_copy(update={"messages": tuple(turns)})


def _first_answer(turns: Sequence[Turn]) -> int:
    """Where the first answer that follows a result stands."""
    after = next((at for at, turn in enumerate(turns) if turn.role == "tool"), len(turns))
    return next((at for at in range(after, len(turns)) if _is_answer(turns[at])), len(turns))


def _is_answer(turn: Turn) -> bool:
    return turn.role == "assistant" and not turn.calls


def _spelled_out(turns: Sequence[Turn], *, trace: Trace) -> Sequence[Turn]:
    shown: list[wire.Message] = []
    kept: list[Turn] = []
    for turn in turns:
        content = wire.View().of(turn.content) if turn.role == "tool" else turn.content
        shown.append(wire.Message(turn.role, content))
        if _is_answer(turn):
            kept.append(turn.model_copy(update={"content": wire.expand(turn.content, shown)}))
        elif turn.role == "user" or (turn.calls and trace != "none"):
            kept.append(turn)
        elif trace != "none":
            kept.append(turn if trace == "real" else turn.model_copy(update={"content": PLACEHOLDER}))
    return kept


def pairs(asked: Sequence[Row], general: Sequence[Row], *, most: int) -> tuple[list[Row], list[Row]]:
    """Tool rows that are twins, and for each a general row of its topic, no row twice; at most that many pairs."""
    by_topic: dict[str, list[Row]] = {}
    for row in general if most else ():
        by_topic.setdefault(_topics().get(row.messages[0].content, ""), []).append(row)
    twins = (row for row in asked if row.template.startswith("twin/") and by_topic.get(_topic(row)))
    found = [(row, by_topic[_topic(row)].pop(0)) for row in islice(twins, most)]
    return [row for row, _ in found], [row for _, row in found]


def _topic(row: Row) -> str:
    return row.template.removeprefix("twin/")


@cache
def _topics() -> dict[str, str]:
    """Question -> topic, of all general questions that may be trained on."""
    return {question: topic.id for topic in direct.load("train") for question in topic.questions}
