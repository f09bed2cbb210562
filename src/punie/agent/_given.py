"""What in a conversation nobody typed: instructions that came with results, and what checks of the project said."""

from collections.abc import Mapping, Sequence

from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart

GIVEN = "instructions"
"""Key in the metadata of a tool result that brought instructions: the files, by their paths from the workspace."""

CHECKS = "checks"
"""Key in the metadata of a message that tells the model which checks failed: their names."""


def is_typed(message: ModelMessage) -> bool:
    """Whether the prompts in a message are the user's own words."""
    return not given_in([message]) and CHECKS not in (message.metadata or {})


def given_in(messages: Sequence[ModelMessage]) -> Mapping[str, int]:
    """The files that results in a conversation brought, with their tokens."""
    found: dict[str, int] = {}
    for message in messages:
        for part in message.parts if isinstance(message, ModelRequest) else ():
            if isinstance(part, ToolReturnPart) and isinstance(part.metadata, dict):
                found.update(part.metadata.get(GIVEN, {}))
    return found
