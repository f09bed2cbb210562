"""What can be wrong with one training row: each rule is a function from the row to what it finds."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from punie_training import credentials, schema
from punie_training.rows import Row, declarations
from punie_training.transcript import CALLS, Said, transcript

_PLACEHOLDER = re.compile(
    r"\W*(?:tool (?:execution|call)s? (?:completed|executed|succeeded)(?: successfully)?"
    r"|(?:the |your |some |tool |function |actual |real )*(?:results?|outputs?|responses?|answers?|contents?)"
    r"(?: (?:goes |comes )?(?:here|omitted|truncated|elided)| placeholder)"
    r"|(?:insert|put|add|fill in) .{0,40}\bhere|(?:sample|dummy|mock|example|fake) (?:results?|outputs?|responses?)"
    r"|placeholder(?: .{0,30})?|todo\b.{0,60}|tbd|fixme\b.{0,60}|xxx+|lorem ipsum\b.*|n/a)\W*",
    re.IGNORECASE | re.DOTALL,
)
_ONLY_DOTS = re.compile(r"[\s\[\](){}<>*_-]*(?:\.{2,}|\u2026)[\s\[\](){}<>*_-]*")
Found = Iterator[str]


@dataclass(frozen=True)
class Subject:
    """One row under examination."""

    record: Mapping[str, Any]

    @cached_property
    def row(self) -> Row | ValidationError:
        """The row as training reads it, or why it cannot."""
        try:
            return Row.model_validate(self.record)
        except ValidationError as error:
            return error

    @cached_property
    def tools(self) -> Mapping[str, schema.Schema]:
        """Name -> parameters of the tools on offer: the row's own, else Punie's."""
        own = self.record.get("tools")
        offered = own if isinstance(own, list) else declarations()
        return dict(_declared(tool) for tool in offered if isinstance(tool, Mapping))

    @cached_property
    def said(self) -> tuple[Said, ...]:
        """The turns, read with patience."""
        return transcript(self.record, {name: schema.names(parameters) for name, parameters in self.tools.items()})

    @property
    def questions(self) -> tuple[str, ...]:
        """What the user said."""
        return tuple(turn.content for turn in self.said if turn.speaker == "user")

    @property
    def calls_a_tool(self) -> bool:
        """Whether any turn makes a call, however it is written."""
        return any(turn.calls for turn in self.said)


def _declared(tool: Mapping[str, Any]) -> tuple[str, schema.Schema]:
    inner = tool.get("function")
    spec = inner if isinstance(inner, Mapping) else tool
    parameters = spec.get("parameters")
    return str(spec.get("name", "")), parameters if isinstance(parameters, Mapping) else {}


def wrong_form(subject: Subject) -> Found:
    """A row that the trainer would refuse."""
    if isinstance(subject.row, Row) or any(wrong_key(subject)):
        return
    if "conversations" in subject.record or {"chat", "sample"} & subject.record.keys():
        yield "a row of another project's format"
    elif any("tool_calls" in message for message in _messages(subject.record)):
        yield "a row with OpenAI's `tool_calls`"
    else:
        first = subject.row.errors()[0]
        yield f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"


def _messages(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = record.get("messages")
    return [m for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []


def wrong_key(subject: Subject) -> Found:
    """A call whose name or arguments stand under another key, so that no parser finds them."""
    for call in _calls(subject):
        if call.wrong_key:
            meant = "arguments" if call.wrong_key in _ARGUMENTS_LIKE else "name"
            yield f"a call has `{call.wrong_key}` where `{meant}` belongs"


_ARGUMENTS_LIKE = frozenset({"parameters", "args", "input", "tool_input", "params", "kwargs"})


def placeholder(subject: Subject) -> Found:
    """A result or an answer that says nothing: it teaches that results are not worth reading."""
    for turn in subject.said:
        if turn.speaker == "tool" and (not turn.content.strip() or is_placeholder(turn.content)):
            yield f"the tool result is {_quoted(turn.content)}"
        elif turn.speaker == "assistant" and not turn.calls and is_placeholder(turn.content):
            yield f"the answer is {_quoted(turn.content)}"


def is_placeholder(text: str) -> bool:
    """Whether a text stands for one that somebody meant to put there."""
    text = text.strip()
    return bool(_ONLY_DOTS.fullmatch(text) or (len(text) <= 120 and _PLACEHOLDER.fullmatch(text)))


def missing_answer(subject: Subject) -> Found:
    """A question that is never answered: it teaches to call on and on."""
    turns = [turn for turn in subject.said if turn.speaker != "system"]
    for before, turn in zip([None, *turns], [*turns, None], strict=True):
        opens = turn is None or turn.speaker == "user"
        if before is not None and opens and not _is_answer(before):
            yield f"{'the row ends' if turn is None else 'the user goes on'} after {_kind(before)}, not after an answer"


def _is_answer(turn: Said) -> bool:
    return turn.speaker == "assistant" and not turn.calls and bool(turn.content.strip())


def _kind(turn: Said) -> str:
    if turn.calls:
        return "a call"
    return {"tool": "a tool result", "user": "a question", "system": "a system text"}.get(turn.speaker, "an empty turn")


def missing_result(subject: Subject) -> Found:
    """Calls and results that do not match in number."""
    awaited = 0
    for turn in subject.said:
        if turn.speaker == "tool":
            awaited -= 1
            if awaited < 0:
                yield "a tool result without a call"
                awaited = 0
            continue
        if awaited > 0:
            yield f"{awaited} call{'s' * (awaited > 1)} without a result"
        awaited = len(turn.calls)
    if awaited > 0 and subject.said[-1].speaker == "tool":
        yield f"{awaited} call{'s' * (awaited > 1)} without a result"


def unknown_tool(subject: Subject) -> Found:
    """A call of a tool that the row does not offer."""
    for call in _calls(subject):
        if call.name not in subject.tools:
            yield f"`{call.name}` is not a tool of {'this row' if subject.record.get('tools') else 'Punie'}"


def wrong_arguments(subject: Subject) -> Found:
    """A call that the tool would refuse."""
    for call in _calls(subject):
        if not isinstance(call.arguments, Mapping):
            yield f"the arguments of `{call.name}` are no object"
        elif call.name in subject.tools:
            for fault in schema.faults(call.arguments, subject.tools[call.name]):
                yield f"`{call.name}`: {fault}"


def call_in_text(subject: Subject) -> Found:
    """A call that is written into the text of a turn, where training takes it for prose."""
    dialects = {call.dialect for call in _calls(subject)} - {CALLS, "tool_calls", "function_call"}
    yield from (f"a call is written as {dialect}" for dialect in sorted(dialects))


def repeated_call(subject: Subject) -> Found:
    """The same call twice in a row: what a model that loops does."""
    last = ""
    for turn in subject.said:
        keys = " ".join(call.key for call in turn.calls)
        if turn.speaker == "assistant":
            if keys and keys == last:
                yield f"`{turn.calls[0].name}` is called twice in a row with the same arguments"
            last = keys


def secret(subject: Subject) -> Found:
    """A key or token."""
    texts = (text for turn in subject.said for text in (turn.content, *(call.key for call in turn.calls)))
    for kind, start in dict.fromkeys(hit for text in texts for hit in credentials.found(text)):
        yield f"{kind} {start}"


def _calls(subject: Subject):
    return [call for turn in subject.said for call in turn.calls]


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return "empty" if not text else f"only {text[:60]!r}"


OF_ONE_ROW: Mapping[str, Callable[[Subject], Found]] = {
    "format": wrong_form,
    "wrong-key": wrong_key,
    "placeholder": placeholder,
    "missing-answer": missing_answer,
    "missing-result": missing_result,
    "unknown-tool": unknown_tool,
    "arguments": wrong_arguments,
    "call-in-text": call_in_text,
    "repeated-call": repeated_call,
    "secret": secret,
}
