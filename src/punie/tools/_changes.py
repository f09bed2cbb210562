"""Changing files: exact replacement on bytes, and atomic writes that refuse to undo someone else's change."""

import difflib
import os
import re
import secrets
import stat
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile

from pydantic_ai import ModelRetry

from punie.tools._files import MAX_TEXT_BYTES, Answer, is_binary, lines_of, load, outside
from punie.tools._output import clip, nearest, printable
from punie.tools._paths import (
    Content,
    Located,
    NotRegularFileError,
    OutsideWorkspaceError,
    located,
    missing_directories,
    read_located,
    relative_path,
)
from punie.tools._workspace import Workspace, digest

MAX_QUOTED = 5
MAX_COMPARED_LINES = 20_000
_NUMBERED = re.compile(r"\s*\d+\t")


@dataclass(frozen=True, slots=True)
class Change:
    """A file as it is (None: it does not exist yet) and as it shall be, with its place from the root."""

    relative: str
    before: bytes | None
    after: bytes

    @property
    def diff(self) -> list[str]:
        """Unified diff lines, without the two file names."""
        before, after = lines_of(_shown(self.before or b"")), lines_of(_shown(self.after))
        return [clip(line, limit=500) for line in difflib.unified_diff(before, after, lineterm="", n=2)][2:]


