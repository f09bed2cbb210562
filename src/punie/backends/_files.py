"""Files of the cache: written whole or not at all, checked by SHA-256, by one process at a time."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from punie.errors import UsageError

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done so far, total); bytes of a download, tensors of a merge."""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, expected: str) -> bool:
    """Whether the file has this SHA-256; hashed once, then trusted while its size and time stay the same."""
    if _stamp_of(path) == {**_state(path), "sha256": expected}:
        return True
    if sha256(path) != expected:
        return False
    stamp(path, expected)
    return True


def is_stamped(path: Path) -> bool:
    """Whether the file is there and has not changed since `stamp`."""
    if not path.is_file():
        return False
    found = _stamp_of(path)
    return found == {**_state(path), "sha256": found.get("sha256")}


def stamp(path: Path, digest: str) -> None:
    """Note beside the file that it has this SHA-256 at its present size and time."""
    write_text(stamp_path(path), json.dumps({**_state(path), "sha256": digest}))


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step."""
    with replacing(path) as part:
        part.write_text(text, "utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; it takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def move_aside(path: Path) -> Path:
    """Rename a damaged file so that the next run starts afresh; returns where it went."""
    aside = path.with_name(path.name + ".damaged")
    path.replace(aside)
    stamp_path(path).unlink(missing_ok=True)
    return aside


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let one process at a time fill this directory; the others wait and then find it filled."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Hold the directory, which is there, for this process alone. Raises UsageError while another one holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _claim(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _claim(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"Another process is writing into {directory}.", "Wait until it has ended, or choose another --out."
        ) from error


def stamp_path(path: Path) -> Path:
    """The small file that says what `stamp` noted."""
    return path.with_name(path.name + ".verified")


def _stamp_of(path: Path) -> dict[str, object]:
    try:
        found = json.loads(stamp_path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(path: Path) -> dict[str, object]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
