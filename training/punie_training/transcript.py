"""A row of any shape, read with patience: what was said and which calls were made, however they are written.

Training takes one shape only (`rows.Row`). This view is for telling a person what is wrong with the others.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from punie import wire

CALLS = "calls"
"""The one way of writing calls that training takes."""
SPEAKERS: Mapping[str, wire.Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "function-call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function-response": "tool",
}
_NAME_KEYS = ("tool", "tool_name", "function_name", "function", "action")
_ARGUMENT_KEYS = ("parameters", "args", "input", "tool_input", "params", "kwargs")
_RESULT_AS_USER = re.compile(r"\s*(?:(?:tool|function)\s+(?:results?|outputs?|responses?)|observation)\s*:\s*", re.I)
_NAMED = re.compile(r"[\"'](?:name|tool|tool_name|function_name|action)[\"']\s*:\s*[\"']([\w.-]+)[\"']")
_MARKS = (
    ("<tool_call>", "<tool_call> in the text"),
    ("<functioncall>", "<functioncall> in the text"),
    ("<function", "<function=...> in the text"),
    ("[TOOL_CALLS]", "[TOOL_CALLS] in the text"),
    ("<|", "control tokens in the text"),
    ("Action:", "Action: in the text"),
    ("```", "a fenced block in the text"),
)


@dataclass(frozen=True)
class Written:
    """A call as it stands in the row."""

    name: str
    arguments: object
    dialect: str
    wrong_key: str = ""
    """The key that was used in place of `name` or `arguments`."""

    @property
    def key(self) -> str:
        """Equal for equal calls."""
        return f"{self.name} {json.dumps(self.arguments, sort_keys=True, default=str)}"


@dataclass(frozen=True)
class Said:
    """One turn of a row."""

    speaker: wire.Role
    content: str
    calls: tuple[Written, ...] = ()


def transcript(record: Mapping[str, Any], parameters: wire.Parameters) -> tuple[Said, ...]:
    """What was said in a row; empty if no shape of it is known. `parameters` are those of the tools on offer."""
    turns = record.get("messages") or record.get("conversations")
    if not isinstance(turns, list):
        return ()
    return tuple(said for turn in turns if isinstance(turn, Mapping) and (said := _said(turn, parameters)))


def _said(turn: Mapping[str, Any], parameters: wire.Parameters) -> Said | None:
    role = str(turn.get("role") or turn.get("from") or "")
    speaker = SPEAKERS.get(role)
    content = turn.get("content", turn.get("value"))
    text = content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)
    if speaker is None:
        return None
    if speaker == "user" and (match := _RESULT_AS_USER.match(text)):
        return Said("tool", text[match.end() :])
    calls = (*_listed(turn), *(_in_text(text, parameters) if speaker == "assistant" else ()))
    return Said(speaker, text, calls)


def _listed(turn: Mapping[str, Any]) -> Iterator[Written]:
    for key in (CALLS, "tool_calls"):
        calls = turn.get(key)
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, Mapping):
                yield _written(call, key)
    single = turn.get("function_call")
    if isinstance(single, Mapping):
        yield _written(single, "function_call")


def _written(call: Mapping[str, Any], dialect: str) -> Written:
    inner = call.get("function")
    body = inner if isinstance(inner, Mapping) else call
    wrong = [key for key in _NAME_KEYS if "name" not in body and isinstance(body.get(key), str)]
    wrong += [key for key in _ARGUMENT_KEYS if "arguments" not in body and key in body]
    name = body.get("name") or next((body[key] for key in _NAME_KEYS if isinstance(body.get(key), str)), "")
    value = body.get("arguments", next((body[key] for key in _ARGUMENT_KEYS if key in body), None))
    arguments = wire.loads_lenient(value) if isinstance(value, str) and dialect != CALLS else value
    return Written(str(name), arguments, dialect, wrong[0] if wrong else "")


def _in_text(text: str, parameters: wire.Parameters) -> Iterator[Written]:
    mentioned = {name: () for name in _NAMED.findall(text) if name not in parameters}
    for call in wire.parse(text, names={**parameters, **mentioned}).calls:
        renamed = re.search(r"the (?:name|arguments) under `(\w+)`", call.mended)
        dialect = next((label for mark, label in _MARKS if mark in text), "bare JSON or Python in the text")
        yield Written(call.name, wire.loads_lenient(call.arguments), dialect, renamed[1] if renamed else "")
