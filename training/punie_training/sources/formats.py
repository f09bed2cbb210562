"""Records of public tool-calling sets taken apart: glaive's texts, ShareGPT conversations, OpenAI messages."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from punie import wire
from punie_training import jsonl, schema
from punie_training.transcript import SPEAKERS


class Unusable(Exception):  # noqa: N818 - says what the record is
    """A record that gives no row; the text is the reason it is counted under."""


@dataclass(frozen=True)
class Talk:
    """A record of any format, taken apart."""

    turns: tuple[wire.Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    """Declarations as they are written in the set."""


# --- glaive ---------------------------------------------------------------------------------------------------------

_SPEAKER = re.compile(r"(?:^|\n)\s*(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
_ROLES: Mapping[str, wire.Role] = {
    "SYSTEM": "system",
    "USER": "user",
    "ASSISTANT": "assistant",
    "FUNCTION RESPONSE": "tool",
}


def from_glaive(record: jsonl.Record) -> Talk:
    """`system` and `chat` texts (v2), or both in one `sample` (v1): `USER:`, `ASSISTANT: <functioncall> {...}`."""
    text = "\n".join(str(record.get(key) or "") for key in ("system", "chat", "sample", "text"))
    parts = _SPEAKER.split(text)
    turns: list[tuple[wire.Role, str]] = [
        (_ROLES[who], said.replace("<|endoftext|>", "").strip()) for who, said in _pairs(parts[1:])
    ]
    system = "\n".join(said for role, said in turns if role == "system")
    tools = tuple(_objects(system))
    names = _parameters(tools)
    messages = [_from_text(role, said, names) for role, said in turns if role != "system"]
    head = system.partition("{")[0].strip() if tools else system
    return Talk((*_system(head), *messages), tools)


def _pairs(parts: list[str]) -> Iterator[tuple[str, str]]:
    return zip(parts[::2], parts[1::2], strict=True)


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects in a text, one after the other."""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except ValueError as error:
            raise Unusable("the declarations are no JSON") from error
        yield value
        at = text.find("{", end)


def _from_text(role: wire.Role, text: str, names: wire.Parameters) -> wire.Message:
    """A turn whose calls stand in its text, in any dialect that Punie's own parser reads."""
    if role != "assistant":
        return wire.Message(role, text)
    reply = wire.parse(text, names=names)
    if reply.broken or (not reply.calls and "<functioncall>" in text):
        raise Unusable("a call cannot be read")
    return wire.Message(role, reply.text, reply.calls)


# --- ShareGPT -------------------------------------------------------------------------------------------------------


