"""Ask about changes in a user interface of your own; here it prints the difference and reads a line."""

import asyncio
import sys
from collections.abc import AsyncIterator

from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from punie import AgentConfig, Workspace, create_agent, run_turn
from punie.agent.approval import Decision, Request, deny, once
from punie.agent.events import ToolReturned, TurnEnded


async def write_once(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    """A model that writes a file, and says what came of it."""
    if len(messages) == 1:
        yield {0: DeltaToolCall("write_file", '{"path": "hello.txt", "content": "hello\\n"}')}
    else:
        yield "That is all."


async def ask(request: Request) -> Decision:
    print(request.tool, "wants to do this:", request.preview or dict(request.arguments), request.warning, sep="\n")
    # In a thread, so that the rest of the program goes on while a person thinks.
    answer = await asyncio.to_thread(input, "Allow it? y, or why not: ")
    return once if answer == "y" else deny(answer)


async def main() -> None:
    config = AgentConfig()
    agent = create_agent(config, model=FunctionModel(stream_function=write_once), approve=ask)
    async for event in run_turn(agent, "Write hello.txt", workspace=Workspace(sys.argv[1]), config=config):
        match event:
            case ToolReturned(outcome=outcome, output=output):
                print(f"{outcome}: {output}")
            case TurnEnded(answer=answer):
                print(answer)
            case _:
                pass


asyncio.run(main())
