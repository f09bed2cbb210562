"""Long pastes: one short mark on the screen, the whole text in what is sent."""

import contextlib
import re
from collections.abc import Iterable

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

LONGEST_LINES = 10
LONGEST_CHARACTERS = 2_000
"""A paste up to here is shown as it is."""

_MARK = re.compile(r"\[pasted [\d,]+ (?:lines|characters)(?: #\d+)?\]")


class Pastes:
    """The texts behind the marks of one chat."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def collapsed(self, text: str) -> str:
        """What stands in the line for a paste: the text itself, or a mark where it is long."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = text.count("\n") + 1
        if lines <= LONGEST_LINES and len(text) <= LONGEST_CHARACTERS:
            return text
        amount = f"{lines:,} lines" if lines > LONGEST_LINES else f"{len(text):,} characters"
        mark, number = f"[pasted {amount}]", 1
        while self._texts.get(mark, text) != text:
            number += 1
            mark = f"[pasted {amount} #{number}]"
        self._texts[mark] = text
        return mark

    def expanded(self, text: str) -> str:
        """The text with what was pasted in place of the marks; a mark that somebody typed stays."""
        return _MARK.sub(lambda mark: self._texts.get(mark[0], mark[0]), text)


class WholeHistory(History):
    """Remembers what was sent, pastes included; a disk that is full or gone costs the memory, never the chat."""

    def __init__(self, inner: History, pastes: Pastes) -> None:
        super().__init__()
        self._inner = inner
        self._pastes = pastes

    @property
    def is_kept(self) -> bool:
        """Whether it outlives the chat."""
        return isinstance(self._inner, FileHistory)

    def bring_back(self, string: str) -> None:
        """Remember in this chat what was typed and thrown away; it is not kept for another one."""
        self._loaded_strings.insert(0, self._pastes.expanded(string))

    def append_string(self, string: str) -> None:
        """Remember what was sent."""
        super().append_string(self._pastes.expanded(string))

    def load_history_strings(self) -> Iterable[str]:
        """What was sent before, the newest first. A file that cannot be read any more is an empty one."""
        try:
            yield from map(_printable, self._inner.load_history_strings())
        except OSError:
            return

    def store_string(self, string: str) -> None:
        """Keep it."""
        if not isinstance(self._inner, InMemoryHistory):
            with contextlib.suppress(OSError):
                self._inner.store_string(string.encode("utf-8", "replace").decode())


def _printable(text: str) -> str:
    """A line of a damaged file without what is no text."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
