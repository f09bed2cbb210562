"""The list of steps that a model keeps: what it wrote down last, found in the conversation and nowhere else."""

from collections.abc import Sequence

from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart

TOOL = "write_todos"


def todos_in(messages: Sequence[ModelMessage]) -> str:
    """The list as the tool showed it last, with how far it is; empty where there is none."""
    for message in reversed(messages):
        for part in reversed(message.parts) if isinstance(message, ModelRequest) else ():
            if isinstance(part, ToolReturnPart) and part.tool_name == TOOL and part.outcome == "success":
                text = part.model_response_str(wrap_if_error=False)
                return text if "\n" in text else ""
    return ""
