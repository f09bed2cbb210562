"""Messages to model text and back: the one renderer and parser that serving, training and evaluation share.

A conversation is rendered by the model's own Jinja chat template, with every message content replaced by a
marker first, so that `<|im_end|>` inside a file or an answer can never become a control token. The training
rendering cut at an assistant turn equals the serving prompt token for token.

Small models copy long lists badly, so an answer may say `[[result]]` where it means "the lines of the last tool
result"; `Expander` puts the exact lines there. The same models see a shortened view of long tool results
(`View`), while the user and the expansion get the whole of it.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from punie.errors import ModelError

if TYPE_CHECKING:
    from jinja2 import Template
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.tools import ToolDefinition
    from tokenizers import Tokenizer

Role = Literal["system", "user", "assistant", "tool"]
RESULT = "[[result]]"
CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
END_OF_TURN = "<|im_end|>"
NOTHING_LOOKED_UP = " (nothing was looked up)"
_MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Call:
    """A tool call as the model wrote it; `arguments` is JSON text, valid or not."""

    name: str
    arguments: str

    def render(self) -> str:
        """Return the call in the chat template's own dialect."""
        return f'{CALL_OPEN}\n{{"name": "{self.name}", "arguments": {self.arguments}}}\n{CALL_CLOSE}'


def call(name: str, arguments: dict[str, Any]) -> Call:
    """Return a `Call` whose arguments are dumped exactly as the template's `tojson` dumps them."""
    return Call(name, json.dumps(arguments, ensure_ascii=False))


@dataclass(frozen=True)
class Message:
    """One turn. `content` of an assistant turn is what the model wrote, before any expansion."""

    role: Role
    content: str
    calls: tuple[Call, ...] = ()

    @property
    def text(self) -> str:
        """The whole text of the turn, calls included."""
        return "\n".join(part for part in (self.content, *(c.render() for c in self.calls)) if part)


@dataclass(frozen=True)
class Reply:
    """What a finished model text holds: prose before the calls, and the calls in order."""

    text: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class View:
    """How much of a tool result the model sees: whole lines from the start and the end, each cut at `width`."""

    head: int = 6
    tail: int = 1
    width: int = 160

    def of(self, content: str) -> str:
        """Return the shortened content; unchanged if it is short enough."""
        lines = [line if len(line) <= self.width else line[: self.width] + "..." for line in content.splitlines()]
        left_out = len(lines) - self.head - self.tail
        if left_out > 1:
            lines[self.head : self.head + left_out] = [f"... {left_out} more lines ..."]
        return "\n".join(lines)


WHOLE = View(head=10**9, tail=0, width=10**9)


@dataclass(frozen=True)
class Example:
    """One training row: token ids, and as many weights in the loss: 0 where it does not count, 1 where it does."""

    tokens: tuple[int, ...]
    mask: tuple[float, ...]


class Wire:
    """Renders and tokenises conversations for one model."""

    def __init__(self, tokenizer: "Tokenizer", *, template: str, view: View = WHOLE) -> None:
        self.tokenizer = tokenizer
        self.source = template
        self.view = view
        # Control tokens come from the template alone: the tokenizer itself must never find them in content.
        tokenizer.encode_special_tokens = True
        self._specials = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self._specials, key=len, reverse=True))) + ")")

    @classmethod
    def load(cls, tokenizer: Path, *, template: str, view: View = WHOLE) -> "Wire":
        """Read a `tokenizer.json` file."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(tokenizer)), template=template, view=view)

    @cached_property
    def _template(self) -> "Template":
        return compile_template(self.source)

    def text(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, prompt: bool = True) -> str:
        """Return the rendered text, contents in place; for people and for snapshots, never for the model."""
        contents = [self._content(m) for m in messages]
        return _MARK.sub(lambda m: contents[int(m[1])], self._render(messages, tools, prompt=prompt))

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """Return the token ids to continue: everything up to the opening of the next assistant turn."""
        return self._encode(messages, tools, prompt=True).tokens

    def example(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Example:
        """Return the whole conversation with the loss on every assistant turn and its end-of-turn token."""
        return self._encode(messages, tools, prompt=False)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain content: control tokens written in it stay ordinary text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _content(self, message: Message) -> str:
        return self.view.of(message.content) if message.role == "tool" else message.text

    def _render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, prompt: bool) -> str:
        marked = [{"role": m.role, "content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
        return self._template.render(messages=marked, tools=list(tools), add_generation_prompt=prompt)

    def _encode(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, prompt: bool) -> Example:
        tokens: list[int] = []
        mask: list[int] = []
        supervised = False
        for is_content, piece in _pieces(self._render(messages, tools, prompt=prompt)):
            if is_content:
                message = messages[int(piece)]
                ids = self.encode(self._content(message))
                supervised = message.role == "assistant"
                mask += [int(supervised)] * len(ids)
            else:
                ids = self._encode_template(piece)
                mask += [0] * len(ids)
                if supervised and ids:
                    mask[-len(ids)] = 1  # the end-of-turn token right after an assistant turn
                supervised = False
            tokens += ids
        return Example(tuple(tokens), tuple(mask))

    def _encode_template(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._specials:
                ids.append(self._specials[part])
            elif part:
                ids += self.encode(part)
        return ids


def _pieces(rendered: str) -> Iterator[tuple[bool, str]]:
    """Yield (is a content marker, marker number or template text) in order."""
    for i, piece in enumerate(_MARK.split(rendered)):
        if i % 2 or piece:
            yield bool(i % 2), piece


def compile_template(source: str) -> "Template":
    """Compile a chat template in a sandbox with the filters that model templates rely on."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    env.globals["raise_exception"] = raise_exception
    try:
        return env.from_string(source)
    except TemplateError as error:
        raise ModelError(f"the chat template is not valid Jinja: {error}") from error


