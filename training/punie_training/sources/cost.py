"""What a teacher will take before it is asked: tokens from the oracle's own runs, money from the price list."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import urlsplit

from genai_prices import Usage, calc_price
from pydantic_ai.models import Model

from punie.backends._refusals import is_loopback
from punie.wire import Message, expand
from punie_training.rows import declarations

CHARACTERS_PER_TOKEN = 3
"""Of rows: calls, paths and code. The embedded model's tokenizer, a small one, has 2.97 on the rows of `train data`."""
SERVICES = ("claude", "openai")


@dataclass(frozen=True)
class Tokens:
    """Tokens read and written, over all requests; `cached` are those of `read` that the service had read before."""

    read: int = 0
    written: int = 0
    cached: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.read + other.read, self.written + other.written, self.cached + other.cached)

    def __str__(self) -> str:
        return f"{self.read:,} tokens in, {self.written:,} out"


def conversation(messages: Sequence[Message], *, instructions: str) -> Tokens:
    """Tokens of having a conversation: each request carries instructions, tools and everything said before it.

    Nothing is taken off for what a service caches, and nothing put on for what a model thinks.
    """
    before = len(instructions) + len(json.dumps(declarations()))
    read = written = 0
    for at, message in enumerate(messages):
        text = expand(message.text, messages[:at]) if message.role == "assistant" else message.text
        if message.role == "assistant":
            read, written = read + before, written + len(text)
        before += len(text)
    return Tokens(read // CHARACTERS_PER_TOKEN, written // CHARACTERS_PER_TOKEN)


def scaled(estimate: Tokens, *, by: Tokens, instead_of: Tokens) -> Tokens:
    """An estimate corrected by what others really took (`by`) where so much was estimated (`instead_of`)."""
    if not instead_of.read or not instead_of.written or not by.read:
        return estimate
    return Tokens(
        estimate.read * by.read // instead_of.read,
        estimate.written * by.written // instead_of.written,
        estimate.read * by.cached // instead_of.read,
    )


def price(tokens: Tokens, *, spec: str, model: Model) -> Decimal | None:
    """US dollars by the list that PydanticAI brings; 0 for a model of this machine, None where no price is known.

    A service is known by its address; whatever answers for `claude` is charged as Anthropic's.
    """
    if not is_service(spec):
        return Decimal(0)
    usage = Usage(input_tokens=tokens.read, output_tokens=tokens.written, cache_read_tokens=tokens.cached)
    try:
        if spec.startswith("claude"):
            return calc_price(usage, model.model_name, provider_id="anthropic").total_price
        return calc_price(usage, model.model_name, provider_api_url=model.base_url).total_price
    except LookupError:
        return None


def is_service(spec: str) -> bool:
    """Whether a server answers for the model, on this machine or another."""
    return spec.partition(":")[0] in SERVICES


def host(model: Model) -> str:
    """The machine a server runs on; empty for a model in this process."""
    return urlsplit(model.base_url or "").hostname or ""


def needs_consent(tokens: Tokens, *, spec: str, model: Model) -> str:
    """Why somebody has to agree first: it costs money, or goes to another machine; empty if neither."""
    known = price(tokens, spec=spec, model=model)
    if known:
        return f"costs about ${known:.2f}"
    return f"goes to {host(model)}" if is_service(spec) and not is_loopback(host(model)) else ""


def shown(dollars: Decimal | None) -> str:
    """For people."""
    if dollars is None:
        return "no price known"
    return f"about ${dollars:.2f}" if dollars else "nothing"
