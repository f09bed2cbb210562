"""The files of a workspace, in order, without what git ignores and what tools generate."""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import AnyStr

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from punie.tools._beneath import DIRECTORY, open_beneath
from punie.tools._paths import Located, Tree, held, read_located
from punie.tools._replace import is_temporary

MAX_FILES = 50_000
MAX_DEPTH = 60
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
    inode: int
    mtime_ns: int
    size: int


def walk_files(root: Path | Tree) -> Iterator[Entry]:
    """Regular files below the root, sorted by path, at most `MAX_FILES`. Links are left out: they show a file twice."""
    with held(root) as tree:
        try:
            directory = tree.open(".", DIRECTORY)
        except FileNotFoundError:
            return  # deleted, and not made anew
        with closing(_walk(directory, "", _repository_rules(tree))) as entries:
            yield from islice(entries, MAX_FILES)


def _repository_rules(tree: Tree) -> Rules:
    try:
        content = tree.read(".git/info/exclude", limit=MAX_IGNORE_FILE)
    except OSError:
        return ()
    return (("", _rules(content.data)),)


def _walk(directory: int, prefix: str, rules: Rules) -> Generator[Entry, None, None]:
    """The files below an open directory, which is closed at the end."""
    try:
        with os.scandir(directory) as scan:
            found = sorted(scan, key=_sort_key)
        names = {entry.name for entry in found}
        if prefix and names & DIRECTORY_MARKERS:
            return
        if ".gitignore" in names:
            rules = _with_own(directory, prefix, rules)
        for entry in found:
            yield from _visit(directory, prefix, entry=entry, rules=rules)
    finally:
        os.close(directory)


def _sort_key(entry: os.DirEntry[str]) -> str:
    # With the slash, directories sort as their paths do: `a.py` before `a/b.py`.
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


def _visit(directory: int, prefix: str, *, entry: os.DirEntry[str], rules: Rules) -> Iterator[Entry]:
    path = prefix + entry.name
    if entry.is_dir(follow_symlinks=False):
        wanted = (
            entry.name not in SKIPPED_DIRECTORIES and path.count("/") < MAX_DEPTH and not _ignored(f"{path}/", rules)
        )
        below = _open(directory, entry.name) if wanted else None
        if below is not None:
            yield from _walk(below, f"{path}/", rules)
    elif entry.is_file(follow_symlinks=False) and not is_temporary(entry.name) and not _ignored(path, rules):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # gone since the listing
        yield Entry(path, status.st_ino, status.st_mtime_ns, status.st_size)


def _open(directory: int, name: str) -> int | None:
    try:
        return open_beneath(directory, name, DIRECTORY)
    except OSError:
        return None  # gone since the listing, a link by now, or not readable


def _ignored(path: str, rules: Rules) -> bool:
    """The deepest .gitignore with an opinion decides, as in git."""
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path[len(prefix) :]).include
        if verdict is not None:
            return verdict
    return False


def _with_own(directory: int, prefix: str, rules: Rules) -> Rules:
    try:
        content = read_located(Located(directory, ".gitignore", f"{prefix}.gitignore"), limit=MAX_IGNORE_FILE)
    except OSError:
        return rules
    return (*rules, (prefix, _rules(content.data)))


_STAR = r"\[\^/\]\*"
_STARS = re.compile(rf"(?:{_STAR}){{2,}}")
_BEFORE_STAR = re.compile(
    rf"({_STAR})((?:\\.|\[\^/\](?!\*)|\[(?!\^/\])(?:\\.|[^\]\\])+\]|[^\[\]()/\\*+?|$^.])+)(?={_STAR})"
)
MAX_PATTERN = 1_000
MAX_ANY_DEPTH = 3


class QuickPattern(GitIgnoreSpecPattern):
    """A pattern whose stars take a bounded time on any name.

    What stands between two stars is found where it comes first, and nowhere else is tried: that finds the same names.
    """

    @classmethod
    def pattern_to_regex(cls, pattern: AnyStr) -> tuple[AnyStr | None, bool | None]:
        """As in the class above, in other words."""
        regex, include = super().pattern_to_regex(pattern)
        if not isinstance(regex, str):
            return regex, include
        return _BEFORE_STAR.sub(r"(?>\1?\2)", _STARS.sub("[^/]*", regex)), include


class _Pattern(QuickPattern):
    """One of a repository that nobody trusts yet: if it is too long, or goes down too often, it is passed over."""

    @classmethod
    def pattern_to_regex(cls, pattern: AnyStr) -> tuple[AnyStr | None, bool | None]:
        regex, include = super().pattern_to_regex(pattern) if len(pattern) <= MAX_PATTERN else (None, None)
        return (None, None) if isinstance(regex, str) and regex.count(".+") > MAX_ANY_DEPTH else (regex, include)


def _rules(data: bytes) -> GitIgnoreSpec:
    lines = data.decode("utf-8", errors="replace").splitlines()
    try:
        return GitIgnoreSpec.from_lines(lines, _Pattern)
    except (ValueError, re.error):
        return GitIgnoreSpec.from_lines((line for line in lines if _is_valid(line)), _Pattern)


def _is_valid(line: str) -> bool:
    """Git passes over a pattern it cannot read; pathspec refuses the whole file."""
    try:
        GitIgnoreSpec.from_lines([line], _Pattern)
    except (ValueError, re.error):
        return False
    return True
