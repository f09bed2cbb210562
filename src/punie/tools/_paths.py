"""Opening files beneath the workspace root, and nowhere else.

Every path is walked one component at a time from a descriptor of the root. Links are read and followed by hand, so a
link that leaves the root is refused, and a component that turns into a link meanwhile fails instead of being followed.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAX_LINKS = 40
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the open of a FIFO waits for a writer that never comes.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class OutsideWorkspaceError(PermissionError):
    """A path, or a link on its way, leaves the workspace."""


class NotRegularFileError(OSError):
    """A path names a directory, a FIFO, a device or a socket where a file is needed."""


@dataclass(frozen=True, slots=True)
class Located:
    """An open directory, and the name in it a path came down to. `relative` is that place from the root."""

    directory: int
    name: str
    relative: str


def relative_path(root: Path, path: str) -> str:
    """`path` as the model wrote it, made relative to the root without looking at the disk."""
    if not _is_possible(path):
        raise OutsideWorkspaceError(path)
    plain = path.strip().strip("`'\"")
    if not plain.startswith("/"):
        return plain
    prefix = f"{root}/" if str(root) != "/" else "/"
    if plain == str(root):
        return "."
    if not plain.startswith(prefix):
        raise OutsideWorkspaceError(path)
    return plain[len(prefix) :]


def _is_possible(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


@contextmanager
def located(root: Path, path: str, *, create_parents: bool = False) -> Iterator[Located]:
    """Walk `path` down from the root; the last component may be missing, and is never a link."""
    walk = _Walk(root, create_parents=create_parents)
    try:
        yield walk.to(relative_path(root, path))
    finally:
        walk.close()


def missing_directories(root: Path, path: str) -> list[bytes]:
    """The directories on the way to a path that are not there yet, outermost first."""
    parents = os.fsencode(path).split(b"/")[:-1]
    places = [b"/".join(parents[: depth + 1]) for depth in range(len(parents))]
    return [place for place in places if not os.path.lexists(os.path.join(os.fsencode(root), place))]  # noqa: PTH118 - bytes


class _Walk:
    """One walk: the open directories from the root down, closed together."""

    def __init__(self, root: Path, *, create_parents: bool) -> None:
        self._root = root
        self._create_parents = create_parents
        self._directories = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        self._names: list[str] = []
        self._links = 0

    def close(self) -> None:
        while self._directories:
            os.close(self._directories.pop())

    def to(self, relative: str) -> Located:
        pending = relative.split("/")[::-1]
        while pending:
            part = pending.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                self._up(relative)
                continue
            target = self._link(part)
            if target is not None:
                pending += self._followed(target, relative)
            elif not any(rest not in {"", "."} for rest in pending):
                return Located(self._directories[-1], part, "/".join([*self._names, part]))
            else:
                self._down(part)
        return Located(self._directories[-1], ".", "/".join(self._names) or ".")

    def _up(self, path: str) -> None:
        if not self._names:
            raise OutsideWorkspaceError(path)
        os.close(self._directories.pop())
        self._names.pop()

    def _link(self, part: str) -> str | None:
        try:
            return os.readlink(part, dir_fd=self._directories[-1])
        except OSError:
            return None  # no link, or nothing there: the open that follows says which

    def _followed(self, target: str, path: str) -> list[str]:
        self._links += 1
        if self._links > MAX_LINKS:
            raise OutsideWorkspaceError(f"{path}: too many links")
        if target.startswith("/"):
            target = relative_path(self._root, target)
            while self._names:
                self._up(path)
        return target.split("/")[::-1]

    def _down(self, part: str) -> None:
        here = self._directories[-1]
        try:
            opened = os.open(part, DIRECTORY, dir_fd=here)
        except FileNotFoundError:
            if not self._create_parents:
                raise
            os.mkdir(part, dir_fd=here)
            opened = os.open(part, DIRECTORY, dir_fd=here)
        self._directories.append(opened)
        self._names.append(part)


@dataclass(frozen=True, slots=True)
class Content:
    """What was read of a file: its place from the root, its bytes up to the limit, and its whole size."""

    relative: str
    data: bytes
    size: int

    @property
    def whole(self) -> bool:
        """Whether the limit left nothing out."""
        return self.size == len(self.data)


def read_beneath(root: Path, path: str, *, limit: int) -> Content:
    """At most `limit` bytes of a regular file. OSError says why not."""
    with located(root, path) as place:
        return read_located(place, limit=limit)


def read_located(place: Located, *, limit: int) -> Content:
    """At most `limit` bytes of the regular file at `place`."""
    descriptor = os.open(place.name, READ, dir_fd=place.directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularFileError(place.relative)
        data = _read_up_to(descriptor, limit)
    finally:
        os.close(descriptor)
    # Files under /proc report a size of 0, so the bytes that came count too.
    return Content(place.relative, data, max(status.st_size, len(data)) if len(data) >= limit else len(data))


def _read_up_to(descriptor: int, limit: int) -> bytes:
    chunks: list[bytes] = []
    left = limit
    while left > 0:
        chunk = os.read(descriptor, min(left, 1 << 20))
        if not chunk:
            break
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)
