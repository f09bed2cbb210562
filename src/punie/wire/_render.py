"""Conversations as token ids of one model, through its own chat template."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punie.errors import ModelError
from punie.wire._messages import Dialect, Message

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

END_OF_TURN = "<|im_end|>"
_MARK = re.compile("\ue000(\\d+)\ue001")


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
        self.dialect: Dialect = "xml" if "<function=" in template else "json"
        """How the template shows calls, and so how the model was taught to write them."""
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
        if message.role == "tool":
            return self.view.of(message.content)
        return message.written(self.dialect)

    def _render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, prompt: bool) -> str:
        marked = [{"role": m.role, "content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
        declared = [self._harmless(tool) for tool in tools]
        return self._template.render(messages=marked, tools=declared, add_generation_prompt=prompt)

    def _harmless(self, value: Any) -> Any:
        """What a tool's declaration says, without what would be taken for the template's: others write some of them."""
        match value:
            case str():
                plain = value.replace("\ue000", "").replace("\ue001", "")
                return self._split.sub(lambda token: token[0] and f"{token[0][:1]} {token[0][1:]}", plain)
            case dict():
                return {self._harmless(key): self._harmless(item) for key, item in value.items()}
            case list() | tuple():
                return [self._harmless(item) for item in value]
            case _:
                return value

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
