"""Which directories the user trusts: nothing of a project is read for Punie's own use before that.

The store lies in the user's state directory, so that nothing in a repository has a vote. A directory is known by its
real path, its device and its inode: another one that is put in its place has to be trusted anew.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from punie.errors import UsageError

FILE = "trust.json"
_MAX_OWN_BYTES = 4_000_000


def project_root(cwd: Path, *, home: Path | None = None) -> Path:
    """The directory that trust is about: the nearest one up from cwd that holds `.git`, else cwd itself.

    The home directory and the root of the disk are nobody's project: they are passed over. Nothing is read.
    """
    cwd = cwd.resolve()
    candidates = (path for path in (cwd, *cwd.parents) if not _is_nobodys(path, home))
    return next((path for path in candidates if os.path.lexists(path / ".git")), cwd)


def _is_nobodys(path: Path, home: Path | None) -> bool:
    return path == Path(path.anchor) or (home is not None and path == home.resolve())


@dataclass(frozen=True)
class TrustStore:
    """The trusted directories, in `trust.json` of the state directory."""

    directory: Path
    home: Path | None = None

    @property
    def file(self) -> Path:
        """Where the store lies."""
        return self.directory / FILE

    def __contains__(self, path: Path) -> bool:
        key = self._key(path)
        return key is not None and not _is_nobodys(path.resolve(), self.home) and key in self._keys()

    def paths(self) -> tuple[str, ...]:
        """The trusted directories, also those that are gone or were replaced by others."""
        return tuple(sorted(path for path, _, _ in self._keys()))

    def add(self, path: Path) -> None:
        """Trust a directory. Raises UsageError for the home directory, for `/`, and if the store cannot be written."""
        if _is_nobodys(path.resolve(), self.home):
            raise UsageError(f"{path} is not a project and cannot be trusted.", "Trust the project's own directory.")
        key = self._key(path)
        if key is None:
            raise UsageError(f"{path} cannot be looked at.", "Name an existing directory.")
        self._change(lambda keys: [*(known for known in keys if known[0] != key[0]), key])

    def remove(self, path: Path) -> bool:
        """Trust a directory no longer; whether it was in the store."""
        gone = str(path.resolve())
        there = any(known[0] == gone for known in self._keys())
        if there:
            self._change(lambda keys: [known for known in keys if known[0] != gone])
        return there

    def _key(self, path: Path) -> "_Key | None":
        try:
            real = path.resolve(strict=True)
            status = real.stat()
        except (OSError, RuntimeError):
            return None
        return (str(real), status.st_dev, status.st_ino)

    def _keys(self) -> "Sequence[_Key]":
        """What is stored. A store that cannot be understood trusts nothing and is kept aside."""
        try:
            text = read_own(self.file)
        except OSError:
            return ()
        keys = _read(text)
        if keys is None:
            with suppress(OSError):
                self.file.rename(self.file.with_name(f"{FILE}.corrupt-{time.time_ns()}"))
            return ()
        return keys

    def _change(self, changed: "Callable[[Sequence[_Key]], list[_Key]]") -> None:
        try:
            with locked(self.directory):
                rows = [{"path": path, "device": dev, "inode": ino} for path, dev, ino in changed(self._keys())]
                write_private(self.file, json.dumps({"version": 1, "trusted": rows}, indent=1) + "\n")
        except OSError as error:
            raise UsageError(f"{self.file}: cannot be written: {error.strerror}.") from error


_Key = tuple[str, int, int]
"""Real path, device, inode."""


def _read(data: bytes) -> list[_Key] | None:
    try:
        stored = json.loads(data)
        rows = stored["trusted"]
        keys = [(row["path"], row["device"], row["inode"]) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    right = all(isinstance(p, str) and type(d) is int and type(i) is int for p, d, i in keys)
    return keys if right else None


def workspace_key(root: Path) -> str:
    """A name for what is stored about one directory: a digest of its real path, device and inode."""
    status = root.stat()
    text = f"{root.resolve()}\0{status.st_dev}\0{status.st_ino}"
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that two programs do not undo each other's changes; creates the directory."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_own(file: Path) -> bytes:
    """A small file of Punie's own. OSError if it is no regular file, or too large to be one of them."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if status.st_size > _MAX_OWN_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return stream.read(_MAX_OWN_BYTES)


def write_private(file: Path, text: str) -> None:
    """Replace a file in one step, readable and writable by the user alone. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode("utf-8", errors="surrogateescape"))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def state_directory(env: Mapping[str, str]) -> Path:
    """`punie` in XDG_STATE_HOME, by default ~/.local/state, on every system."""
    base, home = env.get("XDG_STATE_HOME", ""), env.get("HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "punie"
    if Path(home).is_absolute():
        return Path(home) / ".local" / "state" / "punie"
    from platformdirs.unix import Unix  # asks the system's user database

    return Unix("punie").user_state_path
