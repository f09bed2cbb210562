"""What is known about a running turn: its text, its tool calls, its times, and how it ended."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_ai import AgentRunResultEvent, RunContext
from pydantic_ai.agent import AgentRunEvents
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    AgentStreamEvent,
    EnqueuedMessagesEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    RetryFeedbackPart,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RunUsage

from punie import tools, wire
from punie.agent import failures, limits
from punie.agent._textgate import TextGate
from punie.agent.events import (
    Event,
    Notice,
    Text,
    TextReplaced,
    Thinking,
    Timing,
    ToolCalled,
    ToolOutcome,
    ToolRecord,
    ToolReturned,
    TurnEnded,
    UsageUpdated,
)
from punie.errors import Interrupted, LimitReached, ModelError, PermissionNeeded, PunieError, RepeatedText
from punie.tools import Workspace

_OUTCOMES: Mapping[str, ToolOutcome] = {"success": "ok", "denied": "denied"}
REPEATED = RepeatedText("The model repeated the same text.", "Ask again in other words, or use a larger model.")


@dataclass
class Stopwatch(AbstractCapability[Workspace]):
    """Measures how long each tool call runs, without the time somebody took to approve it."""

    seconds: dict[str, float] = field(default_factory=dict)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Workspace],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Time one execution; a call that waits for approval comes here twice, and the second time counts."""
        started = time.perf_counter()
        try:
            return await handler(args)
        finally:
            self.seconds[call.tool_call_id] = time.perf_counter() - started


