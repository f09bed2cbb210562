"""What a run will take, planned from rows and the numbers of the architecture before any weights are loaded.

Bytes at the peak are those of the weights, of what is trained, and of the largest batch. With `T` tokens computed in a
batch of `B` rows behind a prefix of `P` (`T = P + B S`), `n` learned tokens, a vocabulary of `V`, `L` blocks of width
`h` with a feed-forward part of width `i` and `H` heads:

    scores  = 4 H (P^2 + B S (P + S))                                 attention weights of one block
    kept    = L (4 T (7 h + 5 i) + 1.4 scores)                        or L 4 T 1.5 h where blocks are recomputed
    working = 4 T (3 h + 6 i) + 0.3 scores                            or 4 T (6 h + 17 i) + 4.1 scores
    logits  = 8 * 4 n V
    trained = 4 (matrices) (1 + 1 gradient + 2 moments of AdamW)      one more where gradients are accumulated

The factors were fitted to the peaks of small Qwen2 models at 4 bits. Every number counts as 4 bytes, also where
weights have 16 bits: attention and what LoRA adds are in float32 there too.
"""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from punie.agent.instructions import prompt
from punie.backends import _memory, _weights
from punie.backends._headers import gguf_header, safetensors_tensors
from punie.backends._memory import Shape, in_gb
from punie.backends._mlx import ON_GPU
from punie.backends.catalogue import EMBEDDED, Entry, entries
from punie.errors import NotEnoughMemory, UsageError, WeightsMissing
from punie.wire import Example
from punie_training import plan
from punie_training.examples import rendered, renderer_for
from punie_training.plan import shared_prefix
from punie_training.recipe import Lora, Recipe
from punie_training.served import Served, find_base, served

SEED_RATE = 101.0
"""Tokens a second of a 7B at 4 bits on an Apple machine: 151,512 trained tokens in 25 minutes (the seed's phase 4)."""
SEED = "18.5 GB at batch 2, 300 iterations, about 25 minutes, for 4-bit Qwen2.5-Coder-7B with mlx-lm's own trainer"
PROCESS = 400_000_000
"""Bytes of the interpreter and its libraries."""
_RECOMPUTING = 4 / 3
"""A forward pass more, beside one forward and one backward of twice its work."""
_NUMBER = 4
_TRIED = 128
"""Tokens by which smaller batches are tried."""
_HALF = frozenset({"F16", "BF16"})
_STAND_IN = """{{ '<|im_start|>system\\n' + messages[0].content }}
{{- '\\n\\n# Tools\\n\\nYou may call one or more functions.\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
{{- '\\n</tools>\\n\\nFor each call return a JSON object within tags:\\n<tool_call>\\n{"name": <function-name>, ' }}
{{- '"arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- for m in messages[1:] %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"""
"""As long as Qwen's template makes it, to count with where the weights are not here."""


@dataclass(frozen=True)
class Base:
    """The model of a run, as far as its files or the catalogue tell."""

    name: str
    shape: Shape
    weights: int
    """Bytes in memory while it is trained."""
    to_fetch: int
    """Bytes that are not on this disk yet."""
    counted_with: str
    """Whose tokenizer counted the rows."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, part by part. Planned, not measured."""

    weights: int
    trained: int
    kept: int
    working: int
    logits: int
    process: int = PROCESS

    @property
    def arrays(self) -> int:
        """Everything MLX holds at once: either the loss, or one block behind those before it, is computed."""
        return self.weights + self.trained + self.kept + max(self.working, self.logits)

    @property
    def total(self) -> int:
        """With the process around it."""
        return self.arrays + self.process


@dataclass(frozen=True)
class Forecast:
    """A run before it starts. Bytes, tokens, seconds."""

    base: Base
    rows: int
    dev_rows: int
    too_long: int
    nothing_to_learn: int
    updates: int
    prefix: int
    row_tokens: int
    """Over all epochs, each row from its beginning."""
    computed_tokens: int
    """Tokens that pass through the network: the prefix once a batch, padding included."""
    batch_tokens: int
    """Of the largest batch."""
    matrices: int
    """Trained numbers."""
    memory: Memory
    seconds: float
    rate: str
    """What the time was computed from."""
    disk: int
    """Bytes the run writes, and the weights if they have to be fetched."""


def forecast(
    recipe: Recipe, *, data: Path, cache_dir: Path, base: Path | None = None, tokens_per_second: float | None = None
) -> tuple[Forecast, tuple[Example, ...]]:
    """Plan the run, and return the rows it was planned for too.

    `tokens_per_second`: as `punie train run` prints it; without, the time is what the seed's rate makes of it.
    Raises UsageError for a base that is unknown, or where no row is left.
    """
    model, examples = _opened(recipe, data=data, cache_dir=cache_dir, base=base)
    return planned(recipe, examples, model, tokens_per_second=tokens_per_second), examples


