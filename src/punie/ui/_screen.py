"""The lower edge of the screen while something is going on: the unfinished end of the answer, a spinner, and what
the user types meanwhile above the status line."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from punie.ui._activity import duration_text
from punie.ui._folds import Folds
from punie.ui._typing import Typing

_SECONDS_BETWEEN = 0.1
_LINES_BELOW = 4
"""Lines of the screen that an unfinished block leaves free."""


class Screen:
    """Shows what is being waited for; what is printed on the console appears above it and stays."""

    def __init__(
        self,
        console: Console,
        *,
        typing: Typing | None = None,
        folds: Folds | None = None,
        footer: Callable[[], str] | None = None,
    ) -> None:
        self.console = console
        self.folds = folds or Folds()
        self.unfinished: Callable[[int], RenderableType | None] = _nothing
        """Draws what is not finished yet within so many lines."""
        self._typing = typing
        self._footer = footer
        self._live: Live | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._status = ""
        self._since = time.monotonic()
        self._spinner = Spinner("dots")

    def __enter__(self) -> Self:
        self.resume()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pause()

    def status(self, text: str) -> None:
        """Say what is being waited for; where nothing can be redrawn, once for each turn."""
        if text == self._status:
            return
        if not self._status and self.console.is_dumb_terminal:
            self.console.print(f"{text} (Ctrl-C stops)")
        self._status, self._since = text, time.monotonic()

    def pause(self) -> None:
        """Give the whole screen away, for a question to the user."""
        if self._typing is not None:
            self._typing.stop(self.console)
            self._typing.changed = _no_change
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def resume(self) -> None:
        """Go on showing."""
        if not self.console.is_terminal or self.console.is_dumb_terminal or self._live is not None:
            return
        if self._typing is not None:
            self._typing.start(self.console)
        lower, console = self._lower_edge, self.console
        # A thread that redraws would do so in the middle of what is being printed, and lines would be lost.
        self._live = Live(get_renderable=lower, console=console, transient=True, auto_refresh=False)
        self._live.start(refresh=True)
        if self._typing is not None:
            self._typing.changed = self._live.refresh
        self._timer = asyncio.get_running_loop().call_later(_SECONDS_BETWEEN, self._redraw)

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.refresh()
            self._timer = asyncio.get_running_loop().call_later(_SECONDS_BETWEEN, self._redraw)

    def _lower_edge(self) -> RenderableType:
        seconds = time.monotonic() - self._since
        waited = f" {duration_text(seconds)}" if seconds >= 1 else ""
        hint = f"{self._status}{waited}  (Esc stops)"
        self._spinner.update(text=Text(hint, "dim", no_wrap=True, overflow="ellipsis"))
        below: list[RenderableType] = [self._spinner]
        below += self._typing.lines(self.console.width) if self._typing is not None else []
        if self._footer is not None:
            below.append(Text(self._footer(), "bright_black", no_wrap=True, overflow="ellipsis"))
        height = max(self.console.height - max(_LINES_BELOW, len(below) + 1), 3)
        unfinished = self.unfinished(height)
        return Group(*below) if unfinished is None else Group(unfinished, *below)


def _nothing(height: int) -> None:
    del height


def _no_change() -> None:
    """Nothing is drawn."""