@dataclass
class Turn:
    """Turns PydanticAI's events into Punie's, and remembers what the end of the turn has to report."""

    history: tuple[ModelMessage, ...]
    names: tuple[str, ...]
    stopwatch: Stopwatch
    stopped_by: PunieError | None = None
    _run: AgentRunEvents[str] | None = None
    _gate: TextGate | None = None
    _thoughts: wire.Thoughts = field(default_factory=wire.Thoughts)
    _text: str = ""
    """Shown since the last tool result."""
    _earlier_text: str = ""
    _started: float = field(default_factory=time.perf_counter)
    _called: dict[str, ToolCalled] = field(default_factory=dict)
    _returned: dict[str, ToolReturned] = field(default_factory=dict)
    _requests: int = 0
    _in_reply: bool = False
    _text_index: int | None = None
    """Place of the text part that is being written among the parts of its reply."""
    _output: str | None = None

    def follow(self, run: AgentRunEvents[str]) -> None:
        """The run whose messages and usage belong to this turn."""
        self._run = run

    def see(self, event: AgentStreamEvent | AgentRunResultEvent[str]) -> Iterator[Event]:
        """What there is to tell about one event."""
        yield from self._usage_if_new()
        match event:
            case PartStartEvent(index=0) if not self._in_reply:
                self._in_reply = True
                yield from self._new_reply()
            case PartStartEvent(index=index) if index == self._text_index:
                yield from self._withdraw()  # a model may put a part in place of what it has streamed
        match event:
            case PartStartEvent(index=index, part=TextPart(content=content)):
                self._gate, self._text_index, self._thoughts = TextGate(self.names), index, wire.Thoughts()
                yield from self._said(*self._thoughts.feed(content))
            case PartDeltaEvent(delta=TextPartDelta(content_delta=delta)):
                yield from self._said(*self._thoughts.feed(delta))
            case PartEndEvent(part=TextPart()) if self._gate:
                yield from self._said(*self._thoughts.flush())
                yield from self._show(self._gate.close())
            case (
                PartStartEvent(part=ThinkingPart(content=thought))
                | PartDeltaEvent(delta=ThinkingPartDelta(content_delta=thought))
            ):
                yield from self._said(thought or "", "")
            case FunctionToolCallEvent(part=call):
                yield self._call(call)
            case FunctionToolResultEvent(part=result):
                yield self._result(result)
            case EnqueuedMessagesEvent():  # what was answered so far stays, although the turn goes on
                self._settle()
            case AgentRunResultEvent(result=result):
                self._output = result.output

    def _new_reply(self) -> Iterator[Event]:
        """A reply that follows a rejected one withdraws what was shown of it."""
        feedback = self._feedback()
        if feedback:
            yield Notice(f"asked again: {feedback}")
        yield from self._withdraw()

    def _withdraw(self) -> Iterator[Event]:
        self._gate = self._text_index = None
        if self._text:
            self._text = ""
            yield TextReplaced("")

    def _feedback(self) -> str | None:
        messages = self._messages()
        last = messages[-1] if messages else None
        parts = last.parts if isinstance(last, ModelRequest) else ()
        return next((str(part.content) for part in parts if isinstance(part, RetryFeedbackPart)), None)

    def _said(self, thought: str, said: str) -> Iterator[Event]:
        """Thinking as it comes, and of the rest what is certain not to be a call."""
        if thought and not self.stopped_by:
            yield Thinking(thought)
        if self._gate and said:
            yield from self._show(self._gate.feed(said))

    def _show(self, delta: str) -> Iterator[Event]:
        if not delta or self.stopped_by:
            return
        self._text += delta
        yield Text(delta)
        if limits.repetition_at_end(self._text) is not None and self._run:
            self.stopped_by = REPEATED
            self._run.cancel()

    def _call(self, call: ToolCallPart) -> ToolCalled:
        called = ToolCalled(call.tool_call_id, call.tool_name, call.args_as_dict())
        self._called[called.id] = called
        return called

    def _result(self, result: ToolReturnPart) -> ToolReturned:
        self._settle()
        returned = ToolReturned(
            id=result.tool_call_id,
            name=result.tool_name,
            outcome=_OUTCOMES.get(result.outcome, "error"),
            output=result.model_response_str(wrap_if_error=False),
            duration_s=self.stopwatch.seconds.get(result.tool_call_id, 0.0),
        )
        self._returned[returned.id] = returned
        return returned

    def _settle(self) -> None:
        """What was shown is not withdrawn any more."""
        self._earlier_text, self._text = self._text or self._earlier_text, ""

    def end(self, error: PunieError | None) -> Iterator[Event]:
        """The last events of the turn."""
        yield from self._usage_if_new()
        error = error or self._error_of_output()
        answer = self._output if self._output is not None else self._partial(error)
        if answer.strip() != self._text.strip() and (self._output is not None or self.stopped_by):
            yield TextReplaced(answer)
        if "(unverified)" in answer:
            yield Notice("Places marked (unverified) were not shown by any tool.")
        if not self._called and self._repeats_a_result():
            yield Notice("Nothing was looked up or run for this; the lines are those of an earlier result.")
        yield from self._close_calls(error)
        messages = _closed(_without_loose_thoughts(self._messages()), self._returned)
        if self.stopped_by and self._output is None and answer:
            messages = _answered(messages, answer)
        yield TurnEnded(
            stop_reason=failures.stop_reason(error) if error else "done",
            answer=answer,
            messages=messages,
            turns=self._requests,
            timing=self._timing(messages),
            usage=self._usage(),
            tool_calls=self._records(),
            error=str(error) if error else None,
            exit_code=error.exit_code if error else 0,
        )

    def _repeats_a_result(self) -> bool:
        """Whether the answer holds a tool's lines, by the marker for them."""
        last = self._messages()[-1:]
        parts = last[0].parts if last and isinstance(last[0], ModelResponse) else ()
        written = ((p.provider_details or {}).get("raw", p.content) for p in parts if isinstance(p, TextPart))
        return any(wire.RESULT in text for text in written)

    def _close_calls(self, error: PunieError | None) -> Iterator[Event]:
        """Say of every call still open that it did not run, or did not end."""
        reason = "interrupted" if error is None or isinstance(error, Interrupted) else f"not run: {error.cause}"
        for called in self._called.values():
            if called.id in self._returned:
                continue
            denied = isinstance(error, PermissionNeeded) and called.name not in tools.READ_ONLY
            outcome: ToolOutcome = "denied" if denied else "error"
            self._returned[called.id] = ToolReturned(called.id, called.name, outcome, reason, 0.0)
            yield self._returned[called.id]

    def _error_of_output(self) -> PunieError | None:
        if not (self._output or "").strip():
            return ModelError("The model gave an empty answer.", "Ask again in other words, or use another model.")
        last = self._messages()[-1]
        if not isinstance(last, ModelResponse):
            return None
        if (last.provider_details or {}).get("stop") == "repetition":
            return REPEATED
        if last.finish_reason == "length":
            return LimitReached("The answer was cut off at max_tokens.", "Raise max_tokens, or ask for less at once.")
        return None

    def _partial(self, error: PunieError | None) -> str:
        text = self._text.strip() or self._earlier_text.strip()
        if not isinstance(error, RepeatedText):
            return text
        return (limits.cut_repetition(text) or text) + limits.CUT

    def _messages(self) -> list[ModelMessage]:
        try:
            return self._run.all_messages() if self._run else list(self.history)
        except UserError:  # the run never started
            return list(self.history)

    def _run_usage(self) -> RunUsage:
        try:
            return self._run.usage if self._run else RunUsage()
        except UserError:  # the run has not started
            return RunUsage()

    def _usage(self) -> UsageUpdated:
        usage = self._run_usage()
        return UsageUpdated(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens)

    def _usage_if_new(self) -> Iterator[Event]:
        requests = self._run_usage().requests
        if requests > self._requests:
            self._requests = requests
            self._in_reply, self._text_index = False, None
            yield self._usage()

    def _timing(self, messages: Sequence[ModelMessage]) -> Timing:
        new = messages[len(self.history) :]
        details = [m.provider_details or {} for m in new if isinstance(m, ModelResponse)]
        timings = [detail["timing"] for detail in details if "timing" in detail]
        load, prefill, decode = (sum(t.get(key, 0.0) for t in timings) for key in ("load_s", "prefill_s", "decode_s"))
        tools_s = sum(self.stopwatch.seconds.values())
        return Timing(time.perf_counter() - self._started, load, prefill, decode, tools_s)

    def _records(self) -> tuple[ToolRecord, ...]:
        pairs = ((self._called[id_], returned) for id_, returned in self._returned.items() if id_ in self._called)
        return tuple(ToolRecord(c.name, c.arguments, r.outcome, r.output, r.duration_s) for c, r in pairs)