def planned(
    recipe: Recipe, examples: Sequence[Example], base: Base, *, tokens_per_second: float | None = None
) -> Forecast:
    """Plan for rows that are tokenised. Raises UsageError where none is left to train on."""
    chosen = plan.select(examples, recipe)
    if not chosen.train:
        raise UsageError("No row is left to train on.", f"{len(examples)} were given; see [data] in the recipe.")
    shared = plan.beginnings(chosen.train)
    updates = plan.updates(chosen.train, recipe, shared=shared)
    sizes = [plan.computed(batch, chosen.train, shared=shared) for update in updates for batch in update]
    batches = [[chosen.train[i] for i in batch] for update in updates for batch in update]
    row_tokens = sum(len(row.tokens) for batch in batches for row in batch)
    matrices = trained_numbers(base.shape, recipe.lora)
    if tokens_per_second:
        seconds, rate = row_tokens / tokens_per_second, f"{tokens_per_second:g} tokens/s of the rows"
    else:
        seconds = sum(sizes) / SEED_RATE * (_RECOMPUTING if recipe.optim.recompute else 1)
        rate = f"the seed's {SEED_RATE:g} computed tokens/s of a 7B on an Apple machine"
    checkpoints = -(-len(updates) // recipe.eval.every)
    return Forecast(
        base=base,
        rows=len(chosen.train),
        dev_rows=len(chosen.dev),
        too_long=chosen.too_long,
        nothing_to_learn=chosen.nothing_to_learn,
        updates=len(updates),
        prefix=max(shared),
        row_tokens=row_tokens,
        computed_tokens=sum(sizes),
        batch_tokens=max(sizes),
        matrices=matrices,
        memory=max((memory(base, recipe, batch) for batch in batches), key=lambda each: each.total),
        seconds=seconds,
        rate=rate,
        disk=matrices * (3 * _NUMBER + 2 * (checkpoints + 1)) + base.to_fetch,
    )


# --- memory --------------------------------------------------------------------------------------------------------


def memory(base: Base, recipe: Recipe, batch: Sequence[Example]) -> Memory:
    """Bytes at the peak of one batch, by the formula of this module."""
    shape, prefix, rows = base.shape, shared_prefix(batch), len(batch)
    suffix = max(len(row.tokens) for row in batch) - 1 - prefix
    tokens, learned = prefix + rows * suffix, sum(1 for row in batch for weight in row.mask if weight)
    wide, inner = _NUMBER * tokens * shape.hidden, _NUMBER * tokens * shape.inner
    scores = _NUMBER * shape.heads * (prefix**2 + rows * suffix * (prefix + suffix))
    if recipe.optim.recompute:
        kept, working = 1.5 * wide, 6 * wide + 17 * inner + 4.1 * scores
    else:
        kept, working = 7 * wide + 5 * inner + 1.4 * scores, 3 * wide + 6 * inner + 0.3 * scores
    copies = 4 + (recipe.optim.accumulation > 1)
    return Memory(
        weights=base.weights,
        trained=_NUMBER * trained_numbers(shape, recipe.lora) * copies,
        kept=int(shape.layers * kept),
        working=int(working),
        logits=8 * _NUMBER * learned * shape.vocabulary,
    )


def trained_numbers(shape: Shape, lora: Lora) -> int:
    """How many numbers the adapter has."""
    across, keys = shape.heads * shape.key_size, shape.kv_heads // max(1, shape.layers) * shape.key_size
    sizes = {
        "q_proj": (shape.hidden, across),
        "k_proj": (shape.hidden, keys),
        "v_proj": (shape.hidden, keys),
        "o_proj": (across, shape.hidden),
        "gate_proj": (shape.hidden, shape.inner),
        "up_proj": (shape.hidden, shape.inner),
        "down_proj": (shape.inner, shape.hidden),
    }
    named = [sizes[key.rpartition(".")[2]] for key in lora.keys if key.rpartition(".")[2] in sizes]
    each = sum(lora.rank * (wide + out) + out * (lora.kind == "dora") for wide, out in named)
    return each * (shape.layers if lora.layers == "all" else min(lora.layers, shape.layers))


def refuse_over(limit: int, found: Forecast, recipe: Recipe, examples: Sequence[Example]) -> None:
    """Raise NotEnoughMemory that says what would fit, when the plan takes more than `limit` bytes."""
    if found.memory.total <= limit:
        return
    cause = f"The run is planned to take {in_gb(found.memory.total)}; {in_gb(limit)} can be had."
    least = found.memory.total
    for changed, said in _smaller(recipe, prefix=found.prefix):
        needed = _needed(changed, examples, found)
        least = min(least, needed)
        if needed <= limit:
            raise NotEnoughMemory(cause, f"What fits ({in_gb(needed)}): {said} in the recipe.")
    raise NotEnoughMemory(cause, f"No change of the recipe takes less than {in_gb(least)}: name a smaller base.")


def _smaller(recipe: Recipe, *, prefix: int) -> Iterator[tuple[Recipe, str]]:
    """The same run with less memory, the least change first, each with what has to be written."""
    if not recipe.optim.recompute:
        recipe = _with(recipe, recompute=True)
        yield recipe, "recompute = true under [optim]"
    for tokens in range(recipe.optim.batch_tokens - _TRIED, prefix, -_TRIED):
        said = f"batch_tokens = {tokens}" + ", recompute = true" * recipe.optim.recompute + " under [optim]"
        if tokens >= recipe.data.max_tokens:
            yield _with(recipe, batch_tokens=tokens), said
        else:
            data = recipe.data.model_copy(update={"max_tokens": tokens})
            shorter = _with(recipe, batch_tokens=tokens).model_copy(update={"data": data})
            yield shorter, f"max_tokens = {tokens} under [data], {said}"


def _with(recipe: Recipe, **changes: object) -> Recipe:
    return recipe.model_copy(update={"optim": recipe.optim.model_copy(update=changes)})


def _needed(recipe: Recipe, examples: Sequence[Example], found: Forecast) -> int:
    """Bytes of the changed run; those of the one found where it would have no row."""
    try:
        return planned(recipe, examples, found.base).memory.total
    except UsageError:
        return found.memory.total


# --- the base ------------------------------------------------------------------------------------------------------


def _opened(recipe: Recipe, *, data: Path, cache_dir: Path, base: Path | None) -> tuple[Base, tuple[Example, ...]]:
    """What is known of the base, and the rows as it would read them."""
    path = base or _here(recipe.base, cache_dir)
    if path is None:
        return _of_catalogue(entries()[recipe.base]), _stand_in(recipe, data=data, cache_dir=cache_dir)
    how = served(recipe.base, path)
    rows = rendered(recipe, renderer_for(path, template=how.template, view=how.view), how, data=data)
    shape = _memory.plan_for(path, context=1).shape
    return Base(recipe.base, shape, weight_bytes(path), to_fetch=0, counted_with=f"the tokenizer of {path.name}"), rows


def _here(name: str, cache_dir: Path) -> Path | None:
    """The weights; None for a model of the catalogue that the plan can be made without."""
    try:
        return find_base(name, cache_dir=cache_dir)
    except WeightsMissing:
        if name != EMBEDDED and entries()[name].config:
            return None
        raise


def _of_catalogue(model: Entry) -> Base:
    shape = _memory.shape_of(model.config)
    size = model.mlx_size_bytes
    return Base(model.name, shape, size, to_fetch=size, counted_with="the embedded model's tokenizer: an estimate")


def _stand_in(recipe: Recipe, *, data: Path, cache_dir: Path) -> tuple[Example, ...]:
    how = Served(_STAND_IN, system=prompt("system"))
    tokenizer = _weights.ensure_base(cache_dir)
    return rendered(recipe, renderer_for(tokenizer, template=how.template, view=how.view), how, data=data)


def weight_bytes(path: Path) -> int:
    """Bytes in memory of a GGUF file or an MLX directory that is trained here.

    GGUF files become matrices of 16 bits, of 32 on a CPU; there what an MLX directory has in 16 bits is widened too.
    """
    if not path.is_dir():
        shapes = [tensor.shape for tensor in gguf_header(path).tensors.values()]
        return sum(math.prod(shape) for shape in shapes) * (2 if ON_GPU else 4)
    tensors = [t for file in sorted(path.glob("model*.safetensors")) for t in safetensors_tensors(file).values()]
    return sum(t.size_bytes * (2 if t.kind in _HALF and not ON_GPU else 1) for t in tensors)


def rate_of(run: Path) -> float:
    """Tokens a second of an earlier run, the median of its updates. Raises UsageError where none is noted."""
    log = run / "train.log"
    found = [float(text) for text in re.findall(r" (\d+) tok/s ", log.read_text("utf-8"))] if log.is_file() else []
    if not any(found):
        raise UsageError(f"{log} tells no tokens/s.", "Name the directory of a run, or give --tokens-per-second.")
    return statistics.median(found)
