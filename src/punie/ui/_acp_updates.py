"""What happens in a turn, and what was said in an old one, as updates of a session of the Agent Client Protocol.

Everything comes redacted from the loop and from the store; here it loses its control sequences.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, assert_never

from acp import (
    helpers,
    plan_entry,
    start_tool_call,
    text_block,
    tool_content,
    tool_diff_content,
    update_agent_message_text,
    update_agent_thought_text,
    update_plan,
    update_tool_call,
    update_user_message_text,
)
from acp.schema import (
    AvailableCommandsUpdate,
    ConfigOptionUpdate,
    CurrentModeUpdate,
    FileEditToolCallContent,
    PlanEntry,
    ToolCallLocation,
    ToolCallProgress,
    ToolKind,
)

from punie.ui._activity import call_text, check_line
from punie.ui._clean import Cleaner, clean, one_line, visible
from punie.ui.sessions import fenced

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelRequest, ModelRequestPart, ModelResponse, ModelResponsePart

    from punie.agent.events import Event, ToolCalled, ToolReturned
    from punie.tools._changes import Change

Content: TypeAlias = helpers.ToolCallContentVariant
Update: TypeAlias = helpers.SessionUpdate | AvailableCommandsUpdate | ConfigOptionUpdate | CurrentModeUpdate
Send: TypeAlias = Callable[[Update], Awaitable[None]]
ChangeOf: TypeAlias = "Callable[[str, Mapping[str, object]], Change | None]"

_KINDS: Mapping[str, ToolKind] = {
    "read_file": "read",
    "edit_file": "edit",
    "write_file": "edit",
    "run_command": "execute",
    "write_todos": "think",
    **dict.fromkeys(("list_files", "search", "find_symbol", "find_subclasses", "find_references"), "search"),
}
_TITLE = 120
_MOST_DIFF = 400_000
"""Characters of a file that are sent as one side of a diff."""


def title_of(name: str, arguments: Mapping[str, object]) -> str:
    """A call in one line: the command itself, else the tool with its arguments."""
    command = arguments.get("command")
    if name == "run_command" and isinstance(command, str):
        return one_line(command, width=_TITLE) or "run_command"
    return one_line(call_text(name, arguments), width=_TITLE)


def kind_of(name: str) -> ToolKind:
    """What an editor takes a tool for."""
    return _KINDS.get(name, "other")


def locations_of(arguments: Mapping[str, object], *, root: Path) -> list[ToolCallLocation] | None:
    """The file that a call is about, for an editor to follow along; None if there is none."""
    path, line = arguments.get("path"), arguments.get("start")
    if not isinstance(path, str) or not path.strip():
        return None
    return [ToolCallLocation(path=str(root / clean(path)), line=line if isinstance(line, int) and line > 0 else None)]


def shown(value: object) -> object:
    """Arguments of a call with everything hidden in them spelled out, as JSON can hold them."""
    match value:
        case str():
            return visible(value)
        case Mapping():
            return {visible(str(key)): shown(each) for key, each in value.items()}
        case list() | tuple():
            return [shown(each) for each in value]
        case int() | None:
            return value
        case _:
            return str(value)


def diff_of(change: "Change", *, root: Path, redact: Callable[[str], str] = str) -> FileEditToolCallContent | None:
    """What a change does to its file, with hidden characters spelled out; None if it is too long to send."""
    from punie.tools._files import decode, plain_ends

    before, after = (None if data is None else plain_ends(decode(data)[0]) for data in (change.before, change.after))
    if max(len(before or ""), len(after or "")) > _MOST_DIFF:
        return None
    old = None if before is None else visible(redact(before))
    return tool_diff_content(str(root / clean(change.relative)), visible(redact(after or "")), old)


@dataclass
class _Open:
    """A call that has not returned."""

    id: str
    diff: FileEditToolCallContent | None


@dataclass
class Calls:
    """The calls of a conversation under ids that no other one has: models repeat theirs."""

    _last: int = 0
    _open: dict[str, _Open] = field(default_factory=dict)

    def begin(self, id: str, diff: FileEditToolCallContent | None = None) -> str:  # noqa: A002 - the field's name
        """The new id of a call."""
        self._last += 1
        self._open[id] = _Open(f"call-{self._last}", diff)
        return self._open[id].id

    def id(self, id: str) -> str | None:  # noqa: A002 - the field's name
        """The id of a call that has not returned; None if nobody was told of it."""
        found = self._open.get(id)
        return found.id if found is not None else None

    def end(self, id: str) -> _Open | None:  # noqa: A002 - the field's name
        """Forget a call that has returned."""
        return self._open.pop(id, None)


class TurnUpdates:
    """Takes the events of one turn and sends what an editor shows of them."""

    def __init__(
        self, send: Send, calls: Calls, *, root: Path, change_of: ChangeOf, redact: Callable[[str], str]
    ) -> None:
        self._redact = redact
        self._send = send
        self._calls = calls
        self._root = root
        self._change_of = change_of
        self._cleaner = Cleaner()
        self._thoughts = Cleaner()
        self._sent = ""
        """The text since the last tool result."""
        self._withdrawn = ""
        """What of it was taken back, until it is known what stands in its place."""
        self._pending = ""

    async def take(self, event: "Event") -> None:
        """Send what there is to send of one event."""
        from punie.agent import events

        match event:
            case events.Text():
                await self._text(event.delta)
            case events.Thinking():
                await self._settle(ended=True)
                if thought := self._thoughts.feed(event.delta):
                    await self._send(update_agent_thought_text(thought))
            case events.TextReplaced():
                self._withdrawn = self._withdrawn or self._sent
                self._sent = self._pending = ""
                self._cleaner = Cleaner()
                await self._text(event.text)
            case events.ToolCalled():
                await self._settle(ended=True)
                await self._call(event)
            case events.ToolReturned():
                await self._result(event)
            case events.Notice():
                await self._settle(ended=True)
                await self.note(event.text)
            case events.CheckEnded():
                await self._settle(ended=True)
                self._sent = self._withdrawn = ""  # the answer before it stays
                await self.note(check_line(event))
            case events.UsageUpdated() | events.CheckStarted():
                pass  # the answer to the prompt has the totals
            case events.TurnEnded():
                await self._settle(ended=True)
            case _:
                assert_never(event)

    async def note(self, text: str) -> None:
        """Something the user should know that is not part of the answer: a quotation of its own."""
        lines = "\n".join(f"> {line}" for line in clean(text).strip().splitlines())
        await self._send(update_agent_message_text(f"\n\n{lines}\n\n"))

    async def _text(self, delta: str) -> None:
        self._pending += self._cleaner.feed(delta)
        await self._settle()

    async def _settle(self, *, ended: bool = False) -> None:
        """Send what is certain. What was sent cannot be taken back: if something else follows, say that it counts not.

        A reply is often withdrawn and then given again as it was, so this waits until the two differ.
        """
        if self._withdrawn:
            if not ended and self._withdrawn.startswith(self._pending):
                return
            if self._pending.startswith(self._withdrawn):
                self._sent, self._pending = self._withdrawn, self._pending.removeprefix(self._withdrawn)
            else:
                said = "Corrected:" if self._pending.strip() else "The text above is withdrawn."
                await self.note(said)
            self._withdrawn = ""
        text, self._pending = self._pending, ""
        self._sent += text
        if text:
            await self._send(update_agent_message_text(text))

    async def _call(self, called: "ToolCalled") -> None:
        change = self._change_of(called.name, called.arguments)
        diff = diff_of(change, root=self._root, redact=self._redact) if change is not None else None
        await self._send(
            start_tool_call(
                self._calls.begin(called.id, diff),
                title_of(called.name, called.arguments),
                kind=kind_of(called.name),
                status="pending",
                content=[diff] if diff is not None else None,
                locations=locations_of(called.arguments, root=self._root),
                raw_input=shown(called.arguments),
            )
        )
        if called.name == "write_todos" and (entries := plan_of(called.arguments)):
            await self._send(update_plan(entries))

    async def _result(self, returned: "ToolReturned") -> None:
        self._sent = ""
        found = self._calls.end(returned.id)
        if found is not None:
            ok = returned.outcome == "ok"
            diff = [found.diff] if ok and found.diff is not None else []
            await self._send(ended_call(found.id, returned.name, returned.output, ok=ok, diff=diff))


def ended_call(
    id: str,  # noqa: A002 - the field's name
    name: str,
    output: str,
    *,
    ok: bool,
    diff: Sequence[Content] = (),
) -> ToolCallProgress:
    """The end of a call, with what it gave."""
    text = clean(output).rstrip("\n")
    content: list[Content] = [*diff, *([tool_content(text_block(fenced(text)))] if text else [])]
    return update_tool_call(id, status="completed" if ok else "failed", content=content, kind=kind_of(name))


def plan_of(arguments: Mapping[str, object]) -> list[PlanEntry]:
    """The steps that the model wrote down; those that are none are left out."""
    todos = arguments.get("todos")
    found: list[PlanEntry] = []
    for todo in todos if isinstance(todos, list) else ():
        content, status = (todo.get("content"), todo.get("status")) if isinstance(todo, Mapping) else (None, None)
        if isinstance(content, str) and status in ("pending", "in_progress", "completed"):
            found.append(plan_entry(one_line(content, width=500), status=status))
    return found


# --- what was said before ---


def replayed(messages: "Sequence[ModelMessage]", calls: Calls, *, root: Path) -> Iterator[Update]:
    """A stored conversation from its beginning, without replies that were rejected and asked for again."""
    from pydantic_ai.messages import ModelRequest, RetryFeedbackPart

    for place, message in enumerate(messages):
        following = messages[place + 1] if place + 1 < len(messages) else None
        asked_again = isinstance(following, ModelRequest) and any(
            isinstance(part, RetryFeedbackPart) for part in following.parts
        )
        if isinstance(message, ModelRequest):
            yield from _of_request(message, calls)
        else:
            yield from _of_response(message, calls, root=root, rejected=asked_again)


def _of_request(message: "ModelRequest", calls: Calls) -> Iterator[Update]:
    from pydantic_ai.messages import ToolReturnPart, UserPromptPart

    from punie.agent._given import is_typed

    for part in message.parts:
        if isinstance(part, UserPromptPart) and is_typed(message) and (text := _said(part)):
            yield update_user_message_text(text)
        elif isinstance(part, ToolReturnPart) and (found := calls.end(part.tool_call_id)):
            output = part.model_response_str(wrap_if_error=False)
            yield ended_call(found.id, part.tool_name, output, ok=part.outcome == "success")


def _of_response(message: "ModelResponse", calls: Calls, *, root: Path, rejected: bool) -> Iterator[Update]:
    from pydantic_ai.messages import TextPart, ThinkingPart, ToolCallPart

    for part in message.parts:
        if isinstance(part, ToolCallPart):
            arguments = part.args_as_dict()
            yield start_tool_call(
                calls.begin(part.tool_call_id),
                title_of(part.tool_name, arguments),
                kind=kind_of(part.tool_name),
                status="pending",
                locations=locations_of(arguments, root=root),
                raw_input=shown(arguments),
            )
        elif isinstance(part, ThinkingPart) and (text := _said(part)):
            yield update_agent_thought_text(text)
        elif isinstance(part, TextPart) and not rejected and (text := _said(part)):
            yield update_agent_message_text(text)


def _said(part: "ModelRequestPart | ModelResponsePart") -> str:
    content: object = getattr(part, "content", "")
    return clean("\n".join(map(str, content)) if isinstance(content, list | tuple) else str(content or ""))
