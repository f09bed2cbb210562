r"""Untrusted text made safe to show: to a terminal, and to a model.

Model text, file contents, file names and command output may carry escape sequences that move the cursor, rewrite
the title, write the clipboard or draw a false prompt, and characters that nobody sees: marks that reorder a line,
letters of zero width, a whole message in tag characters or variation selectors. A state machine, because a pattern
for colours leaves the other kinds, and because text arrives in pieces that may cut a sequence in two.

Sequences: ECMA-48, section 5 and 8.3, in their seven and eight bit forms. Invisible characters: Unicode Technical
Report 36, section 3, and the sequences allowed by UTS 51 (emoji) and UTS 37 (ideographs).
"""

import re
from enum import Enum, auto

_ESC = "\x1b"
_STRING_OPENERS = frozenset("P]X^_\x90\x9d\x98\x9e\x9f")
_STRING_ENDS = frozenset("\x07\x9c")
_MAX_SEQUENCE = 4096
"""A string sequence that never ends must not swallow the rest of an answer."""

_BACKSPACE = "\b"
# Whole runs of characters that mean nothing but themselves are taken at once: what is between the ranges is looked at.
_ORDINARY = re.compile(r"[\t\n -~\u00a0-\u00ac\u00ae-\u0300\u0370-\u061b\u061d-\u180a\u1810-\u1fff\u2010-\u2027"
                       r"\u2030-\u205e\u2070-\u3163\u3165-\ud7ff\U0001f000-\U0001fbff]+")  # fmt: skip

