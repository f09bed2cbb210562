"""What a whole session did to files: one diff between how it found them and how they are now."""

import difflib
import stat
from dataclasses import dataclass

from punie.agent.undo import Undo

_MOST_LINES = 5_000
"""Lines of one file that are compared; longer ones are named."""


@dataclass(frozen=True)
class Difference:
    """A unified diff, and a line about each file that it cannot show."""

    text: str
    notes: tuple[str, ...] = ()


def difference(journal: Undo) -> Difference:
    """Compare every file that the session changed with what stands there now; who changed it since does not matter."""
    shown: list[str] = []
    notes: list[str] = []
    for name, before in sorted(journal.originals().items()):
        path = journal.root / name
        try:
            after = path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None
        except OSError:
            after = None
        if before == after:
            continue
        old, new = _lines(before), _lines(after)
        if old is None or new is None:
            notes.append(f"{name}: changed, not text, or too long to show")
            continue
        names = (f"a/{name}" if before is not None else "/dev/null", f"b/{name}" if after is not None else "/dev/null")
        shown += difflib.unified_diff(old, new, *names, lineterm="")
    return Difference("\n".join(shown), tuple(notes))


def _lines(data: bytes | None) -> list[str] | None:
    """The lines of a text file; None of one that is not text."""
    try:
        lines = (data or b"").decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return None
    return lines if len(lines) <= _MOST_LINES else None
