"""Room in a full context window: old tool results are left out of what is sent, never of what is stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import AgentRunError, RetryModelRequest
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models import ModelRequestContext

from punie import tools
from punie.agent import calls, failures
from punie.backends._notices import tell
from punie.errors import ContextTooLong
from punie.tools import Workspace

LEFT_OUT = "left_out"
"""Key in the metadata of a result that is no longer sent; it is stored with the conversation, so a resumed one goes on
with the very same prompt."""

_WORTH_IT = 200
"""Characters; leaving out less than this gains nothing over the note in its place."""


@dataclass
class Shrinking(AbstractCapability[Workspace]):
    """When a request does not fit, leaves out the oldest tool results, half of what there is at a time, and goes on.

    The last result always stays: the answer is made from it.
    """

    async def prepare_model_request(
        self, ctx: RunContext[Workspace], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Put a note in the place of every result that is left out."""
        del ctx
        if any(map(is_left_out, results_of(request_context.messages))):
            request_context.messages = shortened(request_context.messages)
        return request_context

    async def on_model_request_error(
        self, ctx: RunContext[Workspace], *, request_context: ModelRequestContext, error: Exception
    ) -> ModelResponse:
        """Ask again with less. Raises the error when there is nothing left to leave out, or it is another one."""
        if not is_too_long(error):
            raise error
        chosen = _oldest_half([*results_of(ctx.messages)])
        if not chosen:
            raise error
        for part in chosen:
            part.metadata = {**(part.metadata if isinstance(part.metadata, dict) else {}), LEFT_OUT: True}
        tell(f"The conversation is too long for the model: {_counted(len(chosen))} left out of what it is sent.")
        raise RetryModelRequest


def shortened(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """The messages with a note in the place of each result that is left out."""
    made = {part.tool_call_id: part for part in _calls(messages)}

    def short(message: ModelMessage) -> ModelMessage:
        if not isinstance(message, ModelRequest):
            return message
        parts = [
            replace(part, content=_note(part, made.get(part.tool_call_id)))
            if isinstance(part, ToolReturnPart) and is_left_out(part)
            else part
            for part in message.parts
        ]
        return replace(message, parts=parts)

    return [short(message) for message in messages]


def _note(result: ToolReturnPart, call: ToolCallPart | None) -> str:
    """What was left out and how to get it; what changed something must not be done again to see what it said."""
    begun = result.metadata.get(LEFT_OUT) if isinstance(result.metadata, dict) else None
    lines = len(_text(result).splitlines())
    if isinstance(begun, str):  # it was too long on its own: its beginning is sent
        return f"{begun}\n(the rest of {lines} lines left out to make room; ask for a smaller part)"
    again = f"; call {calls.shown(call)} again to see them" if call and call.tool_name in tools.READ_ONLY else ""
    return f"({lines} lines left out to make room{again})"


def is_too_long(error: Exception) -> bool:
    """Whether an error says that the prompt does not fit, in a local engine's words or in a server's."""
    own = failures.translated(error) if isinstance(error, AgentRunError) else error
    return isinstance(own, ContextTooLong)


def _oldest_half(results: Sequence[ToolReturnPart]) -> list[ToolReturnPart]:
    """The oldest results that together hold half of the characters that could be left out."""
    candidates = [part for part in results[:-1] if not is_left_out(part) and len(_text(part)) >= _WORTH_IT]
    most = sum(len(_text(part)) for part in candidates) / 2
    chosen: list[ToolReturnPart] = []
    for part in candidates:
        if sum(len(_text(each)) for each in chosen) >= most:
            break
        chosen.append(part)
    return chosen


def results_of(messages: Sequence[ModelMessage]) -> Iterator[ToolReturnPart]:
    """Every tool result of a conversation, the oldest first."""
    for message in messages:
        if isinstance(message, ModelRequest):
            yield from (part for part in message.parts if isinstance(part, ToolReturnPart))


def _calls(messages: Sequence[ModelMessage]) -> Iterator[ToolCallPart]:
    for message in messages:
        if isinstance(message, ModelResponse):
            yield from message.tool_calls


def is_left_out(part: ToolReturnPart) -> bool:
    """Whether a note, or its beginning, is sent in place of a result."""
    return isinstance(part.metadata, dict) and bool(part.metadata.get(LEFT_OUT))


def _text(part: ToolReturnPart) -> str:
    return part.model_response_str(wrap_if_error=False)


def _counted(number: int) -> str:
    return "the oldest tool result is" if number == 1 else f"the {number} oldest tool results are"
