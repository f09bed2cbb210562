"""The lower edge of the screen while something is going on: the unfinished end of the answer above a spinner."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from punie.ui._activity import duration_text

_LINES_BELOW = 4
"""Lines of the screen that an unfinished block leaves free."""


class Screen:
    """Shows what is being waited for; what is printed on the console appears above it and stays."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.unfinished: Callable[[int], RenderableType | None] = _nothing
        """Draws what is not finished yet within so many lines."""
        self._live: Live | None = None
        self._status = ""
        self._since = time.monotonic()
        self._spinner = Spinner("dots")

    def __enter__(self) -> Self:
        self.resume()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pause()

    def status(self, text: str) -> None:
        """Say what is being waited for."""
        if text != self._status:
            self._status, self._since = text, time.monotonic()

    def pause(self) -> None:
        """Give the whole screen away, for a question to the user."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def resume(self) -> None:
        """Go on showing."""
        if self.console.is_terminal and self._live is None:
            lower, console = self._lower_edge, self.console
            self._live = Live(get_renderable=lower, console=console, transient=True, refresh_per_second=10)
            self._live.start()

    def _lower_edge(self) -> RenderableType:
        seconds = time.monotonic() - self._since
        waited = f" {duration_text(seconds)}" if seconds >= 1 else ""
        hint = f"{self._status}{waited}  (Ctrl-C stops)"
        self._spinner.update(text=Text(hint, "dim", no_wrap=True, overflow="ellipsis"))
        unfinished = self.unfinished(max(self.console.height - _LINES_BELOW, 3))
        return self._spinner if unfinished is None else Group(unfinished, self._spinner)


def _nothing(height: int) -> None:
    del height
