"""One small question with a known answer: whether a model can be loaded, calls a tool and answers with what it said."""

import asyncio
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from punie.errors import ModelError
from punie.ui._activity import activity_line, call_text
from punie.ui._extensions import Extensions
from punie.ui._progress import OnProgress
from punie.ui._setup import Setup, assemble, load_model

if TYPE_CHECKING:
    from pydantic_ai import Agent

    from punie.agent.events import TurnEnded
    from punie.tools import Workspace

QUESTION = "Which classes inherit from Shape?"
EXPECTED = "Circle"
_FILE = "class Shape:\n    pass\n\n\nclass Circle(Shape):\n    pass\n"


@dataclass(frozen=True)
class Canary:
    """How a model did."""

    ended: "TurnEnded"
    model_id: str = ""
    """The model, with its adapter's hash if it has one."""
    window: int | None = None
    """Tokens of prompt and answer together, where that is known."""
    first_s: float | None = None
    """Seconds from the question to the first word or call."""

    @property
    def answered(self) -> bool:
        """Whether it came to an answer at all."""
        return self.ended.stop_reason == "done"

    @property
    def called(self) -> str:
        """The tool that was called and ran; empty if there was none."""
        return next((call.name for call in self.ended.tool_calls if call.outcome == "ok"), "")

    @property
    def right(self) -> bool:
        """Whether the answer names what a tool really found."""
        return self.answered and bool(self.called) and EXPECTED in self.ended.answer

    def activity(self) -> list[str]:
        """One line for each tool call."""
        return [
            activity_line(call_text(c.name, c.arguments), c.output, outcome=c.outcome, seconds=c.duration_s)
            for c in self.ended.tool_calls
        ]

    @property
    def read_per_s(self) -> float | None:
        """Tokens read a second, without those that were there already; None where only the server knows."""
        usage, seconds = self.ended.usage, self.ended.timing.prefill_s
        return (usage.input_tokens - usage.cached_tokens) / seconds if seconds else None

    @property
    def written_per_s(self) -> float | None:
        """Tokens written a second; of a server over all, with what it took to read and to send."""
        timing = self.ended.timing
        seconds = timing.decode_s or timing.total_s - timing.tools_s
        return self.ended.usage.output_tokens / seconds if seconds > 0 else None


def ask_canary(setup: Setup, on_progress: OnProgress, *, limit_s: float | None = None) -> Canary:
    """Ask the model of a setup in a directory of its own; weights are fetched if they have to be.

    Nothing that the user added to Punie is started for it. Raises ModelError if no answer comes within the limit.
    """
    from punie.agent.approval import refuse

    setup = replace(setup, extensions=Extensions())
    started = time.monotonic()
    model = load_model(setup, on_progress)
    agent = assemble(setup, model=model, ask=refuse)
    left = None if limit_s is None else max(limit_s - (time.monotonic() - started), 0.1)
    with tempfile.TemporaryDirectory(prefix="punie-") as directory:
        Path(directory, "shapes.py").write_text(_FILE, "utf-8")
        try:
            ended, first_s = asyncio.run(_ask(agent, setup, Path(directory), limit_s=left))
        except TimeoutError as error:
            raise ModelError(
                f"{model.model_name} gave no answer within {limit_s:g} s.", "Give it longer, or take a smaller model."
            ) from error
        return Canary(ended, model.model_name, model.context_window, first_s)


async def _ask(
    agent: "Agent[Workspace, str]", setup: Setup, root: Path, *, limit_s: float | None
) -> "tuple[TurnEnded, float | None]":
    from punie.agent.events import Text, ToolCalled, TurnEnded
    from punie.agent.loop import run_turn
    from punie.tools import Workspace

    ended: TurnEnded | None = None
    first_s: float | None = None
    started = time.perf_counter()
    async with asyncio.timeout(limit_s):
        async for event in run_turn(agent, QUESTION, workspace=Workspace(root), config=setup.config):
            if isinstance(event, Text | ToolCalled) and first_s is None:
                first_s = time.perf_counter() - started
            if isinstance(event, TurnEnded):
                ended = event
    assert ended is not None, "every turn ends with TurnEnded"  # noqa: S101 - run_turn promises it
    return ended, first_s
