"""A conversation that outgrows the context window goes on: less of it is sent, all of it stays stored.

In proportion to the window of the model that runs, and only when the next request would not fit. First the oldest
tool results go, each with a line in its place that says what it was. Then what was said before this turn is summed
up: by the model, or by an extract of the questions and answers where the model is too small to sum up. What the user
says in this turn always stays. What was done is written into the metadata of the messages, so that a conversation
that is resumed sends the very same prompt.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic_ai import ModelSettings, RunContext
from pydantic_ai.exceptions import AgentRunError, RetryModelRequest
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestContext, ModelRequestParameters
from pydantic_ai.tools import ToolDefinition

from punie import tools
from punie.agent import calls
from punie.agent._given import is_typed
from punie.agent._room import LEFT_OUT, Shrinking, is_left_out, is_too_long, results_of, shortened
from punie.agent.instructions import instructions_for
from punie.agent.offered import is_compact, offered
from punie.agent.todos import todos_in
from punie.backends._notices import tell
from punie.config import AgentConfig
from punie.errors import PunieError
from punie.tools import Workspace

COMPACTED = "compacted"
"""Key in the metadata of a message: everything up to and including it is sent as the text that stands there."""

BYTES_PER_TOKEN = 3
"""Of code and prose a token holds more than this in every vocabulary that Punie runs, so that an estimate is too large
rather than too small."""
PER_MESSAGE = 6
"""Tokens that a template puts around one part."""

_ANSWER_SHARE = 4
"""One part in so many of the window is kept free for the answer at most."""
_GOAL = 0.6
"""Of the room there is: what is left after compaction, so that the next requests need none and reuse their prefix."""
_SUMMARY_SHARE = 0.3
"""Of the window, for a summary or an extract."""
_SMALLEST = 200
"""Tokens; to sum up less than this gains nothing."""
_LONGEST_SAID = 600
"""Characters of one question or answer in an extract."""
_RESULT_SHOWN = 300
"""Characters of one tool result that the summary is made from."""
_WORTH_IT = 200
"""Characters; leaving out less than this gains nothing over the note in its place."""

_SUMMARY_PROMPT = """\
Sum up this conversation between a user and a coding agent so that the agent can go on with nothing else. Keep: what \
the user asked for and decided, in the user's words where they matter; what was found, with paths and line numbers; \
what was changed and why; what is left to do. Leave out greetings and what led nowhere. Plain text, no preamble.{focus}

{said}"""
_SUMMED_UP = "What was said so far, summed up:\n"
_HEARD = "I will go on from there."
_TODOS = "The list of steps, as it was kept last:\n"


@dataclass(frozen=True)
class Compacted:
    """A conversation with less to send, and about how many tokens of it were and are sent."""

    messages: Sequence[ModelMessage]
    before: int
    after: int


def sent(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """What the model is sent of a conversation: summed up and with notes where that was done to it."""
    at = max((place for place, message in enumerate(messages) if _mark(message)), default=-1)
    rest = shortened(messages[at + 1 :])
    return [*_in_place(_mark(messages[at])), *rest] if at >= 0 else rest


def _mark(message: ModelMessage) -> dict[str, object]:
    found = (message.metadata or {}).get(COMPACTED)
    return found if isinstance(found, dict) else {}


def _in_place(mark: dict[str, object]) -> Iterator[ModelMessage]:
    """The messages that are sent in place of what was summed up."""
    pairs = mark.get("pairs")
    todos = f"{_TODOS}{mark['todos']}" if mark.get("todos") else ""
    if isinstance(pairs, list):
        for asked, answered in pairs:
            yield ModelRequest([UserPromptPart(str(asked))])
            yield ModelResponse([TextPart(str(answered))])
    elif mark.get("summary"):
        yield ModelRequest([UserPromptPart("\n\n".join(filter(None, [f"{_SUMMED_UP}{mark['summary']}", todos])))])
        yield ModelResponse([TextPart(_HEARD)])
        return
    if todos:
        yield ModelRequest([UserPromptPart(todos)])
        yield ModelResponse([TextPart(_HEARD)])


# --- counting ------------------------------------------------------------------------------------------------------


def estimated(text: str) -> int:
    """About how many tokens a text takes, rather too many than too few."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def tokens_of(messages: Iterable[ModelMessage]) -> int:
    """About how many tokens messages take."""
    return sum(estimated(text) + PER_MESSAGE for message in messages for _, text in _texts(message))


