"""Trains a LoRA adapter in this process with MLX, on a CPU or an Apple GPU; can be stopped and resumed at any time."""

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

# MLX has to come after the BLAS that punie.backends._mlx loads for it.
from punie.backends._mlx import mx, optimizers, require_blas  # isort: skip
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_map

from punie.backends._adapters import refuse_other_base
from punie.backends._files import claimed
from punie.errors import ModelError, UsageError
from punie.wire import Example
from punie_training import plan
from punie_training._loss import collate, summed_loss
from punie_training._memory import Measured, keep_freed_memory, parse_size, peak_bytes
from punie_training._processes import ALONE, Processes, joined_or_started
from punie_training.adapter import add_lora, continue_from, save_adapter, weights
from punie_training.base import digest, load
from punie_training.checkpoint import Checkpoint, Point, fingerprint, storing
from punie_training.recipe import Recipe

_UPDATES_BETWEEN_STATES = 10


@dataclass(frozen=True)
class Forecast:
    """What a run will take, measured on its two largest batches before it starts."""

    updates: int
    rows: int
    dev_rows: int
    too_long: int
    nothing_to_learn: int
    prefix: int
    seconds: float
    memory: Measured


@dataclass(frozen=True)
class Step:
    """One update, as reported while training."""

    update: int
    total: int
    loss: float
    dev_loss: float | None
    learning_rate: float
    gradient_norm: float
    rows: int
    tokens_per_second: float
    """Tokens of the rows, as if each was computed from its beginning."""
    eta_s: float
    peak_bytes: int
    """The most memory that was held at once so far, all processes of the run together."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    adapter: Path
    checkpoints: tuple[Path, ...]
    history: tuple[Point, ...]
    forecast: Forecast
    peak_bytes: int
    """The most memory that was held at once, all processes of the run together."""


def train(
    recipe: Recipe,
    *,
    rows: Sequence[Example],
    base: Path,
    out: Path,
    template: str = "",
    resume: bool = False,
    memory: int | None = None,
    processes: Processes = ALONE,
    on_start: Callable[[Forecast], None] = lambda _: None,
    on_step: Callable[[Step], None] = lambda _: None,
) -> Result:
    """Train `recipe` on `rows` from `base` (a GGUF file or an MLX model directory), writing into `out`.

    `memory`: bytes that may be taken. Of several `processes` each gives the same arguments; the first one saves and
    calls back. Raises NotEnoughMemory when the largest batches take more, ModelError when the
    loss stops being a number, UsageError when `out` holds another run's state or another process trains there.
    """
    require_blas()
    keep_freed_memory()
    run = _Run(recipe, rows=rows, base=base, out=out, template=template, processes=processes)
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    with claimed(out) if processes.is_first else nullcontext():
        start = run.begin(resume=resume)
        forecast = run.forecast(start)
        if processes.is_first:
            on_start(forecast)
        if memory:
            forecast.memory.refuse_over(memory)
        for step in run.steps(start):
            if processes.is_first:
                on_step(step)
        peak = int(processes.summed(peak_bytes())[0])  # the others wait here until everything is stored
    return Result(out / "adapter", run.checkpoints(), tuple(run.history), forecast, peak)


class _Run:
    """The model, the optimizer and the plan of one run, and what has happened so far."""

    def __init__(
        self, recipe: Recipe, *, rows: Sequence[Example], base: Path, out: Path, template: str, processes: Processes
    ) -> None:
        self.recipe, self.out, self.template, self.processes = recipe, out, template, processes
        self.chosen = plan.select(rows, recipe)
        if not self.chosen.train:
            raise _nothing_left(rows, self.chosen, recipe)
        self.shared = plan.beginnings(self.chosen.train)
        self.updates = plan.updates(self.chosen.train, recipe, shared=self.shared)
        self.model = load(base)
        add_lora(self.model, recipe.lora, seed=recipe.seed)
        start = out.parent / recipe.start / "adapter" / "adapters.safetensors" if recipe.start else None
        if start:
            refuse_other_base(start.parent, base)
            continue_from(self.model, start)
        self.model.train()
        self.optimizer = optimizers.AdamW(
            learning_rate=recipe.optim.lr,
            betas=[0.9, recipe.optim.beta2],
            weight_decay=recipe.optim.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(self.model.trainable_parameters())
        self.history: list[Point] = []
        self.identity = {
            "recipe": recipe.hash,
            "data": fingerprint(self.chosen.train),
            "base": digest(base),
            "start": digest(start) if start else "",
        }
        self.noted = {"base_name": base.name, "template": hashlib.sha256(template.encode()).hexdigest()}
        self.checkpoint = Checkpoint(out / "state.safetensors", identity=self.identity)
        self._gradient = value_and_grad(
            self.model, lambda batch: summed_loss(self.model, batch, recompute=recipe.optim.recompute)
        )

    def begin(self, *, resume: bool) -> int:
        """Take up the state in `out`, or start a fresh one; returns the first update to do."""
        if self.checkpoint.path.exists() and not resume:
            raise UsageError(f"{self.out} holds a run already.", "Continue it with --resume, or choose another --out.")
        if self.checkpoint.path.exists():
            self.history = list(self.checkpoint.restore(self.model, self.optimizer))
        return len(self.history)

    def forecast(self, start: int) -> Forecast:
        """Measure time and memory on the two largest batches; changes nothing."""
        whole = [batch for update in self.updates[start:] for batch in update]
        left = [batch for update in self.updates[start:] for batch in self.processes.part(update)]
        largest = sorted(left, key=self._size)[-2:]
        mx.reset_peak_memory()
        before, seconds = mx.get_active_memory(), 0.0
        for batch in largest:  # the first one also takes the memory from the system, so the second one is timed
            began = time.perf_counter()
            mx.eval(self._gradient(collate([self.chosen.train[i] for i in batch])))
            seconds = time.perf_counter() - began
        total = sum(self._size(batch) for batch in left)
        seconds = seconds * total / max(1, self._size(largest[-1])) if largest else 0.0
        peak, growing = self.processes.summed(peak_bytes(), mx.get_peak_memory() - before)
        return Forecast(
            updates=len(self.updates),
            rows=len(self.chosen.train),
            dev_rows=len(self.chosen.dev),
            too_long=self.chosen.too_long,
            nothing_to_learn=self.chosen.nothing_to_learn,
            prefix=max(self.shared),
            seconds=self.processes.largest(seconds),
            memory=Measured(
                peak_bytes=int(peak),
                batch_bytes=int(growing),
                batch_tokens=max(map(self._size, whole), default=1),
                longest=max((self._size([row]) for batch in whole for row in batch), default=0),
                recompute=self.recipe.optim.recompute,
            ),
        )

    def steps(self, start: int) -> Iterator[Step]:
        """Do the updates from `start` on, saving on the way."""
        sizes = [sum(self._size(batch) for batch in update) for update in self.updates]
        began = time.perf_counter()
        for number in range(start, len(self.updates)):
            at = time.perf_counter()
            point, count = self._update(number)
            elapsed = time.perf_counter() - at
            self.history.append(point)
            if self.processes.is_first:
                with storing(self.out):
                    self._save(number)
            done, left = sum(sizes[start : number + 1]), sum(sizes[number + 1 :])
            yield Step(
                update=number + 1,
                total=len(self.updates),
                loss=point.loss,
                dev_loss=point.dev_loss,
                learning_rate=point.learning_rate,
                gradient_norm=point.gradient_norm,
                rows=count,
                tokens_per_second=point.tokens / elapsed,
                eta_s=(time.perf_counter() - began) * left / done,
                peak_bytes=int(self.processes.summed(peak_bytes())[0]),
            )

    def _update(self, number: int) -> tuple[Point, int]:
        total, gradients, learned = 0.0, None, 0.0
        for indices in self.processes.part(self.updates[number]):
            batch = collate([self.chosen.train[i] for i in indices])
            loss, gradient = self._gradient(batch)
            gradients = gradient if gradients is None else tree_map(mx.add, gradients, gradient)
            mx.eval(loss, gradients)
            total, learned = total + _number(loss), learned + _number(batch.weights.sum())
        if gradients is None:  # fewer rows than processes
            gradients = tree_map(mx.zeros_like, self.model.trainable_parameters())
        total, learned = self.processes.summed(total, learned)
        gradients, mean = self.processes.summed_gradients(gradients), total / learned
        norm = self._apply(gradients, learned=learned, number=number)
        if not math.isfinite(mean) or not math.isfinite(norm):
            raise ModelError(
                f"Update {number + 1}: the loss is {mean}, the gradient {norm}.",
                f"Lower `lr`, then resume from the state in {self.out}.",
            )
        rows = [self.chosen.train[i] for batch in self.updates[number] for i in batch]
        tokens = sum(len(row.tokens) for row in rows)
        rate = plan.learning_rate(self.recipe, update=number, total=len(self.updates))
        return Point(number + 1, mean, self._dev_loss(number), rate, norm, tokens), len(rows)

    def _apply(self, gradients: Any, *, learned: float, number: int) -> float:
        """Clip and step; a gradient that is not finite leaves the weights alone."""
        gradients = tree_map(lambda g: g / learned, gradients)
        clipped, norm = optimizers.clip_grad_norm(gradients, max_norm=self.recipe.optim.clip)
        length = _number(norm)
        if math.isfinite(length):
            self.optimizer.learning_rate = plan.learning_rate(self.recipe, update=number, total=len(self.updates))
            self.optimizer.update(self.model, clipped)
            mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return length

    def _dev_loss(self, number: int) -> float | None:
        if not self.chosen.dev or not self._is_checkpoint(number):
            return None
        shared, order = plan.beginnings(self.chosen.dev), range(len(self.chosen.dev))
        size = self.recipe.optim.batch_tokens
        batches = list(plan.batches(self.chosen.dev, shared=shared, batch_tokens=size, order=order))
        total, learned = 0.0, 0.0
        for indices in batches[self.processes.rank :: self.processes.size]:
            batch = collate([self.chosen.dev[i] for i in indices])
            total, learned = (
                total + _number(summed_loss(self.model, batch)),
                learned + _number(batch.weights.sum()),
            )
        total, learned = self.processes.summed(total, learned)
        return total / learned

    def _is_checkpoint(self, number: int) -> bool:
        return (number + 1) % self.recipe.eval.every == 0 or number + 1 == len(self.updates)

    def _save(self, number: int) -> None:
        last = number + 1 == len(self.updates)
        if self._is_checkpoint(number):
            self._save_adapter(self.out / "checkpoints" / f"{number + 1:06d}")
        if last:
            self._save_adapter(self.out / "adapter")
        if last or self._is_checkpoint(number) or (number + 1) % _UPDATES_BETWEEN_STATES == 0:
            self.checkpoint.save(self.model, self.optimizer, history=self.history)

    def _save_adapter(self, out: Path) -> None:
        manifest = {
            **self.identity,
            **self.noted,
            "name": out.name,
            "settings": self.recipe.model_dump(mode="json"),
            "update": len(self.history),
            "updates": len(self.updates),
            "loss": self.history[-1].loss,
            "dev_loss": self.history[-1].dev_loss,
            "rows": len(self.chosen.train),
        }
        save_adapter(weights(self.model), out, lora=self.recipe.lora, template=self.template, manifest=manifest)

    def _size(self, batch: Sequence[int]) -> int:
        return plan.computed(batch, self.chosen.train, shared=self.shared)

    def checkpoints(self) -> tuple[Path, ...]:
        """Every adapter saved so far, in order."""
        return tuple(sorted(path for path in (self.out / "checkpoints").iterdir() if path.name.isdigit()))


def _nothing_left(rows: Sequence[Example], chosen: plan.Selection, recipe: Recipe) -> UsageError:
    cause = f"No row is left to train on: of {len(rows)}, {chosen.too_long} are longer than {recipe.data.max_tokens} "
    cause += f"tokens, {chosen.nothing_to_learn} have nothing to learn."
    shortest = min((len(row.tokens) for row in rows), default=0)
    if chosen.too_long:
        return UsageError(cause, f"The shortest has {shortest} tokens; raise max_tokens under [data] in the recipe.")
    return UsageError(cause, "See what the rows are: punie train data check FILE")


def _number(value: mx.array) -> float:
    return cast("float", value.item())


def main(argv: Sequence[str]) -> int:
    """`punie train run RECIPE`: train a recipe on the rows of a data file."""
    parser = argparse.ArgumentParser(prog="punie train run")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, default=Path("training/data/train.jsonl"), help="the rows")
    parser.add_argument("--base", type=Path, help="GGUF file or MLX directory; default: the recipe's")
    parser.add_argument("--seed", type=int, help="in place of the recipe's; the run is called RECIPE-seedN then")
    parser.add_argument("--out", type=Path, help="where the run is kept; default: training/runs/RECIPE")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--memory", metavar="SIZE", help="refuse a run that would take more, for example 4GB")
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="train in N processes on this machine, each on its part of every batch (on several machines, start this "
        "command with mlx.launch instead); the first one saves, logs and shows",
    )
    options = parser.parse_args(argv)
    memory = parse_size(options.memory) if options.memory else None
    from punie_training.examples import prepare  # pydantic_ai is slow to import
    from punie_training.plot import write_curve
    from punie_training.progress import Progress

    recipe, name = Recipe.load(options.recipe), options.recipe.stem
    if options.seed is not None:
        recipe, name = recipe.model_copy(update={"seed": options.seed}), f"{name}-seed{options.seed}"
    out = options.out or Path("training/runs") / name
    processes = joined_or_started(argv, count=options.processes)
    if isinstance(processes, int):
        return processes
    prepared = prepare(recipe, data=options.data, base=options.base)
    run = partial(
        train,
        recipe,
        rows=prepared.examples,
        base=prepared.base,
        template=prepared.template,
        out=out,
        resume=options.resume,
        memory=memory,
        processes=processes,
    )
    if not processes.is_first:
        run()
        return 0
    with Progress(sys.stderr, log=out / "train.log") as progress:
        result = run(on_start=progress.start, on_step=progress.step)
        with storing(out):
            write_curve(result.history, out)
        progress.say(f"adapter in {result.adapter}, {len(result.checkpoints)} checkpoints beside it")
        progress.say(f"peak memory {result.peak_bytes / 1e9:.2f} GB")
    return 0
