"""llama.cpp in this process, through xllamacpp. No address is opened that anybody else could use."""

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from punie.backends._cores import physical_cores, spins
from punie.backends._engine import CallGrammar, Loaded, Piece, Worker
from punie.backends._files import Progress
from punie.backends._memory import require
from punie.backends._weights import ModelFiles, adapter_hash, embedded_files, gguf_files, shipped_adapter
from punie.backends.catalogue import entry
from punie.errors import ContextTooLong, EngineMissing, ModelError, WeightsDamaged
from punie.local_models import EngineOptions
from punie.wire import WHOLE, View, Wire

if TYPE_CHECKING:
    from punie.backends._local import LocalModel

_BATCH = 256
"""Prompt tokens between two looks at `cancelled`: about half a second on two cores, and no slower than 512."""
_LONGEST_SOCKET_PATH = 100
_LARGE_FILE = 1 << 30
_DEFAULTS = EngineOptions()
_LARGEST_WINDOW = 32_768
"""Tokens of context at most: the cache for 200,000 tokens of a large model would not fit most machines."""


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


class _Server(Protocol):
    """The part of `xllamacpp.Server` that is used; the package has no types of its own."""

    def handle_completions(self, request: dict[str, object], receive: Callable[[object], bool]) -> object:
        """Block until the completion is over; `receive` ends it early by returning True."""
        ...


class LlamaCpp:
    """One GGUF model. See `punie.backends._engine.Engine`."""

    name = "llama.cpp"

    def __init__(self, path: Path, *, context_window: int, threads: int | None = None) -> None:
        self.context_window = context_window
        self._server: _Server | None = _start(path, context_window, threads or physical_cores())
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
        grammar: CallGrammar | None = None,
        speculate: bool = False,
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
        yield from _pieces(self._chunks(request, cancelled))

    def save(self, path: Path) -> int:
        """Keep nothing: see `Engine.save`."""
        return 0

    def restore(self, path: Path) -> int:
        """Take up nothing: see `Engine.restore`."""
        return 0

    def close(self) -> None:
        """Free the weights and the cache."""
        self._server = None

    def _chunks(self, request: dict[str, object], cancelled: threading.Event) -> Iterator[_Chunk]:
        """Turn the blocking call with its callback into an iterator; ends early when it is cancelled or dropped."""
        found: SimpleQueue[_Chunk | Exception | None] = SimpleQueue()
        dropped = threading.Event()

        def receive(event: object) -> bool:
            unwanted = cancelled.is_set() or dropped.is_set()
            if not unwanted:
                found.put(_Chunk.model_validate(event))
            return unwanted

        thread = threading.Thread(target=self._complete, args=(request, receive, found.put), daemon=True)
        thread.start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, Exception):
                    raise ModelError(f"llama.cpp failed: {item}") from item
                yield item
        finally:
            # Nothing of llama.cpp may still run when the server goes or the interpreter ends.
            dropped.set()
            thread.join()

    def _complete(
        self,
        request: dict[str, object],
        receive: Callable[[object], bool],
        put: Callable[[Exception | None], None],
    ) -> None:
        try:
            if self._server is None:
                raise RuntimeError("the model is closed")
            self._server.handle_completions(request, receive)
        except (RuntimeError, ValueError) as error:
            put(error)
        put(None)


def _pieces(chunks: Iterator[_Chunk]) -> Iterator[Piece]:
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


def _start(path: Path, context_window: int, threads: int) -> _Server:
    xllamacpp = _binding()
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


def _binding() -> ModuleType:
    # Read once, when the library is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", str(spins(physical_cores())))
    try:
        return import_module("xllamacpp")
    except ImportError as error:
        cure = "Install libgomp1 (Debian: apt install libgomp1)" if "libgomp" in str(error) else "Reinstall Punie"
        raise EngineMissing(
            f"llama.cpp cannot be loaded on this machine ({error}).", f"{cure}, or choose another --model."
        ) from error


def _private_directory() -> Path:
    """A new directory with mode 0700, with a path short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="punie-"))
    if len(os.fsencode(directory)) < _LONGEST_SOCKET_PATH - len("/s.sock"):
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="punie-", dir="/tmp"))


def _parameters(path: Path, context_window: int, *, threads: int, socket: Path) -> object:
    p = _binding().CommonParams()
    p.model.path = str(path)
    p.n_ctx = context_window
    p.n_parallel = 1
    p.n_batch = p.n_ubatch = _BATCH
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
    p.warmup = False
    # Fitting a model to the memory of the machine takes 0.15 s: too long for one that always fits.
    p.fit_params = path.stat().st_size > _LARGE_FILE
    p.cache_ram_mib = 0  # by default up to 8 GiB of earlier conversations are kept
    p.verbosity = -1
    p.offline = True
    p.ui = False
    p.endpoint_slots = False
    p.n_threads_http = 1
    p.hostnames = [str(socket)]
    p.api_keys = [secrets.token_hex(32)]
    return p


# --- models --------------------------------------------------------------------------------------------------------


def build_named(
    name: str, adapter: Path | None, *, cache_dir: Path, on_progress: Progress, options: EngineOptions = _DEFAULTS
) -> "LocalModel":
    """A model that comes as a package, with the user's adapter or with the one that is shipped for it."""
    model = entry(name)
    chosen = adapter or shipped_adapter(name)
    files = partial(embedded_files, cache_dir, adapter=chosen, on_progress=on_progress)
    label = adapter.name if adapter else "punie"
    title = f"{name}+{label}@{adapter_hash(chosen)}" if chosen else name
    return _model(files, name=title, options=options, context_window=model.context_window, compact=True)


def build(
    path: str, adapter: Path | None, *, cache_dir: Path, on_progress: Progress, options: EngineOptions = _DEFAULTS
) -> "LocalModel":
    """A GGUF file, with an adapter merged into it or alone."""
    gguf = Path(path).expanduser()
    files = partial(gguf_files, gguf, adapter=adapter, cache_dir=cache_dir, on_progress=on_progress)
    name = f"{gguf.stem}+{adapter.name}@{adapter_hash(adapter)}" if adapter else gguf.stem
    return _model(files, name=name, options=options)


def _model(
    files: Callable[[], ModelFiles],
    *,
    name: str,
    options: EngineOptions,
    context_window: int | None = None,
    compact: bool = False,
) -> "LocalModel":
    worker = Worker(f"punie-{name}")
    load = partial(_load, files, compact=compact, options=options)
    loading = worker.submit(load)
    from punie.backends._local import LocalModel  # its import takes longer than the loading it runs beside

    return LocalModel(load, name=name, context_window=context_window, compact=compact, worker=worker, loading=loading)


def _load(files: Callable[[], ModelFiles], *, compact: bool, options: EngineOptions) -> Loaded:
    started = time.monotonic()
    found = files()
    context = min(found.context_window, options.context or _LARGEST_WINDOW)
    require(found.weights, context=context, options=options)
    wire = Wire.load(found.tokenizer, template=found.template, view=View() if compact else WHOLE)
    engine = LlamaCpp(found.weights, context_window=context)
    return Loaded(engine, wire, load_s=time.monotonic() - started)