_JOINERS = frozenset("\u200c\u200d")
"""Needed inside words of some scripts and inside emoji; they only count as hidden where every character counts."""
_INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    r"\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)
"""Bidirectional controls, zero-width and filler characters, line separators, tag characters."""
_SELECTOR = re.compile(r"[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Variation selectors: 256 of them, enough to write anything behind one letter."""
_PRIVATE = re.compile(r"[\ue000-\uf8ff\U000f0000-\U0010ffff\ufdd0-\ufdef\ufffe\uffff]")
"""Private use and no characters at all: what they look like depends on the font."""


class _State(Enum):
    TEXT = auto()
    ESCAPE = auto()
    CSI = auto()
    STRING = auto()
    STRING_ESCAPE = auto()


class Cleaner:
    """Removes control sequences and invisible characters from text that arrives in pieces.

    However the text is cut, the pieces give what the whole gives. What a carriage return or backspaces would have
    overwritten stands on a line of its own; letters typed twice over themselves, as manuals print bold ones, stand
    once. With `spell`, invisible characters are spelled out as `<U+202E>` instead of removed: for a reader who must
    not miss that something is there.
    """

    def __init__(self, *, spell: bool = False) -> None:
        self._spell = spell
        self._state = _State.TEXT
        self._length = 0
        self._last = ""
        """The last character of the text so far: what a selector or a backspace belongs to."""
        self._returned = False
        """Whether it was a carriage return, which has been given as a new line already."""
        self._backspaces = 0

    def feed(self, text: str) -> str:
        """Return what may be shown of the next piece."""
        shown: list[str] = []
        place = 0
        while place < len(text):
            if self._is_plain and (run := _ORDINARY.match(text, place)):
                shown.append(run[0])
                place = run.end()
                self._last = run[0][-1]
            else:
                shown.append(self._take(text[place]))
                place += 1
        return "".join(shown)

    @property
    def _is_plain(self) -> bool:
        return self._state is _State.TEXT and not self._returned and not self._backspaces

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
        if char == "\n":
            self._last = char
        return "\n" if char == "\n" else ""

    def _text(self, char: str) -> str:
        if char == "\r":
            self._returned, self._backspaces = self._last not in {"", "\n"} or self._returned, 0
            return self._new_line() if self._returned else ""
        if char == _BACKSPACE:
            self._backspaces += 1
            return ""
        if char == "\n" and self._returned:
            self._returned = False
            return ""
        if self._enters(char) or not (kept := self._kept(char)):
            return ""
        before = self._over(char)
        self._returned, self._backspaces = False, 0
        if before is None:
            return ""
        self._last = char
        return before + kept

    def _new_line(self) -> str:
        if self._last == "\n":
            return ""
        self._last = "\n"
        return "\n"

    def _over(self, char: str) -> str | None:
        """What separates a character from the one before it; None if it only repeats what it overwrites."""
        if not self._backspaces or self._last in {"", "\n"} or char == "\n":
            return ""
        if self._backspaces == 1 and char == self._last:
            return None
        return "" if self._backspaces == 1 and self._last == "_" else "\n"

    def _enters(self, char: str) -> bool:
        """Whether a sequence begins here."""
        if char == _ESC:
            self._state = _State.ESCAPE
        elif char == "\x9b":
            self._state = _State.CSI
        elif char in _STRING_OPENERS and char >= "\x80":
            self._state = _State.STRING
        else:
            return False
        self._length = 0
        return True

    def _kept(self, char: str) -> str:
        if char < " " or "\x7f" <= char <= "\x9f" or "\ud800" <= char <= "\udfff":
            return char if char in "\n\t" else ""
        hidden = char not in _JOINERS and bool(_INVISIBLE.match(char) or _PRIVATE.match(char))
        if hidden or (_SELECTOR.match(char) and not _selects(self._last, char)):
            return _spelled(char) if self._spell else ""
        return char

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


def _selects(base: str, selector: str) -> bool:
    """Whether a variation selector chooses a form of the character before it, and does not only hide a number."""
    if selector >= "\U000e0100":
        return "\u3400" <= base <= "\u9fff" or "\U00020000" <= base <= "\U0003ffff"
    return base in set("#*0123456789\u00a9\u00ae") or (
        base >= "\u2030" and not _SELECTOR.match(base) and base not in _JOINERS
    )


def clean(text: str) -> str:
    """Return a whole text without control sequences and invisible characters; newlines and tabs stay."""
    return Cleaner().feed(text)


def plain(text: str) -> str:
    """The same for a model: what is invisible is spelled out."""
    return Cleaner(spell=True).feed(text)


MARKS = re.compile(r"<U\+[0-9A-F]{4,6}>|[\u2400-\u2421]")
"""How spelled characters look."""


def visible(text: str) -> str:
    """Return the text with every control and invisible character spelled out: `␛`, `<U+202E>`.

    For what a user is asked to approve: nothing may be hidden, not even by removing it. Also a space that does not
    break is spelled: it looks like one that separates words.
    """
    return _spelled_out(text, _HIDDEN_FROM_USERS)


def marked(line: str) -> str:
    r"""The same for one line that a model reads: a line end in it, as in a file's name, is `\n`; tabs stay."""
    return _spelled_out(line, _HIDDEN_FROM_MODELS).replace("\n", "\\n")


def hidden_characters(text: str) -> int:
    """Return how many characters `visible` spells out, or has spelled out."""
    return len(MARKS.findall(visible(text)))


_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
_HIDDEN = f"{_CONTROLS}|{_INVISIBLE.pattern}|{_PRIVATE.pattern}|{_SELECTOR.pattern}"
_HIDDEN_FROM_USERS = re.compile(rf"\xa0|{_HIDDEN}")
_HIDDEN_FROM_MODELS = re.compile(_HIDDEN)


def _spelled_out(text: str, hidden: re.Pattern[str]) -> str:
    return hidden.sub(_spelled_at, text) if not text.isascii() or not text.isprintable() else text


def _spelled_at(match: re.Match[str]) -> str:
    char, place = match[0], match.start()
    base = match.string[place - 1] if place else ""
    return char if _SELECTOR.match(char) and _selects(base, char) else _spelled(char)


def _spelled(char: str) -> str:
    if char < " ":
        return chr(0x2400 + ord(char))
    return "\u2421" if char == "\x7f" else f"<U+{ord(char):04X}>"
