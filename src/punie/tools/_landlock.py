"""What Landlock lets a command do, as the bytes and rules that its supervisor hands the kernel.

Landlock knows only what is allowed, and goes by directories. So a file is hidden by allowing the reading of everything
beside it, and a directory that may be written to is so with all that is in it. Changing modes, times and owners of
files is outside its reach. Source: `linux/landlock.h`.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

_CREATE_RULESET = 444
_VERSION = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_TCP = 0b11
_SCOPES = 0b11  # abstract sockets and signals

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

Rules = list[tuple[str, int, bool]]
"""A path, the rights below it, and whether the command must not run when the rule cannot be made."""


def version() -> int:
    """The version of Landlock this kernel has; 0 if none."""
    if sys.platform != "linux":
        return 0
    return max(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION), 0)


def ruleset(abi: int, *, network: bool) -> bytes:
    """`struct landlock_ruleset_attr` for a version of Landlock: whatever it can restrict, is restricted."""
    tcp = _TCP if abi >= 4 and not network else 0
    fields = (_rights(abi), *((tcp,) if abi >= 4 else ()), *((_SCOPES,) if abi >= 6 else ()))
    return struct.pack(f"<{len(fields)}Q", *fields)


def rules(abi: int, *, writable: Sequence[Path], readable: Sequence[Path], hidden: Collection[Path]) -> Rules:
    """Everything may be read and run but what is hidden; the writable directories are the command's own.

    `readable` directories may be read although they lie in a hidden one; they need not exist.
    """
    known = _rights(abi)
    reading = known & (_EXECUTE | _READ_FILE | _READ_DIR)
    in_dev = known & (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV)
    found: Rules = [("/", _READ_DIR | _EXECUTE, True)]
    hidden = {*hidden, Path("/dev")}  # raw disks and other people's terminals are there
    for path, is_directory in _beside(Path("/"), hidden):
        found.append((path, reading if is_directory else reading & _OF_FILES, False))
    found += [(str(path), reading, False) for path in readable]
    found += [(f"/dev/{name}", in_dev, False) for name in _DEVICES]
    owned = known & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
    found.append(("/dev/shm", owned, False))  # noqa: S108 - the locks of Python's multiprocessing are files there
    found += [(str(path), owned, True) for path in writable]
    return found


def _rights(abi: int) -> int:
    """All rights to files that a version knows."""
    return (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1


def _beside(directory: Path, hidden: Collection[Path]) -> Iterator[tuple[str, bool]]:
    """Every entry that is neither hidden nor holds something hidden, and the same of those that hold it.

    Links are left out: what they lead to has an entry of its own.
    """
    above = {parent for path in hidden for parent in path.parents}
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if path in hidden or entry.is_symlink():
            continue
        if path in above:
            yield from _beside(path, hidden)
        else:
            yield entry.path, entry.is_dir(follow_symlinks=False)
