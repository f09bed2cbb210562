"""Draws the events of one turn of the chat: the answer while it arrives, each tool call in a line or a few."""

from collections.abc import Mapping, Sequence
from typing import assert_never

from rich.console import RenderableType
from rich.text import Text

from punie.agent import events
from punie.ui._activity import Requests, activity_line, call_text, check_line, first_lines
from punie.ui._clean import Cleaner, clean
from punie.ui._markdown import Block, draw, split_all, split_long, tail
from punie.ui._screen import Screen

_RESULT_LINES = 3
_TODO_LINES = 15


class TurnDrawing:
    """Takes the events of one turn and draws them on a screen."""

    def __init__(self, screen: Screen, *, verbose: bool = False) -> None:
        self._screen = screen
        self._verbose = verbose
        self._requests = Requests()
        self._console = screen.console
        self._cleaner = Cleaner()
        self._pending = ""
        self._opener = ""
        """The line that began the code of which a part is printed already."""
        self._streamed = ""
        """The text since the last tool result, printed or not."""
        self._withdrawn = ""
        """Text that was printed and then taken back, until it is known what stands in its place."""
        self._thought = ""
        """Thinking that is not printed yet: its last line."""
        self._thought_cleaner = Cleaner()
        self._gap = False
        self._calls: dict[str, str] = {}
        self._verbatim: set[str] = set()
        screen.unfinished = self._unfinished
        screen.status("Thinking")

    def take(self, event: events.Event) -> None:
        """Draw one event."""
        if not isinstance(event, events.Thinking):
            self._end_thought()
        match event:
            case events.Text():
                self._text(event.delta)
            case events.Thinking():
                self._think(event.delta)
            case events.TextReplaced():
                self._replace(event.text)
            case events.ToolCalled():
                self._flush()
                self._calls[event.id] = call_text(event.name, event.arguments)
                self._screen.status(self._calls[event.id])
            case events.ToolReturned():
                self._requests.resume()
                self._result(event)
            case events.Notice():
                self._flush()
                self._note(event.text)
            case events.CheckStarted():
                self._flush()
                self._screen.status(f"Checking: {clean(event.command)}")
            case events.CheckEnded():
                self._check(event)
            case events.UsageUpdated():
                self._count(event)
            case events.TurnEnded():
                self._end(event)
            case _:
                assert_never(event)

    def _text(self, delta: str) -> None:
        self._screen.status("Answering")
        safe = self._cleaner.feed(delta)
        self._streamed += safe
        self._pending += safe
        self._settle_withdrawn()
        if not self._withdrawn:
            blocks, self._pending, self._opener = split_long(
                self._pending, verbatim=self._verbatim, opener=self._opener
            )
            self._print(blocks)

    def _think(self, delta: str) -> None:
        """Whole lines as they come; they cannot be taken back, and need not be."""
        self._screen.status("Thinking")
        if self._pending:
            self._flush()
        *lines, self._thought = (self._thought + self._thought_cleaner.feed(delta)).split("\n")
        for line in lines:
            self._console.print(Text(line, "dim italic"))

    def _end_thought(self) -> None:
        if self._thought.strip():
            self._console.print(Text(self._thought, "dim italic"))
        self._thought = ""

    def _count(self, usage: events.UsageUpdated) -> None:
        """The toolbar shows the totals; what each request cost is for those who ask."""
        line = self._requests.line(usage)
        if self._verbose and line:
            self._console.print(Text(line, "dim"))

    def _flush(self) -> None:
        self._settle_withdrawn(ended=True)
        blocks = split_all(self._opened(), verbatim=self._verbatim)
        self._pending = self._opener = ""
        self._print(blocks)
        self._gap = False

    def _print(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            if self._gap and block.text:
                self._console.print()
            if block.text:
                self._console.print(draw(block))
            self._gap = block.gap

    def _replace(self, text: str) -> None:
        """Take back what was streamed, and draw what stands in its place."""
        self._withdrawn = self._withdrawn or self._streamed[: len(self._streamed) - len(self._pending)]
        self._cleaner = Cleaner()
        self._streamed = self._pending = self._opener = ""
        self._text(text)

    def _settle_withdrawn(self, *, ended: bool = False) -> None:
        """What has scrolled away cannot be taken back: if something else follows, say that it does not count.

        A reply is often withdrawn and then given again as it was, so this waits until the two differ.
        """
        if not self._withdrawn or (not ended and self._withdrawn.startswith(self._pending)):
            return
        if self._pending.startswith(self._withdrawn):
            self._pending = self._pending.removeprefix(self._withdrawn)
        else:
            corrected = "Corrected:" if self._pending.strip() else "The text above is withdrawn."
            self._console.print(Text(corrected, "dim"))
        self._withdrawn = ""

    def _result(self, event: events.ToolReturned) -> None:
        call = self._calls.pop(event.id, clean(event.name))
        self._screen.folds.add(call, event.output)
        line = activity_line(
            call, event.output, outcome=event.outcome, seconds=event.duration_s, width=self._console.width
        )
        style = "cyan" if event.outcome == "ok" else "yellow"
        self._console.print(Text(line, style), no_wrap=True, overflow="ellipsis")
        count = _TODO_LINES if event.name == "write_todos" else _RESULT_LINES
        for shown in first_lines(event.output, count=count, width=max(self._console.width - 4, 20)):
            self._console.print(Text("  " + shown, "dim"), no_wrap=True, crop=True)
        self._verbatim |= {line for line in clean(event.output).splitlines() if line.strip()}
        self._streamed = ""
        self._screen.status("Thinking")

    def _check(self, event: events.CheckEnded) -> None:
        """One line for a check, and a few of what it printed if it failed; the answer before it stays."""
        self._flush()
        self._streamed = ""
        self._screen.folds.add(f"check {event.name}: {event.command}", event.output)
        style = {"passed": "cyan", "failed": "yellow"}.get(event.outcome, "dim")
        line = check_line(event, width=self._console.width)
        self._console.print(Text(line, style), no_wrap=True, overflow="ellipsis")
        if event.outcome == "failed":
            for shown in first_lines(event.output, count=_RESULT_LINES, width=max(self._console.width - 4, 20)):
                self._console.print(Text("  " + shown, "dim"), no_wrap=True, crop=True)
        self._screen.status("Thinking")

    def _end(self, ended: events.TurnEnded) -> None:
        self._flush()
        if ended.stop_reason == "interrupted":
            self._note("Stopped. What there is of the answer stays in the conversation.")
        elif ended.error:
            self._console.print(Text(clean(ended.error), "red"))
        elif ended.stop_reason != "done":
            self._note(f"Stopped: {ended.stop_reason}.")

    def _note(self, text: str) -> None:
        self._console.print(Text(clean(text), "yellow"))

    def _unfinished(self, height: int) -> RenderableType | None:
        return tail(self._opened(), height=height) if self._pending.strip() else None

    def _opened(self) -> str:
        """What is not printed yet, in the code it belongs to."""
        return f"{self._opener}\n{self._pending}" if self._opener and self._pending.strip() else self._pending


def diff_text(diff: str) -> Text:
    """A unified diff with its colours."""
    return Text("\n").join(map(_diff_line, diff.splitlines()))


def _diff_line(line: str) -> Text:
    if line.startswith(("+++", "---")):
        return Text(line, "bold")
    styles: Mapping[str, str] = {"+": "green", "-": "red", "@": "cyan"}
    return Text(line, styles.get(line[:1], ""))
