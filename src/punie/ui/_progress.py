"""Downloads and other long preparations, on standard error: a bar on a terminal, now and then a line elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, TypeAlias

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of a stage, how much is through, and how much there is."""

_SECONDS_BETWEEN_LINES = 10.0


class PreparationProgress:
    """A callable for `on_progress`; nothing is shown until it is called for the first time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes (or steps) of a stage are through."""
        if self._stream.isatty():
            self._draw(stage, done, total)
        else:
            self._print(stage, done, total)

    def _draw(self, stage: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _bar(self._stream)
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total or None)
        self._bar.update(self._tasks[stage], completed=done, total=total or None)
        if total and done >= total and all(task.finished for task in self._bar.tasks):
            self.close()
            self._tasks.clear()

    def _print(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        finished = bool(total) and done >= total
        if now - self._last_line < _SECONDS_BETWEEN_LINES and not finished:
            return
        self._last_line = now
        self._stream.write(f"punie: {progress_text(stage, done, total)}\n")
        self._stream.flush()


def progress_text(stage: str, done: int, total: int) -> str:
    """`download 45 % of 98 MB`."""
    if not total:
        return f"{stage} {done / 1e6:.0f} MB"
    size = f" of {total / 1e6:.0f} MB" if total > 1_000_000 else ""
    return f"{stage} {100 * done // total} %{size}"


def _bar(stream: TextIO) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(file=stream), transient=True)
