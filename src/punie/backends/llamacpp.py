"""llama.cpp in this process, through xllamacpp. No address is opened that anybody else could use."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from punie.backends._engine import CallGrammar, Loaded, Piece
from punie.backends._files import Progress
from punie.backends._gbnf import gbnf, trigger
from punie.backends._llamacpp_events import Chunk, pieces
from punie.backends._llamacpp_server import Server, start, version
from punie.backends._memory import LARGEST_WINDOW, require
from punie.backends._prefixes import prefixes_of
from punie.backends._runtime import begin
from punie.backends._weights import ModelFiles, adapter_hash, embedded_files, gguf_files, shipped_adapter
from punie.backends.catalogue import entry
from punie.errors import ModelError
from punie.local_models import EngineOptions
from punie.wire import WHOLE, View, Wire

if TYPE_CHECKING:
    from punie.backends._local import LocalModel

_DEFAULTS = EngineOptions()
_PATTERN = 2
"""COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN: a regular expression that is looked for in what was generated."""


class LlamaCpp:
    """One GGUF model. See `punie.backends._engine.Engine`."""

    name = "llama.cpp"

    def __init__(
        self,
        path: Path,
        *,
        context_window: int,
        threads: int | None = None,
        options: EngineOptions = _DEFAULTS,
        kept: Path | None = None,
    ) -> None:
        """`kept`: the one directory that `save` writes to and `restore` reads from."""
        self.context_window = context_window
        self._kept = kept
        started = start(path, context_window=context_window, threads=threads, options=options, kept=kept)
        self._server: Server | None = started[0]
        self._slots = started[1]
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
        """Continue the prompt, streaming. Whether text is guessed ahead was decided when the weights were loaded."""
        request = {
            "prompt": list(prompt),
            "n_predict": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop": list(stop),
            "stream": True,
            "cache_prompt": True,
            "return_progress": True,
            **(_constraint(grammar) if grammar and grammar.tools else {}),
        }
        yield from pieces(self._chunks(request, cancelled))

    def save(self, path: Path) -> int:
        """See `Engine.save`. Nothing outside the directory given at loading, and nothing on macOS."""
        return self._slots.write(path) if self._server and path.parent == self._kept else 0

    def restore(self, path: Path) -> int:
        """See `Engine.restore`. A damaged file leaves the cache as it is."""
        return self._slots.read(path) if self._server and path.parent == self._kept else 0

    def close(self) -> None:
        """Free the weights and the cache."""
        self._server = None
        self._slots.close()

    def _chunks(self, request: dict[str, object], cancelled: threading.Event) -> Iterator[Chunk]:
        """Turn the blocking call with its callback into an iterator; ends early when it is cancelled or dropped."""
        found: SimpleQueue[Chunk | Exception | None] = SimpleQueue()
        dropped = threading.Event()

        def receive(event: object) -> bool:
            unwanted = cancelled.is_set() or dropped.is_set()
            if not unwanted:
                found.put(Chunk.model_validate(event))
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


def _constraint(grammar: CallGrammar) -> dict[str, object]:
    """Constrain a call from its opening on; the text before it is free and costs nothing."""
    return {
        "grammar": gbnf(grammar),
        "grammar_lazy": True,
        "grammar_triggers": [{"type": _PATTERN, "value": trigger(grammar)}],
    }


# --- models --------------------------------------------------------------------------------------------------------


def build_named(
    name: str,
    adapter: Path | None,
    *,
    cache_dir: Path,
    on_progress: Progress,
    options: EngineOptions = _DEFAULTS,
    bare: bool = False,
) -> "LocalModel":
    """A model that comes as a package, with the user's adapter or the one that is shipped for it, or `bare` of both."""
    model = entry(name)
    chosen = None if bare else adapter or shipped_adapter(name)
    files = partial(embedded_files, cache_dir, adapter=chosen, on_progress=on_progress)
    label = adapter.name if adapter else "punie"
    title = f"{name}+{label}@{adapter_hash(chosen)}" if chosen else name
    return _model(
        files, name=title, cache_dir=cache_dir, options=options, context_window=model.context_window, compact=True
    )


def build(
    path: str, adapter: Path | None, *, cache_dir: Path, on_progress: Progress, options: EngineOptions = _DEFAULTS
) -> "LocalModel":
    """A GGUF file, with an adapter merged into it or alone."""
    gguf = Path(path).expanduser()
    files = partial(gguf_files, gguf, adapter=adapter, cache_dir=cache_dir, on_progress=on_progress)
    name = f"{gguf.stem}+{adapter.name}@{adapter_hash(adapter)}" if adapter else gguf.stem
    return _model(files, name=name, cache_dir=cache_dir, options=options)


def _model(
    files: Callable[[], ModelFiles],
    *,
    name: str,
    cache_dir: Path,
    options: EngineOptions,
    context_window: int | None = None,
    compact: bool = False,
) -> "LocalModel":
    load = partial(_load, files, cache_dir=cache_dir, compact=compact, options=options)
    return begin(load, name=name, context_window=context_window, compact=compact, options=options)


def _load(files: Callable[[], ModelFiles], *, cache_dir: Path, compact: bool, options: EngineOptions) -> Loaded:
    started = time.monotonic()
    found = files()
    context = min(found.context_window, options.context or LARGEST_WINDOW)
    plan = require(found.weights, context=context, options=options)
    wire = Wire.load(found.tokenizer, template=found.template, view=View() if compact else WHOLE)
    prefixes = prefixes_of(
        cache_dir,
        found.weights,
        options=options,
        engine=f"llama.cpp {version()}",
        bytes_per_token=plan.cache_per_token,
    )
    kept = prefixes.directory if prefixes else None
    engine = LlamaCpp(found.weights, context_window=context, options=options, kept=kept)
    return Loaded(engine, wire, load_s=time.monotonic() - started, prefixes=prefixes)
