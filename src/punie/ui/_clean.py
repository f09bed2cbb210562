"""Untrusted text made safe for a terminal.

Model text, file contents, file names and command output may carry escape sequences that move the cursor, rewrite
the title, write the clipboard or draw a false prompt. A state machine, because a pattern for colours leaves the
other kinds, and because text arrives in pieces that may cut a sequence in two.
"""

from enum import Enum, auto

_ESC = "\x1b"
_STRING_OPENERS = frozenset("P]X^_\x90\x9d\x98\x9e\x9f")
_STRING_ENDS = frozenset("\x07\x9c")
_MAX_SEQUENCE = 4096
"""A string sequence that never ends must not swallow the rest of an answer."""

# Marks that reorder or hide what surrounds them: bidirectional controls, zero-width characters, tag characters.
_INVISIBLE = frozenset(
    [
        *"\u00ad\u061c\u180e\ufeff",
        *map(chr, range(0x200B, 0x2010)),
        *map(chr, range(0x2028, 0x202F)),
        *map(chr, range(0x2060, 0x2070)),
        *map(chr, range(0xFFF9, 0xFFFC)),
        *map(chr, range(0xE0000, 0xE0080)),
    ]
)
_JOINERS = frozenset("\u200c\u200d")
"""Needed inside words of some scripts and inside emoji; they only count as hidden where every character counts."""


class _State(Enum):
    TEXT = auto()
    ESCAPE = auto()
    CSI = auto()
    STRING = auto()
    STRING_ESCAPE = auto()


class Cleaner:
    """Removes control sequences from text that arrives in pieces."""

    def __init__(self) -> None:
        self._state = _State.TEXT
        self._length = 0

    def feed(self, text: str) -> str:
        """Return what may be printed of the next piece."""
        if self._state is _State.TEXT and text.isascii() and text.isprintable():
            return text
        return "".join(map(self._take, text))

    def _take(self, char: str) -> str:
        if self._state is _State.TEXT:
            return self._text(char)
        self._length += 1
        if self._length > _MAX_SEQUENCE:
            self._state = _State.TEXT
            return ""
        if self._state is _State.ESCAPE:
            self._after_escape(char)
        elif self._state is _State.CSI:
            self._in_csi(char)
        else:
            self._in_string(char)
        return "\n" if char == "\n" else ""

    def _text(self, char: str) -> str:
        if char in "\n\t" or (" " <= char <= "~"):
            return char
        if char == _ESC:
            return self._enter(_State.ESCAPE)
        if char == "\x9b":
            return self._enter(_State.CSI)
        if char in _STRING_OPENERS:
            return self._enter(_State.STRING)
        if char < " " or "\x7f" <= char <= "\x9f" or (char in _INVISIBLE and char not in _JOINERS):
            return ""
        return char

    def _enter(self, state: _State) -> str:
        self._state = state
        self._length = 0
        return ""

    def _after_escape(self, char: str) -> None:
        if char == "[":
            self._state = _State.CSI
        elif char in _STRING_OPENERS:
            self._state = _State.STRING
        elif not (" " <= char <= "/" or char == _ESC):
            self._state = _State.TEXT

    def _in_csi(self, char: str) -> None:
        if char == _ESC:
            self._state = _State.ESCAPE
        elif not " " <= char <= "?":
            self._state = _State.TEXT

    def _in_string(self, char: str) -> None:
        if char in _STRING_ENDS or char == "\n" or (self._state is _State.STRING_ESCAPE and char == "\\"):
            self._state = _State.TEXT
        elif self._state is _State.STRING_ESCAPE and char != _ESC:
            self._state = _State.STRING
        elif char == _ESC:
            self._state = _State.STRING_ESCAPE


def clean(text: str) -> str:
    """Return a whole text without control sequences; newlines and tabs stay."""
    return Cleaner().feed(text)


def visible(text: str) -> str:
    r"""Return the text with every control, zero-width and direction character spelled out as `\x1b` or `\u202e`.

    For what a user is asked to approve: nothing may be hidden, not even by removing it.
    """
    return "".join(_spelled(char) if _is_hidden(char) else char for char in text)


def hidden_characters(text: str) -> int:
    """Return how many characters `visible` has to spell out."""
    return sum(map(_is_hidden, text))


def one_line(text: str, *, width: int) -> str:
    """Return the first line, cleaned and cut at `width` characters."""
    first = next((line for line in clean(text).splitlines() if line.strip()), "").replace("\t", " ").strip()
    return first if len(first) <= width else first[: max(width - 1, 0)] + "…"


def _is_hidden(char: str) -> bool:
    if char in "\n\t" or " " <= char <= "~":
        return False
    return char < " " or "\x7f" <= char <= "\xa0" or char in _INVISIBLE or "\ud800" <= char <= "\udfff"


def _spelled(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
