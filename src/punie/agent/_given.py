"""Which instructions a conversation has brought: written down in it, beside the results that they came with."""

from collections.abc import Mapping, Sequence

from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart

GIVEN = "instructions"
"""Key in the metadata of a tool result that brought instructions: the files, by their paths from the workspace."""


def given_in(messages: Sequence[ModelMessage]) -> Mapping[str, int]:
    """The files that results in a conversation brought, with their tokens."""
    found: dict[str, int] = {}
    for message in messages:
        for part in message.parts if isinstance(message, ModelRequest) else ():
            if isinstance(part, ToolReturnPart) and isinstance(part.metadata, dict):
                found.update(part.metadata.get(GIVEN, {}))
    return found
