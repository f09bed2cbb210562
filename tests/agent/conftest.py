from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model
from tests.stubs import Reply, scripted

from punie.agent import Approver, Event, TurnEnded, create_agent, refuse, run_turn
from punie.config import AgentConfig
from punie.tools import Workspace


@dataclass
class Project:
    """A small project on disk, and turns of a scripted model in it."""

    root: Path

    async def turn(
        self,
        *replies: Reply,
        model: Model | None = None,
        approve: Approver = refuse,
        history: Sequence[ModelMessage] = (),
        config: AgentConfig | None = None,
    ) -> tuple[list[Event], TurnEnded]:
        config = config or AgentConfig()
        agent = create_agent(config, model=model or scripted(*replies), approve=approve)
        workspace = Workspace(self.root)
        stream = run_turn(agent, "Where is Flask?", workspace=workspace, config=config, history=history)
        events = [event async for event in stream]
        end = events[-1]
        assert isinstance(end, TurnEnded)
        return events, end


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "app_Module.py").write_text("import os\n\n\nclass Flask:\n    name = os.name\n")
    (tmp_path / "notes.md").write_text("nothing\n")
    return Project(tmp_path)
