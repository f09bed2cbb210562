"""What `--verbose` adds on standard error: where settings come from, and what every request and call took."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

from punie.ui._activity import Requests, activity_line, call_text, duration_text
from punie.ui._clean import clean

if TYPE_CHECKING:
    from punie.agent.events import Event, ToolReturned, TurnEnded
    from punie.config import Resolved


class Show(Protocol):
    """Something that draws the events of one turn."""

    def take(self, event: "Event") -> None:
        """Draw one event."""
        ...


def settings_lines(resolved: "Resolved") -> Iterator[str]:
    """One line for each file, variable and flag that sets something, and for files that do not."""
    by_source: dict[str, list[str]] = {}
    for key, source in resolved.sources.items():
        if source != "default":
            by_source.setdefault(source.rpartition(":")[0] or source, []).append(key)
    if not resolved.user_file.is_file():
        yield f"settings: {resolved.user_file} is not there"
    for source, keys in by_source.items():
        yield f"settings: {source} sets {', '.join(keys)}"
    if not by_source:
        yield "settings: every one has its default"


class Detailed:
    """Draws what another one draws, and tells about each request and call besides; `calls` that they were made, too."""

    def __init__(self, inner: Show, err: TextIO, *, calls: bool) -> None:
        self._inner = inner
        self._err = err
        self._shows_calls = calls
        self._requests = Requests()
        self._calls: dict[str, str] = {}

    def take(self, event: "Event") -> None:
        """Draw one event."""
        from punie.agent import events

        self._inner.take(event)
        match event:
            case events.UsageUpdated():
                if line := self._requests.line(event):
                    self._say(line)
            case events.ToolCalled():
                self._calls[event.id] = call_text(event.name, event.arguments)
            case events.ToolReturned():
                self._returned(event)
            case events.TurnEnded():
                self._say(totals(event))
            case _:
                pass

    def _returned(self, result: "ToolReturned") -> None:
        call = self._calls.pop(result.id, clean(result.name))
        if self._shows_calls:
            self._say(activity_line(call, result.output, outcome=result.outcome, seconds=result.duration_s))
        lines = len(result.output.splitlines())
        self._say(f"{clean(result.name)}: {result.outcome}, {lines:,} lines, {len(result.output):,} characters")
        self._requests.resume()

    def _say(self, line: str) -> None:
        self._err.write(f"punie: {line}\n")
        self._err.flush()


def totals(ended: "TurnEnded") -> str:
    """Tokens and seconds of a turn in one line."""
    usage, timing = ended.usage, ended.timing
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [f"{usage.input_tokens} tokens in{cached}, {usage.output_tokens} out", duration_text(timing.total_s)]
    phases: Mapping[str, float] = {
        "load": timing.load_s,
        "prefill": timing.prefill_s,
        "decode": timing.decode_s,
        "tools": timing.tools_s,
    }
    parts += [f"{name} {duration_text(seconds)}" for name, seconds in phases.items() if seconds]
    return " · ".join(parts)
