"""What happens in a turn, as one closed union: the loop emits it, front ends draw it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic_ai.messages import ModelMessage

ToolOutcome = Literal["ok", "error", "denied"]
CheckOutcome = Literal["passed", "failed", "stopped", "not run"]
StopReason = Literal["done", "limit", "loop", "denied", "error", "interrupted"]


@dataclass(frozen=True)
class Text:
    """A piece of the answer, as it is generated."""

    delta: str


@dataclass(frozen=True)
class Thinking:
    """A piece of what the model says to itself; no part of the answer."""

    delta: str


@dataclass(frozen=True)
class TextReplaced:
    """The text streamed since the last tool result is withdrawn; `text`, possibly empty, stands in its place."""

    text: str


@dataclass(frozen=True)
class ToolCalled:
    """The model asked for a tool; it has not run yet."""

    id: str
    name: str
    arguments: Mapping[str, object]


@dataclass(frozen=True)
class ToolReturned:
    """A tool call ended. `duration_s` leaves out the time a person took to approve it."""

    id: str
    name: str
    outcome: ToolOutcome
    output: str
    duration_s: float


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is not part of the answer."""

    text: str


@dataclass(frozen=True)
class CheckStarted:
    """A check of what the turn changed runs now."""

    name: str
    command: str


@dataclass(frozen=True)
class CheckEnded:
    """A check ended. `output` says why one was not run; one that was stopped took too long or printed too much."""

    name: str
    command: str
    outcome: CheckOutcome
    output: str
    duration_s: float
    returned: bool
    """Whether the model is told, and goes on in this turn to mend it."""


@dataclass(frozen=True)
class UsageUpdated:
    """Tokens of the turn so far."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Timing:
    """Seconds of the turn; load, prefill and decode are known for local engines only."""

    total_s: float = 0.0
    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tools_s: float = 0.0


@dataclass(frozen=True)
class ToolRecord:
    """One finished tool call of the turn."""

    name: str
    arguments: Mapping[str, object]
    outcome: ToolOutcome
    output: str
    duration_s: float


@dataclass(frozen=True)
class TurnEnded:
    """The last event of every turn, whatever happened."""

    stop_reason: StopReason
    answer: str
    """The final text, or what there was of it when the turn was stopped."""
    messages: Sequence[ModelMessage]
    """The whole conversation, history included; every call in it has a result."""
    turns: int
    """Replies of the model in this turn."""
    timing: Timing
    usage: UsageUpdated
    tool_calls: tuple[ToolRecord, ...] = ()
    error: str | None = None
    exit_code: int = 0


Event: TypeAlias = (
    Text
    | Thinking
    | TextReplaced
    | ToolCalled
    | ToolReturned
    | CheckStarted
    | CheckEnded
    | Notice
    | UsageUpdated
    | TurnEnded
)
