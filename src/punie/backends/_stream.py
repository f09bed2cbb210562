"""Generated pieces as PydanticAI's parts: prose as it comes, a call when it is whole."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic_ai.messages import ModelResponseStreamEvent, TextPart, ToolCallPart
from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

from punie import wire
from punie.backends._engine import Piece
from punie.backends._repetition import Repetition
from punie.backends._runtime import Generation

_TEXT = "text"


@dataclass
class LocalStream(StreamedResponse):
    """One response. `provider_details` carry `timing` in seconds, and `stop`: stop, length, repetition, cancelled."""

    name: str
    generation: Generation
    lines: tuple[str, ...]
    """What `[[result]]` stands for."""
    tool_names: tuple[str, ...]
    prompt_tokens: int
    load_s: float
    dialect: wire.Dialect = "json"
    """How the model was taught to write calls; one written otherwise counts as repaired."""
    _timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    _raw: list[str] = field(default_factory=list)
    _shown: list[str] = field(default_factory=list)
    _prose: wire.CallFilter = field(default_factory=wire.CallFilter)

    def __post_init__(self) -> None:
        self._usage = RequestUsage(input_tokens=self.prompt_tokens)
        self._expander = wire.Expander(self.lines)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        repetition, repeats = Repetition(), False
        async for piece in self.generation.pieces():
            self._count(piece, repeats=repeats)
            if repeats:
                continue  # the engine is about to obey; what it still says is not wanted
            self._raw.append(piece.text)
            for event in self._show(self._expander.feed(self._prose.feed(piece.text))):
                yield event
            if repetition.feed(piece.text):
                repeats = True
                self.generation.cancelled.set()
        for event in self._show(self._expander.feed(self._prose.flush()) + self._expander.flush()):
            yield event
        for event in self._conclude():
            yield event

    def _count(self, piece: Piece, *, repeats: bool) -> None:
        self._usage.output_tokens += piece.token_count
        if piece.finish is None:
            return
        self._usage.cache_read_tokens = piece.cached_tokens
        stop = "repetition" if repeats else piece.finish
        timing = {"load_s": self.load_s, "prefill_s": piece.prefill_s, "decode_s": piece.decode_s}
        self.provider_details = {"stop": stop, "timing": timing}
        self.finish_reason = "stop" if stop == "stop" else "length"
        if stop == "cancelled":
            self.state = "incomplete"

    def _show(self, text: str) -> Iterator[ModelResponseStreamEvent]:
        if text:
            self._shown.append(text)
            yield from self._parts_manager.handle_text_delta(vendor_part_id=_TEXT, content=text)

    def _conclude(self) -> Iterator[ModelResponseStreamEvent]:
        raw = "".join(self._raw)
        whole = raw if self.finish_reason == "stop" else _without_open_call(raw)
        if len(whole) < len(raw) and self.provider_details and self.provider_details["stop"] == "length":
            self.provider_details["cut_call"] = True
        reply = wire.parse(whole, names=self.tool_names, dialect=self.dialect)
        shown = "".join(self._shown)
        text = self._expanded(reply.text)
        if (shown or text) and (text != shown or reply.text != shown):
            yield from self._settle(reply.text, keep=shown.strip() == text.strip())
        for call in reply.calls:
            details = {"repaired": call.mended} if call.mended else None
            part = ToolCallPart(call.name, call.arguments, provider_details=details)
            yield self._parts_manager.handle_part(vendor_part_id=None, part=part)
        if reply.calls and self.finish_reason == "stop":
            self.finish_reason = "tool_call"

    def _settle(self, raw: str, *, keep: bool) -> Iterator[ModelResponseStreamEvent]:
        """Note what the model itself wrote; a call in another dialect is taken out of what was streamed."""
        details = {"raw": raw}
        if keep:
            yield from self._parts_manager.handle_text_delta(vendor_part_id=_TEXT, content="", provider_details=details)
        else:
            part = TextPart(self._expanded(raw), provider_details=details)
            yield self._parts_manager.handle_part(vendor_part_id=_TEXT, part=part)

    def _expanded(self, text: str) -> str:
        fresh = wire.Expander(self.lines)
        return fresh.feed(text) + fresh.flush()

    async def close_stream(self) -> None:
        """End the generation."""
        self.generation.cancelled.set()

    @property
    def model_name(self) -> str:
        """The model, with its adapter's hash."""
        return self.name

    @property
    def provider_name(self) -> str:
        """Always `local`."""
        return "local"

    @property
    def provider_url(self) -> None:
        """Nothing is served anywhere."""
        return

    @property
    def timestamp(self) -> datetime:
        """When the response began."""
        return self._timestamp


def _without_open_call(text: str) -> str:
    """The text up to a call that was cut off: half a call must never run."""
    start = text.rfind(wire.CALL_OPEN)
    if start < 0 or wire.CALL_CLOSE in text[start:]:
        return text
    return text[:start]