def _shown(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def plan_edit(workspace: Workspace, path: str, *, old: str, new: str) -> Change | Answer:
    """The change that replaces the one place where `old` stands. ModelRetry says why there is none."""
    content = load(workspace, path)
    if isinstance(content, Answer):
        return content
    _refuse_unfit(workspace, content)
    after = _replaced(_text(content), old.replace("\r\n", "\n"), new.replace("\r\n", "\n"), path=content.relative)
    return Change(content.relative, content.data, _encoded(after))


def plan_write(workspace: Workspace, path: str, content: str) -> Change | Answer:
    """The change that makes `content` the whole file. An existing file must have been read before."""
    existing = load(workspace, path)
    if isinstance(existing, Answer):
        return Change(_target(workspace, path), None, _encoded(content)) if existing.missing else existing
    _refuse_unfit(workspace, existing)
    if existing.relative not in workspace.seen:
        raise ModelRetry(f"{printable(existing.relative)} exists. Read it with read_file before writing over it.")
    return Change(existing.relative, existing.data, _encoded(content))


def _target(workspace: Workspace, path: str) -> str:
    """Where a new file would lie; its directories may be missing too, so only those that exist are followed."""
    try:
        with located(workspace.root, path) as place:
            relative = place.relative
    except (FileNotFoundError, NotADirectoryError):
        relative = os.path.normpath(relative_path(workspace.root, path))
    _refuse_repository(relative)
    return relative


def _refuse_unfit(workspace: Workspace, content: Content) -> None:
    """ModelRetry if the file cannot be changed as text, or is not what was read."""
    shown = printable(content.relative)
    _refuse_repository(content.relative)
    if not content.whole:
        raise ModelRetry(f"{shown} is over {MAX_TEXT_BYTES // 1_000_000} MB, too large to change. Use run_command.")
    if is_binary(content.data):
        raise ModelRetry(f"{shown} is a binary file. Use run_command to change it.")
    if workspace.seen.get(content.relative, digest(content.data)) != digest(content.data):
        raise ModelRetry(f"{shown} changed since it was read. Read it again with read_file first.")


def _text(content: Content) -> str:
    try:
        return content.data.decode("utf-8")
    except UnicodeDecodeError:
        shown = printable(content.relative)
        raise ModelRetry(f"{shown} is not UTF-8 and cannot be edited without damage. Use run_command.") from None


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ModelRetry("The text holds characters that UTF-8 cannot write. Leave them out.") from None


def _replaced(text: str, old: str, new: str, *, path: str) -> str:
    if not old:
        raise ModelRetry("old is empty. Give the exact text to replace, or use write_file for a new file.")
    if old == new:
        raise ModelRetry("old and new are the same. Give the text that shall stand there instead.")
    path = printable(path)
    view = text.replace("\r\n", "\n")
    places = _places(view, old)
    if not places:
        raise ModelRetry(_not_found(view, old, path=path))
    if len(places) > 1:
        lines = ", ".join(str(view.count("\n", 0, place) + 1) for place in places[:10])
        raise ModelRetry(
            f"old stands {len(places)} times in {path}, at lines {lines}. Add lines around it until it is unique."
        )
    return _spliced(text, old, new, at=places[0])


def _places(text: str, wanted: str) -> list[int]:
    """Where `wanted` starts, overlapping places too: either of two could be meant."""
    places: list[int] = []
    at = text.find(wanted)
    while at >= 0 and len(places) < 1_000:
        places.append(at)
        at = text.find(wanted, at + 1)
    return places


def _spliced(text: str, old: str, new: str, *, at: int) -> str:
    """Put `new` for `old`, which starts at `at` in the view of `text` with plain newlines.

    Only what differs between the two is touched, so lines that stay keep their own line ends.
    """
    head = _same(old, new)
    tail = _same(old[head:][::-1], new[head:][::-1])
    start, end = at + head, at + len(old) - tail
    # In `text` each of these newlines is two characters long.
    pairs = [match.start() - number for number, match in enumerate(re.finditer("\r\n", text))]
    begin, stop = start + bisect_left(pairs, start), end + bisect_left(pairs, end)
    written = new[head : len(new) - tail].replace("\n", _line_end(text, begin))
    return text[:begin] + written + text[stop:]


def _line_end(text: str, at: int) -> str:
    """The line end in use at a place: that of its line, else of the line before."""
    newline = text.find("\n", at)
    if newline < 0:
        newline = text.rfind("\n", 0, at)
    return "\r\n" if newline > 0 and text[newline - 1] == "\r" else "\n"


def _not_found(view: str, old: str, *, path: str) -> str:
    if all(_NUMBERED.match(line) for line in old.split("\n")):
        return f"old is not in {path}. Leave out the line numbers that read_file puts before each line."
    quoted = _nearest_lines(view, old)
    if not quoted:
        return f"old is not in {path}. Read the file and copy the text exactly."
    return "\n".join([f"old is not in {path}. Nearest lines:", *quoted, "Copy the text exactly, with its indentation."])


def _nearest_lines(view: str, old: str) -> list[str]:
    wanted = next((line.strip() for line in old.split("\n") if line.strip()), "")
    lines = view.split("\n")[:MAX_COMPARED_LINES]
    stripped = {line.strip() for line in lines}
    close = {wanted} if wanted in stripped else set(nearest(wanted, stripped, count=3))
    close.discard("")
    found = [f"{number}\t{clip(line)}" for number, line in enumerate(lines, 1) if line.strip() in close]
    return found[:MAX_QUOTED]


def apply(workspace: Workspace, change: Change) -> Answer | None:
    """Write a change in one step, or say what the system has against it.

    ModelRetry if the file is no longer what the change was made from.
    """
    journal = workspace.journal
    if journal is not None and change.before is None:
        journal.creating(missing_directories(workspace.root, change.relative))
    try:
        with located(workspace.root, change.relative, create_parents=change.before is None) as place:
            _refuse_repository(place.relative)
            status = _status(place)
            if journal is not None:
                mode = status.st_mode if status else None
                journal.changing(place.relative, before=change.before, after=change.after, mode=mode)
            _write(place, change, status)
    except OutsideWorkspaceError:
        raise outside(change.relative) from None
    except OSError as error:
        return Answer(f"Cannot write {printable(change.relative)}: {error.strerror or error}")
    workspace.remember(change.relative, change.after)
    return None


def _refuse_repository(relative: str) -> None:
    # Some file systems take `.GIT` for the same directory.
    if any(part.casefold() == ".git" for part in relative.split("/")):
        raise ModelRetry("Files in .git are not for editing. Use git through run_command.")


def _write(place: Located, change: Change, status: os.stat_result | None) -> None:
    with temporary(place) as (name, descriptor):
        fill(descriptor, change.after)
        if status is not None:
            keep_owner(descriptor, status)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
        os.fsync(descriptor)
        if _current(place) != change.before:
            raise ModelRetry(f"{printable(change.relative)} changed meanwhile. Read it again with read_file first.")
        os.replace(name, place.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
    os.fsync(place.directory)


def _status(place: Located) -> os.stat_result | None:
    try:
        status = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFileError(f"{place.relative} is not a regular file")
    if not status.st_mode & 0o222:
        raise PermissionError(0, "it is read-only")
    return status


@contextmanager
def temporary(place: Located) -> Iterator[tuple[str, int]]:
    """A new file beside `place`, by name and descriptor; it is gone at the end unless it was renamed."""
    name = f".punie-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o666, dir_fd=place.directory)
    try:
        yield name, descriptor
    finally:
        os.close(descriptor)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=place.directory)


def fill(descriptor: int, data: bytes) -> None:
    """Write all of the data."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def keep_owner(descriptor: int, status: os.stat_result) -> None:
    """Give an open file the owner and the group of another one, where that is allowed."""
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        with suppress(PermissionError):  # only root may give a file away
            os.fchown(descriptor, status.st_uid, status.st_gid)


def _current(place: Located) -> bytes | None:
    try:
        return read_located(place, limit=MAX_TEXT_BYTES + 1).data
    except FileNotFoundError:
        return None


def changed_lines(change: Change) -> tuple[int, int]:
    """How many lines a change touches, and the first of them."""
    before, after = _shown(change.before or b"").split("\n"), _shown(change.after).split("\n")
    head = _same(before, after)
    tail = min(_same(before[::-1], after[::-1]), len(before) - head, len(after) - head)
    return max(len(before), len(after)) - head - tail, head + 1


def _same(left: Sequence[str], right: Sequence[str]) -> int:
    """How many items from the front are equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
