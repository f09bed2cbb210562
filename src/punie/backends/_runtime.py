"""The worker thread of one local model: what is loaded on it, what runs on it, and how both end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from punie.backends._engine import CallGrammar, Engine, Loaded, Piece, Worker
from punie.backends._prefixes import LONG_BEGINNING, LONG_CONVERSATION
from punie.errors import ModelError
from punie.local_models import EngineOptions

if TYPE_CHECKING:
    from punie.backends._local import LocalModel

_CLOSING_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """What an engine is asked for."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: CallGrammar | None = None
    speculate: bool = False
    conversation: str = ""
    """What the conversation is known by on disk; empty for one that is not kept."""
    goes_on: bool = False
    """Whether it has turns that this process may never have read."""


class Generation:
    """One generation: its pieces cross from the worker thread to the event loop that asked."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | BaseException] = asyncio.Queue()

    def put(self, item: Piece | BaseException) -> None:
        """Hand over, from the worker thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody is left to read
            self.cancelled.set()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Every piece up to the one that carries `finish`. Raises what the engine raised."""
        finished = False
        while not finished:
            item = await self._queue.get()
            if isinstance(item, BaseException):
                raise item
            finished = item.finish is not None
            yield item


class Runtime:
    """Loads once, generates one answer at a time. Knows no model, so that a model's finalizer can hold it."""

    def __init__(self, load: Callable[[], Loaded], *, worker: Worker, loading: "Future[Loaded] | None" = None) -> None:
        self._load = load
        self._worker = worker
        self._lock = threading.Lock()
        self._loading = loading
        self._is_told = False
        self._running: set[Generation] = set()
        self._closed = False
        self._closing = threading.Event()
        """Ends what is read ahead: leaving must not wait for it."""
        # What is in the engine's cache; only the worker touches this.
        self._conversation = ""
        self._kept_tokens = 0
        self._unkept: Callable[[], int] | None = None

    def begin(self) -> "Future[Loaded]":
        """Start loading, unless that has been done."""
        with self._lock:
            self._loading = self._loading or self._worker.submit(self._load)
            return self._loading

    def loaded(self) -> "Future[Loaded]":
        """The weights, for somebody who waits for them. A failure is told once, then tried again."""
        with self._lock:
            failed = self._loading is not None and self._loading.done() and self._loading.exception() is not None
            if self._loading is None or (failed and self._is_told):
                self._loading = self._worker.submit(self._load)
            self._is_told = True
            return self._loading

    def context_window(self) -> int | None:
        """Of the engine; None while there is none."""
        loading = self._loading
        if loading is None or not loading.done() or loading.exception() is not None:
            return None
        return loading.result().engine.context_window

    def prefill(self, job: Callable[[Loaded], Job]) -> None:
        """Read the beginning that every prompt shares into the cache, as soon as the weights are there."""

        def read(done: "Future[Loaded]") -> None:
            if done.exception() is not None:  # a failed load is for the request to tell
                return
            with suppress(ModelError):  # closed while it was loading
                self._worker.submit(lambda: _read_ahead(done.result(), job(done.result()), cancelled=self._closing))

        self.begin().add_done_callback(read)

    def generate(self, loaded: Loaded, job: Job) -> Generation:
        """Queue a generation behind whatever the worker does."""
        generation = Generation()
        self._running.add(generation)
        self._worker.submit(lambda: self._run(loaded, job, generation=generation))
        return generation

    def _run(self, loaded: Loaded, job: Job, *, generation: Generation) -> None:
        try:
            self._take_up(loaded, job)
            for piece in _start(loaded.engine, job, cancelled=generation.cancelled):
                generation.put(piece)
        except Exception as error:  # noqa: BLE001 - the request raises it, in the task that waits
            generation.put(error)
        finally:
            self._running.discard(generation)

    def _take_up(self, loaded: Loaded, job: Job) -> None:
        """Restore a conversation from an earlier process, and see to it that this one is kept when there is time."""
        prefixes, known = loaded.prefixes, job.conversation == self._conversation
        self._conversation, self._unkept = job.conversation, None
        if not known:
            self._kept_tokens = 0
        if prefixes is None or not job.conversation or len(job.prompt) < LONG_CONVERSATION:
            return
        if job.goes_on and not known:
            self._kept_tokens = prefixes.restore(loaded.engine, job.conversation)
        self._unkept = partial(prefixes.save, loaded.engine, job.conversation, tokens=len(job.prompt))
        if len(job.prompt) - self._kept_tokens >= LONG_CONVERSATION:
            self._worker.when_idle(self._keep)

    def _keep(self) -> None:
        save, self._unkept = self._unkept, None
        if save is not None:
            self._kept_tokens = save()

    def close(self) -> None:
        """Cancel what runs, free the weights, end the thread. Nothing can be asked afterwards."""
        self._closing.set()
        for generation in tuple(self._running):
            generation.cancelled.set()
        with self._lock:
            loading, self._loading, closed = self._loading, None, self._closed
            self._closed = True
        if loading is not None and not closed:
            self._worker.submit(lambda: self._end(loading))
        self._worker.stop(timeout=_CLOSING_SECONDS)

    def _end(self, loading: "Future[Loaded]") -> None:
        if loading.exception() is None:
            self._keep()
            loading.result().engine.close()


def _read_ahead(loaded: Loaded, job: Job, *, cancelled: threading.Event) -> None:
    """The beginning from disk, or read and then kept."""
    prefixes = loaded.prefixes if len(job.prompt) >= LONG_BEGINNING else None
    if prefixes is not None and prefixes.restore(loaded.engine, job.conversation):
        return
    if _drain(loaded.engine, job, cancelled=cancelled) and prefixes is not None:
        prefixes.save(loaded.engine, job.conversation, tokens=len(job.prompt))


def _start(engine: Engine, job: Job, *, cancelled: threading.Event) -> Iterable[Piece]:
    if cancelled.is_set():
        return (Piece(finish="cancelled"),)
    return engine.generate(
        job.prompt,
        max_tokens=job.max_tokens,
        temperature=job.temperature,
        seed=job.seed,
        stop=job.stop,
        cancelled=cancelled,
        grammar=job.grammar,
        speculate=job.speculate,
    )


def _drain(engine: Engine, job: Job, *, cancelled: threading.Event) -> bool:
    try:
        for _ in _start(engine, job, cancelled=cancelled):
            pass
    except ModelError:
        return False  # reading ahead only saves time; the request itself will say what is wrong
    return not cancelled.is_set()


def begin(
    load: Callable[[], Loaded], *, name: str, context_window: int | None, compact: bool, options: EngineOptions
) -> "LocalModel":
    """A model whose weights are being loaded, on a thread of its own, from this moment on."""
    worker = Worker(f"punie-{name}")
    loading = worker.submit(load)
    from punie.backends._local import LocalModel  # its import takes longer than the loading it runs beside

    return LocalModel(
        load,
        name=name,
        context_window=context_window,
        compact=compact,
        options=options,
        worker=worker,
        loading=loading,
    )
