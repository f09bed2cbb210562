"""One conversation, several models: `python examples/swap_backends.py DIRECTORY [SPEC...]`, by default `local`."""

import sys
from collections.abc import Sequence

from pydantic_ai.messages import ModelMessage

from punie import AgentConfig, Workspace, create_agent

directory, *specs = sys.argv[1:]
workspace = Workspace(directory)
history: Sequence[ModelMessage] = []
for spec in specs or ["local"]:  # for example: local claude openai:qwen2.5-coder@http://127.0.0.1:8080/v1
    agent = create_agent(AgentConfig(model=spec))
    result = agent.run_sync("Where is Shape defined?", deps=workspace, message_history=history)
    history = result.all_messages()
    print(f"{spec.partition('@')[0]}: {result.output}")
