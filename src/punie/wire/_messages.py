"""What a conversation is made of, and how PydanticAI's messages become it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from punie.errors import ModelError

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.tools import ToolDefinition

Role = Literal["system", "user", "assistant", "tool"]
Dialect = Literal["json", "xml"]
"""How a model writes its calls inside `<tool_call>`: as one JSON object, or as `<function=NAME>` with parameters."""

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"


@dataclass(frozen=True)
class Call:
    """A tool call as the model wrote it; `arguments` is JSON text, valid or not."""

    name: str
    arguments: str
    mended: str = field(default="", compare=False)
    """What had to be repaired or guessed to read it; empty for a call that was written as it should be."""

    def render(self, dialect: Dialect = "json") -> str:
        """Return the call in the chat template's own dialect."""
        if dialect == "xml" and isinstance(values := _loads(self.arguments), dict):
            return f"{CALL_OPEN}\n<function={self.name}>\n{_parameters(values)}</function>\n{CALL_CLOSE}"
        return f'{CALL_OPEN}\n{{"name": "{self.name}", "arguments": {self.arguments}}}\n{CALL_CLOSE}'


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _parameters(values: Mapping[str, object]) -> str:
    return "".join(f"<parameter={name}>\n{_value(value)}\n</parameter>\n" for name, value in values.items())


def _value(value: object) -> str:
    """As Qwen's templates write it: containers as JSON, the rest as text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def call(name: str, arguments: dict[str, Any], *, mended: str = "") -> Call:
    """Return a `Call` whose arguments are dumped exactly as the template's `tojson` dumps them."""
    return Call(name, json.dumps(arguments, ensure_ascii=False), mended)


@dataclass(frozen=True)
class Message:
    """One turn. `content` of an assistant turn is what the model wrote, before any expansion."""

    role: Role
    content: str
    calls: tuple[Call, ...] = ()

    @property
    def text(self) -> str:
        """The whole text of the turn, calls included."""
        return self.written("json")

    def written(self, dialect: Dialect) -> str:
        """The whole text of the turn, its calls in a dialect."""
        gap = "\n\n" if dialect == "xml" and self.content and self.calls else "\n"
        calls = "\n".join(call.render(dialect) for call in self.calls)
        return gap.join(part for part in (self.content, calls) if part)


@dataclass(frozen=True)
class Reply:
    """What a finished model text holds: prose before the calls, and the calls in order."""

    text: str
    calls: tuple[Call, ...] = ()
    broken: str = field(default="", compare=False)
    """The beginning of a call that could not be read; empty when there is none."""


def conversation(history: Sequence["ModelMessage"], *, system: str | None = None) -> tuple[Message, ...]:
    """Turn PydanticAI messages into wire messages; instructions of the last request win over `system`."""
    from pydantic_ai.messages import ModelRequest

    out: list[Message] = []
    for message in history:
        if isinstance(message, ModelRequest):
            out += [m for part in message.parts for m in _from_request(part)]
            system = message.instructions or system
        else:
            out.append(_from_response(message.parts))
    if system and not any(m.role == "system" for m in out):
        out.insert(0, Message("system", system))
    return tuple(out)


def _from_request(part: Any) -> Iterator[Message]:
    match part.part_kind:
        case "user-prompt":
            yield Message("user", part.content if isinstance(part.content, str) else _joined(part.content))
        case "system-prompt":
            yield Message("system", part.content)
        case "tool-return":
            yield Message("tool", part.model_response_str(wrap_if_error=False))
        case "retry-feedback":
            yield Message("user", part.content if isinstance(part.content, str) else json.dumps(part.content))
        case _:
            raise ModelError(f"a local model cannot read a message part of kind {part.part_kind!r}")


def _joined(content: Sequence[Any]) -> str:
    strange = [type(item).__name__ for item in content if not isinstance(item, str)]
    if strange:
        raise ModelError(f"a local model reads text only, not {', '.join(strange)}")
    return "\n".join(content)


def _from_response(parts: Sequence[Any]) -> Message:
    texts, calls = [], []
    for part in parts:
        if part.part_kind == "text":
            texts.append((part.provider_details or {}).get("raw", part.content))
        elif part.part_kind == "tool-call":
            arguments = part.args if isinstance(part.args, str) else json.dumps(part.args or {}, ensure_ascii=False)
            calls.append(Call(part.tool_name, arguments))
    return Message("assistant", "".join(texts), tuple(calls))


def declarations(tools: Sequence["ToolDefinition"]) -> tuple[dict[str, Any], ...]:
    """Return the tools as the `tools=` value that chat templates expect."""
    return tuple(
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": {"properties": {}, "required": [], **tool.parameters_json_schema},
            },
        }
        for tool in tools
    )
