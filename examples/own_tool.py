"""The factory returns a real `pydantic_ai.Agent`: give it one more tool the PydanticAI way."""

import sys

from pydantic_ai import RunContext
from pydantic_ai.models.test import TestModel

from punie import AgentConfig, Workspace, create_agent

agent = create_agent(AgentConfig(tools=("read_file",)), model=TestModel(call_tools=["count_lines"]))


@agent.tool
def count_lines(ctx: RunContext[Workspace]) -> int:
    """Count the lines of all Python files."""
    return sum(len(path.read_bytes().splitlines()) for path in ctx.deps.root.rglob("*.py"))


print(agent.run_sync("How many lines of Python are there?", deps=Workspace(sys.argv[1])).output)