# --- PydanticAI messages -------------------------------------------------------------------------------------------


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


# --- model text to calls -------------------------------------------------------------------------------------------


def parse(text: str, *, names: Sequence[str] = ()) -> Reply:
    """Split a finished model text into prose and calls.

    `<tool_call>` blocks are always calls. If there is none, a call in another dialect is looked for
    (`<function=NAME>`, a fenced or bare JSON object with `name` and `arguments`), but only for a tool in `names`.
    """
    native = [_read_call(block) for block in re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, re.DOTALL)]
    calls = tuple(c for c in native if c)
    if calls:
        return Reply(text.split(CALL_OPEN, 1)[0].strip(), calls)
    return _foreign(text, names)


def _foreign(text: str, names: Sequence[str]) -> Reply:
    for pattern, read in _DIALECTS:
        found = [(m, c) for m in pattern.finditer(text) if (c := read(m)) and c.name in names]
        if found:
            return Reply(text[: found[0][0].start()].strip(), tuple(c for _, c in found))
    return Reply(text)


def _read_call(block: str) -> Call | None:
    """Read one JSON call, mending what small models get wrong: trailing commas, single quotes, missing braces."""
    value = loads_lenient(block.strip())
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return Call(value["name"], arguments or "{}")
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def loads_lenient(text: str) -> Any:
    """Parse JSON or nearly JSON; None when it cannot be read."""
    import ast

    for candidate in (text, re.sub(r",\s*([}\]])", r"\1", text), text + "}", text + '"}}'):
        try:
            return json.loads(candidate, strict=False)
        except ValueError:
            pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _read_function_tag(match: "re.Match[str]") -> Call:
    pairs = re.findall(r"<parameter=([\w.-]+)>\s*(.*?)\s*</parameter>", match["body"], re.DOTALL)
    return call(match["name"], {k: _scalar(v) for k, v in pairs})


def _scalar(value: str) -> Any:
    return int(value) if re.fullmatch(r"-?\d+", value) else value


_Reader = Callable[["re.Match[str]"], Call | None]
_DIALECTS: tuple[tuple["re.Pattern[str]", _Reader], ...] = (
    (re.compile(r"<function=(?P<name>[\w.-]+)>(?P<body>.*?)(?:</function>|\Z)", re.DOTALL), _read_function_tag),
    (re.compile(r"```(?:json|tool_call)?\s*(\{.*?\})\s*```", re.DOTALL), lambda m: _read_call(m[1])),
    (re.compile(r"^\s*(\{\s*\"name\".*\})\s*$", re.DOTALL | re.MULTILINE), lambda m: _read_call(m[1])),
)


# --- expansion -----------------------------------------------------------------------------------------------------


def result_lines(messages: Sequence[Message]) -> tuple[str, ...]:
    """Return the item lines of the last tool result: all but its header line, or the header if it stands alone."""
    for message in reversed(messages):
        if message.role == "tool":
            lines = message.content.splitlines()
            return tuple(lines[1:] or lines)
    return ()


class Expander:
    """Replaces `[[result]]` in a stream of text by the exact lines, indented as a Markdown code block."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._block = "\n\n" + "\n".join(f"    {line}".rstrip() for line in lines) if lines else NOTHING_LOOKED_UP
        self._held = ""

    def feed(self, delta: str) -> str:
        """Return what can be shown now; a possible beginning of the marker is held back."""
        text = self._held + delta
        text = re.sub(r"\s*" + re.escape(RESULT), lambda _: self._block, text)
        keep = next((n for n in range(min(len(text), len(RESULT) + 1), 0, -1) if _may_begin(text[-n:])), 0)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep] if keep else text

    def flush(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held


def _may_begin(tail: str) -> bool:
    stripped = tail.lstrip()
    return tail[0] in " \n[" and RESULT.startswith(stripped)


def expand(text: str, messages: Sequence[Message]) -> str:
    """Return `text` with every `[[result]]` replaced from the last tool result in `messages`."""
    expander = Expander(result_lines(messages))
    return expander.feed(text) + expander.flush()


class CallFilter:
    """Keeps tool-call text out of a stream: gives prose as it comes, holds everything from `<tool_call>` on."""

    def __init__(self) -> None:
        self._held = ""
        self.in_call = False

    def feed(self, delta: str) -> str:
        """Return the prose that is certain not to be part of a call."""
        self._held += delta
        if self.in_call:
            return ""
        start = self._held.find(CALL_OPEN)
        if start >= 0:
            self.in_call = True
            prose, self._held = self._held[:start], self._held[start:]
            return prose
        keep = next((n for n in range(len(CALL_OPEN) - 1, 0, -1) if self._held.endswith(CALL_OPEN[:n])), 0)
        cut = len(self._held) - keep
        prose, self._held = self._held[:cut], self._held[cut:]
        return prose

    def flush(self) -> str:
        """Return held prose at the end of the stream; text of a call is left to `parse`."""
        held, self._held = self._held, ""
        return "" if self.in_call else held
