"""While planning nothing is changed: the last look before a call is made, and what the model is told about it.

The decision about a call comes earlier. Between the two somebody may have been asked, a hook may have run, and the
mode may have become another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.toolsets import WrapperToolset
from pydantic_ai.toolsets.abstract import ToolsetTool

from punie import tools
from punie.agent._given import is_typed
from punie.agent.approval import Gate
from punie.agent.compaction import sent
from punie.agent.permissions import Call
from punie.tools import Workspace

BEGUN = (
    "[Plan mode: you can look at everything and change nothing. Find out what is needed, then answer with a plan of "
    "concrete steps. Nothing is carried out before the user has agreed to it.]"
)
ENDED = "[Plan mode is over: you can make changes again.]"


@dataclass
class Planned(WrapperToolset[Workspace]):
    """Tools of which none changes anything while planning, whoever allowed the call."""

    gate: Gate

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Workspace], tool: ToolsetTool[Workspace]
    ) -> Any:
        """Make the call. Raises ToolFailed for one that the mode does not let through any more.

        What only reads is not judged again: it has to find what was there when it was judged.
        """
        if self.gate.permissions.mode == "plan" and name not in tools.READ_ONLY:
            verdict = self.gate.authorize(ctx.deps, Call(name, tool_args))
            if verdict.kind == "deny":
                raise ToolFailed(verdict.reason)
        return await super().call_tool(name, tool_args, ctx, tool)


@dataclass
class Planning(AbstractCapability[Workspace]):
    """Tells the model, before what the user says, that it plans from now on, or that it does not any more.

    It is said once, where the mode changed, so that the beginning of a conversation stays as it is.
    """

    gate: Gate

    async def before_model_request(
        self, ctx: RunContext[Workspace], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Say it in the request that the user's words are in; what is said in the middle of a turn, refusals say."""
        plans = self.gate.permissions.mode == "plan"
        if plans != _plans(sent(ctx.messages)):
            for messages in (ctx.messages, request_context.messages):
                _say(messages[-1], BEGUN if plans else ENDED)
        return request_context


def _plans(messages: Sequence[ModelMessage]) -> bool:
    """What the model was told last."""
    said = [
        part.content
        for message in messages
        for part in (message.parts if isinstance(message, ModelRequest) else ())
        if isinstance(part, UserPromptPart) and part.content in (BEGUN, ENDED)
    ]
    return said[-1:] == [BEGUN]


def _say(message: ModelMessage, note: str) -> None:
    """Put it right before what the user says: results of calls may stand before that, and have to come first."""
    if not isinstance(message, ModelRequest) or not is_typed(message):
        return
    *before, last = message.parts
    if isinstance(last, UserPromptPart) and not any(getattr(part, "content", "") == note for part in before):
        message.parts = [*before, UserPromptPart(note), last]