def _without_loose_thoughts(messages: Sequence[ModelMessage]) -> Sequence[ModelMessage]:
    """The conversation without thoughts at its end that led to no word and no call: a service refuses them later."""
    if not messages or not isinstance(last := messages[-1], ModelResponse):
        return messages
    parts = list(last.parts)
    while parts and isinstance(parts[-1], ThinkingPart):
        parts.pop()
    if len(parts) == len(last.parts):
        return messages
    return [*messages[:-1], *([replace(last, parts=parts)] if parts else [])]


def _closed(messages: Sequence[ModelMessage], returned: Mapping[str, ToolReturned]) -> tuple[ModelMessage, ...]:
    """The conversation with a result for every call: what its tool gave, or that it was interrupted."""
    answered = {
        part.tool_call_id
        for message in messages
        for part in (message.parts if isinstance(message, ModelRequest) else ())
        if isinstance(part, ToolReturnPart)
    }
    results = [
        _late_result(part, returned.get(part.tool_call_id))
        for message in messages
        for part in (message.parts if isinstance(message, ModelResponse) else ())
        if isinstance(part, ToolCallPart) and part.tool_call_id not in answered
    ]
    if not results:
        return tuple(messages)
    if isinstance(last := messages[-1], ModelRequest):
        return (*messages[:-1], replace(last, parts=[*last.parts, *results]))
    return (*messages, ModelRequest(parts=results))


def _late_result(call: ToolCallPart, returned: ToolReturned | None) -> ToolReturnPart:
    output = returned.output if returned else "interrupted"
    outcome = "success" if returned and returned.outcome == "ok" else "interrupted"
    return ToolReturnPart(call.tool_name, output, call.tool_call_id, outcome=outcome)


def _answered(messages: Sequence[ModelMessage], answer: str) -> tuple[ModelMessage, ...]:
    """The conversation with the cut answer in place of what the model was still writing."""
    if messages and isinstance(last := messages[-1], ModelResponse):
        return (*messages[:-1], replace(last, parts=[TextPart(answer)]))
    return (*messages, ModelResponse(parts=[TextPart(answer)]))
