"""How right an answer is: precision and recall of what it names, against what the oracle expects.

An answer is marked by what it says, never by how: the paths, numbers and lines in it are read out and compared.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from punie_training.tasks import Expect

_PLACE = re.compile(r"(?P<path>[\w@+~./-]*\w\.?\w*):(?P<line>\d+)(?:-\d+)?(?!\d)")
_LEADING = re.compile(r"^(?:[-*] +)?`?")
_NUMBERED = re.compile(r"^ *(\d+)(?:\t(.*))?$")  # the tab of an empty line may be stripped
_FILE = re.compile(r"^[^\s*]*(?:/[^\s*/]+|[^\s*/]+\.\w+)$")
_NO = re.compile(r"\b(?:no|not|none|nothing|nobody|never|zero|0)\b|n't\b", re.IGNORECASE)


@dataclass(frozen=True)
class Mark:
    """Precision and recall of one answer; both are 0 where something that must be said is missing."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    @property
    def right(self) -> bool:
        """Whether nothing is missing and nothing is too much."""
        return self.precision == 1.0 and self.recall == 1.0


WRONG = Mark(0.0, 0.0)
RIGHT = Mark(1.0, 1.0)


def mark(answer: str, expect: Expect, *, root: Path | None = None) -> Mark:
    """Compare the answer, result lines in place, with what is expected; `root` is needed for changed files."""
    if not answer.strip() or not all(text in answer for text in expect.says):
        return WRONG
    match expect.kind:
        case "places":
            return _compare(places(answer), expect.values)
        case "paths":
            return _compare(paths(answer), expect.values)
        case "lines":
            return _compare(numbered(answer), (v.rstrip() for v in expect.values))
        case "output":
            return _compare(_block(answer), (v.strip() for v in expect.values if v.strip()))
        case "count":
            return RIGHT if first_number(answer) == expect.total else WRONG
        case "nothing":
            return RIGHT if _NO.search(answer) and not places(answer) else WRONG
        case "words":
            return RIGHT
        case "file":
            return RIGHT if root and _holds(root / expect.values[0], expect.values[1]) else WRONG


def _compare(found: Iterable[str], expected: Iterable[str]) -> Mark:
    found, wanted = set(found), set(expected)
    if not found or not wanted:
        return RIGHT if found == wanted else WRONG
    both = len(found & wanted)
    return Mark(both / len(found), both / len(wanted))


def places(answer: str) -> set[str]:
    """Return each `path:line` the answer names; a line that starts with one counts for that one only."""
    found: set[str] = set()
    for line in answer.splitlines():
        start = _LEADING.sub("", line.strip())
        leading = _PLACE.match(start)
        matches = [leading] if leading else _PLACE.finditer(start)
        found.update(f"{m['path']}:{m['line']}" for m in matches if _is_path(m["path"]))
    return found


def _is_path(text: str) -> bool:
    return "/" in text or "." in text.strip(".")


def paths(answer: str) -> set[str]:
    """Return each file the answer names: a line that is one, else the words of a line that look like one."""
    found: set[str] = set()
    for line in answer.splitlines():
        whole = _LEADING.sub("", line.strip()).rstrip("`")
        if line.startswith("    ") and " " not in whole:
            found.add(whole)
        else:
            found.update(_files_in(line))
    return found - {""}


def _files_in(line: str) -> Iterator[str]:
    for word in line.split():
        name = word.strip("`'\",;:()").rstrip(".")
        if _FILE.match(name) and "." in name.rsplit("/", 1)[-1]:
            yield name


def numbered(answer: str) -> set[str]:
    """Return the numbered lines in the answer as `number<TAB>text`."""
    found = (_NUMBERED.match(line) for line in answer.splitlines())
    return {f"{m[1]}\t{m[2] or ''}".rstrip() for m in found if m}


def _block(answer: str) -> set[str]:
    """Return the lines below the first, stripped."""
    return {line.strip() for line in answer.splitlines()[1:] if line.strip()}


def first_number(answer: str) -> int | None:
    """Return the number an answer gives: the first integer, 0 for a plain "no"."""
    number = re.search(r"(?<![\w.])\d+(?![\w.]*\w)", answer)
    if number:
        return int(number[0])
    return 0 if _NO.search(answer) else None


def _holds(file: Path, digest: str) -> bool:
    if not file.is_file():
        return False
    text = file.read_text("utf-8").replace("\r\n", "\n").rstrip("\n")
    return hashlib.sha256(text.encode()).hexdigest() == digest