def _texts(message: ModelMessage) -> Iterator[tuple[str, str]]:
    """What a message holds for the model, and which part of the window it belongs to."""
    for part in message.parts:
        if isinstance(part, ToolReturnPart):
            yield "tool results", part.model_response_str(wrap_if_error=False)
        elif isinstance(part, UserPromptPart):
            yield "conversation", part.content if isinstance(part.content, str) else "\n".join(map(str, part.content))
        elif isinstance(part, ToolCallPart):
            yield "conversation", f"{part.tool_name} {part.args_as_json_str()}"
        else:
            yield "conversation", str(getattr(part, "content", ""))


async def counted(
    messages: list[ModelMessage], *, model: Model, settings: ModelSettings | None, parameters: ModelRequestParameters
) -> int:
    """Tokens of a request: exact where the model runs in this process, else estimated."""
    if model.system == "local":
        return (await model.count_tokens(messages, settings, parameters)).input_tokens
    instructions = "\n".join(part.content for part in parameters.instruction_parts or ())
    declared = [
        _declared(tool.name, tool.description, tool.parameters_json_schema) for tool in parameters.function_tools
    ]
    return tokens_of(messages) + estimated(instructions) + sum(map(estimated, declared))


def _declared(name: str, description: str | None, schema: object) -> str:
    return json.dumps({"name": name, "description": description, "parameters": schema})


async def measured(
    messages: Sequence[ModelMessage], *, model: Model, config: AgentConfig, memory: str = "", skills: str = ""
) -> list[tuple[str, int]]:
    """Tokens of each part of the next request: exact where the model runs in this process, else estimated.

    `memory` is the text of the instruction files, `skills` what is told about skills.
    """
    names = offered(config, model, skills=bool(skills))
    declared = [tool.tool_def for tool in tools.toolset(names).tools.values()]
    texts: dict[str, list[str]] = {"system": [instructions_for(config, compact=is_compact(model)) or ""]}
    texts["tools"] = [_declared(tool.name, tool.description, tool.parameters_json_schema) for tool in declared]
    texts["instructions"] = [memory]
    texts |= {"skills": [skills]} if skills else {}
    texts |= {"conversation": [], "tool results": []}
    for message in sent(messages):
        for kind, text in _texts(message):
            texts[kind].append(text)
    if model.system == "local":
        return await _exactly(sent(messages), model=model, declared=declared, texts=texts)
    found = {kind: sum(map(estimated, those)) for kind, those in texts.items()}
    for kind in ("conversation", "tool results"):
        found[kind] += PER_MESSAGE * len(texts[kind])
    return list(found.items())


async def _exactly(
    messages: list[ModelMessage], *, model: Model, declared: list[ToolDefinition], texts: Mapping[str, Sequence[str]]
) -> list[tuple[str, int]]:
    """The same parts by what each adds to the prompt: a template, and what a small model is shown, change texts."""

    async def count(shown: list[ModelMessage], *offered: ToolDefinition) -> int:
        parameters = ModelRequestParameters(function_tools=list(offered))
        return (await model.count_tokens(shown, None, parameters)).input_tokens

    nothing: list[ModelMessage] = [ModelRequest([UserPromptPart("")])]
    system = await count(nothing)
    tools_too = await count(nothing, *declared)
    said = max(await count(_without_results(messages), *declared) - tools_too, 0) if messages else 0
    whole = await count(messages, *declared) if messages else tools_too
    written = {kind: sum(map(estimated, texts[kind])) for kind in ("system", "instructions", "skills") if kind in texts}
    return [
        ("system", system + written["system"]),
        ("tools", tools_too - system),
        ("instructions", written["instructions"]),
        *([("skills", written["skills"])] if "skills" in written else []),
        ("conversation", said),
        ("tool results", whole - tools_too - said),
    ]


