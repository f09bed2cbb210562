"""What stands at a path, as a value that can be compared and put back.

Names are those of git's SHA-256 repositories, so what a snapshot of a tree and what a file tool recorded compare.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from punie.tools._beneath import DIRECTORY, READ, open_beneath
from punie.tools._paths import Located, Tree, bytes_of, regular
from punie.tools._replace import ChangedError, Temporary, remove, sync, temporaries, temporary

MAX_BYTES = 256_000_000
"""Of one file: more is not compared, and so not put back."""


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


def content_at(tree: Tree, path: bytes) -> tuple[State, bytes]:
    """What stands at a path without links or `..` in it: its state, and the bytes of a file or the target of a link.

    OSError if it cannot be read; Conflict if it is none of the four kinds, or the way to it is another one now.
    """
    try:
        with tree.place(os.fsdecode(path)) as place:
            return _here(place)
    except FileNotFoundError:
        return ABSENT, b""
    except OSError as error:
        raise _explained(error, tree, path) from None


def _here(place: Located) -> tuple[State, bytes]:
    try:
        return _file(place)
    except FileNotFoundError:
        return ABSENT, b""
    except OSError as error:
        found = _link_or_directory(place)
        if found is None:
            raise Conflict("it is a device, a pipe or a socket now") from error
        if stat.S_ISREG(found[0].mode or 0):
            raise
        return found


def _file(place: Located) -> tuple[State, bytes]:
    """A regular file: mode and content are of the same one. OSError for everything else."""
    descriptor = open_beneath(place.directory, place.name, READ)
    try:
        mode = regular(descriptor, place.relative).st_mode
        data = bytes_of(descriptor, limit=MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise Conflict("it is too large to compare")
    return State(mode, oid_of(data)), data


def _link_or_directory(place: Located) -> tuple[State, bytes] | None:
    """What is there if it is no file that can be opened; None for devices and their like."""
    mode = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        target = os.fsencode(os.readlink(place.name, dir_fd=place.directory))
        return State(mode, oid_of(target)), target
    return (State(mode), b"") if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else None


def sweep(tree: Tree, directory: bytes, known: Collection[str]) -> None:
    """Delete what a process that was killed left in a directory while it replaced a file there.

    Only files and links with one of the `known` contents, which are kept elsewhere: what else has such a name stays.
    """
    with suppress(OSError):
        descriptor = tree.open(os.fsdecode(directory) or ".", DIRECTORY)
        try:
            for name in temporaries(descriptor):
                place = Located(descriptor, name, name)
                with suppress(OSError, Conflict):
                    if _here(place)[0].oid in known:
                        os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)


def put(tree: Tree, path: bytes, *, expected: State, wanted: State, content: Callable[[], bytes]) -> None:
    """Make `wanted` of what is `expected` at a path, in one step. Conflict if something else stands there.

    `content` is asked for the bytes of a file or the target of a link. OSError says what the system has against it.
    """
    try:
        with tree.place(os.fsdecode(path), making=_making if wanted.mode is not None else None) as place:
            _refuse_other(place, expected)
            if wanted.mode is None:
                _remove(place, expected)
            elif stat.S_ISDIR(wanted.mode):
                _remove(place, expected)
                os.mkdir(place.name, dir_fd=place.directory)
                sync(place.directory)
            else:
                _replace(place, expected=expected, wanted=wanted.mode, data=content())
    except ChangedError:
        raise Conflict("it was changed since") from None
    except OSError as error:
        raise _explained(error, tree, path) from None


def _making(directories: Sequence[bytes]) -> None:
    """Directories that are made again on the way are part of what is taken back."""
    del directories


def _explained(error: OSError, tree: Tree, path: bytes) -> Exception:
    """The conflict, where a directory on the way to a path is none now."""
    *parents, _ = os.fsdecode(path).split("/")
    for depth, name in enumerate(parents, 1):
        try:
            os.close(tree.open("/".join(parents[:depth]), DIRECTORY))
        except OSError as reason:
            return Conflict(f"{name} is no directory now") if reason.errno in {errno.ENOTDIR, errno.ELOOP} else error
    return error


def _refuse_other(place: Located, expected: State) -> None:
    try:
        same = _here(place)[0].matches(expected)
    except OSError as error:
        raise Conflict(f"it cannot be read: {error.strerror}") from error
    if not same:
        raise Conflict("it was changed since")


def _remove(place: Located, expected: State) -> None:
    if expected.mode is None:
        return
    if stat.S_ISDIR(expected.mode):
        os.rmdir(place.name, dir_fd=place.directory)
        sync(place.directory)
    else:
        remove(place, is_expected=lambda found: _is(found, expected))


def _replace(place: Located, *, expected: State, wanted: int, data: bytes) -> None:
    is_file = expected.mode is not None and stat.S_ISREG(expected.mode)
    with temporary(place, private=is_file or stat.S_IMODE(wanted) != 0) as new:
        if stat.S_ISLNK(wanted):
            new.become_link(data)
        else:
            new.fill(data)
            if is_file:
                with suppress(OSError):
                    _keep(place, new)
            if stat.S_IMODE(wanted):
                os.fchmod(new.descriptor, stat.S_IMODE(wanted))
            os.fsync(new.descriptor)
        if expected.mode is not None and stat.S_ISDIR(expected.mode):
            _remove(place, expected)
            expected = ABSENT
        new.take(place, replaces=expected.mode is not None, is_expected=lambda found: _is(found, expected))


def _keep(place: Located, new: Temporary) -> None:
    descriptor = open_beneath(place.directory, place.name, READ)
    try:
        new.keep(descriptor)
    finally:
        os.close(descriptor)


def _is(place: Located, expected: State) -> bool:
    try:
        return _here(place)[0].matches(expected)
    except (OSError, Conflict):
        return False
