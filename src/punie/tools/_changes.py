"""Changing files: exact replacement on bytes, and atomic writes that refuse to undo someone else's change."""

import difflib
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

from pydantic_ai import ModelRetry

from punie.redaction import MARKER
from punie.tools._beneath import READ, open_beneath
from punie.tools._files import (
    MAX_TEXT_BYTES,
    Answer,
    decode,
    encoding_of,
    is_binary,
    lines_of,
    load,
    outside,
    plain_ends,
    refuse_unjudged,
)
from punie.tools._output import clip, nearest, printable
from punie.tools._paths import (
    Content,
    Located,
    OutsideWorkspaceError,
    bytes_of,
    plain_name,
    read_located,
    regular,
)
from punie.tools._replace import ChangedError, temporary
from punie.tools._workspace import Workspace, digest

MAX_QUOTED = 5
MAX_COMPARED_LINES = 20_000
_NUMBERED = re.compile(r"\s*\d+\t")
_LINE_END = re.compile(r"\r\n|\n|\r")
# On Windows' file systems the second is another name of the first.
_REPOSITORY = {".git", "git~1"}


@dataclass(frozen=True, slots=True)
class Change:
    """A file as it is (None: it does not exist yet) and as it shall be, with its place from the root."""

    relative: str
    before: bytes | None
    after: bytes

    @property
    def diff(self) -> list[str]:
        """Unified diff lines, without the two file names."""
        before, after = lines_of(decode(self.before or b"")[0]), lines_of(decode(self.after)[0])
        return [clip(line, limit=500) for line in difflib.unified_diff(before, after, lineterm="", n=2)][2:]


def plan_edit(workspace: Workspace, path: str, *, old: str, new: str, limit: int = MAX_TEXT_BYTES) -> Change | Answer:
    """The change that replaces the one place where `old` stands. ModelRetry says why there is none.

    Line ends in `old` match every kind of line end, and those in `new` become the kind in use at that place.
    """
    content = load(workspace, path, limit=limit)
    if isinstance(content, Answer):
        return content
    _refuse_unfit(workspace, content, limit=limit)
    text = _text(content)
    _refuse_markers(new, old=old, text=plain_ends(text), path=content.relative)
    piece = _piece(text, plain_ends(old), new.replace("\r\n", "\n"), path=content.relative)
    return _bounded(Change(content.relative, content.data, _with(content.data, text, piece)), limit=limit)


def plan_write(workspace: Workspace, path: str, content: str) -> Change | Answer:
    """The change that makes `content` the whole file, in the encoding and with the line ends that the file has.

    An existing file must have been read before.
    """
    existing = load(workspace, path)
    if isinstance(existing, Answer):
        return _created(workspace, path, content) if existing.missing else existing
    _refuse_unfit(workspace, existing, limit=MAX_TEXT_BYTES)
    if existing.relative not in workspace.seen:
        raise ModelRetry(f"{printable(existing.relative)} exists. Read it with read_file before writing over it.")
    _refuse_markers(content, old="", text=_text(existing), path=existing.relative)
    encoding, mark = encoding_of(existing.data)
    if _has_only_pairs(_text(existing)) and "\r" not in content:
        content = content.replace("\n", "\r\n")
    return _bounded(Change(existing.relative, existing.data, mark + _encoded(content, encoding)), limit=MAX_TEXT_BYTES)


def _created(workspace: Workspace, path: str, content: str) -> Change | Answer:
    """The change that makes a file; its directories may be missing too."""
    _refuse_markers(content, old="", text="", path=path)
    try:
        relative = workspace.tree.resolve(path)
    except NotADirectoryError as error:
        return _unwritten(path, error)
    refuse_unjudged(workspace, path, relative)
    _refuse_repository(relative)
    return _bounded(Change(relative, None, _encoded(content, "utf-8")), limit=MAX_TEXT_BYTES)


def _bounded(change: Change, *, limit: int) -> Change:
    """ModelRetry if the tools could not read all of the new text again."""
    if len(change.after) > limit:
        shown = printable(change.relative)
        raise ModelRetry(f"{shown} would be over {limit // 1_000_000} MB, too large to write. Use run_command.")
    return change


def _has_only_pairs(text: str) -> bool:
    """Whether all line ends of a text are those of Windows, and there are some."""
    return "\r\n" in text and text.count("\r\n") == text.count("\n") == text.count("\r")


def _refuse_unfit(workspace: Workspace, content: Content, *, limit: int) -> None:
    """ModelRetry if the file cannot be changed as text, or is not what was read."""
    shown = printable(content.relative)
    _refuse_repository(content.relative)
    if not content.whole:
        raise ModelRetry(f"{shown} is over {limit // 1_000_000} MB, too large to change. Use run_command.")
    if is_binary(content.data):
        raise ModelRetry(f"{shown} is a binary file. Use run_command to change it.")
    if workspace.seen.get(content.relative, digest(content.data)) != digest(content.data):
        raise ModelRetry(f"{shown} changed since it was read. Read it again with read_file first.")


def _refuse_markers(new: str, *, old: str, text: str, path: str) -> None:
    """ModelRetry for a marker that stands for a secret: only one that is in the file itself may be written again."""
    shown = printable(path)
    if (marker := MARKER.search(old)) and plain_ends(old) not in text:
        raise ModelRetry(
            f"{marker[0]} in old stands for a secret in {shown} that is not shown to you. Choose an old that leaves it"
            " out: the text before or after it on the line, or other lines."
        )
    kept = old or text
    for marker in dict.fromkeys(MARKER.findall(new)):
        if new.count(marker) > kept.count(marker):
            raise ModelRetry(
                f"Nothing was written to {shown}: {marker} only stands for a secret that is not shown to you. Leave"
                " that place of the file as it is by editing around it, or read the secret from the environment."
            )


