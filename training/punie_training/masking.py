"""Rows whose tools go by other names, or are not there: a model that has learned names by heart fails on them.

This is the function masking of Hammer (2024): what a tool does then has to be read in its declaration.
"""

import random
import string
from collections.abc import Mapping, Sequence

from punie_training.rows import Declaration, Row, Turn

ABSENT_SHARE = 0.25
"""Of the masked rows, those that lose the tool they need; the others have their tools renamed."""
REFUSALS = (
    "No tool here can do that.",
    "None of the tools here can do that.",
    "I cannot do that, since no tool here does it.",
)
_STEMS = ("tool", "fn", "func", "op", "action", "helper", "step", "cmd")
_LOOKUPS = frozenset({"find_symbol", "find_subclasses", "find_references", "search", "read_file", "run_command"})
_INSTEAD: Mapping[str, frozenset[str]] = {
    "find_symbol": _LOOKUPS,
    "find_subclasses": _LOOKUPS,
    "find_references": _LOOKUPS,
    "search": _LOOKUPS,
    "read_file": frozenset({"search", "run_command"}),
    "list_files": frozenset({"search", "run_command"}),
    "edit_file": frozenset({"write_file", "run_command"}),
    "write_file": frozenset({"edit_file", "run_command"}),
}
"""What could do the work of a tool, and has to go with it for the refusal to be true."""


def masked(rows: Sequence[Row], share: float, *, seed: int) -> tuple[Row, ...]:
    """Mask that share of the rows that call a tool; the same rows in the same way for the same seed."""
    calling = [at for at, row in enumerate(rows) if any(turn.calls for turn in row.messages)]
    chosen = set(random.Random(f"masked {seed}").sample(calling, round(share * len(calling))))
    return tuple(_mask(row, seed) if at in chosen else row for at, row in enumerate(rows))


def _mask(row: Row, seed: int) -> Row:
    rng = random.Random(f"{seed} {row.id}")
    return without_tool(row, rng) if rng.random() < ABSENT_SHARE else renamed(row, rng)


def renamed(row: Row, rng: random.Random) -> Row:
    """The row with a neutral name for each tool, in calls and declarations alike; no text of a turn is changed.

    The declarations are put in another order too, or their places would stand in for the names.
    """
    offered = _offered(row)
    texts = " ".join(turn.content for turn in row.messages)
    taken = {tool.function.name for tool in offered}
    names: dict[str, str] = {}
    for tool in offered:
        names[tool.function.name] = _neutral(rng, taken, texts)
        taken.add(names[tool.function.name])
    declared = tuple(_named(tool, names) for tool in rng.sample(offered, len(offered)))
    return row.model_copy(update={"tools": declared, "messages": tuple(_calling(t, names) for t in row.messages)})


def _neutral(rng: random.Random, taken: set[str], texts: str) -> str:
    while True:
        name = f"{rng.choice(_STEMS)}_{rng.choice(string.ascii_lowercase)}{rng.randint(1, 99)}"
        if name not in taken and name not in texts:
            return name


def _named(tool: Declaration, names: Mapping[str, str]) -> Declaration:
    function = tool.function.model_copy(update={"name": names[tool.function.name]})
    return tool.model_copy(update={"function": function})


def _calling(turn: Turn, names: Mapping[str, str]) -> Turn:
    calls = tuple(call.model_copy(update={"name": names.get(call.name, call.name)}) for call in turn.calls)
    return turn.model_copy(update={"calls": calls})


def without_tool(row: Row, rng: random.Random) -> Row:
    """The row up to the first question that needs a tool, which is not on offer; the answer says so in one sentence.

    It is a direct answer, and counts as one in the loss.
    """
    first = next(at for at, turn in enumerate(row.messages) if turn.calls)
    asked = max(at for at in range(first) if row.messages[at].role == "user")
    needed = row.messages[first].calls[0].name
    gone = {needed, *(_INSTEAD.get(needed, ()) if row.tools is None else ())}
    left = tuple(tool for tool in _offered(row) if tool.function.name not in gone)
    refusal = Turn(role="assistant", content=rng.choice(REFUSALS))
    messages = (*row.messages[: asked + 1], refusal)
    return row.model_copy(update={"family": "absent", "project": "", "tools": left, "messages": messages})


def _offered(row: Row) -> tuple[Declaration, ...]:
    return tuple(Declaration.model_validate(tool) for tool in row.offered())
