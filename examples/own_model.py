"""Any PydanticAI model can drive the agent; this one is a function that calls one tool and repeats what it said."""

import sys

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from punie import AgentConfig, Workspace, create_agent


def look_up(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    last = messages[-1].parts[-1]
    if isinstance(last, ToolReturnPart):
        return ModelResponse(parts=[TextPart(str(last.content))])
    return ModelResponse(parts=[ToolCallPart("list_files", {"glob": "*.toml"})])


agent = create_agent(AgentConfig(), model=FunctionModel(look_up))
print(agent.run_sync("Which TOML files are there?", deps=Workspace(sys.argv[1])).output)
