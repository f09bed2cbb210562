"""MLX in this process: the engine on Apple silicon, and on any machine the one that training uses."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punie.backends._engine import CallGrammar, Finish, Loaded, Piece
from punie.backends._files import Progress
from punie.backends._grammar import Grammars
from punie.backends._memory import LARGEST_WINDOW, require
from punie.backends._mlx_files import ModelFiles, directory_files, embedded_files
from punie.backends._prefixes import prefixes_of
from punie.backends._runtime import begin
from punie.backends._speculation import Drafter, InTurn, Repeats
from punie.backends._weights import adapter_hash, shipped_adapter
from punie.backends.catalogue import entry
from punie.errors import ConfigError, ContextTooLong, ModelError
from punie.local_models import EngineOptions
from punie.wire import WHOLE, View, Wire

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from punie.backends._local import LocalModel
    from punie.backends._mlx_generate import Steps

_DEFAULTS = EngineOptions()


class Mlx:
    """One MLX model. See `punie.backends._engine.Engine`."""

    name = "mlx"

    def __init__(
        self,
        path: Path,
        tokenizer: "Tokenizer",
        *,
        context_window: int,
        end: frozenset[int],
        adapter: Path | None,
        options: EngineOptions = _DEFAULTS,
    ) -> None:
        from punie.backends import _mlx, _mlx_model  # an extra, and slow to import
        from punie.backends._mlx_cache import PromptCache

        _mlx.require()
        self.context_window = context_window
        self._model: Any = _mlx_model.load(path, adapter=adapter)
        self._tokenizer = tokenizer
        self._end = end
        self._cache = PromptCache(self._model, bits=options.kv_bits, quantise_after=options.kv_quantize_after)
        self._grammars = Grammars(tokenizer, end=end, width=self._model.args.vocab_size)
        self._drafter: Drafter = Repeats()
        if options.draft:
            self._drafter = InTurn((Repeats(), _draft_model(options.draft, tokenizer)))

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
        kept = self._cache.reuse(prompt)
        steps = self._steps(prompt, temperature=temperature, seed=seed, grammar=grammar, speculate=speculate)
        tokens = steps.tokens(prompt[kept:], most=max_tokens, cancelled=cancelled)
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
        except RuntimeError as error:  # whatever MLX raises, also where memory runs out
            self._cache.clear()
            raise ModelError(f"MLX failed: {error}", "A smaller engine.context needs less memory.") from error
        finally:
            tokens.close()
            self._cache.settle((*prompt, *said))
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
        """See `Engine.save`: keys and values as MLX has them, with their tokens, in safetensors."""
        return self._cache.save(path)

    def restore(self, path: Path) -> int:
        """See `Engine.restore`: nothing but a whole cache of this very model is taken up."""
        return self._cache.restore(path)

    def close(self) -> None:
        """Free the weights and the cache."""
        from punie.backends._mlx import mx

        self._model, self._drafter = None, Repeats()
        self._cache.close()
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

    def _steps(
        self, prompt: Sequence[int], *, temperature: float, seed: int, grammar: CallGrammar | None, speculate: bool
    ) -> "Steps":
        from punie.backends._mlx_generate import Steps, sampler

        drafter = self._drafter if speculate and temperature == 0 else None
        if drafter:
            drafter.begin(prompt)
        guide = self._grammars.guide(grammar) if grammar and grammar.tools else None
        return Steps(self._model, self._cache, sample=sampler(temperature, seed), guide=guide, drafter=drafter)


def _draft_model(spec: str, tokenizer: "Tokenizer") -> Drafter:
    """The smaller model that guesses ahead. Raises ConfigError if it reads other tokens."""
    from tokenizers import Tokenizer

    from punie.backends._mlx_draft import DraftModel

    found = directory_files(spec)
    if Tokenizer.from_file(str(found.tokenizer)).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"engine.draft: {spec} does not have the vocabulary of the model.", "Take a smaller model of its family."
        )
    return DraftModel(found.weights)


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
    files = partial(embedded_files, cache_dir, on_progress=on_progress)
    label = adapter.name if adapter else "punie"
    title = f"{name}+{label}@{adapter_hash(chosen)}" if chosen else name
    window = model.context_window
    return _model(
        files,
        name=title,
        adapter=chosen,
        cache_dir=cache_dir,
        options=options,
        context_window=window,
        compact=True,
    )


def build(
    path: str, adapter: Path | None, *, cache_dir: Path, on_progress: Progress, options: EngineOptions = _DEFAULTS
) -> "LocalModel":
    """An MLX model directory, or the name of one on the model hub, with an adapter or without."""
    del on_progress  # the hub's own library keeps what it fetches in its own place
    stem = Path(path).name
    name = f"{stem}+{adapter.name}@{adapter_hash(adapter)}" if adapter else stem
    return _model(partial(directory_files, path), name=name, adapter=adapter, cache_dir=cache_dir, options=options)


def _model(
    files: Callable[[], ModelFiles],
    *,
    name: str,
    adapter: Path | None,
    cache_dir: Path,
    options: EngineOptions,
    context_window: int | None = None,
    compact: bool = False,
) -> "LocalModel":
    load = partial(_load, files, adapter=adapter, cache_dir=cache_dir, options=options, compact=compact)
    return begin(load, name=name, context_window=context_window, compact=compact, options=options)


def _load(
    files: Callable[[], ModelFiles], *, adapter: Path | None, cache_dir: Path, options: EngineOptions, compact: bool
) -> Loaded:
    started = time.monotonic()
    found = files()
    context = min(found.context_window, options.context or LARGEST_WINDOW)
    template = found.template_with(adapter)
    plan = require(found.weights, context=context, options=options, adapter=adapter)
    wire = Wire.load(found.tokenizer, template=template, view=View() if compact else WHOLE)
    engine = Mlx(found.weights, wire.tokenizer, context_window=context, end=found.end, adapter=adapter, options=options)
    kind = f"mlx {version('mlx')} {adapter_hash(adapter) if adapter else ''}"
    prefixes = prefixes_of(cache_dir, found.weights, options=options, engine=kind, bytes_per_token=plan.cache_per_token)
    return Loaded(engine, wire, load_s=time.monotonic() - started, prefixes=prefixes)
