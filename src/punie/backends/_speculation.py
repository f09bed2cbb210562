"""Guessing ahead: what follows text that came before, and how many tokens it pays to guess. Imports no model library.

A guess changes nothing about what is said: the model reads it in one step and keeps what it would have said itself.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

_LENGTHS = (4, 3)
"""Tokens that must have come before, in this order, for what followed them to be guessed; the longest wins."""
_FIRST_GUESS = 4
_LONGEST_GUESS = 16
_LONGEST_REST = 16


class Drafter(Protocol):
    """Guesses how a sequence of tokens goes on."""

    def begin(self, tokens: Sequence[int]) -> None:
        """Take a new sequence."""
        ...

    def add(self, token: int) -> None:
        """The sequence has grown by a token."""
        ...

    def guess(self, count: int) -> Sequence[int]:
        """At most `count` tokens that may come next; empty for no idea."""
        ...


class Repeats:
    """Guesses that what came after the last few tokens before comes after them again."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def begin(self, tokens: Sequence[int]) -> None:
        """Take a new sequence."""
        self._tokens, self._ends, self._indexed = list(tokens), {}, 0

    def add(self, token: int) -> None:
        """The sequence has grown by a token."""
        self._tokens.append(token)

    def guess(self, count: int) -> Sequence[int]:
        """What followed the latest earlier place that looks like the end."""
        self._index()
        size = len(self._tokens)
        for length in _LENGTHS:
            end = self._ends.get(tuple(self._tokens[size - length :])) if size > length else None
            if end is not None:
                return self._tokens[end : end + count]
        return ()

    def _index(self) -> None:
        """Note where every run of tokens ends, up to the last token: the end itself would only find itself."""
        for end in range(self._indexed + 1, len(self._tokens)):
            for length in _LENGTHS:
                if end >= length:
                    self._ends[tuple(self._tokens[end - length : end])] = end
        self._indexed = max(self._indexed, len(self._tokens) - 1)


class InTurn:
    """Asks several drafters and takes the first guess."""

    def __init__(self, drafters: Iterable[Drafter]) -> None:
        self._drafters = tuple(drafters)

    def begin(self, tokens: Sequence[int]) -> None:
        """Take a new sequence."""
        for drafter in self._drafters:
            drafter.begin(tokens)

    def add(self, token: int) -> None:
        """The sequence has grown by a token."""
        for drafter in self._drafters:
            drafter.add(token)

    def guess(self, count: int) -> Sequence[int]:
        """The guess of the first that has one."""
        return next((found for drafter in self._drafters if (found := drafter.guess(count))), ())


class Pace:
    """How many tokens to guess: more while guesses come true, fewer and not every time while they do not.

    Reading a wrong guess costs time, most of all on a CPU.
    """

    def __init__(self) -> None:
        self._count = _FIRST_GUESS
        self._misses = 0
        self._resting = 0

    def count(self) -> int:
        """Tokens to guess this time, 0 for none."""
        if self._resting:
            self._resting -= 1
            return 0
        return self._count

    def learn(self, *, guessed: int, right: int) -> None:
        """Take note of how a guess came out."""
        if right == guessed:
            self._count = min(2 * self._count, _LONGEST_GUESS)
        elif 2 * right < guessed:
            self._count = max(self._count // 2, 1)
        self._misses = 0 if right else self._misses + 1
        self._resting = min(2**self._misses, _LONGEST_REST) if self._misses > 1 else 0