def from_sharegpt(record: jsonl.Record) -> Talk:
    """`conversations` of {from, value}; calls are turns from `function_call`, results from `observation`."""
    tools = _tools(record.get("tools") or record.get("functions"))
    names = _parameters(tools)
    messages: list[wire.Message] = []
    for turn in _dicts(record.get("conversations"), "the conversation is no list of turns"):
        who, value = str(turn.get("from") or turn.get("role")), turn.get("value", turn.get("content"))
        if who not in SPEAKERS:
            raise Unusable(f"a turn from {who!r}")
        text = _unwrapped(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        is_call = who in {"function_call", "tool_call", "function-call"}
        message = wire.Message("assistant", "", _calls_of(text)) if is_call else _from_text(SPEAKERS[who], text, names)
        if message.role == "system" and not tools and "<tools>" in text:
            tools = tuple(_objects(text.partition("<tools>")[2].partition("</tools>")[0]))
            names = _parameters(tools)
        messages.append(message)
    system = record.get("system")
    head = system if isinstance(system, str) else ""
    return Talk((*_system(head), *messages), tools)


def _unwrapped(text: str) -> str:
    """Without the tags that some sets put around a result."""
    return re.sub(r"\A\s*<tool_response>\s*(.*?)\s*</tool_response>\s*\Z", r"\1", text, flags=re.DOTALL)


def _calls_of(text: str) -> tuple[wire.Call, ...]:
    found = (
        wire.parse(f"{wire.CALL_OPEN}\n{text}\n{wire.CALL_CLOSE}") if wire.CALL_OPEN not in text else wire.parse(text)
    )
    if not found.calls:
        raise Unusable("a call cannot be read")
    return found.calls


# --- OpenAI ---------------------------------------------------------------------------------------------------------


def from_openai(record: jsonl.Record) -> Talk:
    """`messages` with `tool_calls` (or the older `function_call`) and `tools` (or `functions`)."""
    tools = _tools(record.get("tools") or record.get("functions"))
    names = _parameters(tools)
    messages: list[wire.Message] = []
    order: list[str] = []
    results: dict[str, str] = {}
    for turn in _dicts(record.get("messages"), "the messages are no list"):
        role = str(turn.get("role"))
        text = _content(turn.get("content"))
        if role in {"tool", "function"}:
            results[str(turn.get("tool_call_id") or (order[len(results)] if len(results) < len(order) else ""))] = text
            continue
        messages += _ordered(order, results)
        order, results = [], {}
        message, order = _openai_turn(turn, role, text=text, names=names)
        messages.append(message)
    return Talk((*messages, *_ordered(order, results)), tools)


def _ordered(order: list[str], results: Mapping[str, str]) -> list[wire.Message]:
    """The results in the order of their calls, which is all that a row without ids has."""
    if set(results) - set(order):
        raise Unusable("a result without a call")
    if len(results) < len(order):
        raise Unusable("a call without a result")
    return [wire.Message("tool", results[name]) for name in order]


def _openai_turn(
    turn: Mapping[str, Any], role: str, *, text: str, names: wire.Parameters
) -> tuple[wire.Message, list[str]]:
    """Return the turn, and the ids of its calls."""
    if role == "developer":
        role = "system"
    if role not in {"system", "user", "assistant"}:
        raise Unusable(f"a turn from {role!r}")
    listed = turn.get("tool_calls") or turn.get("calls") or ([f] if (f := turn.get("function_call")) else [])
    if not listed:
        message = _from_text(SPEAKERS[role], text, names)
        return message, [f"#{n}" for n in range(len(message.calls))]
    calls = [_openai_call(call) for call in _dicts(listed, "the calls are no list")]
    ids = [str(call.get("id") or f"#{n}") for n, call in enumerate(listed)]
    return wire.Message("assistant", text, tuple(calls)), ids


def _openai_call(call: Mapping[str, Any]) -> wire.Call:
    body = call.get("function")
    body = body if isinstance(body, Mapping) else call
    name, arguments = body.get("name"), body.get("arguments")
    if isinstance(arguments, str):
        read = wire.read_object(arguments or "{}")
        arguments = read.value if read else None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise Unusable("a call cannot be read")
    return wire.call(name, arguments)


def _content(content: object) -> str:
    """Plain text of a content, which may be a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        if len(parts) == len(content) and all(isinstance(part, str) for part in parts):
            return "\n".join(map(str, parts))
        raise Unusable("a content that is not text")
    return json.dumps(content, ensure_ascii=False)


# --- what they share ------------------------------------------------------------------------------------------------


def _dicts(value: object, fault: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise Unusable(fault)
    return value


def _tools(value: object) -> tuple[Mapping[str, Any], ...]:
    """Declarations, which many sets keep as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except ValueError as error:
            raise Unusable("the declarations are no JSON") from error
    if isinstance(value, Mapping):
        value = [value]
    return tuple(_dicts(value or [], "the declarations are no list"))


def declaration(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A declaration as Punie renders one."""
    inner = tool.get("function")
    spec = inner if isinstance(inner, Mapping) else tool
    if not isinstance(spec.get("name"), str):
        raise Unusable("a tool without a name")
    parameters = spec.get("parameters") or spec.get("input_schema") or {}
    if not isinstance(parameters, Mapping):
        raise Unusable("parameters that are no object")
    if "properties" not in parameters and parameters and all(isinstance(v, Mapping) for v in parameters.values()):
        parameters = {"type": "object", "properties": parameters}
    function = {
        "name": spec["name"],
        "description": str(spec.get("description") or ""),
        "parameters": {"properties": {}, "required": [], **parameters},
    }
    return {"type": "function", "function": function}


def _parameters(tools: tuple[Mapping[str, Any], ...]) -> wire.Parameters:
    declared = [declaration(tool)["function"] for tool in tools]
    return {spec["name"]: schema.names(spec["parameters"]) for spec in declared}


def _system(text: str) -> tuple[wire.Message, ...]:
    return (wire.Message("system", text.strip()),) if text.strip() else ()


READERS: Mapping[str, Callable[[jsonl.Record], Talk]] = {
    "glaive": from_glaive,
    "sharegpt": from_sharegpt,
    "openai": from_openai,
}
