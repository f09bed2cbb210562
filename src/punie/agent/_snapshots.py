"""What a directory looks like, kept by a git repository of Punie's own, so that what a command did can be told and
taken back.

That repository lies in the state directory. The directory's own one, if it has any, is neither read nor written.
"""

import fcntl
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from punie.agent._database import private_directory
from punie.tools._states import ABSENT, State
from punie.tools._walk import SKIPPED_DIRECTORIES

BUDGET_S = 10.0
"""Seconds one snapshot may take."""
MAX_FILES = 50_000
MAX_FILE = 16_000_000
"""Bytes of one file."""
MAX_NEW = 500_000_000
"""Bytes that one snapshot may add."""
_MOST_EMPTY = 1_000
MAX_KEPT = 2_000_000_000
"""Bytes the repository may take, compressed; it is started anew when it has grown beyond them."""

# Contents are kept byte for byte: no filter, no line ends, no keywords, whatever the directory's own attributes say.
_ATTRIBUTES = "* -text -eol -ident -filter -working-tree-encoding\n"
_SETTINGS = (
    *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false"),
    *("-c", "core.fileMode=true", "-c", "core.symlinks=true", "-c", "gc.auto=0", "-c", "maintenance.auto=false"),
    *("-c", "advice.addEmbeddedRepo=false", "-c", "core.untrackedCache=false", "-c", "core.looseCompression=1"),
)


