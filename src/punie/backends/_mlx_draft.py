"""A smaller model that guesses ahead for a larger one of the same vocabulary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from punie.backends import _mlx_model
from punie.backends._memory import BATCH
from punie.backends._mlx import mx
from punie.backends._mlx_cache import PromptCache


class DraftModel:
    """See `punie.backends._speculation.Drafter`. Keeps a cache of its own."""

    def __init__(self, path: Path) -> None:
        self._model = _mlx_model.load(path)
        self._cache = PromptCache(self._model)
        self._tokens: list[int] = []

    def begin(self, tokens: Sequence[int]) -> None:
        """Take a new sequence; what the cache shares with it is kept."""
        self._tokens = list(tokens)

    def add(self, token: int) -> None:
        """The sequence has grown by a token."""
        self._tokens.append(token)

    def guess(self, count: int) -> Sequence[int]:
        """What this model would say, greedily."""
        unread = self._tokens[self._cache.reuse(self._tokens) :]
        while len(unread) > BATCH:
            self._model(mx.array(unread[:BATCH])[None], cache=self._cache.layers)
            mx.eval([layer.state for layer in self._cache.layers])
            unread = unread[BATCH:]
        said = [self._next(mx.array(unread))]
        for _ in range(count - 1):
            said.append(self._next(said[-1]))
        found: Any = mx.concatenate(said).tolist()
        self._cache.settle((*self._tokens, *found))
        return found

    def _next(self, tokens: mx.array) -> mx.array:
        return self._model(tokens[None], cache=self._cache.layers)[0, -1:].argmax(axis=-1)
