"""Calls that a model wrote as text, and what it is told about calls that cannot be made."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.tools import ToolDefinition

from punie import wire

_FENCE = re.compile(r"\A\s*```\w*\s*\n(?P<body>.*?)\n?\s*```\s*\Z", re.DOTALL)
_OPENING = re.compile(
    r"<tool_call>|<function=|^\s*\{"
    r"|^[ \t]*```(?:json|tool_call)?[ \t]*(?:\n\s*(?:\{|\Z)|\Z)"
    r"|<[\w=]{0,9}\Z|^[ \t]*`{1,3}\w*\Z",  # what may still become one of the above
    re.MULTILINE,
)
_UNREADABLE = re.compile(r"\A\s*(?:<tool_call>|<function=|<\|?tool_calls?\|?>|\[TOOL_CALLS\])")


def text_of(response: ModelResponse) -> str:
    """The response's text parts, joined as PydanticAI joins them."""
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


def has_calls(response: ModelResponse) -> bool:
    """Whether the response holds real tool calls."""
    return any(isinstance(part, ToolCallPart) for part in response.parts)


def read_calls(text: str, names: Sequence[str]) -> wire.Reply:
    """Prose and calls of a text. A text that is nothing but a call counts as one even for an unknown tool."""
    reply = wire.parse(text, names=names)
    if reply.calls:
        return reply
    fenced = _FENCE.match(text)
    value = wire.loads_lenient((fenced["body"] if fenced else text).strip()) if "{" in text else None
    if (
        isinstance(value, dict)
        and isinstance(name := value.get("name"), str)
        and {"arguments", "parameters"} & {*value}
    ):
        arguments = value.get("arguments", value.get("parameters"))
        return wire.Reply("", (wire.call(name, arguments if isinstance(arguments, dict) else {}),))
    return reply


def is_unreadable_call(text: str) -> bool:
    """Whether a text without readable calls is an attempt at one."""
    return bool(_UNREADABLE.match(text))


@dataclass
class TextGate:
    """Lets the prose of one reply through as it is written and holds back what may become a call."""

    names: Sequence[str]
    _text: str = ""
    _shown: int = 0

    def feed(self, delta: str) -> str:
        """What can be shown now."""
        self._text += delta
        opening = _OPENING.search(self._text, self._shown)
        end = opening.start() if opening else len(self._text)
        shown, self._shown = self._text[self._shown : end], end
        return shown

    def close(self) -> str:
        """What was held back, unless it was a call."""
        if read_calls(self._text, self.names).calls or is_unreadable_call(self._text):
            return ""
        return self._text[self._shown :]


def parts_of(reply: wire.Reply) -> list[TextPart | ToolCallPart]:
    """The reply as response parts: its prose, then real calls."""
    prose = [TextPart(reply.text)] if reply.text else []
    return [*prose, *(ToolCallPart(call.name, call.arguments) for call in reply.calls)]


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
    if kind == "extra_forbidden":
        return f"there is no `{name}`"
    if kind.startswith("json_"):
        return "the arguments are not valid JSON"
    return f"`{name}` is wrong: {text}" if name else text
