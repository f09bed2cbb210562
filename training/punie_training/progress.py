"""Tells a person how a run goes: a bar on a terminal, lines elsewhere, and every update in a log file."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from punie_training.checkpoint import Point, storing
from punie_training.trainer import Forecast, Step

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Draws on `stream` and appends to `log`."""

    def __init__(self, stream: TextIO, *, log: Path) -> None:
        self._stream = stream
        self._log = log
        self._bar = _bar(stream) if stream.isatty() else None
        self._task: TaskID | None = None
        self._spoke = 0.0

    def __enter__(self) -> Self:
        with storing(self._log.parent):
            self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, forecast: Forecast) -> None:
        """Say what the run is and what it will take."""
        self.say(
            f"{forecast.rows} rows in {forecast.updates} updates, {forecast.dev_rows} kept for the dev loss; left out: "
            f"{forecast.too_long} too long, {forecast.nothing_to_learn} with nothing to learn"
        )
        self.say(
            f"shared prefix {forecast.prefix} tokens; estimate {_clock(forecast.seconds)}, "
            f"{forecast.memory.peak_bytes / 1e9:.1f} GB"
        )
        if self._bar:
            self._task = self._bar.add_task("training", total=forecast.updates, figures="")

    def step(self, step: Step) -> None:
        """Show one update."""
        line = describe(step)
        self._write(line)
        last = step.update == step.total
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step.update, figures=line)
        elif last or step.dev_loss is not None or time.monotonic() - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            self._print(line)

    def say(self, text: str) -> None:
        """Write a line for people and for the log."""
        self._write(text)
        self._print(text)

    def _print(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def _write(self, text: str) -> None:
        with storing(self._log.parent), self._log.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def describe(step: Step) -> str:
    """One update in one line."""
    dev = "" if step.dev_loss is None else f" dev {step.dev_loss:.4f}"
    return (
        f"{step.update}/{step.total} loss {step.loss:.4f}{dev} lr {step.learning_rate:.1e} "
        f"norm {step.gradient_norm:.2f} {step.tokens_per_second:.0f} tok/s {step.rows} rows "
        f"ETA {_clock(step.eta_s)} {step.peak_bytes / 1e9:.1f} GB"
    )


_UPDATE = re.compile(r"(?P<update>\d+)/\d+ loss .* (?P<speed>\d+) tok/s .* (?P<memory>[\d.]+) GB")


@dataclass(frozen=True)
class Cost:
    """What the updates of a run took, to three digits or so, those done twice after an interruption included."""

    seconds: float
    peak_bytes: int


def cost(log: Path, history: Sequence[Point]) -> Cost:
    """Read it from the log of `describe` lines and the tokens of each update."""
    tokens = {point.update: point.tokens for point in history}
    found = [match for line in log.read_text("utf-8").splitlines() if (match := _UPDATE.fullmatch(line))]
    seconds = sum(tokens.get(int(m["update"]), 0) / max(1.0, float(m["speed"])) for m in found)
    return Cost(seconds, round(max((float(m["memory"]) for m in found), default=0.0) * 1e9))


def _bar(stream: TextIO) -> Bar:
    return Bar(BarColumn(), TextColumn("{task.fields[figures]}"), console=Console(file=stream))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
