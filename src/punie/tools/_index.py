"""An index of the workspace's Python definitions, read on first use and kept up to date by time and size of files."""

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from punie.tools._facts import Facts, Symbol, parse, read_facts, read_references
from punie.tools._paths import Content, Tree
from punie.tools._walk import Entry, walk_files

MAX_PYTHON_FILES = 20_000
MAX_FILE_BYTES = 1_000_000
MAX_TOTAL_BYTES = 256_000_000
# Maps of uses are larger than definitions, so only those of the files asked about lately stay.
MAX_REFERENCE_MAPS = 4_000


@dataclass(frozen=True, slots=True)
class Reference:
    """One line that uses a name, with its text."""

    path: str
    line: int
    text: str


@dataclass(frozen=True)
class Snapshot:
    """The index at one moment. `unparsed` and `oversized` are files whose definitions are not in it."""

    root_name: str
    files: dict[str, Facts]
    unparsed: tuple[str, ...]
    oversized: tuple[str, ...]
    capped: bool
    by_name: dict[str, tuple[Symbol, ...]] = field(repr=False)

    @property
    def symbols(self) -> Iterator[Symbol]:
        """Every definition, sorted by path and line."""
        for facts in self.files.values():
            yield from facts.symbols

    @property
    def classes(self) -> Iterator[Symbol]:
        """Every class, sorted by path and line."""
        return (symbol for symbol in self.symbols if symbol.kind == "class")


class Index:
    """Safe to use from several threads: one refreshes, the others wait for it."""

    def __init__(self, root: Path | Tree, *, hidden: Callable[[str], bool] = lambda _: False) -> None:
        self._tree = root if isinstance(root, Tree) else Tree(root)
        self._hidden = hidden
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._facts: dict[str, Facts | None] = {}
        self._references: OrderedDict[str, dict[str, tuple[int, ...]]] = OrderedDict()
        self._snapshot: Snapshot | None = None

    def refresh(self) -> Snapshot:
        """Read what is new or changed, forget what is gone, and return the state reached."""
        with self._lock:
            return self._refreshed()

    def _refreshed(self) -> Snapshot:
        entries, capped = _python_files(self._tree, self._hidden)
        changed = [entry for entry in entries.values() if self._entries.get(entry.path) != entry]
        gone = self._entries.keys() - entries.keys()
        for path in gone:
            self._facts.pop(path, None)
            self._references.pop(path, None)
        with _collector_paused():
            for entry in changed:
                self._facts[entry.path] = self._read(entry)
                self._references.pop(entry.path, None)
        self._entries = entries
        if changed or gone or self._snapshot is None:
            self._snapshot = self._built(capped=capped)
        return self._snapshot

    def _read(self, entry: Entry) -> Facts | None:
        content = None if entry.size > MAX_FILE_BYTES else self._content(entry.path)
        tree = parse(content.data) if content is not None and content.whole else None
        return None if tree is None else read_facts(entry.path, tree)

    def _content(self, path: str) -> Content | None:
        try:
            return self._tree.read(path, limit=MAX_FILE_BYTES)
        except OSError:
            return None  # gone or unreadable since the listing

    def _built(self, *, capped: bool) -> Snapshot:
        files = {path: facts for path in self._entries if (facts := self._facts[path]) is not None}
        missing = [entry for entry in self._entries.values() if self._facts[entry.path] is None]
        names: dict[str, list[Symbol]] = {}
        for facts in files.values():
            for symbol in facts.symbols:
                names.setdefault(symbol.last_name, []).append(symbol)
        return Snapshot(
            root_name=self._tree.root.name,
            files=files,
            unparsed=tuple(entry.path for entry in missing if entry.size <= MAX_FILE_BYTES),
            oversized=tuple(entry.path for entry in missing if entry.size > MAX_FILE_BYTES),
            capped=capped,
            by_name={name: tuple(symbols) for name, symbols in names.items()},
        )

    def references(self, name: str) -> list[Reference]:
        """Uses of a plain name, sorted by path and line. A file is walked only if the name stands in it."""
        with self._lock:
            snapshot = self._refreshed()
            with _collector_paused():
                return [reference for path in snapshot.files for reference in self._uses(path, name)]

    def _uses(self, path: str, name: str) -> Iterator[Reference]:
        known = self._references.get(path)
        if known is not None and name not in known:
            return
        content = self._content(path)
        if content is None or (name.isascii() and name.encode() not in content.data):
            return
        lines = self._reference_map(path, content.data).get(name, ())
        if lines:
            text = content.data.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
            yield from (Reference(path, line, text[line - 1].strip()) for line in lines if line <= len(text))

    def _reference_map(self, path: str, source: bytes) -> dict[str, tuple[int, ...]]:
        known = self._references.get(path)
        if known is None:
            tree = parse(source)
            known = self._references[path] = {} if tree is None else read_references(tree)
            if len(self._references) > MAX_REFERENCE_MAPS:
                self._references.popitem(last=False)
        self._references.move_to_end(path)
        return known

    def gaps(self, snapshot: Snapshot, name: str) -> list[str]:
        """Notes on files that may hold `name` and are not in the index."""
        notes = [
            _skipped(sum(self._holds(path, name) for path in paths), why=why)
            for paths, why in ((snapshot.unparsed, "syntax errors"), (snapshot.oversized, "over 1 MB"))
        ]
        if snapshot.capped:
            notes.append(f"(only the first {len(snapshot.files)} Python files are indexed)")
        return [note for note in notes if note]

    def _holds(self, path: str, name: str) -> bool:
        content = self._content(path)
        return content is not None and (not content.whole or name.encode("utf-8", "replace") in content.data)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Syntax trees hold no cycles, and looking for some in them takes as long as parsing them."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _skipped(count: int, *, why: str) -> str:
    if not count:
        return ""
    return f"({count} {'file' if count == 1 else 'files'} skipped: {why})"


def _python_files(tree: Tree, hidden: Callable[[str], bool]) -> tuple[dict[str, Entry], bool]:
    entries: dict[str, Entry] = {}
    total = 0
    for entry in walk_files(tree):
        if not entry.path.endswith((".py", ".pyi")) or hidden(entry.path):
            continue
        total += min(entry.size, MAX_FILE_BYTES)
        if len(entries) == MAX_PYTHON_FILES or total > MAX_TOTAL_BYTES:
            return entries, True
        entries[entry.path] = entry
    return entries, False
