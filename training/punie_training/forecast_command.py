"""`punie train plan`: rows, memory, time and disk of a run, before any weights are loaded."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from punie_training.forecast import Forecast


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Give `punie train` this command."""
    parser = commands.add_parser("plan", help="say what a run will take, before any weights are loaded")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, default=Path("training/data/train.jsonl"), help="the rows")
    parser.add_argument("--base", type=Path, help="GGUF file or MLX directory; default: the recipe's")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--tokens-per-second", type=_positive, metavar="N", help="as `punie train run` prints it")
    rate.add_argument("--like", type=Path, metavar="RUN", help="an earlier run on this machine to take the speed from")
    parser.add_argument("--memory", metavar="SIZE", help="what may be taken, for example 24GB; default: what is free")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_plan)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("it must be more than 0")
    return number


def _plan(options: argparse.Namespace) -> int:
    from punie.backends._memory import available_bytes
    from punie_training import forecast  # needs MLX, which is an extra
    from punie_training._memory import parse_size
    from punie_training.recipe import Recipe

    recipe = Recipe.load(options.recipe)
    limit = parse_size(options.memory) if options.memory else available_bytes()
    rate = forecast.rate_of(options.like) if options.like else options.tokens_per_second
    found, examples = forecast.forecast(
        recipe, data=options.data, cache_dir=options.cache_dir, base=options.base, tokens_per_second=rate
    )
    printed = as_json(found, limit=limit) if options.json else "\n".join(lines(found, limit=limit))
    sys.stdout.write(printed + "\n")
    sys.stdout.flush()
    forecast.refuse_over(limit, found, recipe, examples)
    return 0


def as_json(found: "Forecast", *, limit: int) -> str:
    """Every figure: bytes, tokens, seconds."""
    totals = {"arrays": found.memory.arrays, "total": found.memory.total}
    values = {**asdict(found), "memory": {**asdict(found.memory), **totals}, "measured": False}
    return json.dumps({**values, "available": limit, "fits": found.memory.total <= limit}, indent=2)


def lines(found: "Forecast", *, limit: int) -> Iterator[str]:
    """The figures for people."""
    from punie.backends._memory import in_gb
    from punie_training.forecast import SEED

    memory, base = found.memory, found.base
    yield f"base     {base.name}" + (f", not here: `punie models pull {base.name}`" if base.to_fetch else "")
    yield (
        f"rows     {found.rows:,} in {found.updates:,} updates, {found.dev_rows} kept for the dev loss; left out: "
        f"{found.too_long:,} too long, {found.nothing_to_learn} with nothing to learn"
    )
    yield (
        f"tokens   {found.row_tokens:,} in the rows, {found.computed_tokens:,} computed: most begin with the same "
        f"{found.prefix:,}; counted with {base.counted_with}"
    )
    yield (
        f"memory   {in_gb(memory.total)}, planned, not measured, of {in_gb(limit)} that can be had: "
        f"{in_gb(memory.weights)} weights,\n         {in_gb(memory.trained)} for {found.matrices:,} trained numbers, "
        f"{in_gb(memory.kept + max(memory.working, memory.logits))} for {found.batch_tokens:,} tokens, "
        f"{in_gb(memory.process)} around it"
    )
    yield f"time     {_clock(found.seconds)}, from {found.rate}"
    yield f"disk     {in_gb(found.disk)}" + (f", of which {in_gb(base.to_fetch)} weights" if base.to_fetch else "")
    if base.name == "qwen2.5-coder-7b":
        yield f"the seed measured {SEED}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
