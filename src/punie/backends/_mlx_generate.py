"""Generating with MLX: reading the prompt in batches, choosing tokens one by one, and several in one step if guessed.

Greedy text is the same with guesses and without: a guess is kept where the model, having read it, would have said it.
A step over several tokens rounds differently from one over a single token, so where two tokens are nearly equally good
the place is read again alone.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from punie.backends._grammar import Guide
from punie.backends._memory import BATCH
from punie.backends._mlx import mx
from punie.backends._mlx_cache import PromptCache
from punie.backends._speculation import Drafter, Pace

_NEARLY_EQUAL = {mx.float32: 1e-3, mx.float16: 0.05, mx.bfloat16: 0.25}
"""Differences of two logits that rounding may turn around, by the precision of the logits."""

Sample = Callable[[mx.array], Any]


def sampler(temperature: float, seed: int) -> Sample:
    """Chooses tokens by their logits, one for each row."""
    from mlx_lm.sample_utils import make_sampler

    mx.random.seed(seed)
    return make_sampler(temp=temperature)


class Steps:
    """Reads tokens into a cache and chooses the ones that follow. Made anew for each generation."""

    def __init__(
        self,
        read: Callable[..., Any],
        cache: PromptCache,
        *,
        sample: Sample,
        guide: Guide | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """`read`: the model. `drafter`: makes sense only where `sample` takes the best token."""
        self._model = read
        self._cache = cache
        self._sample = sample
        self._guide = guide
        self._drafter = drafter
        self._pace = Pace()
        self._was_forced = False
        self._ahead: mx.array | None = None
        """Logits behind the last token, where that was read before anybody knew which it is."""

    def tokens(self, unread: Sequence[int], *, most: int, cancelled: threading.Event) -> Generator[int]:
        """Read the rest of the prompt and yield at most `most` tokens; ends early, within a token, when cancelled."""
        self._prefill(unread[:-1], cancelled)
        last, left = unread[-1], most
        while left and not cancelled.is_set():
            for token in self._round(last, left=left):
                if cancelled.is_set():
                    return
                last, left = token, left - 1
                self._note(token)
                yield token

    def _prefill(self, tokens: Sequence[int], cancelled: threading.Event) -> None:
        while tokens and not cancelled.is_set():
            size = min(BATCH, self._cache.room() or BATCH)
            self._read(mx.array(list(tokens[:size])))
            mx.eval([layer.state for layer in self._cache.layers])
            mx.clear_cache()
            tokens = tokens[size:]

    def _round(self, last: int, *, left: int) -> Iterator[int]:
        guess = self._guess(left - 1)
        if guess:
            yield from self._checked(last, guess)
        else:
            yield self._next(last, more=left > 1)

    def _note(self, token: int) -> None:
        if self._guide:
            self._guide.feed(token)
        if self._drafter:
            self._drafter.add(token)

    def _next(self, last: int, *, more: bool) -> int:
        """The token behind `last`. With `more`, the step behind that one is begun as well."""
        logits = self._read(mx.array([last]))[-1] if self._ahead is None else self._ahead
        self._ahead = None
        if self._guide and self._guide.active:
            open_ones = mx.array(self._guide.allowed())
            return int(self._sample(mx.where(open_ones, logits, -mx.inf)[None]).item())
        token = self._sample(logits[None])
        if more:
            self._ahead = self._read(token)[-1]
            mx.async_eval(token, self._ahead)
        return int(token.item())

    def _checked(self, last: int, guess: Sequence[int]) -> Iterator[int]:
        """Yield what the model says behind `last`: the guess as far as it is right, and one token more."""
        if self._ahead is not None:
            token = self._next(last, more=False)
            yield token
            if token != guess[0] or len(guess) == 1:
                return
            last, guess = token, guess[1:]
        given = [last, *guess]
        rows = self._read(mx.array(given))
        for i, row in enumerate(np.array(rows.astype(mx.float32))):
            token = self._best(row, nearly=_NEARLY_EQUAL.get(rows.dtype, 0.0))
            if token is None:
                self._cache.trim(len(given) - i)
                yield self._next(given[i], more=False)
                return
            if i == len(guess) or token != guess[i]:
                self._cache.trim(len(guess) - i)
                self._learn(guessed=len(guess), right=i)
                yield token
                return
            yield token

    def _best(self, row: np.ndarray, *, nearly: float) -> int | None:
        """The best token that the grammar leaves open; None if another one is as good as it, but for rounding."""
        if self._guide and self._guide.active:
            row[~self._guide.allowed()] = -np.inf
        best = int(row.argmax())
        height, row[best] = row[best], -np.inf
        return best if height - row.max() > nearly else None

    def _guess(self, most: int) -> Sequence[int]:
        if self._drafter is None or most < 1 or not self._cache.can_trim():
            return ()
        room = self._cache.room()
        most = most if room is None else min(most, room - 1)
        forced = self._guide.forced() if self._guide and self._guide.active else ()
        self._was_forced = bool(forced)
        if forced:
            return forced[:most]
        most = min(most, self._pace.count())
        return self._drafter.guess(most) if most > 0 else ()

    def _learn(self, *, guessed: int, right: int) -> None:
        if not self._was_forced:
            self._pace.learn(guessed=guessed, right=right)

    def _read(self, tokens: mx.array) -> mx.array:
        """Read tokens into the cache; returns a row of logits for each, not yet computed."""
        logits = self._model(tokens[None], cache=self._cache.layers)[0]
        self._cache.quantise()
        return logits
