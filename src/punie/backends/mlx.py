"""MLX in this process: the engine on Apple silicon, and on any machine the one that training uses."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punie.backends._engine import CallGrammar, Finish, Loaded, Piece, Worker
from punie.backends._files import Progress
from punie.backends._memory import require
from punie.backends._mlx_files import ModelFiles, directory_files, embedded_files
from punie.backends._weights import adapter_hash, shipped_adapter
from punie.backends.catalogue import entry
from punie.errors import ContextTooLong, ModelError
from punie.local_models import EngineOptions
from punie.wire import WHOLE, View, Wire

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from punie.backends._local import LocalModel

_BATCH = 256
"""Prompt tokens between two looks at `cancelled`."""
_DEFAULTS = EngineOptions()
_LARGEST_WINDOW = 32_768
"""Tokens of context at most: the cache for 200,000 tokens of a large model would not fit most machines."""


class Mlx:
    """One MLX model. See `punie.backends._engine.Engine`."""

    name = "mlx"

    def __init__(
        self, path: Path, tokenizer: "Tokenizer", *, context_window: int, end: frozenset[int], adapter: Path | None
    ) -> None:
        from punie.backends import _mlx, _mlx_model  # an extra, and slow to import

        _mlx.require_blas()
        self.context_window = context_window
        self._model: Any = _mlx_model.load(path, adapter=adapter)
        self._tokenizer = tokenizer
        self._end = end
        self._cache: list[Any] = []
        self._cached: tuple[int, ...] = ()

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
        self._refuse(prompt)
        kept = self._keep_common(prompt)
        tokens = self._continue(
            prompt[kept:], max_tokens=max_tokens, sampler=_sampler(temperature, seed), cancelled=cancelled
        )
        said: list[int] = []
        text = StopText(self._tokenizer, stop)
        finish: Finish = "length"
        delta = ""
        started, decoding_since = time.monotonic(), None
        try:
            for token in tokens:
                decoding_since = decoding_since or time.monotonic()
                said.append(token)
                delta = "" if token in self._end else text.feed(token)
                if token in self._end or text.stopped:
                    finish = "stop"
                    break
                yield Piece(delta, token_count=1)
            else:
                finish = "cancelled" if cancelled.is_set() else "length"
        finally:
            tokens.close()
            self._remember(prompt, said)
        ended = time.monotonic()
        decoding_since = decoding_since or ended
        yield Piece(
            delta if text.stopped else text.rest(),
            token_count=int(finish == "stop"),
            finish=finish,
            prompt_tokens=len(prompt),
            cached_tokens=kept,
            prefill_s=decoding_since - started,
            decode_s=ended - decoding_since,
        )

    def save(self, path: Path) -> int:
        """Keep nothing: see `Engine.save`."""
        return 0

    def restore(self, path: Path) -> int:
        """Take up nothing: see `Engine.restore`."""
        return 0

    def close(self) -> None:
        """Free the weights and the cache."""
        from punie.backends._mlx import mx

        self._model, self._cache, self._cached = None, [], ()
        mx.clear_cache()

    def _refuse(self, prompt: Sequence[int]) -> None:
        if self._model is None:
            raise ModelError("MLX failed: the model is closed.")
        if len(prompt) >= self.context_window:
            raise ContextTooLong(
                f"The conversation has {len(prompt)} tokens; the model takes {self.context_window}.",
                "Start a new session.",
            )
        if not all(0 <= token < self._model.args.vocab_size for token in prompt):
            raise ModelError("MLX refused the request: it has invalid tokens.")

    def _keep_common(self, prompt: Sequence[int]) -> int:
        """Cut the cache back to what it has in common with the prompt; returns how many tokens that is."""
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        # At least one token must be read to say something.
        pairs = zip(self._cached, prompt[:-1], strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._cached), len(prompt) - 1))
        surplus = len(self._cached) - common
        if self._cache and trim_prompt_cache(self._cache, surplus) == surplus:
            self._cached = self._cached[:common]
            return common
        self._cache, self._cached = make_prompt_cache(self._model), ()
        return 0

    def _continue(
        self, prompt: Sequence[int], *, max_tokens: int, sampler: Callable[..., Any], cancelled: threading.Event
    ) -> Generator[int]:
        """Yield tokens; ends early when cancelled, before the next batch of the prompt or the next token."""
        from mlx_lm.generate import generate_step

        from punie.backends._mlx import mx

        def look(done: int, total: int) -> None:
            if cancelled.is_set():
                raise _Cancelled

        steps = generate_step(
            mx.array(list(prompt), dtype=mx.uint32),
            self._model,
            max_tokens=max_tokens,
            sampler=sampler,
            prompt_cache=self._cache,
            prefill_step_size=_BATCH,
            prompt_progress_callback=look,
        )
        try:
            for token, _ in steps:
                if cancelled.is_set():
                    return
                yield int(token)
        except _Cancelled:
            return
        finally:
            steps.close()

    def _remember(self, prompt: Sequence[int], said: Sequence[int]) -> None:
        """Note which tokens the cache holds: a token that was said has been read when the next one was asked for."""
        if not all(hasattr(layer, "offset") for layer in self._cache):
            self._cache, self._cached = [], ()  # a kind of cache that cannot be cut back
            return
        self._cached = (*prompt, *said)[: self._cache[0].offset]


class _Cancelled(Exception):  # noqa: N818 - leaves the library's loop, never this module
    pass


def _sampler(temperature: float, seed: int) -> Callable[..., Any]:
    from mlx_lm.sample_utils import make_sampler

    from punie.backends._mlx import mx

    mx.random.seed(seed)
    return make_sampler(temp=temperature)


class StopText:
    """Tokens to text, up to the first stop string; a possible beginning of one is held back."""

    def __init__(self, tokenizer: "Tokenizer", stop: Sequence[str]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Return the text that is certain now."""
        text = self._held + (self._decoder.step(self._tokenizer, token) or "")
        ends = [at for s in self._stop if (at := text.find(s)) >= 0]
        self.stopped = bool(ends)
        keep = 0 if ends else max((_overlap(text, s) for s in self._stop), default=0)
        cut = min(ends, default=len(text) - keep)
        self._held = "" if ends else text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