def _text(content: Content) -> str:
    """All of the text after the mark; encoded again it is the same bytes."""
    text, readable = decode(content.data)
    if readable:
        return text
    encoding = encoding_of(content.data)[0]
    name = "UTF-8" if encoding == "utf-8" else f"valid {encoding[:6].upper()}"
    shown = printable(content.relative)
    raise ModelRetry(f"{shown} is not {name} and cannot be edited without damage. Use run_command.")


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        raise ModelRetry("The text holds characters that UTF-8 cannot write. Leave them out.") from None


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a text, and what shall stand there."""

    start: int
    end: int
    written: str


def _with(data: bytes, text: str, piece: _Piece) -> bytes:
    """The bytes with a piece of their text replaced; the others are those that were there."""
    encoding, mark = encoding_of(data)
    start = len(mark) + len(text[: piece.start].encode(encoding))
    end = start + len(text[piece.start : piece.end].encode(encoding))
    return data[:start] + _encoded(piece.written, encoding) + data[end:]


def _piece(text: str, old: str, new: str, *, path: str) -> _Piece:
    if not old:
        raise ModelRetry("old is empty. Give the exact text to replace, or use write_file for a new file.")
    if old == new:
        raise ModelRetry("old and new are the same. Give the text that shall stand there instead.")
    path = printable(path)
    view = plain_ends(text)
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


def _spliced(text: str, old: str, new: str, *, at: int) -> _Piece:
    """Put `new` for `old`, which starts at `at` in the view of `text` with plain newlines.

    Only what differs between the two is touched, so lines that stay keep their own line ends.
    """
    head = _same(old, new)
    tail = _same(old[head:][::-1], new[head:][::-1])
    start, end = at + head, at + len(old) - tail
    # In `text` each of these newlines is two characters long.
    pairs = [match.start() - number for number, match in enumerate(re.finditer("\r\n", text))]
    begin, stop = start + bisect_left(pairs, start), end + bisect_left(pairs, end)
    return _Piece(begin, stop, new[head : len(new) - tail].replace("\n", _line_end(text, begin)))


def _line_end(text: str, at: int) -> str:
    """The line end in use at a place: that of its line, else of the line before."""
    following = _LINE_END.search(text, at)
    if following is not None:
        return following[0]
    last = max(text.rfind("\n", 0, at), text.rfind("\r", 0, at))
    if last < 0:
        return "\n"
    return "\r\n" if text[last - 1 : last + 1] == "\r\n" else text[last]


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
    _refuse_repository(change.relative)
    making = _told(workspace) if change.before is None else None
    try:
        with workspace.tree.place(change.relative, making=making) as place:
            _write(workspace, place, change)
    except OutsideWorkspaceError:
        raise outside(change.relative) from None
    except ChangedError:
        shown = printable(change.relative)
        raise ModelRetry(f"{shown} changed meanwhile. Read it again with read_file first.") from None
    except OSError as error:
        return _unwritten(change.relative, error)
    workspace.remember(change.relative, change.after)
    return None


def _told(workspace: Workspace) -> Callable[[Sequence[bytes]], None]:
    """Has the journal know of directories that will be made."""
    return lambda directories: workspace.journal.creating(directories) if workspace.journal else None


def _unwritten(path: str, error: OSError) -> Answer:
    return Answer(f"Cannot write {printable(path)}: {error.strerror or error}")


def _refuse_repository(relative: str) -> None:
    if any(plain_name(part) in _REPOSITORY for part in relative.split("/")):
        raise ModelRetry("Files in .git are not for editing. Use git through run_command.")


def _write(workspace: Workspace, place: Located, change: Change) -> None:
    with _unchanged(place, change.before) as old, temporary(place, private=old is not None) as new:
        if workspace.journal is not None:
            mode = os.fstat(old).st_mode if old is not None else None
            workspace.journal.changing(place.relative, before=change.before, after=change.after, mode=mode)
        new.fill(change.after)
        if old is not None:
            new.keep(old)
        os.fsync(new.descriptor)
        new.take(place, replaces=old is not None, is_expected=lambda found: _holds(found, change.before or b""))


@contextmanager
def _unchanged(place: Located, before: bytes | None) -> Iterator[int | None]:
    """The open file that shall be changed, None if there is none and shall be none. ChangedError if it is another."""
    try:
        descriptor = open_beneath(place.directory, place.name, READ)
    except FileNotFoundError:
        if before is not None:
            raise ChangedError from None
        yield None
        return
    try:
        status = regular(descriptor, place.relative)
        if not status.st_mode & 0o222:
            raise PermissionError(0, "it is read-only")
        if before is None or bytes_of(descriptor, limit=len(before) + 1) != before:
            raise ChangedError
        yield descriptor
    finally:
        os.close(descriptor)


def _holds(place: Located, data: bytes) -> bool:
    """Whether a regular file with this content stands at a place."""
    try:
        return read_located(place, limit=len(data) + 1).data == data
    except OSError:
        return False


def changed_lines(change: Change) -> tuple[int, int]:
    """How many lines a change touches, and the first of them."""
    before, after = (plain_ends(decode(data)[0]).split("\n") for data in (change.before or b"", change.after))
    head = _same(before, after)
    tail = min(_same(before[::-1], after[::-1]), len(before) - head, len(after) - head)
    return max(len(before), len(after), head + tail + 1) - head - tail, head + 1


def _same(left: Sequence[str], right: Sequence[str]) -> int:
    """How many items from the front are equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
