"""When to stop a model that goes round in circles: repeated calls and repeated text. Nothing here but counting."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NOTE_AT = 3
REFUSE_AT = 5
REFUSALS = 3
"""Refused calls in one turn; the next one ends it: the eighth of the same call, or an earlier one among several."""
STALE = 7
"""Calls in a row, whichever they are, that gave or would give only what the turn had already given: so many end it."""

REFUSED = "Refused: this call has given the same result each time. Use what it gave, try something else, or answer."

COPIES = 4
CUT = "\n\n[cut: the model repeated itself]"
_LONGEST_CHUNK = 240
_LONG = 20
_SHORTEST_LINE = 12
_WINDOW = (COPIES + 1) * _LONGEST_CHUNK
"""Characters at the end that show whether a text repeats itself; what stands before only says since when."""
_DURATION = re.compile(r"\bin \d+(?:\.\d+)? s\b")


@dataclass
class LoopWatch:
    """Counts identical calls of one turn: same tool, same arguments, same result, in whatever order they come."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _calls: dict[str, str] = field(default_factory=dict)
    _refusals: int = 0
    _stale: int = 0

    def refuses(self, name: str, arguments: Mapping[str, object]) -> bool:
        """Whether the next call like this is one too many; each yes counts as a refusal."""
        call = _call_key(name, arguments)
        last = self._calls.get(call)
        seen = self._counts[call, last] if last is not None else 0
        if not seen or (seen < REFUSE_AT - 1 and self._stale < STALE - 1):
            return False
        self._refusals += 1
        self._stale += 1
        return True

    @property
    def stuck(self) -> bool:
        """Whether the model keeps on after it was refused, or has long learned nothing new."""
        return self._refusals > REFUSALS or self._stale >= STALE

    def record(self, name: str, arguments: Mapping[str, object], result: str, *, changes_files: bool = False) -> int:
        """Count a finished call and return how often it has given this result.

        A change that was not made before starts the other counts anew: the tests may well fail the same way after it.
        """
        call, digest = _call_key(name, arguments), _digest(_DURATION.sub("", result))
        if changes_files and call not in self._calls:
            self._counts = dict.fromkeys(self._counts, 0)
        self._calls[call] = digest
        count = self._counts[call, digest] = self._counts.get((call, digest), 0) + 1
        self._stale = self._stale + 1 if count > 1 else 0
        return count


def note(count: int) -> str:
    """What the model is told beside a result it has seen `count` times."""
    return f"(the same call gave the same result {count} times; do not repeat it, answer or try something else)"


def _call_key(name: str, arguments: Mapping[str, object]) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True, default=str)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def repetition_at_end(text: str) -> int | None:
    """Where to cut a text whose end repeats itself, keeping the first copy; None when it does not."""
    for size in range(1, min(_LONGEST_CHUNK, len(text) // COPIES) + 1):
        chunk = text[-size:]
        if text[-2 * size : -size] != chunk or not chunk.strip() or not any(character.isalnum() for character in chunk):
            continue
        if text.endswith(chunk * _copies(chunk)):
            return _first_copy_end(text, size)
    return None


def _copies(chunk: str) -> int:
    """How many copies are too many: few of a line or a long piece, more of a short one or a row of characters."""
    enough = _SHORTEST_LINE if "\n" in chunk else _LONG
    is_one_piece = chunk not in (chunk + chunk)[1:-1]
    if is_one_piece and len(chunk.strip()) >= enough:
        return COPIES
    return max(COPIES, -(-_LONGEST_CHUNK // len(chunk)))


def _first_copy_end(text: str, size: int) -> int:
    start = len(text) - size
    while start > 0 and text[start - 1] == text[start - 1 + size]:
        start -= 1
    if start > 0 and "\n" in text[start : start + size]:
        start = text.index("\n", start)  # whole lines are kept whole
    return start + size


def cut_repetition(text: str) -> str | None:
    """The text up to the first copy of what it repeats; None when it does not repeat itself."""
    for end in (*range(40, len(text), 40), len(text)):
        if repetition_at_end(text[max(0, end - _WINDOW) : end]) is None:
            continue
        cut = repetition_at_end(text[:end])
        if cut is not None:
            return text[:cut].rstrip()
    return None
