"""How a tool call, its result and a preview look, in one line or a few."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, cast

from punie.ui._clean import clean, one_line

if TYPE_CHECKING:
    from punie.agent.events import CheckEnded, UsageUpdated

MAX_ARGUMENT = 60
MAX_HEADER = 160
_SHORTEST_CALL = 30


def call_text(name: str, arguments: Mapping[str, object]) -> str:
    """`find_symbol(name='Flask')`, with long values cut."""
    shown = ", ".join(f"{clean(str(key))}={_value(value)}" for key, value in arguments.items())
    return f"{clean(name)}({shown})"


def _value(value: object) -> str:
    if isinstance(value, list) and len(items := cast("list[object]", value)) > 1:
        return f"[{len(items)} items]"
    text = repr(value)
    text = text if len(text) <= MAX_ARGUMENT else text[: MAX_ARGUMENT - 1] + "…"
    return clean(text)


def result_text(output: str, *, outcome: str) -> str:
    """The first line of a tool's output; what is not fine is said first."""
    header = one_line(output, width=MAX_HEADER)
    return header if outcome == "ok" else f"{outcome}: {header}" if header else outcome


def duration_text(seconds: float) -> str:
    """`12 ms`, `3.4 s`, `2 min 5 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def activity_line(call: str, output: str, *, outcome: str, seconds: float, width: int | None = None) -> str:
    """`• find_symbol(name='Flask') → 1 definition of Flask (12 ms)`.

    Where only `width` characters fit, the call is cut before the result is.
    """
    rest = f" → {result_text(output, outcome=outcome)} ({duration_text(seconds)})"
    room = None if width is None else max(width - len(rest) - 2, min(_SHORTEST_CALL, 2 * width // 5))
    shown = call if room is None or len(call) <= room else call[: room - 1] + "…"
    return f"• {shown}{rest}"


def check_line(check: "CheckEnded", *, width: int | None = None) -> str:
    """`• check failed: ruff → the model is told; exit 1 in 0.1 s (104 ms)`."""
    call = f"check {check.outcome}: {one_line(check.name, width=MAX_ARGUMENT)}"
    output = ("the model is told; " if check.returned else "") + check.output.partition("\n")[0]
    return activity_line(call, output, outcome="ok", seconds=check.duration_s, width=width)


def first_lines(output: str, *, count: int, width: int) -> Iterator[str]:
    """The lines after the header, cut at `width`, and how many are left out."""
    _, *lines = clean(output).splitlines() or [""]
    for line in lines[:count]:
        yield line if len(line) <= width else line[: width - 1] + "…"
    if len(lines) > count:
        more = len(lines) - count
        yield f"… {more} more line{'s' * (more > 1)}"


@dataclass
class Requests:
    """Parts the running totals of a turn, and its time, into its requests."""

    _read: int = 0
    _cached: int = 0
    _written: int = 0
    _number: int = 0
    _since: float = field(default_factory=perf_counter)

    def resume(self) -> None:
        """What comes next is the model's time again: a tool has returned."""
        self._since = perf_counter()

    def line(self, usage: "UsageUpdated") -> str:
        """`request 2: reused 812 / prefilled 40 tokens, wrote 12 in 1.3 s`; empty when nothing was read since."""
        read, reused = usage.input_tokens - self._read, usage.cached_tokens - self._cached
        written, seconds = usage.output_tokens - self._written, perf_counter() - self._since
        self._read, self._cached, self._written = usage.input_tokens, usage.cached_tokens, usage.output_tokens
        if read <= 0:
            return ""
        self._number += 1
        took = f"wrote {written} in {duration_text(seconds)}"
        return f"request {self._number}: reused {reused} / prefilled {read - reused} tokens, {took}"
