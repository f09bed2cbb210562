"""Calls as models really write them: as text, misspelt, broken, cut off, twice; and what a model is told about them.

One rule holds for all of them: a call that had to be repaired runs only if it changes nothing, a call that was cut
off never runs, and the model is asked for it again.
"""

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_ai.messages import INVALID_JSON_KEY, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.tools import ToolDefinition

from punie import tools, wire

REPAIRED, REFUSED = "repaired", "refused"
"""Keys of a call's provider details: what was repaired in it, and why it must not run."""

CUT_OFF = "it was cut off at max_tokens"
CALL_CUT_OFF = "The tool call was cut off at max_tokens. Write a shorter one, or do it in several steps."
_NEAREST = 3
_SHOWN = 60

Tools = Mapping[str, ToolDefinition]


def text_of(response: ModelResponse) -> str:
    """The response's text parts, joined as PydanticAI joins them."""
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


def parameters_of(known: Tools) -> wire.Parameters:
    """The parameters of each tool in order, for calls that leave their names out."""
    return {name: tuple(tool.parameters_json_schema.get("properties", {})) for name, tool in known.items()}


def parts_of(reply: wire.Reply) -> list[TextPart | ToolCallPart]:
    """The reply as response parts: its prose, then real calls, marked as repaired: they were written as text."""
    prose = [TextPart(reply.text)] if reply.text else []
    return [*prose, *(_part(call) for call in reply.calls)]


def _part(call: wire.Call) -> ToolCallPart:
    return ToolCallPart(call.name, call.arguments, provider_details={REPAIRED: call.mended or "written as text"})


def detail(call: ToolCallPart, key: str) -> str:
    """One of the two details of a call; empty when it has none."""
    return str((call.provider_details or {}).get(key, ""))


def settled(call: ToolCallPart, known: Tools, *, cut_off: bool) -> ToolCallPart:
    """The call as it may run, or marked with the reason why it must not."""
    name = wire.known_name(call.tool_name, known) or call.tool_name
    arguments, flaws = _arguments(call.args)
    named = [f"named {call.tool_name}"] if name != call.tool_name else []
    repaired = ", ".join(part for part in (*named, detail(call, REPAIRED), *flaws) if part)
    refused = detail(call, REFUSED) or _refusal(name, arguments, repaired, cut_off=cut_off)
    if not repaired and not refused:
        return call
    details = {**(call.provider_details or {}), REPAIRED: repaired, REFUSED: refused}
    return replace(call, tool_name=name, args=arguments, provider_details=details)


def with_arguments(call: ToolCallPart, others: Mapping[str, str], *, why: str) -> ToolCallPart:
    """The call with other values of some arguments, marked as repaired."""
    details = {**(call.provider_details or {}), REPAIRED: ", ".join(p for p in (detail(call, REPAIRED), why) if p)}
    arguments = json.dumps({**call.args_as_dict(), **others}, ensure_ascii=False)
    return replace(call, args=arguments, provider_details=details)


def _refusal(name: str, arguments: str | dict[str, Any] | None, repaired: str, *, cut_off: bool) -> str:
    if cut_off:
        return CUT_OFF
    if isinstance(arguments, dict) and INVALID_JSON_KEY in arguments:
        return "its arguments are not valid JSON"
    if repaired and name not in tools.READ_ONLY:
        return f"it had to be repaired ({repaired}), and it changes something"
    return ""


def _arguments(args: str | dict[str, Any] | None) -> tuple[str | dict[str, Any] | None, Sequence[str]]:
    """The arguments, mended if need be, and what was mended. Hopeless ones are kept under a key of their own."""
    if not isinstance(args, str) or not args.strip() or _is_object(args):
        return args, ()
    found = wire.read_object(args)
    if found is None:
        return {INVALID_JSON_KEY: args}, ()
    return json.dumps(found.value, ensure_ascii=False), found.flaws


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def same_call(call: ToolCallPart) -> str:
    """A key that two calls share if they ask for the same thing."""
    return f"{call.tool_name} {json.dumps(call.args_as_dict(), sort_keys=True, default=str)}"


def ids_of(messages: Sequence[ModelMessage]) -> set[str]:
    """The ids of all calls so far."""
    return {part.tool_call_id for message in messages for part in message.parts if isinstance(part, ToolCallPart)}


def with_own_id(call: ToolCallPart, *, taken: Collection[str]) -> ToolCallPart:
    """The call under an id of its own: some servers number the calls of each reply from the start."""
    return replace(call, tool_call_id=f"call_{uuid.uuid4().hex[:24]}") if call.tool_call_id in taken else call


def shown(call: ToolCallPart) -> str:
    """The call in a few words, for the user."""
    text = ", ".join(f"{key}={value!r}" for key, value in call.args_as_dict().items() if key != INVALID_JSON_KEY)
    return f"{call.tool_name}({text if len(text) <= _SHOWN else text[:_SHOWN] + '...'})"


def not_run(call: ToolCallPart, tool: ToolDefinition) -> str:
    """What the model is told about a call that must not run."""
    return f"Not run: {detail(call, REFUSED)}. Make the call again, whole and well-formed, as {signature(tool)}."


def unreadable(broken: str, known: Tools) -> str:
    """What the model is told about a call that nobody can read: how the tool it seems to name is called."""
    meant = next((tool for name, tool in known.items() if name in broken), None)
    how = f" Call it as {signature(meant)}." if meant else ""
    return f"That tool call could not be read.{how} Write it again, complete, or answer in plain words."


def unknown(name: str, known: Tools) -> str:
    """What the model is told about a tool that is not there: how the nearest ones are called."""
    near = get_close_matches(name.lower(), list(known), n=_NEAREST, cutoff=0.5)
    there = ", ".join(signature(known[each]) for each in near or known)
    return f"There is no tool named {name}. {'The nearest are' if near else 'There are'} {there}."


def signature(tool: ToolDefinition) -> str:
    """`read_file(path, start?, end?)`, from the tool's schema."""
    schema = tool.parameters_json_schema
    needed = schema.get("required", ())
    names = (name if name in needed else f"{name}?" for name in schema.get("properties", {}))
    return f"{tool.name}({', '.join(names)})"


def complaint(tool: ToolDefinition, error: ValidationError) -> str:
    """What the model is told about wrong arguments: the problems, then how the tool is called."""
    problems = dict.fromkeys(_problem(detail["loc"], detail["type"], detail["msg"]) for detail in error.errors())
    return f"{'; '.join(problems)}. Call it as {signature(tool)}."


def _problem(place: tuple[int | str, ...], kind: str, text: str) -> str:
    name = ".".join(map(str, place))
    if kind == "missing":
        return f"`{name}` is missing"
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"there is no `{name}`"
    if kind.startswith("json_"):
        return "the arguments are not valid JSON"
    return f"`{name}` is wrong: {text}" if name else text
