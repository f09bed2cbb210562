"""What a command must not change in its own workspace, and what it must not read in the user's home.

In the workspace that is what other programs, Punie included, take for instructions or run by themselves: hooks and
configuration of git, and the configuration of agents and editors.
"""

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import TypeAlias

NAMES = (".punie", ".mcp.json", ".vscode", ".idea", ".agents", ".claude", ".cursor", ".codex", ".envrc")
"""Entries of a workspace that no command changes, and none creates."""

_IN_GIT = ("config", "config.worktree", "hooks")
# These would lead git to a configuration elsewhere. An empty one would break git, so it cannot be put there first.
_LEADS = ("commondir",)
_IN_WORKTREE = ("commondir", "gitdir", "config.worktree")
_SHELL_FILES = (
    *(".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".profile", ".inputrc"),
    *(".zshrc", ".zshenv", ".zprofile", ".zlogin", ".gitconfig", ".config/git", ".config/fish", ".local/bin"),
)
SECRETS = (
    *(".ssh", ".aws", ".azure", ".gnupg", ".kube", ".netrc", ".pgpass", ".npmrc", ".pypirc", ".git-credentials"),
    *(".docker/config.json", ".config/gh", ".config/gcloud", ".config/git/credentials", ".config/punie"),
    *(".local/state/punie", ".local/share/keyrings", ".password-store"),
)
"""Where keys and passwords lie in a home directory."""

_MASK_MODE = 0o555
_MOST_BYTES = 1_000_000
_MOST_ENTRIES = 1_000
_MOST_MODULES = 200


@dataclass(frozen=True, slots=True)
class Places:
    """Absolute paths, none of them seen through a link."""

    pinned: tuple[Path, ...] = ()
    """Directories that stay writable but cannot be moved away."""
    fixed: tuple[Path, ...] = ()
    """Files and directories that cannot be changed; some may be missing."""
    watched: tuple[Path, ...] = ()
    """What must not come into being, and can only be looked for afterwards."""
    outside: tuple[Path, ...] = ()
    """Directories outside of the workspace that its git needs to write to."""


def places(root: Path, *, home: Path | None = None) -> Places:
    """What is protected in a workspace; `home` only counts when the workspace holds it."""
    fixed = [root / name for name in NAMES]
    if home is not None and (home == root or root in home.parents):
        fixed += [path for name in _SHELL_FILES if os.path.lexists(path := home / name)]
    pinned, watched, outside = [], [], []
    for directory in _git_directories(root):
        pinned.append(directory)
        fixed += [directory / name for name in _IN_GIT if name == "hooks" or os.path.lexists(directory / name)]
        watched += [directory / name for name in _LEADS]
        for module in _modules(directory):
            fixed += [path for name in _IN_GIT if os.path.lexists(path := module / name)]
        for worktree in _entries(directory / "worktrees"):
            fixed += [path for name in _IN_WORKTREE if os.path.lexists(path := worktree / name)]
        if root not in directory.parents:
            outside.append(directory)
    link = root / ".git"
    if link.is_file() and not link.is_symlink():
        fixed.append(link)
    return Places(tuple(pinned), tuple(fixed), tuple(watched), tuple(outside))


def _git_directories(root: Path) -> list[Path]:
    """The workspace's own `.git`, or the ones that its `.git` file names if they name the workspace as theirs.

    A file that names another repository does not make that one writable.
    """
    entry = root / ".git"
    if entry.is_symlink():
        return []
    if entry.is_dir():
        return [entry]
    own = _named_in(entry, "gitdir: ", root)
    if own is None:
        return []
    back = _named_in(own / "gitdir", "", own)
    if back is not None and back == entry:  # a worktree
        common = _named_in(own / "commondir", "", own)
        return [common] if common is not None and common in own.parents else []
    config = _text(own / "config")
    if any(_is_worktree_line(line, own, root) for line in config.splitlines()):  # a submodule
        return [own]
    return []


def _is_worktree_line(line: str, own: Path, root: Path) -> bool:
    name, _, value = line.partition("=")
    return name.strip() == "worktree" and Path(os.path.normpath(own / value.strip())) == root


def _named_in(file: Path, prefix: str, base: Path) -> Path | None:
    """The path that a file of git's names, relative to a directory."""
    text = _text(file)
    if not text.startswith(prefix) or not text.strip():
        return None
    return Path(os.path.realpath(base / text.removeprefix(prefix).strip()))


def _text(file: Path) -> str:
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return ""
        return file.read_text("utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _modules(directory: Path) -> list[Path]:
    """The git directories of submodules, also of submodules of submodules."""
    found: list[Path] = []
    pending = [directory / "modules"]
    while pending and len(found) < _MOST_MODULES:
        for path in _entries(pending.pop()):
            if (path / "HEAD").is_file():
                found.append(path)
                pending.append(path / "modules")
            else:
                pending.append(path)
    return found


def _entries(directory: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def secrets(homes: Sequence[Path], *, root: Path, more: Sequence[Path] = ()) -> list[Path]:
    """What lies in home directories that no command reads: existing paths, but none that holds the workspace."""
    candidates = [*(home / name for home in homes for name in SECRETS), *more]
    real = {Path(os.path.realpath(path)) for path in candidates if os.path.lexists(path)}
    return sorted(path for path in real if path.exists() and path != root and path not in root.parents)


@contextmanager
def masked(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Have something at each path while a command runs: missing ones are empty directories nobody can write to.

    Yields the paths that are there now. A mask is recognised by its mode, and shared by all that hold a lock on it;
    the last one to leave takes it away, also if an earlier one was killed.
    """
    with contextlib.ExitStack() as stack:
        there: list[Path] = []
        for path in paths:
            if not os.path.lexists(path):
                with contextlib.suppress(OSError):
                    path.mkdir(mode=_MASK_MODE)
            if _is_mask(path):
                stack.callback(_unmask, path, _hold(path))
            if os.path.lexists(path):
                there.append(path)
        yield there


def _is_mask(path: Path) -> bool:
    try:
        status = path.lstat()
        return stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == _MASK_MODE and not any(path.iterdir())
    except OSError:
        return False


def _hold(path: Path) -> int:
    """An open file with a shared lock on the directory; -1 if that cannot be had."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    with contextlib.suppress(OSError):
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return number


def _unmask(path: Path, number: int) -> None:
    if number < 0:
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_mask(path) and os.path.samestat(path.lstat(), os.fstat(number)):
            path.rmdir()
    except OSError:
        pass  # somebody else holds it, who will take it away
    finally:
        os.close(number)


_State: TypeAlias = tuple[str, int, bytes | str | dict[str, "_State"]]


@dataclass
class Watch:
    """Compares protected paths before and after a command, and puts back what it changed.

    For what cannot be prevented: anything below a writable directory with Landlock, and files that may not come into
    being with bubblewrap. Between the change and the end of the command, the change is there. What stands in the way
    is moved to the directory `aside`. Files and directories over 1 MB or 1000 entries are only compared.
    """

    paths: Sequence[Path]
    pinned: Sequence[Path]
    aside: Path
    _before: dict[Path, "_State | None"] = field(default_factory=dict)
    _inodes: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = {path: _state(path, _Budget()) for path in self.paths}
        for path in self.pinned:
            status = path.lstat()
            self._inodes[path] = (status.st_dev, status.st_ino)

    def restore(self) -> list[Path]:
        """Put back what changed; the paths that had to be."""
        restored = [path for path in self.pinned if self._put_back(path)]
        for path, before in self._before.items():
            if _state(path, _Budget()) == before or any(parent.is_symlink() for parent in path.parents):
                continue
            restored.append(path)
            if before is None or before[0] != "other":
                self._clear(path)
            if before is not None:
                _write(path, before)
        return restored

    def _put_back(self, path: Path) -> bool:
        """Whether a pinned directory was moved away; if so it is moved back, wherever beside it stands."""
        if _inode(path) == self._inodes[path]:
            return False
        moved = [entry for entry in _entries(path.parent) if _inode(entry) == self._inodes[path]]
        if moved:
            self._clear(path)
            moved[0].rename(path)
        return True

    def _clear(self, path: Path) -> None:
        """Move what is at the path aside."""
        if os.path.lexists(path):
            with contextlib.suppress(OSError):
                shutil.move(path, self.aside / f"{path.name}-{token_hex(8)}")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


class _Budget:
    """How much of a directory is remembered."""

    def __init__(self) -> None:
        self.bytes, self.entries = _MOST_BYTES, _MOST_ENTRIES

    def covers(self, size: int) -> bool:
        self.bytes -= size
        self.entries -= 1
        return self.bytes >= 0 and self.entries >= 0


def _state(path: Path, budget: _Budget) -> "_State | None":
    """What is at a path: its kind, its mode and what is in it; None if nothing is."""
    try:
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            return ("link", 0, str(path.readlink()))
        if stat.S_ISDIR(status.st_mode) and budget.covers(0):
            inside = {each.name: state for each in path.iterdir() if (state := _state(each, budget)) is not None}
            whole = all(kind != "other" for kind, _, _ in inside.values())
            return ("directory" if whole else "other", mode, inside)
        if stat.S_ISREG(status.st_mode) and budget.covers(status.st_size):
            return ("file", mode, path.read_bytes())
        return ("other", mode, f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}")
    except OSError:
        return None


def _write(path: Path, state: "_State") -> None:
    kind, mode, content = state
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "other":
            return
        if kind == "link":
            path.symlink_to(str(content))
        elif isinstance(content, dict):
            path.mkdir()
            for name, inside in content.items():
                _write(path / name, inside)
            path.chmod(mode)
        elif isinstance(content, bytes):
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(number, "wb") as file:
                file.write(content)
            path.chmod(mode)
