"""The attention cache of one conversation in MLX: cut back to what two prompts share, quantised, saved and restored."""

import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from mlx.utils import tree_flatten, tree_unflatten

from punie.backends import _files
from punie.backends._mlx import mx

_GROUPS = (64, 32)
"""Numbers that share a scale in a quantised cache; a head must be a multiple of it."""
_FORMAT = "punie-kv-1"
_SAMPLE = 64
"""Numbers of each weight that tell models apart."""
_UNREADABLE = (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, OSError)
"""What MLX raises for files that are cut off, of another kind or of another layout."""


class PromptCache:
    """Keys and values of the tokens read so far."""

    def __init__(self, model: Any, *, bits: int | None = None, quantise_after: int = 0) -> None:
        """`bits`: of the cache once it has `quantise_after` tokens; None keeps it exact."""
        self.layers: list[Any] = []
        self.tokens: tuple[int, ...] = ()
        """What the cache holds, as far as `settle` was told."""
        self._model: Any = model
        self._bits = bits
        self._after = quantise_after
        self._fingerprint = ""

    @property
    def offset(self) -> int:
        """Tokens in the cache."""
        return self.layers[0].offset

    def reuse(self, prompt: Sequence[int]) -> int:
        """Cut the cache back to what it has in common with the prompt; returns how many tokens that is."""
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        # At least one token must be read to say something.
        pairs = zip(self.tokens, prompt[:-1], strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(prompt) - 1))
        surplus = len(self.tokens) - common
        if self.layers and trim_prompt_cache(self.layers, surplus) == surplus:
            self.tokens = self.tokens[:common]
            return common
        self.layers, self.tokens = make_prompt_cache(self._model), ()
        return 0

    def settle(self, tokens: Sequence[int]) -> None:
        """Note which tokens the cache holds: the first ones of these; what was read beyond them is cut off."""
        if not self.layers or not all(hasattr(layer, "offset") for layer in self.layers):
            self.clear()  # a kind of cache that cannot be cut back
            return
        surplus = self.offset - len(tokens)
        if surplus > 0 and self.trim(surplus) != surplus:
            self.clear()
            return
        self.tokens = tuple(tokens[: self.offset])

    def clear(self) -> None:
        """Forget everything."""
        self.layers, self.tokens = [], ()

    def close(self) -> None:
        """Let go of the model as well; the cache cannot be used afterwards."""
        self.clear()
        self._model = None

    def can_trim(self) -> bool:
        """Whether tokens that were read can be taken out again."""
        from mlx_lm.models.cache import can_trim_prompt_cache

        return can_trim_prompt_cache(self.layers)

    def trim(self, count: int) -> int:
        """Take the last tokens out; returns how many."""
        from mlx_lm.models.cache import trim_prompt_cache

        trimmed: Any = trim_prompt_cache(self.layers, count) if count else 0  # the library's annotation is wrong
        return trimmed

    def room(self) -> int | None:
        """Tokens until the cache is quantised, None for no limit. A step must not go beyond: it would differ."""
        if self._bits is None or self.offset >= self._after:
            return None
        return self._after - self.offset

    def quantise(self) -> None:
        """Quantise the layers that are exact, if it is time."""
        if self._bits is None or not hasattr(self.layers[0], "offset") or self.offset < self._after:
            return
        for i, layer in enumerate(self.layers):
            group = _group(layer) if hasattr(layer, "to_quantized") else None
            if group:
                self.layers[i] = layer.to_quantized(group_size=group, bits=self._bits)

    def save(self, path: Path) -> int:
        """See `Engine.save`. Only caches that can be cut to their length are kept."""
        if not self.tokens or not _is_plain(self.layers):
            return 0
        arrays = dict(tree_flatten([layer.keys_and_values() for layer in self.layers]))
        described = {
            "format": _FORMAT,
            "model": self._model_fingerprint(),
            "tokens": ",".join(map(str, self.tokens)),
            "bits": ",".join(f"{_bits(layer)}/{getattr(layer, 'group_size', 0)}" for layer in self.layers),
            "sum": str(_checksum(arrays)),
        }
        try:
            with _files.replacing(path) as part, part.open("wb") as file:
                mx.save_safetensors(cast("Any", file), arrays, described)
        except (OSError, RuntimeError):
            return 0  # a full disk costs time later, nothing else
        return len(self.tokens)

    def restore(self, path: Path) -> int:
        """See `Engine.restore`. What cannot be used leaves the cache as it was."""
        try:
            layers, tokens = self._read(path)
        except _UNREADABLE:
            return 0
        self.layers, self.tokens = layers, tokens
        return len(tokens)

    def _read(self, path: Path) -> tuple[list[Any], tuple[int, ...]]:
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, described = loaded
        tokens = tuple(map(int, described["tokens"].split(",")))
        if (described["format"], described["model"]) != (_FORMAT, self._model_fingerprint()):
            raise ValueError("it is of another model")
        if any(array.shape[-2] != len(tokens) for array in arrays.values()):
            raise ValueError("it has another length")
        if str(_checksum(arrays)) != described["sum"]:
            raise ValueError("it is damaged")
        kinds = [tuple(map(int, kind.split("/"))) for kind in described["bits"].split(",")]
        if any(bits not in {0, self._bits} for bits, _ in kinds):
            raise ValueError("it has other bits")
        states = tree_unflatten(list(arrays.items()))
        return [_layer(state, kind, len(tokens)) for state, kind in zip(states, kinds, strict=True)], tokens

    def _model_fingerprint(self) -> str:
        self._fingerprint = self._fingerprint or fingerprint(self._model)
        return self._fingerprint


def fingerprint(model: Any) -> str:
    """A hash of a sample of every weight: a fused adapter, other bits or another model give another one."""
    found = blake2b(digest_size=16)
    weights: Mapping[str, mx.array] = dict(tree_flatten(model.parameters()))
    for name, weight in weights.items():
        found.update(f"{name}{weight.shape}{weight.dtype}".encode())
        found.update(_bytes(weight.reshape(-1)[:_SAMPLE]))
    return found.hexdigest()


def _is_plain(layers: Sequence[Any]) -> bool:
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    return bool(layers) and all(type(layer) in {KVCache, QuantizedKVCache} for layer in layers)


def _layer(state: Any, kind: tuple[int, ...], length: int) -> Any:
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    bits, group = kind
    if not bits:
        return KVCache.from_state((*state, length))
    return QuantizedKVCache.from_state((*state, length, group, bits))


def _bits(layer: Any) -> int:
    """Of a number in this layer; 0 for an exact one."""
    return getattr(layer, "bits", 0)


def _checksum(arrays: Mapping[str, mx.array]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(_bytes(arrays[name]), total)
    return total


def _bytes(numbers: mx.array) -> memoryview:
    plain: Any = mx.contiguous(numbers).view(mx.uint8)
    return memoryview(plain)


def _group(layer: Any) -> int | None:
    """The largest group that divides the heads, None where the layer must stay exact."""
    widths = (layer.keys.shape[-1], layer.values.shape[-1])
    return next((group for group in _GROUPS if not any(width % group for width in widths)), None)
