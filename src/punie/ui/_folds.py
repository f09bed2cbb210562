"""What the one-line form of tool calls leaves out, kept for Ctrl-O."""

from collections import deque
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from punie.ui._clean import clean

_KEPT = 200
"""Calls whose output can still be unfolded."""


@dataclass(frozen=True)
class Fold:
    """One tool call with everything it gave."""

    call: str
    output: str


class Folds:
    """The calls of a chat, unfolded one after the other: the last one first."""

    def __init__(self) -> None:
        self._calls: deque[Fold] = deque(maxlen=_KEPT)
        self._next = 0

    def add(self, call: str, output: str) -> None:
        """Keep what a call gave; it is the next one to be unfolded."""
        self._calls.append(Fold(call, output))
        self._next = 0

    def unfold(self, console: Console) -> None:
        """Print one call with its whole output: the last one, and each further time the one before."""
        if self._next >= len(self._calls):
            said = "There is no earlier tool call." if self._calls else "No tool has run yet."
            console.print(Text(said, "dim"))
            self._next = 0
            return
        self._next += 1
        fold = self._calls[-self._next]
        console.print(Text(f"▾ {clean(fold.call)}", "cyan"), soft_wrap=True)
        console.print(Text(clean(fold.output).rstrip("\n"), "dim"), soft_wrap=True)
        left = len(self._calls) - self._next
        if left:
            console.print(Text(f"(Ctrl-O again: the call before it, {left} more)", "dim"))