KEYS = (
    *(".env", ".env.*", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
    *(f"!.env.{kind}" for kind in ("example", "sample", "template", "dist", "defaults")),
)
"""Names of files that commonly hold keys: no copy of them is made of which nobody is asked."""


class NotCovered(Exception):  # noqa: N818 - says what happened
    """Why a command cannot be taken back, in a few words."""


class NeverCovered(NotCovered):
    """The same, and it will not be otherwise the next time: trying again would only take time."""


@dataclass(frozen=True)
class Snapshot:
    """The files and links of a directory by their paths from its root."""

    entries: Mapping[bytes, State]
    directories: frozenset[bytes]
    opaque: frozenset[bytes]
    """Those of the directories below which nothing is listed, though something is there."""
    left_out: Mapping[bytes, tuple[int, int]]
    """Size and modification time of what is too large or cannot be read."""

    def state(self, path: bytes) -> State:
        """What stood at a path."""
        if path in self.entries:
            return self.entries[path]
        return State(stat.S_IFDIR) if path in self.directories else ABSENT

    def had(self, directory: bytes) -> bool:
        """Whether a directory was there; one below an opaque one may have been."""
        return directory in self.directories or any(parent in self.opaque for parent in _parents(directory))


@dataclass
class ShadowGit:
    """Snapshots of one root. `directory` is where the repository is kept; it is made when it is first needed."""

    directory: Path
    root: Path
    environment: Mapping[str, str]
    budget_s: float = BUDGET_S
    max_files: int = MAX_FILES
    max_file: int = MAX_FILE
    max_new: int = MAX_NEW
    _end: float = 0.0
    _measured: bool = False

    def take(self) -> Snapshot:
        """The directory as it is now. NotCovered if that cannot be told, or not in time."""
        self._end = time.monotonic() + self.budget_s
        try:
            with self._locked():
                self._prepare()
                left_out, nested = self._update()
                return self._listed(left_out, nested)
        except subprocess.TimeoutExpired:
            raise NeverCovered(f"a snapshot of {self.root} takes more than {self.budget_s:g} s") from None
        except OSError as error:
            raise NotCovered(f"no snapshot could be kept: {error.strerror or error}") from error

    def read(self, oid: str) -> bytes | None:
        """The content with this name; None if it is not kept."""
        self._end = time.monotonic() + self.budget_s
        try:
            return self._git("cat-file", "blob", oid) if self.directory.is_dir() else None
        except (NotCovered, subprocess.TimeoutExpired, OSError):
            return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        private_directory(self.directory)
        descriptor = os.open(self.directory / "punie.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > self._end:
                        raise NotCovered("another punie was taking a snapshot") from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _prepare(self) -> None:
        (self.directory / "index.lock").unlink(missing_ok=True)  # of a git that was killed
        if not self._measured and _size(self.directory / "objects") > MAX_KEPT:
            shutil.rmtree(self.directory / "info")  # made last, and the mark of a whole repository
            shutil.rmtree(self.directory / "objects")
            (self.directory / "index").unlink(missing_ok=True)
        self._measured = True
        if not (self.directory / "info" / "attributes").exists():
            self._git("init", "--quiet", "--object-format=sha256", "--template=")
            private_directory(self.directory / "info")
            (self.directory / "info" / "attributes").touch(mode=0o600)
            (self.directory / "info" / "attributes").write_text(_ATTRIBUTES)

    def _update(self) -> tuple[dict[bytes, tuple[int, int]], list[bytes]]:
        """Bring the index up to date; what is left out of it, and the repositories that lie inside."""
        listed = self._paths("ls-files", "-z", "-o", "-m", "-d", *self._excludes())
        nested = [path[:-1] for path in listed if path.endswith(b"/")]
        candidates = {path for path in listed if not path.endswith(b"/")}
        if len(candidates) > self.max_files:
            raise NeverCovered(f"{self.root} has more than {self.max_files} files")
        left_out: dict[bytes, tuple[int, int]] = {}
        new = 0
        for path in candidates:
            status = self._status(path)
            if status is None:
                continue
            readable = stat.S_ISLNK(status.st_mode) or os.access(self._place(path), os.R_OK)
            if status.st_size > self.max_file or not readable:
                left_out[path] = (status.st_size, status.st_mtime_ns)
            else:
                new += status.st_size
        if new > self.max_new:
            raise NeverCovered(f"{self.root} has over {self.max_new // 1_000_000} MB of files")
        self._feed(candidates - left_out.keys(), "--add", "--remove", "--replace")
        self._feed(left_out, "--force-remove")
        return left_out, nested

    def _feed(self, paths: Iterable[bytes], *options: str) -> None:
        text = b"".join(path + b"\0" for path in sorted(paths))
        if text:
            self._git("update-index", "-z", *options, "--stdin", given=text)

    def _listed(self, left_out: Mapping[bytes, tuple[int, int]], nested: Sequence[bytes]) -> Snapshot:
        entries: dict[bytes, State] = {}
        for line in self._paths("ls-files", "-z", "-s"):
            about, _, path = line.partition(b"\t")
            status = self._status(path)
            if status is not None:
                entries[path] = State(status.st_mode, about.split()[1].decode())
        if len(entries) > self.max_files:
            raise NeverCovered(f"{self.root} has more than {self.max_files} files")
        found = [path[:-1] for path in self._paths("ls-files", "-z", "-o", "--directory") if path.endswith(b"/")]
        empty = {path: self._only_directories(path) for path in found}
        opaque = {*nested, *(path for path, below in empty.items() if below is None)}
        known = {*opaque, *(inner for below in empty.values() for inner in below or ())}
        directories = known.union(*map(_parents, known), *map(_parents, entries))
        return Snapshot(entries, frozenset(directories), frozenset(opaque), left_out)

    def _only_directories(self, path: bytes) -> list[bytes] | None:
        """A directory and those below it; None if there is a file among them, or more of them than anyone needs."""
        below: list[bytes] = []
        for place, directories, files in os.walk(self._place(path)):
            below.append(os.path.relpath(place, os.fsencode(self.root)))
            if files or len(below) + len(directories) > _MOST_EMPTY:
                return None
        return below

    def _status(self, path: bytes) -> os.stat_result | None:
        try:
            return os.lstat(self._place(path))
        except OSError:
            return None

    def _place(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.root), path)  # noqa: PTH118 - bytes

    def _excludes(self) -> list[str]:
        """What is not kept: ignored and generated files, files with keys, and Punie's own state if it lies inside."""
        patterns = [f"{name}/" for name in sorted(SKIPPED_DIRECTORIES)]
        patterns += KEYS
        if self.directory.is_relative_to(self.root):
            patterns.append("/" + self.directory.parent.parent.relative_to(self.root).as_posix() + "/")
        own = self.root / ".git" / "info" / "exclude"
        files = [f"--exclude-from={own}"] if own.is_file() else []
        return ["--exclude-standard", *files, *(f"--exclude={pattern}" for pattern in patterns)]

    def _paths(self, *arguments: str) -> list[bytes]:
        return self._git(*arguments).split(b"\0")[:-1]

    def _git(self, *arguments: str, given: bytes = b"") -> bytes:
        command = [self._program(), "--no-pager", *_SETTINGS, *arguments]
        left = self._end - time.monotonic()
        if left <= 0:
            raise subprocess.TimeoutExpired(command, self.budget_s)
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            check=False,
            cwd=self.root,
            env=self._variables(),
            timeout=left,
            umask=0o077,
        )
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit {done.returncode}"]
            raise NotCovered(f"git {arguments[0]} failed: {lines[0][:200]}")
        return done.stdout

    def _program(self) -> str:
        """Git of the system: never one from the directory itself."""
        places = (Path(part) for part in self.environment.get("PATH", os.defpath).split(os.pathsep))
        outside = [place for place in places if place.is_absolute() and not place.is_relative_to(self.root)]
        found = shutil.which("git", path=os.pathsep.join(map(str, outside))) if outside else None
        if found is None:
            raise NeverCovered("git is not installed, and snapshots need it")
        return found

    def _variables(self) -> dict[str, str]:
        passed = {
            name: self.environment[name] for name in ("PATH", "HOME", "XDG_CONFIG_HOME") if name in self.environment
        }
        return {
            **passed,
            "GIT_DIR": str(self.directory),
            "GIT_WORK_TREE": str(self.root),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LITERAL_PATHSPECS": "1",
            "LC_ALL": "C",
        }


def _parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")[:-1]
    return [b"/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _size(directory: Path) -> int:
    """Bytes of the files two levels below; that is where git keeps its objects."""
    if not directory.is_dir():
        return 0
    return sum(entry.stat().st_size for below in os.scandir(directory) if below.is_dir() for entry in os.scandir(below))
