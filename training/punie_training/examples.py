"""Rows of a data file as token ids: rendered by the same code, with the same tools, as when the model is served."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from punie import wire
from punie.backends import _gguf, _weights
from punie.errors import ConfigError
from punie_training.masking import masked
from punie_training.recipe import Data, Recipe
from punie_training.rows import Row, declarations, read
from punie_training.served import Served, find_base, served
from punie_training.views import pairs, viewed

__all__ = ["Prepared", "Row", "choose", "declarations", "example", "loss_weight", "prepare", "read", "renderer_for"]


@dataclass(frozen=True)
class Prepared:
    """Everything a run of the trainer needs besides its recipe."""

    examples: tuple[wire.Example, ...]
    base: Path
    template: str


def prepare(recipe: Recipe, *, data: Path, base: Path | None = None) -> Prepared:
    """Choose the rows the recipe asks for and tokenise them for its base model."""
    path = base or find_base(recipe.base, cache_dir=_weights.default_cache_dir())
    how = served(recipe.base, path)
    renderer = renderer_for(path, template=how.template, view=how.view)
    return Prepared(rendered(recipe, renderer, how, data=data), path, how.template)


def rendered(recipe: Recipe, renderer: wire.Wire, how: Served, *, data: Path) -> tuple[wire.Example, ...]:
    """The rows the recipe asks for as token ids, each with what it counts in the loss."""
    rows = choose(read(data), recipe.data, seed=recipe.seed)
    return tuple(_weighted(example(row, renderer, how), loss_weight(row, recipe.data)) for row in rows)


def example(row: Row, renderer: wire.Wire, how: Served | None = None) -> wire.Example:
    """The row as token ids with the loss on every assistant turn; by default with no system text but the template's."""
    turns = tuple(m.plain() for m in row.messages)
    return renderer.example(how.messages(turns) if how else turns, row.offered())


def loss_weight(row: Row, data: Data) -> float:
    """What the learned tokens of a row count in the loss."""
    return 1.0 if row.project else data.direct_weight


def _weighted(example: wire.Example, weight: float) -> wire.Example:
    return replace(example, mask=tuple(counts * weight for counts in example.mask))


def renderer_for(base: Path, *, template: str, view: wire.View | None = None) -> wire.Wire:
    """What turns conversations into token ids of a base model; by default with the embedded model's view of results."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json")) if base.is_dir() else _gguf.tokenizer(base)
    return wire.Wire(tokenizer, template=template, view=view or wire.View())


def choose(rows: Sequence[Row], data: Data, *, seed: int) -> tuple[Row, ...]:
    """Draw rows: the families and projects named, at most `rows` of them, in the shares and the view wanted."""
    drawn = _drawn(rows, data, seed=seed)
    seen = [viewed(row, trace=data.trace, answers=data.answers, copied=data.copied) for row in drawn]
    return masked(seen, data.mask_share, seed=seed)


def _drawn(rows: Sequence[Row], data: Data, *, seed: int) -> tuple[Row, ...]:
    shuffled = _of_sources(random.Random(seed).sample(list(rows), len(rows)), data.sources)
    direct = [row for row in shuffled if not row.project]
    asked = [row for row in shuffled if row.project and (not data.families or row.family in data.families)]
    if data.projects is not None:
        kept = sorted({row.project for row in asked})[: data.projects]
        asked = [row for row in asked if row.project in kept]
    first, counterparts = pairs(asked, direct, most=data.twins)
    asked, direct = _ahead(first, asked), _ahead(counterparts, direct)
    if data.direct_share is None:
        rest = asked[len(first) :] + direct[len(first) :]
        return (*chain(*zip(first, counterparts, strict=True)), *random.Random(seed + 1).sample(rest, len(rest)))[
            : data.rows
        ]
    total = min(data.rows, *_possible(len(asked), len(direct), share=data.direct_share))
    plain = round(total * data.direct_share)
    return (*asked[: total - plain], *direct[:plain])


def _of_sources(rows: Sequence[Row], wanted: Mapping[str, int]) -> Sequence[Row]:
    """The first rows of each source wanted. Raises ConfigError for a source that no row is from."""
    if not wanted:
        return rows
    known = Counter(row.origin for row in rows)
    for name in wanted:
        if name not in known:
            there = ", ".join(f"{source} ({count})" for source, count in known.most_common())
            raise ConfigError(f"No row is from the source {name}.", f"The data file has {there}.")
    taken = {row.id for name, most in wanted.items() for row in islice((r for r in rows if r.origin == name), most)}
    return [row for row in rows if row.id in taken]


def _ahead(first: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    taken = {row.id for row in first}
    return [*first, *(row for row in rows if row.id not in taken)]


def _possible(asked: int, direct: int, *, share: float) -> tuple[int, ...]:
    """Totals that the rows of either kind suffice for."""
    by_asked = (int(asked / (1 - share)),) if share < 1 else ()
    by_direct = (int(direct / share),) if share > 0 else ()
    return (*by_asked, *by_direct)
