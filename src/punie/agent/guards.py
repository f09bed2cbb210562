"""What stands between the model and the user: guards on its replies and on its tool calls, as capabilities.

They hold for every backend and however the agent is run, headless or not.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError
from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import AgentRunError, ModelRetry, ToolFailed
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.tools import ToolDefinition

from punie import tools, wire
from punie.agent import _copying, calls, citations
from punie.agent._given import is_typed
from punie.agent.limits import CUT, NOTE_AT, REFUSED, LoopWatch, cut_repetition, note
from punie.backends._notices import tell
from punie.config import Limits
from punie.errors import LimitReached, LoopDetected, PunieError, ToolCrashed
from punie.rules import NOTES
from punie.tools import Workspace

Context = RunContext[Workspace]


@dataclass
class ReplyGuard(AbstractCapability[Workspace]):
    """Makes real calls of calls written as text, and lets no empty, repeated or invented answer through."""

    small: bool = False
    """A small model is not asked again about places it made up, which gets worse; its slips in copying are mended."""
    _asked: bool = field(default=False, init=False)

    async def for_run(self, ctx: Context) -> "ReplyGuard":
        """A fresh guard for each run: it asks again once a run."""
        del ctx
        return ReplyGuard(small=self.small)

    async def after_model_request(
        self, ctx: Context, *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        """Check a whole reply. Raises ModelRetry when the model has to write it again."""
        known = {tool.name: tool for tool in request_context.model_request_parameters.function_tools}
        if response.tool_calls:
            return await self._settled(ctx, response, known)
        if (response.provider_details or {}).get("cut_call"):
            raise ModelRetry(calls.CALL_CUT_OFF)
        response = _with_thinking_apart(response)
        text = calls.text_of(response)
        reply = wire.parse(text, names=calls.parameters_of(known))
        if reply.calls:
            return await self._settled(ctx, _with_text_as(response, calls.parts_of(reply)), known)
        if reply.broken:
            cut_off = response.finish_reason == "length"
            raise ModelRetry(calls.CALL_CUT_OFF if cut_off else calls.unreadable(reply.broken, known))
        if not reply.text.strip():
            return _with_text_as(response, [])
        return self._checked(ctx, response, reply.text)

    async def _settled(self, ctx: Context, response: ModelResponse, known: calls.Tools) -> ModelResponse:
        copied = await asyncio.to_thread(_as_asked, ctx, response) if self.small else response
        return _with_settled_calls(copied, known, earlier=ctx.messages)

    def _checked(self, ctx: Context, response: ModelResponse, text: str) -> ModelResponse:
        kept, repeats = _without_repetition(response, text)
        known = citations.shown(_shown_texts(ctx.messages))
        mended = citations.mend_case(kept, known)
        invented = citations.unverified(mended, known)
        if invented and not self.small and not self._asked and not repeats:
            self._asked = True
            raise ModelRetry(_ask_again(invented))
        final = citations.mark(mended, known)
        if final == calls.text_of(response):
            return response
        checked = _with_text_as(response, [_rewritten(response, final, forget=repeats)])
        details = {**(response.provider_details or {}), "stop": "repetition"}
        return replace(checked, provider_details=details) if repeats else checked


def _with_thinking_apart(response: ModelResponse) -> ModelResponse:
    """The response with what was thought aloud, between tags, in a part of its own: it is no part of an answer."""
    thought, said = wire.without_thinking(calls.text_of(response))
    if not thought:
        return response
    return _with_text_as(response, [ThinkingPart(thought), *([TextPart(said)] if said else [])])


def _as_asked(ctx: Context, response: ModelResponse) -> ModelResponse:
    """The response with names and paths that were miscopied from the question as the question has them."""
    question, seen = _question(ctx.messages), _shown_texts(ctx.messages)

    def known(argument: str, value: str) -> bool:
        if argument != "name":
            return os.path.lexists(ctx.deps.root / value)
        return all(part in ctx.deps.index.refresh().by_name for part in value.split("."))

    def mended(part: ModelResponsePart) -> ModelResponsePart:
        if not isinstance(part, ToolCallPart):
            return part
        other = _copying.respelled(part.args, question=question, seen=seen, known=known)
        return calls.with_arguments(part, other, why="spelt as in the question") if other else part

    return replace(response, parts=[mended(part) for part in response.parts])


def _with_settled_calls(
    response: ModelResponse, known: calls.Tools, *, earlier: Sequence[ModelMessage]
) -> ModelResponse:
    """Every call as it may run, each one once; the user is told what was repaired or has to be asked again."""
    cut_off = response.finish_reason == "length"
    parts: list[ModelResponsePart] = []
    made: set[str] = set()
    ids = calls.ids_of(earlier)
    for part in response.parts:
        if not isinstance(part, ToolCallPart):
            parts.append(part)
            continue
        call = calls.settled(part, known, cut_off=cut_off and part is response.parts[-1])
        if calls.same_call(call) in made:
            tell(f"repaired: {calls.shown(call)} was asked for twice at once and is made once")
            continue
        made.add(calls.same_call(call))
        parts.append(calls.with_own_id(call, taken=ids))
        ids.add(call.tool_call_id)
        _tell_about(call)
    return replace(response, parts=parts)


def _tell_about(call: ToolCallPart) -> None:
    if refused := calls.detail(call, calls.REFUSED):
        tell(f"asked again: {calls.shown(call)}: {refused}")
    elif repaired := calls.detail(call, calls.REPAIRED):
        tell(f"repaired: {calls.shown(call)}: {repaired}")


def _without_repetition(response: ModelResponse, text: str) -> tuple[str, bool]:
    """The text, cut where it repeats itself, and whether it does. Local engines notice it themselves."""
    cut = cut_repetition(text)
    repeats = cut is not None or (response.provider_details or {}).get("stop") == "repetition"
    return ((cut or text) + CUT if repeats else text), repeats


def _rewritten(response: ModelResponse, text: str, *, forget: bool) -> TextPart:
    """The text part with other words; `forget` drops what the model really wrote, which a local one else sees again."""
    first = next(part for part in response.parts if isinstance(part, TextPart))
    details = first.provider_details or {}
    if response.provider_name == "local" and not forget:
        details = {"raw": calls.text_of(response), **details}
    return replace(first, content=text, provider_details=None if forget else details or None)


def _with_text_as(response: ModelResponse, parts: Sequence[ModelResponsePart]) -> ModelResponse:
    others = [part for part in response.parts if not isinstance(part, TextPart)]
    return replace(response, parts=[*others, *parts])


def _ask_again(invented: Sequence[citations.Place]) -> str:
    named = ", ".join(f"{place.path}:{place.first}" for place in invented[:5])
    return (
        f"No tool has shown {named}. Look these places up with a tool before you name them, "
        "or answer again and name only places that a tool has shown."
    )


def _question(messages: Sequence[ModelMessage]) -> str:
    """What the user asked last."""
    requests = [message for message in messages if isinstance(message, ModelRequest) and is_typed(message)]
    asked = [part for message in requests for part in message.parts if isinstance(part, UserPromptPart)]
    return str(asked[-1].content) if asked else ""


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
        known = {tool.name: tool for tool in request_context.model_request_parameters.function_tools}
        for message in (*ctx.messages[-1:], *request_context.messages[-1:]):
            _name_the_nearest(message, known)
        if ctx.usage.requests >= self.limits.max_turns:
            raise _limit("turn", self.limits.max_turns, setting="max_turns")
        most = self.limits.max_total_tokens
        if most is not None and ctx.usage.total_tokens >= most:
            raise _limit("token", most, setting="max_total_tokens")
        return request_context

    async def before_tool_validate(
        self, ctx: Context, *, call: ToolCallPart, tool_def: ToolDefinition, args: str | dict[str, Any]
    ) -> str | dict[str, Any]:
        """Raises ModelRetry for a call that must not run as it is."""
        if calls.detail(call, calls.REFUSED):
            raise ModelRetry(calls.not_run(call, tool_def))
        return args

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
        result = await handler(args)
        if call.tool_name not in NOTES:  # those are short, or instructions that count as a whole
            result = _bounded(result, lines=self.limits.tool_lines, ends=call.tool_name == "run_command")
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
        if isinstance(error, PunieError | AgentRunError):
            raise error
        raise ToolCrashed(f"The tool {call.tool_name} crashed: {type(error).__name__}: {error}") from error


def _name_the_nearest(message: ModelMessage, known: calls.Tools) -> None:
    """Say which tools come nearest to one that does not exist, before the model sees the message for the first time."""
    if isinstance(message, ModelRequest):
        message.parts = [_with_the_nearest(part, known) for part in message.parts]


def _with_the_nearest(part: ModelRequestPart, known: calls.Tools) -> ModelRequestPart:
    if isinstance(part, ToolReturnPart) and part.retry and part.retry.cause == "unknown_tool":
        return replace(part, content=calls.unknown(part.tool_name, known))
    return part


def _bounded(result: object, *, lines: int, ends: bool) -> object:
    """The first lines of a result, or those at both its ends: where a command fails, it says so at the end.

    Tools bound themselves to 200; this is for those who want fewer.
    """
    if not isinstance(result, str) or len(all_lines := result.splitlines()) <= lines:
        return result
    left = len(all_lines) - lines
    first = (lines + 1) // 2 if ends else lines
    return "\n".join([*all_lines[:first], f"... {left} more lines; ask for a smaller part", *all_lines[first + left :]])


def _noted(result: object, count: int) -> object:
    """Put the note on the header line, which an answer never copies."""
    if not isinstance(result, str):
        return result
    header, newline, lines = result.partition("\n")
    return f"{header} {note(count)}{newline}{lines}"


def _limit(what: str, most: int, *, setting: str) -> LimitReached:
    return LimitReached(f"The {what} limit of {most} was reached.", f"Raise limits.{setting}, or ask for less at once.")
