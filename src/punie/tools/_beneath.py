"""The one door to files of a workspace: what opens is below an open directory, and reached through no link.

On Linux the kernel sees to it with `openat2`. Where that call is missing, the path is opened name by name, each from
the descriptor of the directory before it, and none of them as a link. Source: openat2(2), `linux/openat2.h`.
"""

import ctypes
import errno
import os
import struct
import sys
from functools import cache

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the open of a FIFO waits for a writer that never comes.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_OPENAT2 = 437  # the same on every architecture of Linux but Alpha
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_RESOLVE = _BENEATH | _NO_MAGICLINKS | _NO_SYMLINKS
_MISSING = {errno.ENOSYS, errno.EPERM}
"""What a kernel, or a filter before it, answers to a call it does not have."""


class OutsideWorkspaceError(PermissionError):
    """A path, or a link on its way, leaves the workspace."""


def is_plain(path: str) -> bool:
    """Whether a path is only names, so that it stays below where it starts if none of them is a link."""
    return not any(part in {"", ".", ".."} for part in path.split("/"))


def open_beneath(directory: int, path: str, flags: int) -> int:
    """Open the existing thing at a path of names below an open directory, or the directory itself for `.`.

    OSError with ELOOP or ENOTDIR where one of the names is a link. OutsideWorkspaceError if the path could lead out.
    """
    name = os.fsencode(path)
    if b"\0" in name or not (path == "." or is_plain(path)):
        raise OutsideWorkspaceError(path)
    if not has_openat2():
        return _by_names(directory, path, flags)
    try:
        return _openat2(directory, name, flags)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and "/" in path:  # too long for one call: name by name it may do
            return _by_names(directory, path, flags)
        if error.errno == errno.EXDEV:
            raise OutsideWorkspaceError(path) from None
        raise


@cache
def has_openat2() -> bool:
    """Whether the kernel opens beneath a directory by itself."""
    if sys.platform != "linux":
        return False
    try:
        os.close(_openat2(-1, b"none", READ))
    except OSError as error:
        return error.errno not in _MISSING
    return True


@cache
def _syscall() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _openat2(directory: int, path: bytes, flags: int) -> int:
    sys.audit("open", os.fsdecode(path), None, flags)
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    while True:
        found = _syscall().syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_int(directory), path, how, ctypes.c_size_t(len(how))
        )
        if found >= 0:
            return found
        reason = ctypes.get_errno()
        if reason != errno.EINTR:
            raise OSError(reason, os.strerror(reason), os.fsdecode(path))


def _by_names(directory: int, path: str, flags: int) -> int:
    *parents, last = path.split("/")
    here = os.dup(directory)
    try:
        for part in parents:
            below = os.open(part, DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
