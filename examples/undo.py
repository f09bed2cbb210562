"""Store a conversation as it goes, take back what its last turn did to files, and go on with it later."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from punie import AgentConfig, Session, SessionStore, Workspace, create_agent, run_turn
from punie.agent.permissions import Permissions


async def write_once(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    """A model that writes a file, then says so."""
    if len(messages) == 1:
        yield {0: DeltaToolCall("write_file", '{"path": "hello.txt", "content": "hello\\n"}')}
    else:
        yield "Written."


async def turn(session: Session, prompt: str) -> None:
    config = AgentConfig()
    agent = create_agent(
        config, model=FunctionModel(stream_function=write_once), permissions=Permissions("acceptEdits")
    )
    workspace = Workspace(session.workspace)
    async for _ in run_turn(
        agent, prompt, workspace=workspace, config=config, history=session.messages, session=session
    ):
        pass


root, state = Path(sys.argv[1]), Path(sys.argv[2])
with SessionStore(state) as store:
    session = store.create(root)
    asyncio.run(turn(session, "Write hello.txt"))
    print("written:", (root / "hello.txt").read_text("utf-8").strip())
    undone = session.undo()
    print("taken back:", ", ".join(undone.paths) if undone else "nothing")
    session.close()
with SessionStore(state) as store:
    print("stored:", len(store.resume(root).messages), "messages")