def _without_results(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    def bare(message: ModelMessage) -> ModelMessage:
        if not isinstance(message, ModelRequest):
            return message
        parts = [replace(part, content="") if isinstance(part, ToolReturnPart) else part for part in message.parts]
        return replace(message, parts=parts)

    return [bare(message) for message in messages]


# --- making room ---------------------------------------------------------------------------------------------------


class Compacting(Shrinking):
    """Before a request that would not fit, and after one that did not: less is sent, and the turn goes on."""

    async def prepare_model_request(
        self, ctx: RunContext[Workspace], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Make room where the window is known, and put what stands in the place of what is left out."""
        model, settings = request_context.model, request_context.model_settings
        parameters = request_context.model_request_parameters

        async def count() -> int:
            return await counted(sent(ctx.messages), model=model, settings=settings, parameters=parameters)

        window = model.context_window
        if window and tokens_of(sent(ctx.messages)) * 2 > window:  # far from full nothing needs to be counted
            room = room_in(window, settings)
            used = await count()
            if used > room:
                await self._make_room(ctx, model, excess=used - int(room * _GOAL))
                if await count() > room:
                    _cut_results(ctx.messages, most=int(room * _GOAL) * BYTES_PER_TOKEN // 2)
        request_context.messages = sent(request_context.messages)
        return request_context

    async def _make_room(self, ctx: RunContext[Workspace], model: Model, *, excess: int) -> None:
        """Leave out the oldest results; sum up what came before this turn where that is not enough."""
        gained, left_out = _leave_out(ctx.messages, tokens=excess)
        if left_out:
            tell(f"The context window is nearly full: {left_out} old tool results are left out of what is sent.")
        earlier = _earlier(ctx.messages, ctx.run_id)
        if gained < excess and any(not _mark(message) for message in earlier[-1:]):
            await _sum_up(earlier, model=model)
            tell("The context window is nearly full: what was said before this question is summed up.")

    async def on_model_request_error(
        self, ctx: RunContext[Workspace], *, request_context: ModelRequestContext, error: Exception
    ) -> ModelResponse:
        """Ask again with less. Raises the error when nothing is left to leave out, or it is another one."""
        try:
            return await super().on_model_request_error(ctx, request_context=request_context, error=error)
        except RetryModelRequest:
            raise
        except Exception as raised:
            earlier = _earlier(ctx.messages, ctx.run_id)
            size = tokens_of(sent(earlier))
            if raised is not error or not is_too_long(error) or size < _SMALLEST:
                raise
            await _sum_up(earlier, model=request_context.model, most=size // 3)
            tell("The conversation is too long for the model: what was said before is summed up.")
            raise RetryModelRequest from raised


def room_in(window: int, settings: ModelSettings | None) -> int:
    """Tokens that a request may take of a window, with the answer to come."""
    wanted = (settings or {}).get("max_tokens") or window // _ANSWER_SHARE
    return window - min(wanted, window // _ANSWER_SHARE)


def _earlier(messages: Sequence[ModelMessage], run_id: str | None) -> Sequence[ModelMessage]:
    """The messages of the turns before this one."""
    first = next((place for place, message in enumerate(messages) if message.run_id == run_id), len(messages))
    return messages[:first]


def _leave_out(messages: Sequence[ModelMessage], *, tokens: int) -> tuple[int, int]:
    """Mark the oldest results until so many tokens are gained, never the last one; what was gained, by how many."""
    at = max((place for place, message in enumerate(messages) if _mark(message)), default=-1)
    gained = number = 0
    for part in [*results_of(messages[at + 1 :])][:-1]:
        text = part.model_response_str(wrap_if_error=False)
        if gained >= tokens:
            break
        if len(text) >= _WORTH_IT and not is_left_out(part):
            part.metadata = {**(part.metadata if isinstance(part.metadata, dict) else {}), LEFT_OUT: True}
            gained += estimated(text) - estimated("x" * _WORTH_IT) // 2
            number += 1
    return gained, number


def _cut_results(messages: Sequence[ModelMessage], *, most: int) -> None:
    """Cut what is still sent of results to so many bytes each: the beginning, with a line that says so."""
    for part in results_of(messages):
        text = part.model_response_str(wrap_if_error=False)
        if is_left_out(part) or len(text.encode("utf-8", "replace")) <= most:
            continue
        known = part.metadata if isinstance(part.metadata, dict) else {}
        part.metadata = {**known, LEFT_OUT: text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")}
        tell("A tool result is too long for the context window: only its beginning is sent.")


async def compacted(messages: Sequence[ModelMessage], *, model: Model, focus: str = "") -> Compacted:
    """Sum up a whole conversation. `focus` says what the summary must not miss."""
    before = tokens_of(sent(messages))
    await _sum_up(messages, model=model, focus=focus)
    return Compacted(messages, before, tokens_of(sent(messages)))


async def _sum_up(messages: Sequence[ModelMessage], *, model: Model, most: int | None = None, focus: str = "") -> None:
    """Write into the last of these messages what is sent in place of all of them: so many tokens at most.

    Of a model that does not say how much it takes, only what was refused is known.
    """
    window = model.context_window or tokens_of(sent(messages))
    most = most or int(window * _SUMMARY_SHARE)
    mark: dict[str, object] = {"pairs": _extract(messages, tokens=most)}
    if not getattr(model, "compact", False):
        summary = await _summary(messages, model=model, most=most, window=window, focus=focus)
        mark = {"summary": summary} if summary else mark
    if todos := todos_in(messages):
        mark["todos"] = todos
    last = messages[-1]
    last.metadata = {**(last.metadata or {}), COMPACTED: mark}


async def _summary(messages: Sequence[ModelMessage], *, model: Model, most: int, window: int, focus: str) -> str:
    """The model's own summary; empty where it gave none."""
    asked = f"\nAbove all keep what is about: {focus}" if focus else ""
    room = (window - most) * BYTES_PER_TOKEN - len(_SUMMARY_PROMPT) - len(asked) - 500
    said = "\n".join(_transcript(sent(messages)))
    said = said.encode("utf-8", "replace")[-max(room, 1_000) :].decode("utf-8", "ignore")
    request = ModelRequest([UserPromptPart(_SUMMARY_PROMPT.format(focus=asked, said=said))])
    try:
        reply = await model.request([request], ModelSettings(max_tokens=most), ModelRequestParameters())
    except (AgentRunError, PunieError):  # an extract is better than no conversation
        return ""
    text = "\n".join(part.content for part in reply.parts if isinstance(part, TextPart)).strip()
    return text.encode("utf-8", "replace")[: most * BYTES_PER_TOKEN].decode("utf-8", "ignore")


def _transcript(messages: Sequence[ModelMessage]) -> Iterator[str]:
    for message in messages:
        for part in message.parts:
            if isinstance(part, UserPromptPart):
                yield f"User: {part.content}"
            elif isinstance(part, TextPart):
                yield f"Agent: {part.content}"
            elif isinstance(part, ToolCallPart):
                yield f"Agent calls {calls.shown(part)}"
            elif isinstance(part, ToolReturnPart):
                yield f"Result: {part.model_response_str(wrap_if_error=False)[:_RESULT_SHOWN]}"


def _extract(messages: Sequence[ModelMessage], *, tokens: int) -> list[list[str]]:
    """The last questions, each with its final answer, that together take so many tokens; oldest first."""
    found: list[list[str]] = []
    for message in messages:
        for part in message.parts if is_typed(message) else ():
            if isinstance(part, UserPromptPart) and isinstance(message, ModelRequest):
                found.append([str(part.content)[:_LONGEST_SAID], ""])
            elif isinstance(part, TextPart) and found:
                found[-1][1] = part.content[:_LONGEST_SAID]
    kept: list[list[str]] = []
    used = 0
    for asked, answered in reversed([pair for pair in found if pair[1].strip()]):
        used += estimated(asked) + estimated(answered) + 2 * PER_MESSAGE
        if used > tokens:
            break
        kept.insert(0, [asked, answered])
    return kept
