"""The shape of tool results: a header line, bounded item lines, and a last line that says what was left out."""

import difflib
from collections.abc import Iterable, Sequence

from punie import controls

MAX_ITEMS = 200
MAX_BYTES = 20_000
MAX_TEXT = 160


def clip(text: str, *, limit: int = MAX_TEXT) -> str:
    """One line of at most `limit` characters, with control and invisible characters made visible."""
    shown = controls.marked(printable(text[: limit + 1]))
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def printable(text: str) -> str:
    """`text` without lone surrogates, which stand for bytes of file names that are not UTF-8."""
    if text.isascii():
        return text
    as_bytes = "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)
    return as_bytes.encode("utf-8", "backslashreplace").decode("utf-8")


def listing(header: str, items: Sequence[str], *, narrow: str, notes: Iterable[str] = ()) -> str:
    """A list result. `narrow` ends the sentence that says how to reach what was left out."""
    kept = fitting(items)
    left = len(items) - len(kept)
    last = [f"... {left} more; {narrow}"] if left else []
    return "\n".join([header, *kept, *last, *notes])


def fitting(items: Sequence[str], *, limit: int = MAX_ITEMS, room: int = MAX_BYTES) -> list[str]:
    """As many items from the front as the bounds on lines and bytes let through."""
    kept: list[str] = []
    for item in items[:limit]:
        room -= len(item.encode("utf-8", "replace")) + 1
        if room < 0:
            break
        kept.append(item)
    return kept


def counted(count: int, noun: str, *, plural: str | None = None) -> str:
    """`1 file`, `3 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def nearest(wanted: str, names: Iterable[str], *, count: int = 5) -> list[str]:
    """The names most like `wanted`, those that differ only in case first."""
    choices = sorted(set(names))
    same = [name for name in choices if name.lower() == wanted.lower()]
    # Names of a very different length cannot be close, and difflib takes long to find that out.
    likely = [name for name in choices if abs(len(name) - len(wanted)) <= max(3, len(wanted))]
    close = difflib.get_close_matches(wanted, likely, n=count, cutoff=0.6)
    return list(dict.fromkeys([*same, *close]))[:count]


def nearest_paths(wanted: str, paths: Iterable[str], *, count: int = 5) -> list[str]:
    """Paths with the same last component first, then those with a similar one."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    name = wanted.rstrip("/").rpartition("/")[2]
    names = [name] if name in by_name else []
    names += [other for other in nearest(name, by_name, count=count) if other != name]
    found = [path for near in names for path in by_name[near]]
    return found[:count]
