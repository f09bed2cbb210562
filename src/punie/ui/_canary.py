"""One small question with a known answer: whether a model can be loaded, calls a tool and answers with what it said."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from punie.ui._activity import activity_line, call_text
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

    @property
    def answered(self) -> bool:
        """Whether it came to an answer at all."""
        return self.ended.stop_reason == "done"

    @property
    def right(self) -> bool:
        """Whether the answer names what a tool really found."""
        called = any(call.outcome == "ok" for call in self.ended.tool_calls)
        return self.answered and called and EXPECTED in self.ended.answer

    def activity(self) -> list[str]:
        """One line for each tool call."""
        return [
            activity_line(call_text(c.name, c.arguments), c.output, outcome=c.outcome, seconds=c.duration_s)
            for c in self.ended.tool_calls
        ]


def ask_canary(setup: Setup, on_progress: OnProgress) -> Canary:
    """Ask the model of a setup in a directory of its own; weights are fetched if they have to be."""
    from punie.agent.approval import refuse

    model = load_model(setup, on_progress)
    agent = assemble(setup, model=model, ask=refuse)
    with tempfile.TemporaryDirectory(prefix="punie-") as directory:
        Path(directory, "shapes.py").write_text(_FILE, "utf-8")
        return Canary(asyncio.run(_ask(agent, setup, Path(directory))))


async def _ask(agent: "Agent[Workspace, str]", setup: Setup, root: Path) -> "TurnEnded":
    from punie.agent.events import TurnEnded
    from punie.agent.loop import run_turn
    from punie.tools import Workspace

    ended: TurnEnded | None = None
    async for event in run_turn(agent, QUESTION, workspace=Workspace(root), config=setup.config):
        if isinstance(event, TurnEnded):
            ended = event
    assert ended is not None, "every turn ends with TurnEnded"  # noqa: S101 - run_turn promises it
    return ended
