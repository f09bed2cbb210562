"""Which lines match a pattern."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic_ai import RunContext

from punie.tools._files import is_binary
from punie.tools._glob import compile_glob
from punie.tools._output import MAX_ITEMS, clip, counted, listing
from punie.tools._paths import read_beneath
from punie.tools._regex import Matcher, OutOfTimeError, literal_matcher, regex_matcher
from punie.tools._workspace import Workspace

MAX_FILE_BYTES = 2_000_000
TIME_LIMIT_S = 10.0
_METACHARACTERS = re.compile(r"[\\^$.|?*+()\[\]{}]")


@dataclass
class _Found:
    """What a search has come up with so far."""

    items: list[str] = field(default_factory=list)
    total: int = 0
    oversized: int = 0
    stopped: bool = False


def search(ctx: RunContext[Workspace], pattern: str, glob: str | None = None) -> str:
    """Search file contents for text or a regex.

    Args:
        pattern: Text or Python regular expression, matched per line.
        glob: Only files matching this, such as *.py.
    """
    literal, note = _reading(pattern)
    found = _Found()
    matcher = literal_matcher(pattern) if literal else regex_matcher(pattern, time_limit_s=TIME_LIMIT_S)
    with matcher as matches:
        try:
            for path in _paths(ctx.deps, glob, found):
                _look(ctx.deps, path, matches=matches, found=found)
        except OutOfTimeError:
            found.stopped = True
    header = f"{counted(found.total, 'match', plural='matches')} for {clip(pattern)}{note}"
    left = found.total - len(found.items)
    # `listing` counts what it is given; empty strings stand for the matches that were only counted.
    return listing(header, found.items + [""] * left, narrow="narrow with glob=", notes=_notes(found))


def _reading(pattern: str) -> tuple[bool, str]:
    """Whether to take the pattern as plain text, and what the header says about it."""
    if not _METACHARACTERS.search(pattern):
        return True, ""
    try:
        re.compile(pattern.encode("utf-8", "surrogateescape"))
    except (re.error, OverflowError, RecursionError):
        return True, " (taken literally: not a valid regular expression)"
    return False, ""


def _paths(workspace: Workspace, glob: str | None, found: _Found) -> Iterator[str]:
    wanted = compile_glob(glob or "")
    for entry in workspace.files():
        if not wanted(entry.path):
            continue
        if entry.size > MAX_FILE_BYTES:
            found.oversized += 1
        elif entry.size:
            yield entry.path


def _look(workspace: Workspace, path: str, *, matches: Matcher, found: _Found) -> None:
    try:
        data = read_beneath(workspace.root, path, limit=MAX_FILE_BYTES).data
    except OSError:
        return  # gone or unreadable since the listing
    if is_binary(data):
        return
    numbers = matches(data)
    found.total += len(numbers)
    lines = data.split(b"\n") if numbers and len(found.items) < MAX_ITEMS else []
    for number in numbers[: MAX_ITEMS - len(found.items)] if lines else ():
        text = lines[number - 1].decode("utf-8", errors="replace").strip()
        found.items.append(f"{clip(path, limit=400)}:{number} {clip(text)}")


def _notes(found: _Found) -> list[str]:
    notes = []
    if found.stopped:
        notes.append(f"(stopped after {TIME_LIMIT_S:.0f} s: use a simpler pattern or glob=)")
    if found.oversized:
        notes.append(f"({counted(found.oversized, 'file')} skipped: over {MAX_FILE_BYTES // 1_000_000} MB)")
    return notes
