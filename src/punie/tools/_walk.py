"""The files of a workspace, in order, without what git ignores and what tools generate."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from punie.tools._paths import read_beneath

MAX_FILES = 50_000
MAX_IGNORE_FILE = 256 * 1024
SKIPPED_DIRECTORIES = frozenset({
    ".bzr", ".eggs", ".git", ".hg", ".hypothesis", ".import_linter_cache", ".ipynb_checkpoints", ".mypy_cache", ".nox",
    ".pytest_cache", ".ruff_cache", ".svn", ".tox", ".venv", "__pycache__", "node_modules", "venv",
})  # fmt: skip
# A directory holding one of these is a virtual environment or a cache, whatever its name.
DIRECTORY_MARKERS = frozenset({"pyvenv.cfg", "CACHEDIR.TAG"})

# From the root down: the directory a .gitignore lies in, as a prefix, and its patterns.
Rules = tuple[tuple[str, GitIgnoreSpec], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path from the root, and the stamp that tells whether it changed."""

    path: str
    mtime_ns: int
    size: int


def walk_files(root: Path) -> Iterator[Entry]:
    """Regular files below the root, sorted by path, at most `MAX_FILES`. Links are left out: they show a file twice."""
    entries = _walk(root, "", _first_rules(root))
    for count, entry in enumerate(entries):
        if count == MAX_FILES:
            return
        yield entry


def _first_rules(root: Path) -> Rules:
    exclude = _read_rules(root, ".git/info/exclude")
    return (("", exclude),) if exclude is not None else ()


def _walk(root: Path, prefix: str, rules: Rules) -> Iterator[Entry]:
    try:
        with os.scandir(root / prefix) as scan:
            found = sorted(scan, key=_sort_key)
    except OSError:
        return  # gone meanwhile, or not readable: there is nothing to list
    names = {entry.name for entry in found}
    if prefix and names & DIRECTORY_MARKERS:
        return
    if ".gitignore" in names and (own := _read_rules(root, f"{prefix}.gitignore")) is not None:
        rules = (*rules, (prefix, own))
    for entry in found:
        yield from _visit(root, prefix + entry.name, entry, rules)


def _sort_key(entry: os.DirEntry[str]) -> str:
    # With the slash, directories sort as their paths do: `a.py` before `a/b.py`.
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


def _visit(root: Path, path: str, entry: os.DirEntry[str], rules: Rules) -> Iterator[Entry]:
    try:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in SKIPPED_DIRECTORIES and not _ignored(f"{path}/", rules):
                yield from _walk(root, f"{path}/", rules)
        elif entry.is_file(follow_symlinks=False) and not _ignored(path, rules):
            status = entry.stat(follow_symlinks=False)
            yield Entry(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        return  # gone between the listing and the look


def _ignored(path: str, rules: Rules) -> bool:
    """The deepest .gitignore with an opinion decides, as in git."""
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path[len(prefix) :]).include
        if verdict is not None:
            return verdict
    return False


def _read_rules(root: Path, path: str) -> GitIgnoreSpec | None:
    try:
        content = read_beneath(root, path, limit=MAX_IGNORE_FILE)
    except OSError:
        return None
    lines = content.data.decode("utf-8", errors="replace").splitlines()
    return _spec(lines)


def _spec(lines: list[str]) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError:
        return GitIgnoreSpec.from_lines(line for line in lines if _is_valid(line))


def _is_valid(line: str) -> bool:
    """Git passes over a pattern it cannot read; pathspec refuses the whole file."""
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True
