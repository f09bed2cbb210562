"""What an engine is: something that continues token ids, on one thread of its own. Imports no model library."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from punie.errors import ModelError

if TYPE_CHECKING:
    from punie.backends._prefixes import Prefixes
    from punie.wire import Wire

T = TypeVar("T")

Finish = Literal["stop", "length", "cancelled"]

IDLE_SECONDS = 10.0
"""How long a worker has had nothing to do before it does what can wait."""


@dataclass(frozen=True)
class Piece:
    """Some generated text. The last piece of a generation carries `finish` and the figures below it."""

    text: str = ""
    token_count: int = 0
    """Tokens generated since the piece before."""
    finish: Finish | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were still in the engine's cache."""
    prefill_s: float = 0.0
    decode_s: float = 0.0


LINE_START = r"(?:^|\n)[ \t]*"
"""Where a call can begin, as a regular expression."""


@dataclass(frozen=True)
class CallGrammar:
    """The tool calls a model may write: `opening`, one JSON call of one of the tools, `closing`; any prose before.

    An opening in the middle of a line is prose about calls, not a call. More calls may follow the first.
    """

    tools: tuple[tuple[str, str], ...]
    """Name and JSON schema of the arguments, as text so that a grammar can be a key of a cache."""
    opening: str = "<tool_call>"
    closing: str = "</tool_call>"


class Engine(Protocol):
    """Loaded weights. Every method is called on the same worker thread."""

    @property
    def name(self) -> str:
        """Name of the engine, for people."""
        ...

    @property
    def context_window(self) -> int:
        """Tokens of prompt and answer together."""
        ...

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
        """Continue the prompt; text of a stop string is never yielded, and `cancelled` is obeyed at every token.

        `grammar` constrains a call once its opening is written. `speculate` may only make greedy output faster, never
        different, and an engine may have decided about it when it loaded. Always ends with one piece that has `finish`.
        Keeps the prompt cached for the next call.
        """
        ...

    def save(self, path: Path) -> int:
        """Write the attention cache and its token ids to a file, atomically; returns how many tokens, 0 for none."""
        ...

    def restore(self, path: Path) -> int:
        """Take up a cache that `save` wrote for the same weights; returns how many tokens, 0 if it is unusable."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass(frozen=True)
class Loaded:
    """An engine with the renderer of the same model."""

    engine: Engine
    wire: "Wire"
    load_s: float
    prefixes: "Prefixes | None" = None
    """Where attention caches of these weights are kept; None keeps none."""


class Worker:
    """One daemon thread that runs jobs in the order they come: engines are not safe to share between threads."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stopped = False
        self._idle: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> "Future[T]":
        """Queue a job; its result or error comes through the future. Raises ModelError after `stop`."""
        if self._stopped:
            raise ModelError("The model is closed.")
        future: Future[T] = Future()
        self._jobs.put(partial(_settle, future, job))
        return future

    def when_idle(self, job: Callable[[], object]) -> None:
        """Do this, once, when nothing has come for a while; only for jobs of the worker itself. The last one counts.

        Nobody is told how it went.
        """
        self._idle = partial(_settle, Future(), job)

    def stop(self, *, timeout: float) -> None:
        """Let the queued jobs finish, for at most `timeout` seconds."""
        self._stopped = True
        self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            job()
            del job  # a finished job must not keep its model alive until the next one comes
        mlx = sys.modules.get("mlx.core")
        if mlx is not None:
            # MLX keeps compiled Python functions for each thread. Left to the end of the thread, which `join` does not
            # wait for, they are let go of while the interpreter ends, and that aborts the process.
            mlx.clear_streams()

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._jobs.get(timeout=IDLE_SECONDS if self._idle else None)
        except Empty:
            idle, self._idle = self._idle, None
            return idle


def _settle(future: "Future[T]", job: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job()
    except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
        future.set_exception(error)
    else:
        future.set_result(result)
