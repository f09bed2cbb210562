"""What llama.cpp says while it completes a prompt, and the same as pieces."""

import time
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from punie.backends._engine import Piece
from punie.errors import ContextTooLong, ModelError


class _Error(BaseModel):
    code: int = 0
    message: str
    type: str = ""


class _Choice(BaseModel):
    text: str = ""
    finish_reason: str | None = None


class _PromptDetails(BaseModel):
    cached_tokens: int = 0


class _Usage(BaseModel):
    completion_tokens: int = 0
    prompt_tokens: int = 0
    prompt_tokens_details: _PromptDetails = _PromptDetails()


class _Timings(BaseModel):
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


class _Progress(BaseModel):
    processed: int = 0


class Chunk(BaseModel):
    """One event of llama.cpp's completion stream; the last one has a finish reason, usage and timings."""

    model_config = ConfigDict(extra="ignore")

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    timings: _Timings | None = None
    prompt_progress: _Progress | None = None
    error: _Error | None = None


def pieces(chunks: Iterator[Chunk]) -> Iterator[Piece]:
    """The generation as pieces; one that ends without a finish reason was cancelled. Raises ModelError."""
    started, first_token, counted = time.monotonic(), None, 0
    for chunk in chunks:
        if chunk.error:
            raise _failure(chunk.error)
        choice = chunk.choices[0] if chunk.choices else _Choice()
        if choice.finish_reason:
            yield _last_piece(chunk, choice, counted)
            return
        if chunk.prompt_progress is None:
            first_token = first_token or time.monotonic()
            counted += 1
            yield Piece(choice.text, token_count=1)
    ended = time.monotonic()
    decoding_since = first_token or ended
    yield Piece(finish="cancelled", prefill_s=decoding_since - started, decode_s=ended - decoding_since)


def _last_piece(chunk: Chunk, choice: _Choice, counted: int) -> Piece:
    usage, timings = chunk.usage or _Usage(), chunk.timings or _Timings()
    return Piece(
        choice.text,
        token_count=max(0, usage.completion_tokens - counted),
        finish="length" if choice.finish_reason == "length" else "stop",
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.prompt_tokens_details.cached_tokens,
        prefill_s=timings.prompt_ms / 1000,
        decode_s=timings.predicted_ms / 1000,
    )


def _failure(error: _Error) -> ModelError:
    if error.type == "exceed_context_size_error":
        return ContextTooLong(f"The conversation does not fit the model: {error.message}.", "Start a new session.")
    return ModelError(f"llama.cpp refused the request: {error.message}.")
