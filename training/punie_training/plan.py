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


def batches(
    rows: Sequence[Example], *, prefix: int, batch_tokens: int, order: Sequence[int], window: int = 256
) -> Iterator[list[int]]:
    """Rows of like length together, at most `batch_tokens` a batch, the shared prefix counted once."""
    for start in range(0, len(order), window):
        together = sorted(order[start : start + window], key=lambda i: len(rows[i].tokens))
        batch: list[int] = []
        for index in together:
            width = len(rows[index].tokens) - 1 - prefix
            if batch and prefix + (len(batch) + 1) * width > batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        yield batch


def updates(rows: Sequence[Example], recipe: Recipe, *, prefix: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Every update of the run, in order: the batches whose gradients are summed for it."""
    planned: list[tuple[tuple[int, ...], ...]] = []
    for epoch in range(recipe.optim.epochs):
        rng = np.random.default_rng([recipe.seed, 2, epoch])
        order = rng.permutation(len(rows)).tolist()
        made = list(
            batches(
                rows, prefix=prefix, batch_tokens=recipe.optim.batch_tokens, order=order, window=recipe.optim.window
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
