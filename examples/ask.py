"""Ask a question about a project from Python: `python examples/ask.py [DIRECTORY] [QUESTION]`."""

import sys

from punie import AgentConfig, Workspace, create_agent

directory = sys.argv[1] if len(sys.argv) > 1 else "."
question = sys.argv[2] if len(sys.argv) > 2 else "Find all classes that inherit from Protocol"

agent = create_agent(AgentConfig(model="local", tools=("find_subclasses", "find_symbol", "read_file")))
print(agent.run_sync(question, deps=Workspace(directory)).output)
