"""JSON as small models write it: single quotes, trailing commas, bare names, Python's constants, missing brackets.

Strings are never touched, and a string that does not end is never closed: what stood in it is not known.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_SPACE = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/|#[^\n]*)*", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])")
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_JSON_CONSTANTS = frozenset({"true", "false", "null"})
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_LEFT_OVER = re.compile(r"[\s,;}\])]*\Z")
_DEEPEST = 60


class UnreadableError(ValueError):
    """The text is not even nearly JSON."""


@dataclass(frozen=True)
class Read:
    """A value, where it ended, and what was wrong with it; no flaws for plain JSON."""

    value: Any
    end: int
    flaws: tuple[str, ...] = ()


def read(text: str, start: int = 0) -> Read:
    """Read one value and whatever follows it stays. Raises UnreadableError."""
    begin = _space_end(text, start)
    try:
        value, end = json.JSONDecoder().raw_decode(text, begin)
    except ValueError:
        return _Reader(text, begin).read()
    except RecursionError as error:
        raise UnreadableError("nested too deeply") from error
    return Read(value, end)


def read_whole(text: str) -> Read:
    """Read a text that is one value and nothing else, but for brackets too many. Raises UnreadableError."""
    found = read(text)
    rest = text[found.end :]
    if not rest.strip():
        return found
    if not _LEFT_OVER.fullmatch(rest):
        raise UnreadableError("more text after the value")
    return Read(found.value, len(text), (*found.flaws, "brackets too many"))


def read_object(text: str) -> Read | None:
    """The object a text is, also when it is written inside a string once more; None when it is none."""
    try:
        found = read_whole(text)
        if isinstance(found.value, str):
            inner = read_whole(found.value)
            found = Read(inner.value, found.end, (*found.flaws, *inner.flaws, "an object written as a string"))
    except UnreadableError:
        return None
    return found if isinstance(found.value, dict) else None


def loads_lenient(text: str) -> Any:
    """Parse JSON or nearly JSON; None when it cannot be read."""
    try:
        return read_whole(text).value
    except UnreadableError:
        return None


def _space_end(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


@dataclass
class _Reader:
    """Descends into one value, noting what is wrong on the way."""

    text: str
    at: int
    flaws: dict[str, None] = field(default_factory=dict)
    depth: int = 0

    def read(self) -> Read:
        value = self._value()
        return Read(value, self.at, tuple(self.flaws))

    def _peek(self) -> str:
        self.at = _space_end(self.text, self.at)
        return self.text[self.at : self.at + 1]

    def _flaw(self, what: str) -> None:
        self.flaws[what] = None

    def _value(self) -> Any:
        match self._peek():
            case "{":
                return self._inside("}", self._object)
            case "[":
                return self._inside("]", self._array)
            case '"' | "'":
                return self._string()
            case _:
                return self._scalar()

    def _inside(self, closer: str, items: Callable[[str], Any]) -> Any:
        self.at += 1
        self.depth += 1
        if self.depth > _DEEPEST:
            raise UnreadableError("nested too deeply")
        value = items(closer)
        self.depth -= 1
        return value

    def _object(self, closer: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._closed(closer):
            key = self._key()
            if self._peek() not in {":", "="}:
                raise UnreadableError("a name without a value")
            self.at += 1
            found[key] = self._value()
            self._separator(closer)
        return found

    def _array(self, closer: str) -> list[Any]:
        found: list[Any] = []
        while not self._closed(closer):
            found.append(self._value())
            self._separator(closer)
        return found

    def _closed(self, closer: str) -> bool:
        """Whether the container ends here; at the end of the text it does, for want of a bracket."""
        char = self._peek()
        if char == closer:
            self.at += 1
            return True
        if not char:
            self._flaw("brackets missing at the end")
            return True
        return False

    def _separator(self, closer: str) -> None:
        char = self._peek()
        if char == ",":
            self.at += 1
            if self._peek() in {closer, ""}:
                self._flaw("a trailing comma")
        elif char and char != closer:
            raise UnreadableError("a comma is missing")

    def _key(self) -> str:
        if self._peek() in {'"', "'"}:
            return self._string()
        word = _WORD.match(self.text, self.at)
        if not word:
            raise UnreadableError("no name")
        self.at = word.end()
        self._flaw("names without quotes")
        return word[0]

    def _scalar(self) -> Any:
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            return json.loads(number[0]) if number[0].lstrip("-")[:2].lower() != "0x" else int(number[0], 16)
        word = _WORD.match(self.text, self.at)
        if not word or word[0] not in _CONSTANTS:
            raise UnreadableError("no value")
        self.at = word.end()
        if word[0] not in _JSON_CONSTANTS:
            self._flaw("Python's constants")
        return _CONSTANTS[word[0]]

    def _string(self) -> str:
        quote = self.text[self.at]
        if quote == "'":
            self._flaw("single quotes")
        if self.text.startswith(quote * 3, self.at):
            return self._triple(quote * 3)
        end = self._string_end(quote)
        raw = self.text[self.at + 1 : end]
        self.at = end + 1
        if "\n" in raw:
            self._flaw("line breaks in a string")
        return _unescaped(raw)

    def _triple(self, quotes: str) -> str:
        end = self.text.find(quotes, self.at + 3)
        if end < 0:
            raise UnreadableError("a string does not end")
        raw, self.at = self.text[self.at + 3 : end], end + 3
        self._flaw("triple quotes")
        return _unescaped(raw)

    def _string_end(self, quote: str) -> int:
        at = self.at + 1
        while at < len(self.text):
            if self.text[at] == "\\":
                at += 1
            elif self.text[at] == quote:
                return at
            at += 1
        raise UnreadableError("a string does not end")


def _unescaped(raw: str) -> str:
    """The text of a string; an escape that JSON does not have is kept as it stands, as regular expressions need."""

    def one(match: "re.Match[str]") -> str:
        if match[1]:
            return match[0].encode().decode("unicode_escape")
        return _ESCAPES.get(match[2], match[2] if match[2] in "\"'\\/" else match[0])

    text = re.sub(r"\\(?:(u[0-9a-fA-F]{4})|(.))", one, raw, flags=re.DOTALL)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
