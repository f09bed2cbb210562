"""Watch a turn as it happens: every front end of Punie draws these events and nothing else."""

import asyncio
import sys

from pydantic_ai.models.test import TestModel

from punie import AgentConfig, Workspace, create_agent
from punie.agent.events import Text, ToolCalled, ToolReturned, TurnEnded
from punie.agent.loop import run_turn


async def main() -> None:
    config = AgentConfig()
    agent = create_agent(config, model=TestModel(call_tools=["find_symbol"], custom_output_text="Found it."))
    async for event in run_turn(agent, "Where is main?", workspace=Workspace(sys.argv[1]), config=config):
        match event:
            case Text(delta=delta):
                print("text:", delta)
            case ToolCalled(name=name, arguments=arguments):
                print("call:", name, dict(arguments))
            case ToolReturned(outcome=outcome, output=output):
                print("result:", outcome, output.splitlines()[0])
            case TurnEnded(stop_reason=reason):
                print("ended:", reason)
            case _:
                pass


asyncio.run(main())