# --- models --------------------------------------------------------------------------------------------------------


def build_named(
    name: str, adapter: Path | None, *, cache_dir: Path, on_progress: Progress, options: EngineOptions = _DEFAULTS
) -> "LocalModel":
    """A model that comes as a package, with the user's adapter or with the one that is shipped for it."""
    model = entry(name)
    chosen = adapter or shipped_adapter(name)
    files = partial(embedded_files, cache_dir, on_progress=on_progress)
    label = adapter.name if adapter else "punie"
    title = f"{name}+{label}@{adapter_hash(chosen)}" if chosen else name
    window = model.context_window
    return _model(files, name=title, adapter=chosen, options=options, context_window=window, compact=True)


def build(
    path: str, adapter: Path | None, *, cache_dir: Path, on_progress: Progress, options: EngineOptions = _DEFAULTS
) -> "LocalModel":
    """An MLX model directory, or the name of one on the model hub, with an adapter or without."""
    del cache_dir, on_progress  # the hub's own library keeps what it fetches in its own place
    stem = Path(path).name
    name = f"{stem}+{adapter.name}@{adapter_hash(adapter)}" if adapter else stem
    return _model(partial(directory_files, path), name=name, adapter=adapter, options=options)


def _model(
    files: Callable[[], ModelFiles],
    *,
    name: str,
    adapter: Path | None,
    options: EngineOptions,
    context_window: int | None = None,
    compact: bool = False,
) -> "LocalModel":
    worker = Worker(f"punie-{name}")
    load = partial(_load, files, adapter=adapter, options=options, compact=compact)
    loading = worker.submit(load)
    from punie.backends._local import LocalModel  # its import takes longer than the loading it runs beside

    return LocalModel(load, name=name, context_window=context_window, compact=compact, worker=worker, loading=loading)


def _load(files: Callable[[], ModelFiles], *, adapter: Path | None, options: EngineOptions, compact: bool) -> Loaded:
    started = time.monotonic()
    found = files()
    context = min(found.context_window, options.context or _LARGEST_WINDOW)
    require(found.weights, context=context, options=options, adapter=adapter)
    wire = Wire.load(found.tokenizer, template=found.template_with(adapter), view=View() if compact else WHOLE)
    engine = Mlx(found.weights, wire.tokenizer, context_window=context, end=found.end, adapter=adapter)
    return Loaded(engine, wire, load_s=time.monotonic() - started)
