"""Which rows meet in which batch, for a whole run: decided before it starts, by rows, recipe and seed alone.

Nothing is drawn at random later on, so a run that was cut short continues with exactly the batches it would have had.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from punie.wire import Example
from punie_training.recipe import Recipe


@dataclass(frozen=True)
class Selection:
    """The rows a run learns from and looks at, and how many were left out for which reason."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    too_long: int
    nothing_to_learn: int


def select(rows: Sequence[Example], recipe: Recipe) -> Selection:
    """Leave out what cannot be learned from, then put the dev rows aside."""
    short = [row for row in rows if len(row.tokens) <= recipe.data.max_tokens]
    usable = [row for row in short if any(row.mask[1:])]
    order = np.random.default_rng([recipe.seed, 1]).permutation(len(usable))
    dev = frozenset(order[: min(recipe.eval.dev_rows, len(usable) // 2)].tolist())
    return Selection(
        train=tuple(row for i, row in enumerate(usable) if i not in dev),
        dev=tuple(usable[i] for i in sorted(dev)),
        too_long=len(rows) - len(short),
        nothing_to_learn=len(short) - len(usable),
    )


def shared_prefix(rows: Sequence[Example]) -> int:
    """Length of the tokens common to all rows, short of every position that predicts a learned token."""
    first, last = min(row.tokens for row in rows), max(row.tokens for row in rows)
    length = min(_common(first, last), *(_first_learned(row) - 1 for row in rows))
    if length < 1:
        raise ValueError("rows must begin with the same token, and learn nothing before their third one")
    return length


def beginnings(rows: Sequence[Example]) -> tuple[int, ...]:
    """For each row, how many tokens at its beginning all rows of its kind share; only one kind meets in a batch.

    There are two kinds where most rows share at least twice as much as all do: those, and the rest, such as rows whose
    tools go by other names.
    """
    whole = shared_prefix(rows)
    middle = sorted(row.tokens for row in rows)[len(rows) // 2]
    shared = [min(_common(row.tokens, middle), _first_learned(row) - 1) for row in rows]
    ranked = sorted(shared, reverse=True)
    count, length = max(enumerate(ranked, start=1), key=lambda each: each[0] * each[1])
    if length < 2 * whole or count < len(rows) / 2:
        return (whole,) * len(rows)
    rest = min(shared_prefix([row for row, own in zip(rows, shared, strict=True) if own < length]), length - 1)
    return tuple(length if own >= length else rest for own in shared)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _first_learned(row: Example) -> int:
    return next(i for i, weight in enumerate(row.mask) if weight)


def batches(
    rows: Sequence[Example], *, shared: Sequence[int], batch_tokens: int, order: Sequence[int], window: int = 256
) -> Iterator[list[int]]:
    """Rows of one kind and like length together, at most `batch_tokens` a batch; `shared`: their `beginnings`."""
    for start in range(0, len(order), window):
        together = sorted(order[start : start + window], key=lambda i: (shared[i], len(rows[i].tokens)))
        batch: list[int] = []
        for index in together:
            is_other = batch and shared[batch[0]] != shared[index]
            if is_other or (batch and computed([*batch, index], rows, shared=shared) > batch_tokens):
                yield batch
                batch = []
            batch.append(index)
        yield batch


def computed(batch: Sequence[int], rows: Sequence[Example], *, shared: Sequence[int]) -> int:
    """Tokens of a batch that pass through the network: what its rows share once, the rest padded to the longest."""
    prefix = shared[batch[0]]
    return prefix + len(batch) * (max(len(rows[i].tokens) for i in batch) - 1 - prefix)


def updates(
    rows: Sequence[Example], recipe: Recipe, *, shared: Sequence[int]
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Every update of the run, in order: the batches whose gradients are summed for it."""
    planned: list[tuple[tuple[int, ...], ...]] = []
    for epoch in range(recipe.optim.epochs):
        rng = np.random.default_rng([recipe.seed, 2, epoch])
        order = rng.permutation(len(rows)).tolist()
        made = list(
            batches(
                rows, shared=shared, batch_tokens=recipe.optim.batch_tokens, order=order, window=recipe.optim.window
            )
        )
        shuffled = [tuple(made[i]) for i in rng.permutation(len(made))]
        step = recipe.optim.accumulation
        planned += [tuple(shuffled[i : i + step]) for i in range(0, len(shuffled), step)]
    return tuple(planned)


def learning_rate(recipe: Recipe, *, update: int, total: int) -> float:
    """Rate of one update (counted from 0): a linear rise over the warm-up, then a cosine towards nothing."""
    warmup = min(recipe.optim.warmup, total - 1)
    if update < warmup:
        return recipe.optim.lr * (update + 1) / (warmup + 1)
    return recipe.optim.lr * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))
