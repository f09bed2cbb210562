"""llama.cpp in this process, through xllamacpp. No address is opened that anybody else could use."""

import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from punie.backends._cores import physical_cores
from punie.backends._engine import Piece
from punie.errors import ContextTooLong, EngineMissing, ModelError, WeightsDamaged

if TYPE_CHECKING:
    import xllamacpp

_BATCH = 256
"""Prompt tokens between two looks at `cancelled`: about half a second on two cores, and no slower than 512."""
_LONGEST_SOCKET_PATH = 100


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


class _Chunk(BaseModel):
    """One event of llama.cpp's completion stream; the last one has a finish reason, usage and timings."""

    model_config = ConfigDict(extra="ignore")

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    timings: _Timings | None = None
    prompt_progress: _Progress | None = None
    error: _Error | None = None


class LlamaCpp:
    """One GGUF model. See `punie.backends._engine.Engine`."""

    name = "llama.cpp"

    def __init__(self, path: Path, *, context_window: int, threads: int | None = None) -> None:
        self.context_window = context_window
        self._server: xllamacpp.Server | None = _start(path, context_window, threads or physical_cores())
        # The server's destructor waits for ever when its loop has not begun: one token makes sure that it has.
        for _ in self.generate([0], max_tokens=1, temperature=0, seed=0, stop=(), cancelled=threading.Event()):
            pass

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop: Sequence[str],
        cancelled: threading.Event,
    ) -> Iterator[Piece]:
        """Continue the prompt, streaming."""
        request = {
            "prompt": list(prompt),
            "n_predict": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop": list(stop),
            "stream": True,
            "cache_prompt": True,
            "return_progress": True,
        }
        abandoned = threading.Event()
        try:
            yield from _pieces(self._chunks(request, lambda: cancelled.is_set() or abandoned.is_set()))
        finally:
            abandoned.set()

    def close(self) -> None:
        """Free the weights and the cache."""
        self._server = None

    def _chunks(self, request: dict[str, object], is_unwanted: Callable[[], bool]) -> Iterator[_Chunk]:
        """Turn the blocking call with its callback into an iterator; ends early when it is cancelled."""
        server = self._server
        if server is None:
            raise ModelError("The model is closed.")
        found: SimpleQueue[_Chunk | Exception | None] = SimpleQueue()

        def receive(event: object) -> bool:
            if not is_unwanted():
                found.put(_Chunk.model_validate(event))
            return is_unwanted()

        def run() -> None:
            try:
                server.handle_completions(request, receive)
            except (RuntimeError, ValueError) as error:
                found.put(error)
            found.put(None)

        thread = threading.Thread(target=run, name="punie-llama.cpp", daemon=True)
        thread.start()
        while (item := found.get()) is not None:
            if isinstance(item, Exception):
                raise ModelError(f"llama.cpp failed: {item}") from item
            yield item
        thread.join()


def _pieces(chunks: Iterator[_Chunk]) -> Iterator[Piece]:
    counted = 0
    for chunk in chunks:
        if chunk.error:
            raise _failure(chunk.error)
        choice = chunk.choices[0] if chunk.choices else _Choice()
        if choice.finish_reason:
            yield _last_piece(chunk, choice, counted)
            return
        if chunk.prompt_progress is None:
            counted += 1
            yield Piece(choice.text, token_count=1)
    yield Piece(finish="cancelled")


def _last_piece(chunk: _Chunk, choice: _Choice, counted: int) -> Piece:
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


def _start(path: Path, context_window: int, threads: int) -> "xllamacpp.Server":
    try:
        import xllamacpp
    except ImportError as error:
        raise EngineMissing(
            f"llama.cpp cannot be loaded on this machine ({error}).", "Reinstall Punie, or choose another --model."
        ) from error
    directory = _private_directory()
    try:
        return xllamacpp.Server(_parameters(path, context_window, threads=threads, socket=directory / "s.sock"))
    except RuntimeError as error:
        raise WeightsDamaged(
            f"llama.cpp cannot load {path}.", "Is it a complete GGUF file that fits this machine's memory?"
        ) from error
    finally:
        # The binding always listens somewhere: it gets a socket that only this user can reach, with a key nobody
        # knows, and whose name is gone before the first request. Requests are made by function call.
        shutil.rmtree(directory, ignore_errors=True)


def _private_directory() -> Path:
    """A new directory with mode 0700, with a path short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="punie-"))
    if len(os.fsencode(directory)) < _LONGEST_SOCKET_PATH - len("/s.sock"):
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="punie-", dir="/tmp"))


def _parameters(path: Path, context_window: int, *, threads: int, socket: Path) -> "xllamacpp.CommonParams":
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = str(path)
    p.n_ctx = context_window
    p.n_parallel = 1
    p.n_batch = p.n_ubatch = _BATCH
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
    p.warmup = False
    p.fit_params = False  # it measures the machine for 0.15 s to choose what is chosen here
    p.cache_ram_mib = 0  # by default up to 8 GiB of earlier conversations are kept
    p.verbosity = -1
    p.offline = True
    p.ui = False
    p.endpoint_slots = False
    p.n_threads_http = 1
    p.hostnames = [str(socket)]
    p.api_keys = [secrets.token_hex(32)]
    return p
