"""What stands at a path, as a value that can be compared and put back.

Names are those of git's SHA-256 repositories, so what a snapshot of a tree and what a file tool recorded compare.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from punie.tools._changes import fill, keep_owner, temporary
from punie.tools._paths import DIRECTORY, READ, Located

_CHUNK = 1 << 20


class Conflict(Exception):  # noqa: N818 - says what happened
    """A path is not as it should be; the text says how it is, in a few words."""


@dataclass(frozen=True, slots=True)
class State:
    """Nothing (mode None), a file, a link or a directory. `mode` is that of `lstat`; a file without any permission
    bits is one whose permissions are not known. `oid` names the content of a file, and the target of a link.
    """

    mode: int | None
    oid: str = ""

    def matches(self, other: "State") -> bool:
        """Whether two states are the same as far as both are known."""
        if self.mode is None or other.mode is None:
            return self.mode is other.mode
        if stat.S_IFMT(self.mode) != stat.S_IFMT(other.mode) or self.oid != other.oid:
            return False
        permissions = stat.S_IMODE(self.mode), stat.S_IMODE(other.mode)
        return not stat.S_ISREG(self.mode) or permissions[0] == permissions[1] or 0 in permissions


ABSENT = State(None)


def oid_of(data: bytes) -> str:
    """The name of some content."""
    return hashlib.sha256(b"blob %d\0" % len(data) + data).hexdigest()


def content_at(root: Path, path: bytes) -> tuple[State, bytes]:
    """What stands at a path without links or `..` in it: its state, and the bytes of a file or the target of a link.

    OSError if it is none of the four kinds.
    """
    try:
        with _parent(root, path) as place:
            return _here(place)
    except FileNotFoundError:
        return ABSENT, b""


def _here(place: Located) -> tuple[State, bytes]:
    try:
        mode = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return ABSENT, b""
    if stat.S_ISDIR(mode):
        return State(mode), b""
    if stat.S_ISLNK(mode):
        data = os.fsencode(os.readlink(place.name, dir_fd=place.directory))
    elif stat.S_ISREG(mode):
        data = _bytes_of(place)
    else:
        raise Conflict("it is a device, a pipe or a socket now")
    return State(mode, oid_of(data)), data


def _bytes_of(place: Located) -> bytes:
    descriptor = os.open(place.name, READ, dir_fd=place.directory)
    try:
        return b"".join(iter(lambda: os.read(descriptor, _CHUNK), b""))
    finally:
        os.close(descriptor)


@contextmanager
def _parent(root: Path, path: bytes, *, create: bool = False) -> Iterator[Located]:
    """The directory a path lies in, walked down without following any link."""
    *parents, name = os.fsdecode(path).split("/")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
            try:
                below = os.open(part, DIRECTORY, dir_fd=descriptor)
            except NotADirectoryError:
                raise Conflict(f"{part} is no directory now") from None
            os.close(descriptor)
            descriptor = below
        yield Located(descriptor, name, os.fsdecode(path))
    finally:
        os.close(descriptor)


def put(root: Path, path: bytes, *, expected: State, wanted: State, content: Callable[[], bytes]) -> None:
    """Make `wanted` of what is `expected` at a path, in one step. Conflict if something else stands there.

    `content` is asked for the bytes of a file or the target of a link. OSError says what the system has against it.
    """
    with _parent(root, path, create=wanted.mode is not None) as place:
        _refuse_other(place, expected)
        if wanted.mode is None:
            _remove(place, expected)
        elif stat.S_ISDIR(wanted.mode):
            _make_way(place, expected)
            os.mkdir(place.name, dir_fd=place.directory)
        else:
            _replace(place, expected=expected, wanted=wanted.mode, data=content())
        os.fsync(place.directory)


def _refuse_other(place: Located, expected: State) -> None:
    try:
        same = _here(place)[0].matches(expected)
    except OSError as error:
        raise Conflict(f"it cannot be read: {error.strerror}") from error
    if not same:
        raise Conflict("it was changed since")


def _remove(place: Located, expected: State) -> None:
    if expected.mode is not None and stat.S_ISDIR(expected.mode):
        os.rmdir(place.name, dir_fd=place.directory)
    else:
        os.unlink(place.name, dir_fd=place.directory)


def _make_way(place: Located, expected: State) -> None:
    if expected.mode is not None:
        _remove(place, expected)


def _replace(place: Located, *, expected: State, wanted: int, data: bytes) -> None:
    with temporary(place) as (name, descriptor):
        if stat.S_ISLNK(wanted):
            os.unlink(name, dir_fd=place.directory)
            os.symlink(os.fsdecode(data), name, dir_fd=place.directory)
        else:
            fill(descriptor, data)
            if expected.mode is not None and stat.S_ISREG(expected.mode):
                keep_owner(descriptor, os.stat(place.name, dir_fd=place.directory, follow_symlinks=False))
            if stat.S_IMODE(wanted):
                os.fchmod(descriptor, stat.S_IMODE(wanted))
            os.fsync(descriptor)
        _refuse_other(place, expected)
        if expected.mode is not None and stat.S_ISDIR(expected.mode):
            os.rmdir(place.name, dir_fd=place.directory)
        os.replace(name, place.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
