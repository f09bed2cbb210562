"""The lower edge of the screen while something is going on: the unfinished end of the answer, a spinner, and what
the user types meanwhile above the status line."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderHook, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.spinner import Spinner
from rich.text import Text

from punie.ui._activity import duration_text
from punie.ui._folds import Folds
from punie.ui._typing import Typing

_SECONDS_BETWEEN = 0.1
_LINES_BELOW = 4
"""Lines of the screen that an unfinished block leaves free."""


_WRAPS_ANEW = ("TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "WT_SESSION", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION")
_WRAP_ANEW = {"iTerm.app", "Apple_Terminal", "WezTerm", "ghostty", "vscode", "WarpTerminal"}


def wraps_anew(env: Mapping[str, str]) -> bool:
    """Whether the terminal is known to wrap what is on its screen again when it becomes narrower.

    Where that is not known nothing is done about it: a row that stays twice is better than one erased too many.
    """
    named = env.get("TERM", "").startswith(("tmux", "xterm-kitty", "alacritty", "foot", "xterm-ghostty"))
    return named or any(map(env.get, _WRAPS_ANEW)) or env.get("TERM_PROGRAM") in _WRAP_ANEW


class Rows(RenderHook):
    """The rows that were drawn last, and those that the terminal has made of them since by becoming narrower."""

    def __init__(self, console: Console, *, wraps: bool) -> None:
        self._console = console
        self._wraps = wraps
        self._widths: list[int] = []
        self._drawn_in = 0

    def drawn(self, inner: RenderableType) -> RenderableType:
        """The same, remembered when it is drawn."""
        return _Remembered(inner, self._remember)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase first what is below the rows that rich knows of. Called before anything is printed."""
        width, more = self._console.width, 0
        if self._wraps and 0 < width < self._drawn_in:
            more = sum(max(cells - 1, 0) // width for cells in self._widths)
        self._drawn_in = min(self._drawn_in, width)
        up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)) * more
        return [Control(ControlType.CARRIAGE_RETURN, *up), *renderables] if more else renderables

    def _remember(self, lines: list[list[Segment]], width: int) -> None:
        self._widths, self._drawn_in = [Segment.get_line_length(line) for line in lines], width


class _Remembered:
    def __init__(self, inner: RenderableType, remember: Callable[[list[list[Segment]], int], None]) -> None:
        self._inner = inner
        self._remember = remember

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._inner, options, pad=False)
        self._remember(lines, options.max_width)
        for number, line in enumerate(lines):
            if number:
                yield Segment.line()
            yield from line


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
        self._rows = Rows(console, wraps=wraps_anew(os.environ))

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

    @property
    def shows(self) -> bool:
        """Whether it has the screen, and nobody is being asked."""
        return self._live is not None

    def pause(self) -> None:
        """Give the whole screen away, for a question to the user."""
        if self._typing is not None:
            self._typing.stop(self.console)
            self._typing.changed = _no_change
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._live is not None:
            self._live.refresh()
            self.console.pop_render_hook()
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
        self.console.push_render_hook(self._rows)
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
        return self._rows.drawn(Group(*below) if unfinished is None else Group(unfinished, *below))


def _nothing(height: int) -> None:
    del height


def _no_change() -> None:
    """Nothing is drawn."""
