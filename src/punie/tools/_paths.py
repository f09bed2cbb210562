"""Paths of a workspace, as the model writes them, and what lies at them: never anything outside of the root.

Links are read and followed by hand, which gives a path its real name. What is opened is that name, through a door that
follows no link: one that turned up meanwhile fails instead of being followed.
"""

import errno
import os
import stat
import unicodedata
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from punie.tools._beneath import DIRECTORY, READ, OutsideWorkspaceError, is_plain, open_beneath

MAX_LINKS = 40
_LINK_ON_THE_WAY = {errno.ELOOP, errno.ENOTDIR}


class NotRegularFileError(OSError):
    """A path names a directory, a FIFO, a device or a socket where a file is needed."""


@dataclass(frozen=True, slots=True)
class Located:
    """An open directory, and the name in it a path came down to. `relative` is that place from the root."""

    directory: int
    name: str
    relative: str


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


def plain_name(name: str) -> str:
    """A name as the most forgiving file system reads it: without case, without marks nobody sees, without ends."""
    text = unicodedata.normalize("NFC", name).casefold()
    return "".join(char for char in text if unicodedata.category(char) != "Cf").rstrip(". ")


class Tree:
    """A directory that is held open, and everything below it.

    It stays the same directory when it is moved. If it is deleted, the next call looks for a new one at its path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._descriptor = _opened(root)
        self.close: Callable[[], object] = weakref.finalize(self, os.close, self._descriptor)
        """Let go of it. The last reference does so too."""

    def open(self, path: str, flags: int) -> int:
        """A descriptor of what is at a path of names, none of them a link; `.` is the root itself."""
        if not os.fstat(self._descriptor).st_nlink:
            fresh = _opened(self.root)
            os.dup2(fresh, self._descriptor, inheritable=False)
            os.close(fresh)
        return open_beneath(self._descriptor, path, flags)

    def read(self, path: str, *, limit: int) -> Content:
        """At most `limit` bytes of a regular file, at a path as the model wrote it. OSError says why not."""
        plain = relative_path(self.root, path)
        if is_plain(plain):
            try:
                return _read(self.open(plain, READ), plain, limit=limit)
            except OSError as error:
                if error.errno not in _LINK_ON_THE_WAY:
                    raise
        relative = self.resolve(plain)
        return _read(self.open(relative, READ), relative, limit=limit)

    def resolve(self, path: str) -> str:
        """The real name of a path, from the root: links in it are followed, and what is missing is taken as written.

        OutsideWorkspaceError if it leaves the root; OSError if the way to it cannot be looked at.
        """
        with closing(_Walk(self)) as walk:
            return walk.to(relative_path(self.root, path))

    @contextmanager
    def place(self, relative: str, *, making: Callable[[Sequence[bytes]], None] | None = None) -> Iterator[Located]:
        """The open directory that a real name lies in.

        With `making`, directories that are missing are made after it was told of them, and are gone again if the
        block fails.
        """
        parent, _, name = relative.rpartition("/")
        made: list[str] = []
        try:
            if parent and making is not None:
                self._make(parent, making, made)
            directory = self.open(parent or ".", DIRECTORY)
            try:
                yield Located(directory, name, relative)
            finally:
                os.close(directory)
        except BaseException:
            for path in reversed(made):
                with suppress(OSError), self.place(path) as place:
                    os.rmdir(place.name, dir_fd=place.directory)
            raise

    def _make(self, path: str, making: Callable[[Sequence[bytes]], None], made: list[str]) -> None:
        """Make the directories of a path that are missing, and add those that were made to `made`."""
        parts = path.split("/")
        missing = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        while missing:
            try:
                os.close(self.open(missing[0], DIRECTORY))
            except FileNotFoundError:
                break
            missing.pop(0)
        if missing:
            making([os.fsencode(each) for each in missing])
        for each in missing:
            with suppress(FileExistsError), self.place(each) as place:
                os.mkdir(place.name, dir_fd=place.directory)
                made.append(each)


def _opened(root: Path) -> int:
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextmanager
def held(root: Path | Tree) -> Iterator[Tree]:
    """A tree, opened for the moment if it is given by its path."""
    if isinstance(root, Tree):
        yield root
        return
    tree = Tree(root)
    try:
        yield tree
    finally:
        tree.close()


@contextmanager
def located(root: Path | Tree, path: str) -> Iterator[Located]:
    """The place that a path from the model comes down to. The last name may be missing, and is no link."""
    with held(root) as tree, tree.place(tree.resolve(path)) as place:
        yield place


class _Walk:
    """One walk by names: the open directories from the root down, closed together. None stands for a missing one."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._directories: list[int | None] = [tree.open(".", DIRECTORY)]
        self._names: list[str] = []
        self._links = 0

    def close(self) -> None:
        while self._directories:
            self._leave()

    def to(self, path: str) -> str:
        pending = path.split("/")[::-1]
        while pending:
            part = pending.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                self._up(path)
                continue
            target = self._link(part)
            if target is not None:
                pending += self._followed(target, path)
            elif any(rest not in {"", "."} for rest in pending):
                self._down(part)
            else:
                return "/".join([*self._names, part])
        return "/".join(self._names) or "."

    def _leave(self) -> None:
        directory = self._directories.pop()
        if directory is not None:
            os.close(directory)

    def _up(self, path: str) -> None:
        if not self._names:
            raise OutsideWorkspaceError(path)
        self._leave()
        self._names.pop()

    def _link(self, part: str) -> str | None:
        here = self._directories[-1]
        if here is None:
            return None
        try:
            return os.readlink(part, dir_fd=here)
        except OSError:
            return None  # no link, or nothing there: what is opened says which

    def _followed(self, target: str, path: str) -> list[str]:
        self._links += 1
        if self._links > MAX_LINKS:
            raise OutsideWorkspaceError(f"{path}: too many links")
        if target.startswith("/"):
            target = relative_path(self._tree.root, target)
            while self._names:
                self._up(path)
        return target.split("/")[::-1]

    def _down(self, part: str) -> None:
        here = self._directories[-1]
        below = None
        if here is not None:
            with suppress(FileNotFoundError):
                below = open_beneath(here, part, DIRECTORY)
        self._directories.append(below)
        self._names.append(part)


def read_beneath(root: Path | Tree, path: str, *, limit: int) -> Content:
    """At most `limit` bytes of a regular file. OSError says why not."""
    with held(root) as tree:
        return tree.read(path, limit=limit)


def read_located(place: Located, *, limit: int) -> Content:
    """At most `limit` bytes of the regular file at `place`."""
    return _read(open_beneath(place.directory, place.name, READ), place.relative, limit=limit)


def _read(descriptor: int, relative: str, *, limit: int) -> Content:
    """At most `limit` bytes of an open regular file, which is closed."""
    try:
        size = regular(descriptor, relative).st_size
        data = bytes_of(descriptor, limit=limit)
    finally:
        os.close(descriptor)
    # Files under /proc report a size of 0, so the bytes that came count too.
    return Content(relative, data, max(size, len(data)) if len(data) >= limit else len(data))


def regular(descriptor: int, relative: str) -> os.stat_result:
    """The status of an open file; NotRegularFileError if it is something else."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFileError(f"{relative} is not a regular file")
    return status


def bytes_of(descriptor: int, *, limit: int) -> bytes:
    """At most `limit` bytes of an open file from where it stands."""
    chunks: list[bytes] = []
    left = limit
    while left > 0:
        chunk = os.read(descriptor, min(left, 1 << 20))
        if not chunk:
            break
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)
