from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import cast

import pytest
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model
from tests.backends.tiny import ScriptedEngine, byte_tokenizer
from tests.stubs import Reply, scripted
from tokenizers import Tokenizer

from punie import wire
from punie.agent import Approver, Event, Permissions, TurnEnded, create_agent, refuse, run_turn
from punie.backends._local import Loaded, LocalModel
from punie.config import AgentConfig
from punie.tools import Workspace

TEMPLATE = files("punie").joinpath("prompts/chat_template.jinja").read_text(encoding="utf-8")
Local = Callable[..., tuple[LocalModel, ScriptedEngine]]
"""Makes a local model that says the given texts one after the other, in Punie's own chat template."""


@dataclass
class Project:
    """A small project on disk, and turns of a scripted model in it."""

    root: Path

    async def turn(
        self,
        *replies: Reply,
        model: Model | None = None,
        approve: Approver = refuse,
        permissions: Permissions | None = None,
        remember: Callable[[Sequence[str]], None] | None = None,
        history: Sequence[ModelMessage] = (),
        config: AgentConfig | None = None,
    ) -> tuple[list[Event], TurnEnded]:
        config = config or AgentConfig()
        agent = create_agent(
            config, model=model or scripted(*replies), approve=approve, permissions=permissions, remember=remember
        )
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


def prompts(engine: ScriptedEngine) -> list[tuple[int, ...]]:
    """The token ids of every request so far."""
    return [cast("tuple[int, ...]", request["prompt"]) for request in engine.requests]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def local(tokenizer: Tokenizer) -> Local:
    def make(*texts: str, context_window: int = 100_000) -> tuple[LocalModel, ScriptedEngine]:
        engine = ScriptedEngine(*texts, context_window=context_window)
        chat = wire.Wire(tokenizer, template=TEMPLATE)
        return LocalModel(lambda: Loaded(engine, chat, load_s=0.0), name="tiny"), engine

    return make
