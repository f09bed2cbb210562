"""Which places an answer names, and which of them a tool or the user has really shown.

A place is `path:line`, `path:first-last` or `path#Lline`. Everything here is a pure function of text.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNVERIFIED = " (unverified)"

_PATH = r"[\w@+~.-]*(?:/[\w@+~.\[\]-]+)*"
_START = r"(?<![\w/.:@-])"
_PLACE = re.compile(
    rf"{_START}(?P<path>{_PATH})(?::|\#L)(?P<first>\d+)(?:-L?(?P<last>\d+))?(?::\d+)?(?![\w/])",
)
_TOKEN = re.compile(rf"{_START}{_PATH}\w")
_READ = re.compile(r"^(?P<path>\S+) lines (?P<first>\d+)-(?P<last>\d+) of \d+", re.MULTILINE)
_EDITED = re.compile(r"^edited (?P<path>\S+): .* at line (?P<first>\d+)", re.MULTILINE)
_WROTE = re.compile(r"^wrote (?P<path>\S+) \((?P<last>\d+) lines?\)", re.MULTILINE)
_TRACEBACK = re.compile(r'File "(?P<path>[^"\n]+)", line (?P<first>\d+)')
_HUNK = re.compile(
    r"^\+\+\+ (?:b/)?(?P<path>\S+).*\n@@ -\d+(?:,\d+)? \+(?P<first>\d+)(?:,(?P<count>\d+))? @@", re.MULTILINE
)
_BARE_NAMES = frozenset({"Makefile", "Dockerfile", "Justfile", "justfile", "Procfile", "Jenkinsfile", "LICENSE"})
_HOST_ENDINGS = frozenset({"com", "org", "net", "io", "dev", "local", "localhost", "internal", "ai"})
_MARK = "\ue002"


@dataclass(frozen=True)
class Place:
    """Lines of a file, as a text names them."""

    path: str
    first: int
    last: int


@dataclass(frozen=True)
class Shown:
    """What tools and the user have shown: the lines of each path, and every path that occurred."""

    lines: Mapping[str, tuple[tuple[int, int], ...]]
    paths: frozenset[str]

    def has(self, place: Place) -> bool:
        """Whether every line of the place was shown, under its path or under the end of a longer one."""
        return any(
            first <= place.first and place.last <= last
            for path, spans in self.lines.items()
            if _same_file(path, place.path)
            for first, last in spans
        )


def places(text: str) -> tuple[Place, ...]:
    """Every place the text names, in order, each once."""
    return tuple(dict.fromkeys(_place(match) for match in _PLACE.finditer(text) if _is_file(match, text)))


def shown(texts: Iterable[str]) -> Shown:
    """Collect what the given tool results and user messages show."""
    lines: dict[str, list[tuple[int, int]]] = {}
    paths: set[str] = set()
    for text in texts:
        paths.update(_normal(match[0]) for match in _TOKEN.finditer(text) if _looks_like_path(match[0]))
        for place in (*places(text), *_headers(text)):
            paths.add(place.path)
            lines.setdefault(place.path, []).append((place.first, place.last))
    return Shown({path: tuple(spans) for path, spans in lines.items()}, frozenset(paths))


def unverified(answer: str, known: Shown) -> tuple[Place, ...]:
    """The places the answer names that were never shown."""
    return tuple(place for place in places(answer) if not known.has(place))


def mark(answer: str, known: Shown) -> str:
    """Put ` (unverified)` after every place that was never shown, once."""

    def marked(match: re.Match[str]) -> str:
        rest = answer[match.end() :].removeprefix("`")
        if not _is_file(match, answer) or known.has(_place(match)) or rest.startswith(UNVERIFIED):
            return match[0]
        return match[0] + _MARK

    # A closing backtick right after the place stays with it.
    return _PLACE.sub(marked, answer).replace(f"{_MARK}`", f"`{_MARK}").replace(_MARK, UNVERIFIED)


def mend_case(answer: str, known: Shown) -> str:
    """Correct paths that differ from exactly one shown path by letter case only."""
    spellings: dict[str, set[str]] = {}
    for path in known.paths:
        for ending in _endings(path):
            spellings.setdefault(ending.lower(), set()).add(ending)

    def mended(match: re.Match[str]) -> str:
        path = match[0]
        if not _looks_like_path(path):
            return path
        right = spellings.get(path.lower(), set())
        return next(iter(right)) if len(right) == 1 else path

    return _TOKEN.sub(mended, answer)


def _same_file(shown_path: str, cited: str) -> bool:
    """An answer may cite the end of a shown path (`app.py`), or the absolute form of a shown relative one."""
    return (
        shown_path == cited
        or shown_path.endswith(f"/{cited}")
        or (cited[:1] == "/" and cited.endswith(f"/{shown_path}"))
    )


def _endings(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[index:]) for index in range(len(parts)))


def _headers(text: str) -> Iterable[Place]:
    for pattern in (_READ, _EDITED, _WROTE, _TRACEBACK, _HUNK):
        for match in pattern.finditer(text):
            groups = match.groupdict()
            first = int(groups.get("first") or 1)
            last = int(groups.get("last") or first + int(groups.get("count") or 1) - 1)
            yield Place(_normal(match["path"]), first, last)


def _place(match: re.Match[str]) -> Place:
    first = int(match["first"])
    return Place(_normal(match["path"]), first, int(match["last"] or first))


def _normal(path: str) -> str:
    return path.removeprefix("./")


def _is_file(match: re.Match[str], text: str) -> bool:
    in_url = re.search(r"\w+://\S*$", text[max(0, match.start() - 200) : match.start()])
    return not in_url and _looks_like_path(match["path"])


def _looks_like_path(text: str) -> bool:
    """A name with a file ending, a known bare name, or anything below a directory; not a host, not a number."""
    name = text.rsplit("/", 1)[-1]
    stem, dot, ending = name.rpartition(".")
    if name in _BARE_NAMES:
        return True
    if not dot or not ending.isalnum() or ending.isdigit():
        return False
    return bool(stem or "/" in text) and ending.lower() not in _HOST_ENDINGS
