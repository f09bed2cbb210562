"""Which lines match a pattern."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic_ai import ModelRetry, RunContext

from punie.redaction import without_private_keys
from punie.tools._files import decode, encoding_of, is_binary
from punie.tools._glob import compile_glob
from punie.tools._output import MAX_ITEMS, clip, counted, listing
from punie.tools._regex import InvalidRegexError, Matcher, OutOfTimeError, literal_matcher, regex_matcher
from punie.tools._workspace import Workspace

MAX_FILE_BYTES = 2_000_000
_METACHARACTERS = re.compile(r"[\\^$.|?*+()\[\]{}]")


@dataclass
class _Found:
    """What a search has come up with so far."""

    items: list[str] = field(default_factory=list)
    total: int = 0
    looked_at: int = 0
    oversized: int = 0
    stopped: bool = False


def search(ctx: RunContext[Workspace], pattern: str, glob: str | None = None) -> str:
    """Search file contents for text or a regex.

    Args:
        pattern: Text or Python regular expression, matched per line.
        glob: Only files matching this, such as *.py.
    """
    if not pattern:
        raise ModelRetry("pattern is empty. Give the text to search for.")
    found, note = _searched(ctx.deps, pattern, glob)
    header = f"{counted(found.total, 'match', plural='matches')} for {clip(pattern)}{note}"
    # `listing` counts what it is given; empty strings stand for the matches that were only counted.
    items = found.items + [""] * (found.total - len(found.items))
    return listing(header, items, narrow="narrow with glob=", notes=_notes(ctx.deps, found, glob=glob))


def _searched(workspace: Workspace, pattern: str, glob: str | None) -> tuple[_Found, str]:
    """What was found, and what the header says about how the pattern was taken."""
    note = ""
    if _METACHARACTERS.search(pattern):
        try:
            with regex_matcher(pattern, time_limit_s=workspace.search_timeout_s) as matches:
                return _through(workspace, glob, matches), note
        except InvalidRegexError:
            note = " (taken literally: not a valid regular expression)"
    with literal_matcher(pattern) as matches:
        return _through(workspace, glob, matches), note


def _through(workspace: Workspace, glob: str | None, matches: Matcher) -> _Found:
    found = _Found()
    try:
        for path in _paths(workspace, glob, found):
            _look(workspace, path, matches=matches, found=found)
    except OutOfTimeError:
        found.stopped = True
    return found


def _paths(workspace: Workspace, glob: str | None, found: _Found) -> Iterator[str]:
    wanted = compile_glob(glob or "")
    for entry in workspace.files():
        if not wanted(entry.path):
            continue
        found.looked_at += 1
        if entry.size > MAX_FILE_BYTES:
            found.oversized += 1
        elif entry.size:
            yield entry.path


def _look(workspace: Workspace, path: str, *, matches: Matcher, found: _Found) -> None:
    try:
        data = workspace.tree.read(path, limit=MAX_FILE_BYTES).data
    except OSError:
        return  # gone or unreadable since the listing
    if is_binary(data):
        return
    if encoding_of(data)[1]:
        data = decode(data)[0].encode("utf-8", "replace")
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    numbers = matches(data)
    found.total += len(numbers)
    shown = numbers[: MAX_ITEMS - len(found.items)]
    lines = without_private_keys(data.decode("utf-8", errors="replace")).split("\n") if shown else []
    for number in shown:
        text = workspace.redact(lines[number - 1].strip())
        found.items.append(f"{clip(path, limit=400)}:{number} {clip(text)}")


def _notes(workspace: Workspace, found: _Found, *, glob: str | None) -> list[str]:
    notes = []
    if glob and not found.looked_at:
        notes.append(f"(no file matches {clip(glob)})")
    if found.stopped:
        notes.append(f"(stopped after {workspace.search_timeout_s:g} s: use a simpler pattern or glob=)")
    if found.oversized:
        notes.append(f"({counted(found.oversized, 'file')} skipped: over {MAX_FILE_BYTES // 1_000_000} MB)")
    return notes
