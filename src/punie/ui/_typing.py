"""What is typed while an answer is drawn: a line that grows at the bottom, and prompts that wait for their turn."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from prompt_toolkit.application.current import get_app_session
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import get_typeahead
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from punie.ui._clean import clean
from punie.ui._keyboard import PASTE_OFF, PASTE_ON, SECONDS_TO_ESCAPE, typed_so_far
from punie.ui._pastes import Pastes

_SHOWN_QUEUED = 3
_SECONDS_WITHOUT_RETURN = 0.5
LEAVE = "/exit"
"""What Ctrl-D stands for while an answer is drawn: it leaves when the answer is there."""


class Typing:
    """The keys of the terminal while no prompt is there to take them."""

    def __init__(self, pastes: Pastes) -> None:
        self.draft = ""
        """What was typed and not yet sent."""
        self.queued: list[str] = []
        """What was sent while an answer was drawn, in order."""
        self.changed: Callable[[], None] = _nothing
        """Called after every key that changes what is shown."""
        self.keys: Mapping[Keys, Callable[[], None]] = {}
        """What some keys do besides."""
        self._pastes = pastes
        self._attached: AbstractContextManager[None] | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._sends_from = 0.0

    def answered(self) -> None:
        """A question was answered: a Return right after its letter is out of habit, and sends nothing."""
        self._sends_from = time.monotonic() + _SECONDS_WITHOUT_RETURN

    def start(self, console: Console) -> None:
        """Take the keys. Where nothing can be redrawn they wait for the next prompt instead."""
        if self._attached is not None or not console.is_terminal or console.is_dumb_terminal or not sys.stdin.isatty():
            return
        source = get_app_session().input
        for key_press in get_typeahead(source):
            self._take(key_press)
        self._attached = source.attach(lambda: self._read(source))
        self._attached.__enter__()
        console.file.write(PASTE_ON)
        console.file.flush()

    def stop(self, console: Console) -> None:
        """Give the keys back."""
        if self._attached is None:
            return
        self._attached.__exit__(None, None, None)
        self._attached = None
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        console.file.write(PASTE_OFF)
        console.file.flush()

    def take_early(self) -> None:
        """Take what was typed before there was a prompt. Each Return sends: the terminal wrote newlines for them."""
        if not sys.stdin.isatty():
            return
        *lines, self.draft = clean(typed_so_far().decode("utf-8", "replace").replace("\r", "\n")).split("\n")
        self.queued += [line for line in lines if line.strip()]

    def take_back(self) -> None:
        """Put what waits back into the line: after a stop nobody wants it sent unseen."""
        self.draft = "\n".join([*self.queued, *([self.draft] if self.draft else [])])
        self.queued.clear()

    def take_draft(self) -> str:
        """What was typed, for the prompt that comes now."""
        draft, self.draft = self.draft, ""
        return draft

    def lines(self, width: int) -> list[Text]:
        """What waits, and the end of the line that is being typed, for a screen of so many columns."""
        found = [_row(f"queued: {clean(text)}", "dim italic") for text in self.queued[:_SHOWN_QUEUED]]
        if len(self.queued) > _SHOWN_QUEUED:
            found.append(_row(f"… {len(self.queued) - _SHOWN_QUEUED} more queued", "dim italic"))
        if self.draft:
            *_, last = clean(self.draft).split("\n")
            while cell_len(last) > max(width - 5, 1):
                last = last[max(cell_len(last) - width + 5, 2) // 2 :]
            found.append(Text.assemble(("> ", "bold"), last, ("▏", "bold"), no_wrap=True))
        return found

    def _read(self, source: Input) -> None:
        self._all(source.read_keys())
        loop = asyncio.get_running_loop()
        if self._flush is not None:
            self._flush.cancel()
        self._flush = loop.call_later(SECONDS_TO_ESCAPE, lambda: self._all(source.flush_keys()))

    def _all(self, presses: list[KeyPress]) -> None:
        for before, press in zip([None, *presses], presses, strict=False):
            newline = before is not None and before.key == Keys.Escape and press.key == Keys.ControlM
            self._take(KeyPress(Keys.ControlJ) if newline else press, alone=len(presses) == 1)
        if presses:
            self.changed()

    def _take(self, press: KeyPress, *, alone: bool = True) -> None:
        key = press.key
        if key in self.keys and (key != Keys.Escape or alone):
            self.keys[Keys(key)]()
        elif key == Keys.ControlM:
            if time.monotonic() >= self._sends_from:
                self._send()
        elif key == Keys.ControlJ:
            self.draft += "\n"
        elif key == Keys.ControlD and not self.draft:
            self.queued.append(LEAVE)
        elif key == Keys.BracketedPaste:
            self.draft += self._pastes.collapsed(press.data)
        elif key == Keys.Up and self.queued and not self.draft:
            self.draft = self.queued.pop()
        elif key in _CUTS:
            self.draft = _CUTS[key](self.draft)
        elif not isinstance(key, Keys) and key.isprintable():
            self.draft += key

    def _send(self) -> None:
        if self.draft.endswith("\\"):
            self.draft = self.draft[:-1] + "\n"
        elif self.draft.strip():
            self.queued.append(self.draft)
            self.draft = ""


def _row(text: str, style: str) -> Text:
    return Text(text.replace("\n", " ⏎ "), style, no_wrap=True, overflow="ellipsis")


def _without_word(text: str) -> str:
    head = text.rstrip()
    return head[: len(head) - len(head.split()[-1])] if head else ""


_CUTS: Mapping[str, Callable[[str], str]] = {
    Keys.ControlH: lambda text: text[:-1],
    Keys.ControlW: _without_word,
    Keys.ControlU: lambda text: text[: text.rfind("\n") + 1],
}


def _nothing() -> None:
    """Nobody draws."""
