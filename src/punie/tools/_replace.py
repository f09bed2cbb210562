"""Putting a file in another one's place: all of it or nothing, and never over something that nobody looked at.

The new file is written beside the old one, without a name as long as it is not whole, and trades places with it in one
step. What comes out is looked at before it is thrown away, so what somebody put there in the last moment goes back to
where it was. Source: open(2) on O_TMPFILE, rename(2).
"""

import ctypes
import errno
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from punie.tools._paths import Located

_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What file systems and kernels answer to a kind of renaming, or of syncing, that they do not have."""

_TEMPORARY = re.compile(r"\.punie-[0-9a-f]{16}")
_STALE_S = 3_600
# They vouch for the content that was there before, or let it do more than other files may.
_NOT_KEPT = {"security.capability", "security.evm", "security.ima"}


class ChangedError(Exception):
    """What stands at a place is not what was to be replaced."""


def is_temporary(name: str) -> bool:
    """Whether a file is one of this module's own, perhaps left by a process that was killed."""
    return name.startswith(".punie-") and _TEMPORARY.fullmatch(name) is not None


@dataclass
class Temporary:
    """A new file in an open directory, later under a name that nobody guesses, until it stands in its place."""

    directory: int
    name: str
    descriptor: int
    is_named: bool
    _known: set[tuple[int, int]] = field(init=False)
    """What may be deleted under the name."""

    def __post_init__(self) -> None:
        status = os.fstat(self.descriptor)
        self._known = {(status.st_dev, status.st_ino)}

    def fill(self, data: bytes) -> None:
        """Write all of the data."""
        left = memoryview(data)
        while left:
            left = left[os.write(self.descriptor, left) :]

    def keep(self, descriptor: int) -> None:
        """Take over owner, mode, access list and other attributes of an open file, as far as that is allowed."""
        own, status = os.fstat(self.descriptor), os.fstat(descriptor)
        if own.st_gid != status.st_gid:
            with suppress(PermissionError):  # a group that this user is not in
                os.fchown(self.descriptor, -1, status.st_gid)
        if own.st_uid != status.st_uid:
            with suppress(PermissionError):  # only root may give a file away
                os.fchown(self.descriptor, status.st_uid, -1)
        os.fchmod(self.descriptor, stat.S_IMODE(status.st_mode))
        _copy_attributes(descriptor, self.descriptor)

    def become_link(self, target: bytes) -> None:
        """Be a symbolic link from now on."""
        if self.is_named:
            os.unlink(self.name, dir_fd=self.directory)
        self.is_named = True
        os.symlink(os.fsdecode(target), self.name, dir_fd=self.directory)
        self._remember()

    def take(self, place: Located, *, replaces: bool, is_expected: Callable[[Located], bool]) -> None:
        """Stand at `place` from now on, on the disk too.

        With `replaces`, what `is_expected` says of is replaced. ChangedError if something else is there, or something
        at all without; that stays. So it does if an OSError comes up.
        """
        if not self.is_named:
            os.link(f"/proc/self/fd/{self.descriptor}", self.name, dst_dir_fd=self.directory)
            self.is_named = True
        if self._here() not in self._known:
            raise ChangedError
        if replaces:
            self._trade(place, is_expected)
        else:
            self._move(place)

    def discard(self) -> None:
        """Delete what has the name now, if it is known to be of no use; somebody else's stays, under another name."""
        here = self._here()
        with suppress(FileNotFoundError):
            if here in self._known:
                os.unlink(self.name, dir_fd=self.directory)
            elif here is not None:
                os.rename(self.name, f"{self.name}.kept", src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def _move(self, place: Located) -> None:
        try:
            _rename(place.directory, self.name, place.name, _NOREPLACE)
        except FileExistsError:
            raise ChangedError from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            if _inode(place.directory, place.name) is not None:
                raise ChangedError from None
            os.rename(self.name, place.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
        try:
            sync(place.directory)
        except OSError:
            if _inode(place.directory, place.name) in self._known:
                os.unlink(place.name, dir_fd=place.directory)
            raise

    def _trade(self, place: Located, is_expected: Callable[[Located], bool]) -> None:
        aside = Located(place.directory, self.name, place.relative)
        try:
            _rename(place.directory, self.name, place.name, _EXCHANGE)
        except FileNotFoundError:
            raise ChangedError from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            if not is_expected(place):
                raise ChangedError from None
            os.replace(self.name, place.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
            sync(place.directory)
            return
        try:
            if not is_expected(aside):
                raise ChangedError
            sync(place.directory)
        except BaseException:
            _rename(place.directory, self.name, place.name, _EXCHANGE)
            raise
        self._remember()  # the old one now

    def _remember(self) -> None:
        here = self._here()
        if here is not None:
            self._known.add(here)

    def _here(self) -> tuple[int, int] | None:
        return _inode(self.directory, self.name)


@contextmanager
def temporary(place: Located, *, private: bool) -> Iterator[Temporary]:
    """A new file beside `place`; it is gone at the end, unless it took that place.

    A private one can be read by nobody else until `keep` says who may.
    """
    _sweep(place.directory)
    mode, name = 0o600 if private else 0o666, _fresh_name()
    descriptor = _unnamed(place.directory, mode)
    is_named = descriptor is None
    if descriptor is None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, mode, dir_fd=place.directory)
    new = Temporary(place.directory, name, descriptor, is_named)
    try:
        yield new
    finally:
        os.close(descriptor)
        new.discard()


def _unnamed(directory: int, mode: int) -> int | None:
    """A new file that is gone with the process if it never gets a name; None where there is no such thing."""
    if not _can_name():
        return None
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=directory)
    except OSError as error:
        if error.errno in _UNSUPPORTED | {errno.EISDIR, errno.ENOENT}:
            return None
        raise


@cache
def _can_name() -> bool:
    """Whether a file without a name can be had, and be given one."""
    return hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()


def remove(place: Located, *, is_expected: Callable[[Located], bool]) -> None:
    """Delete what `is_expected` says of, on the disk too. ChangedError if something else is there; that stays.

    Not for directories.
    """
    aside = Located(place.directory, _fresh_name(), place.relative)
    os.rename(place.name, aside.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
    if not is_expected(aside):
        os.rename(aside.name, place.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
        raise ChangedError
    os.unlink(aside.name, dir_fd=place.directory)
    sync(place.directory)


def temporaries(directory: int) -> list[str]:
    """The names in an open directory that are this module's own."""
    with os.scandir(directory) as found:
        return [entry.name for entry in found if is_temporary(entry.name)]


def _sweep(directory: int) -> None:
    """Delete what processes that were killed have left here, long ago: nothing that is of use has such a name."""
    for name in temporaries(directory):
        with suppress(OSError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            is_own = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
            if is_own and status.st_ctime < time.time() - _STALE_S:
                os.unlink(name, dir_fd=directory)


def _fresh_name() -> str:
    return f".punie-{secrets.token_hex(8)}"


def _inode(directory: int, name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _copy_attributes(source: int, target: int) -> None:
    if not hasattr(os, "listxattr"):  # macOS
        return
    with suppress(OSError):  # the file system has none
        for name in set(os.listxattr(source)) - _NOT_KEPT:
            with suppress(OSError):  # not for this user
                os.setxattr(target, name, os.getxattr(source, name))


def sync(directory: int) -> None:
    """Have the names in a directory on the disk, where the file system can do that."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


@cache
def _renameat2() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _rename(directory: int, old: str, new: str, flag: int) -> None:
    """renameat2(2) within a directory; OSError with ENOSYS where there is none."""
    call = _renameat2()
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    sys.audit("os.rename", old, new, directory, directory)
    if call(directory, os.fsencode(old), directory, os.fsencode(new), flag):
        reason = ctypes.get_errno()
        raise OSError(reason, os.strerror(reason), new)
