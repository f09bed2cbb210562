"""What stands between the model and the user: guards on its replies and on its tool calls, as capabilities.

They hold for every backend and however the agent is run, headless or not.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError
from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.tools import ToolDefinition

from punie import tools
from punie.agent import calls, citations
from punie.agent.limits import CUT, NOTE_AT, REFUSED, LoopWatch, cut_repetition, note
from punie.config import Limits
from punie.errors import LimitReached, LoopDetected, PunieError, ToolCrashed
from punie.tools import Workspace

Context = RunContext[Workspace]


@dataclass
class ReplyGuard(AbstractCapability[Workspace]):
    """Makes real calls of calls written as text, and lets no empty, repeated or invented answer through."""

    asks_again: bool = True
    """Whether a model is asked once more about places it made up; a small one only gets worse at it."""
    _asked: bool = field(default=False, init=False)

    async def for_run(self, ctx: Context) -> "ReplyGuard":
        """A fresh guard for each run: it asks again once a run."""
        del ctx
        return ReplyGuard(asks_again=self.asks_again)

    async def after_model_request(
        self, ctx: Context, *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        """Check a whole reply. Raises ModelRetry when the model has to write it again."""
        text = calls.text_of(response)
        if calls.has_calls(response):
            return response
        if not text.strip():
            return replace(response, parts=[part for part in response.parts if not isinstance(part, TextPart)])
        parameters = request_context.model_request_parameters
        names = [tool.name for tool in parameters.function_tools]
        reply = calls.read_calls(text, names)
        if reply.calls:
            return _with_text_as(response, calls.parts_of(reply))
        if calls.is_unreadable_call(text):
            raise ModelRetry("That tool call could not be read. Write it again, complete, or answer in plain words.")
        return self._checked(ctx, response, text)

    def _checked(self, ctx: Context, response: ModelResponse, text: str) -> ModelResponse:
        kept, repeats = _without_repetition(response, text)
        known = citations.shown(_shown_texts(ctx.messages))
        mended = citations.mend_case(kept, known)
        invented = citations.unverified(mended, known)
        if invented and self.asks_again and not self._asked and not repeats:
            self._asked = True
            raise ModelRetry(_ask_again(invented))
        final = citations.mark(mended, known)
        if final == text:
            return response
        checked = _with_text_as(response, [_rewritten(response, final, forget=repeats)])
        details = {**(response.provider_details or {}), "stop": "repetition"}
        return replace(checked, provider_details=details) if repeats else checked


def _without_repetition(response: ModelResponse, text: str) -> tuple[str, bool]:
    """The text, cut where it repeats itself, and whether it does. Local engines notice it themselves."""
    cut = cut_repetition(text)
    repeats = cut is not None or (response.provider_details or {}).get("stop") == "repetition"
    return ((cut or text) + CUT if repeats else text), repeats


def _rewritten(response: ModelResponse, text: str, *, forget: bool) -> TextPart:
    """The text part with other words; `forget` drops what the model really wrote, which it else sees again."""
    first = next(part for part in response.parts if isinstance(part, TextPart))
    return replace(first, content=text, provider_details=None if forget else first.provider_details)


def _with_text_as(response: ModelResponse, parts: Sequence[TextPart | ToolCallPart]) -> ModelResponse:
    others = [part for part in response.parts if not isinstance(part, TextPart)]
    return replace(response, parts=[*others, *parts])


def _ask_again(invented: Sequence[citations.Place]) -> str:
    named = ", ".join(f"{place.path}:{place.first}" for place in invented[:5])
    return (
        f"No tool has shown {named}. Look these places up with a tool before you name them, "
        "or answer again and name only places that a tool has shown."
    )


def _shown_texts(messages: Sequence[ModelMessage]) -> list[str]:
    """What tools returned and what the user wrote, in the whole conversation."""
    texts: list[str] = []
    for message in messages:
        for part in message.parts if isinstance(message, ModelRequest) else ():
            if isinstance(part, ToolReturnPart):
                texts.append(part.model_response_str(wrap_if_error=False))
            elif isinstance(part, UserPromptPart):
                texts += [part.content] if isinstance(part.content, str) else map(str, part.content)
    return texts


@dataclass
class ToolGuard(AbstractCapability[Workspace]):
    """Ends a turn that goes on too long or in circles, and says clearly what is wrong with a call."""

    limits: Limits
    _watch: LoopWatch = field(default_factory=LoopWatch, init=False)
    _asked_for: set[str] = field(default_factory=set, init=False)
    """Ids of the calls so far: one that waits for approval is seen twice."""

    async def for_run(self, ctx: Context) -> "ToolGuard":
        """A fresh count for each run."""
        del ctx
        return ToolGuard(self.limits)

    async def before_model_request(self, ctx: Context, request_context: ModelRequestContext) -> ModelRequestContext:
        """Raises LimitReached when the turn has used up its requests or its tokens."""
        if ctx.usage.requests >= self.limits.max_turns:
            raise _limit("turn", self.limits.max_turns, setting="max_turns")
        most = self.limits.max_total_tokens
        if most is not None and ctx.usage.total_tokens >= most:
            raise _limit("token", most, setting="max_total_tokens")
        return request_context

    async def on_tool_validate_error(
        self,
        ctx: Context,
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: str | dict[str, Any],
        error: ValidationError | ModelRetry,
    ) -> dict[str, Any]:
        """Tell the model in one line what is wrong and how the tool is called."""
        if isinstance(error, ModelRetry):
            raise error
        raise ModelRetry(calls.complaint(tool_def, error)) from error

    async def wrap_tool_execute(
        self,
        ctx: Context,
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Refuse a call made once too often; run the others and count what they gave."""
        self._asked_for.add(call.tool_call_id)
        if len(self._asked_for) > self.limits.max_tool_calls:
            raise _limit("tool call", self.limits.max_tool_calls, setting="max_tool_calls")
        if self._watch.refuses(call.tool_name, args):
            if self._watch.stuck:
                raise LoopDetected(
                    f"The model kept calling {call.tool_name} with the same arguments and the same result.",
                    "Ask more precisely, or use a larger model.",
                )
            raise ToolFailed(REFUSED)
        result = _bounded(await handler(args), lines=self.limits.tool_lines)
        changes = call.tool_name not in tools.READ_ONLY
        count = self._watch.record(call.tool_name, args, str(result), changes_files=changes)
        return _noted(result, count) if count >= NOTE_AT else result

    async def on_tool_execute_error(
        self,
        ctx: Context,
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        error: Exception,
    ) -> Any:
        """A tool's unexpected exception is Punie's own mistake: name the tool, keep the cause."""
        if isinstance(error, PunieError):
            raise error
        raise ToolCrashed(f"The tool {call.tool_name} crashed: {type(error).__name__}: {error}") from error


def _bounded(result: object, *, lines: int) -> object:
    """The first lines of a result; tools bound themselves to 200, this is for those who want fewer."""
    if not isinstance(result, str) or len(all_lines := result.splitlines()) <= lines:
        return result
    left = len(all_lines) - lines
    return "\n".join([*all_lines[:lines], f"... {left} more lines; ask for a smaller part"])


def _noted(result: object, count: int) -> object:
    """Put the note on the header line, which an answer never copies."""
    if not isinstance(result, str):
        return result
    header, newline, lines = result.partition("\n")
    return f"{header} {note(count)}{newline}{lines}"


def _limit(what: str, most: int, *, setting: str) -> LimitReached:
    return LimitReached(f"The {what} limit of {most} was reached.", f"Raise limits.{setting}, or ask for less at once.")
