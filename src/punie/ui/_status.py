"""The line at the bottom of the chat: what runs, how, how full its window is, and what the last turn took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_ai.messages import ModelMessage, ModelResponse

    from punie.agent.events import TurnEnded


@dataclass
class Status:
    """What is known after each turn. Tokens, seconds, US dollars."""

    window: int | None = None
    context: int = 0
    """Tokens of the last request and its reply: what the next request begins with."""
    read: int = 0
    reused: int = 0
    written: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    """Tokens written per second of the last turn, while the model was writing."""
    cost: float = 0.0
    total_in: int = 0
    total_out: int = 0

    def forget(self) -> None:
        """Begin anew, as a new conversation does; the window stays."""
        self.__init__(window=self.window)

    def take(self, ended: "TurnEnded", *, new: "Sequence[ModelMessage]") -> None:
        """Keep what a turn took; `new` are the messages that it added."""
        from pydantic_ai.messages import ModelResponse

        usage, timing = ended.usage, ended.timing
        self.read, self.reused, self.written = usage.input_tokens, usage.cached_tokens, usage.output_tokens
        self.total_in += usage.input_tokens
        self.total_out += usage.output_tokens
        self.seconds = timing.total_s
        writing = timing.decode_s or timing.total_s - timing.tools_s
        self.rate = usage.output_tokens / writing if writing > 0 else 0.0
        replies = [message for message in new if isinstance(message, ModelResponse)]
        self.cost += sum(map(_cost, replies))
        counted = [reply for reply in replies if reply.usage.input_tokens]
        if counted:
            self.context = counted[-1].usage.input_tokens + counted[-1].usage.output_tokens

    def parts(self, *, short: bool = False) -> list[str]:
        """What there is to say, the most important first; `short` for a narrow screen."""
        found: list[str] = []
        if self.context and short:
            found.append(f"{self.context:,}/{self.window:,}" if self.window else f"{self.context:,} tokens")
        elif self.context and self.window:
            share = 100 * self.context // self.window
            found.append(f"{self.context:,} tokens in {self.window:,} ({share} %)")
        elif self.context:
            found.append(f"{self.context:,} tokens in context")
        if self.reused:
            found.append(f"{self.reused:,} reused, {self.read - self.reused:,} new")
        if self.rate:
            found.append(f"{self.rate:.0f} tok/s")
        if self.cost:
            found.append(f"${self.cost:.2f}" if self.cost >= 0.01 else f"${self.cost:.4f}")
        if self.seconds:
            found.append(f"{self.seconds:.1f} s")
        return found


def _cost(reply: "ModelResponse") -> float:
    """Dollars that the provider lists for a reply; 0 where there is no price, as for a model of one's own."""
    if not reply.usage.input_tokens or reply.provider_name in (None, "local"):
        return 0.0
    try:
        return float(reply.cost().total_price)
    except (LookupError, AssertionError, ValueError):
        return 0.0


def fitted(parts: "Iterable[str]", *, width: int) -> str:
    """The parts that fit into so many cells, the first ones first; one that stands alone is cut."""
    line = ""
    for part in parts:
        if not part:
            continue
        longer = f"{line} · {part}" if line else part
        if cell_len(longer) <= width:
            line = longer
        elif not line:
            line = set_cell_size(part, max(width - 1, 0)).rstrip() + "…"
    return line
