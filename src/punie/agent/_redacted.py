"""Secrets stay out of what the model is sent and of what front ends are told: every request and event passes here.

What is stored passes in the session. A model cannot know a secret that no request held, so its own words are left as
they are in the conversation, which keeps its beginning byte for byte; they are redacted where they leave it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar, cast

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ModelRetry
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelRequestPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.tools import ToolDefinition

from punie import tools
from punie.agent import events
from punie.agent._recorded import FILE_TOOLS
from punie.backends._keys import NO_KEY
from punie.redaction import MARKER, Redactor
from punie.tools import Workspace

T = TypeVar("T")
Check: TypeAlias = events.CheckStarted | events.CheckEnded
_KEY = "api-key"


def redactor_for(workspace: Workspace, model: object) -> Redactor:
    """What the workspace redacts by, which knows the model's key as well from now on."""
    workspace.redact = workspace.redact.knowing(keys_of(model))
    return workspace.redact


def keys_of(model: object) -> Mapping[str, str]:
    """The key a model's client sends: it may come from the keyring, where no variable gives it away."""
    inner = getattr(model, "wrapped", None)
    key = getattr(getattr(model, "client", None), "api_key", None)
    if isinstance(key, str) and key and key != NO_KEY:
        return {_KEY: key}
    return keys_of(inner) if isinstance(inner, Model) else {}


@dataclass
class Redacting(AbstractCapability[Workspace]):
    """Redacts what is new in each request, in the conversation too, and runs nothing on a marker's behalf."""

    _checked: int = field(default=0, init=False)
    """Messages of this run that are known to be redacted."""

    async def for_run(self, ctx: RunContext[Workspace]) -> "Redacting":
        """A fresh count for each run."""
        redactor_for(ctx.deps, ctx.model)
        return Redacting()

    async def before_model_request(
        self, ctx: RunContext[Workspace], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Redact the messages that were not there at the last request, and the instructions."""
        redact = ctx.deps.redact
        new = len(ctx.messages) - self._checked
        redact_requests(ctx.messages[self._checked :], redact)
        redact_requests(request_context.messages[-new:] if new else (), redact)
        self._checked = len(ctx.messages)
        parameters = request_context.model_request_parameters
        if parts := parameters.instruction_parts:
            redacted = [replace(part, content=redact(part.content)) for part in parts]
            if redacted != parts:
                request_context.model_request_parameters = replace(parameters, instruction_parts=redacted)
        return request_context

    async def before_tool_validate(
        self, ctx: RunContext[Workspace], *, call: ToolCallPart, tool_def: ToolDefinition, args: str | dict[str, Any]
    ) -> str | dict[str, Any]:
        """Raises ModelRetry for a call that would hand on a marker; those that write files look for themselves."""
        del ctx, tool_def
        if call.tool_name in tools.READ_ONLY or call.tool_name in FILE_TOOLS:
            return args
        if marker := MARKER.search(str(args)):
            raise ModelRetry(
                f"Not run: {marker[0]} only stands for a secret that is not shown to you. Let the program read the"
                " secret itself, from its file or its environment variable, or ask the user."
            )
        return args


def redact_requests(messages: Sequence[ModelMessage], redact: Redactor) -> None:
    """Redact what users, tools and files said, in place; a message without secrets stays as it is."""
    for message in messages:
        if not isinstance(message, ModelRequest):
            continue
        parts = [_redacted_part(part, redact) for part in message.parts]
        if any(new is not old for new, old in zip(parts, message.parts, strict=True)):
            message.parts = parts
        if message.instructions and (said := redact(message.instructions)) != message.instructions:
            message.instructions = said


def _redacted_part(part: ModelRequestPart, redact: Redactor) -> ModelRequestPart:
    content: object = getattr(part, "content", None)
    if isinstance(content, str | dict | list | tuple):
        safe = redact.of(content)
        if safe != (list(content) if isinstance(content, tuple) else content):
            return replace(part, content=cast("Any", safe))
    return part


class RedactedEvents:
    """The events of one turn without secrets, also those that come in pieces."""

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact
        self._text = redact.stream()
        self._thought = redact.stream()

    def all(self, found: Iterable[events.Event]) -> Iterator[events.Event]:
        """The same events, without secrets."""
        for event in found:
            yield from self._taken(event)

    def aside(self, event: events.Notice | Check) -> events.Event:
        """What does not come from the model, and may come in the middle of a word."""
        match event:
            case events.Notice():
                return events.Notice(self._redact(event.text))
            case events.CheckStarted():
                return replace(event, command=self._redact(event.command))
            case events.CheckEnded():
                return replace(event, command=self._redact(event.command), output=self._redact(event.output))

    def _taken(self, event: events.Event) -> Iterator[events.Event]:
        match event:
            case events.Text(delta=delta):
                yield from self._rest_of_thought()
                yield from _said(events.Text, self._text.feed(delta))
            case events.Thinking(delta=delta):
                yield from self._rest_of_text()
                yield from _said(events.Thinking, self._thought.feed(delta))
            case events.TextReplaced(text=text):
                yield from self._rest_of_text()  # it is withdrawn as well, and who keeps count has to see it
                yield events.TextReplaced(self._redact(text))
            case events.UsageUpdated():
                yield event
            case _:
                yield from self._rest_of_thought()
                yield from self._rest_of_text()
                yield self._whole(event)

    def _rest_of_text(self) -> Iterator[events.Event]:
        yield from _said(events.Text, self._text.close())

    def _rest_of_thought(self) -> Iterator[events.Event]:
        yield from _said(events.Thinking, self._thought.close())

    def _whole(
        self, event: "events.Notice | Check | events.ToolCalled | events.ToolReturned | events.TurnEnded"
    ) -> events.Event:
        redact = self._redact
        match event:
            case events.Notice() | events.CheckStarted() | events.CheckEnded():
                return self.aside(event)
            case events.ToolCalled():
                return replace(event, arguments=_arguments(event.arguments, redact))
            case events.ToolReturned():
                return replace(event, output=redact(event.output))
            case events.TurnEnded():
                redact_requests(event.messages[-1:], redact)
                records = tuple(
                    replace(call, arguments=_arguments(call.arguments, redact), output=redact(call.output))
                    for call in event.tool_calls
                )
                error = redact(event.error) if event.error else event.error
                return replace(event, answer=redact(event.answer), error=error, tool_calls=records)


def _said(kind: "type[events.Text] | type[events.Thinking]", piece: str) -> Iterator[events.Event]:
    if piece:
        yield kind(piece)


def _arguments(arguments: Mapping[str, object], redact: Redactor) -> Mapping[str, object]:
    return cast("Mapping[str, object]", redact.of(dict(arguments)))
