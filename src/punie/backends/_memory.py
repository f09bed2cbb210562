"""What a model will take of memory, planned from its files before any of it is loaded, and the refusal if it is more.

An engine calls `require` just before it loads; `plan_for`, `available_bytes` and `refuse_if_too_big` are its parts.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from punie.backends._headers import Value, gguf_header, safetensors_tensors
from punie.backends.catalogue import entries
from punie.config import EngineOptions
from punie.errors import NotEnoughMemory, WeightsDamaged, WeightsMissing

LARGEST_WINDOW = 32_768
"""Tokens of context at most: the cache for 200,000 tokens of a large model would not fit most machines."""
BATCH = 256
"""Prompt tokens both engines read at once."""
_KEPT_FREE = 0.05
"""Share of what is available that the system keeps."""
_SMALLEST_CONTEXT = 2048
_CACHE_BITS = {"F32": 32, "F64": 64}
"""Of MLX's cache, which has the precision of the weights that are not quantised; 16 for every other one."""
_SCALE_BITS = 0.5
"""A scale (and bias) for each group of a quantised cache, spread over its numbers: 8 bits take 8.5."""
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Shape:
    """The numbers of an architecture that memory depends on. Zero: the files do not say."""

    layers: int = 0
    kv_heads: int = 0
    """Over all layers together: some kinds have none in some of them."""
    heads: int = 0
    key_size: int = 0
    value_size: int = 0
    hidden: int = 0
    inner: int = 0
    """Of the feed-forward part one token goes through: of a mixture of experts only the experts that are active."""
    vocabulary: int = 0
    context: int = 0
    """Tokens the model was trained to see at once."""


@dataclass(frozen=True)
class Plan:
    """Bytes that a model takes once it is loaded and its context is full."""

    weights: int
    """With the adapter. Of a mixture of experts all of them: each token chooses other ones."""
    cache: int
    scratch: int
    """What one batch of the prompt needs while it is read."""
    context: int
    cache_per_token: float
    shape: Shape
    cache_bits: float

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.cache + self.scratch

    @property
    def parts(self) -> str:
        """`4.3 GB weights, 1.9 GB cache for 32,768 tokens, 0.2 GB work`."""
        cache = f"{in_gb(self.cache)} cache for {self.context:,} tokens"
        return f"{in_gb(self.weights)} weights, {cache}, {in_gb(self.scratch)} work"

    def at(self, context: int) -> "Plan":
        """The same model with another context."""
        return replace(self, context=context, cache=int(self.cache_per_token * context))

    def quantised(self, bits: int) -> "Plan":
        """The same model with a quantised cache."""
        per_token = self.cache_per_token * (bits + _SCALE_BITS) / self.cache_bits
        return replace(
            self, cache_per_token=per_token, cache=int(per_token * self.context), cache_bits=bits + _SCALE_BITS
        )


def plan_for(
    path: Path,
    *,
    context: int,
    kv_bits: int | None = None,
    adapter: Path | None = None,
    quantise_after: int = 0,
) -> Plan:
    """Plan for an MLX directory or a GGUF file (the first one of a split file), reading headers only.

    `context`: tokens of prompt and answer the engine will be given. `kv_bits`: as in EngineOptions, from the token
    `quantise_after` on. `adapter`: one that stays beside the weights; for one that was merged pass the merged file
    alone. Raises WeightsMissing or WeightsDamaged (also for files that are cut off).
    """
    weights, shape, bits = _directory(path) if path.is_dir() else _gguf(path)
    scratch = _scratch(shape)
    if path.is_dir() and sys.platform != "darwin":
        # On a CPU MLX writes out how much every token of the batch looks at every other one.
        scratch += BATCH * context * shape.heads * 4
    per_token = shape.kv_heads * (shape.key_size + shape.value_size) * bits / 8
    plan = Plan(
        weights + _adapter_bytes(adapter),
        cache=int(per_token * context),
        scratch=scratch,
        context=context,
        cache_per_token=per_token,
        shape=shape,
        cache_bits=bits,
    )
    if not kv_bits or context <= quantise_after:
        return plan
    # Until the first token that is quantised everything before it is there in full.
    quantised = plan.quantised(kv_bits)
    return replace(quantised, cache=max(quantised.cache, plan.at(quantise_after).cache))


def require(path: Path, *, context: int, options: EngineOptions, adapter: Path | None = None, name: str = "") -> Plan:
    """Plan for this path and refuse what does not fit: the one call of an engine before it loads.

    Raises NotEnoughMemory, WeightsMissing or WeightsDamaged.
    """
    after = options.kv_quantize_after
    plan = plan_for(path, context=context, kv_bits=options.kv_bits, adapter=adapter, quantise_after=after)
    available, title = available_bytes(options.memory_gb), name or path.name
    draft = Path(options.draft).expanduser() if options.draft else None
    if draft and draft.exists():  # the engine says so when it does not
        available -= plan_for(draft, context=context).total
        title = f"{title} beside its draft model"
    refuse_if_too_big(plan, available, name=title)
    return plan


def refuse_if_too_big(plan: Plan, available: int, *, name: str = "The model") -> None:
    """Raise NotEnoughMemory, saying what would fit, when the plan takes more than `available` bytes."""
    if plan.total <= available:
        return
    raise NotEnoughMemory(
        f"{name} needs {in_gb(plan.total)} of memory ({plan.parts}); {in_gb(available)} can be had.",
        f"What fits: {', or '.join(what_fits(plan, available))}.",
    )


def what_fits(plan: Plan, available: int) -> Iterator[str]:
    """Ways to stay below `available`, the one that costs least first; what never fits is not told."""
    for bits in (8, 4):
        if plan.cache_bits > bits + 1 and plan.quantised(bits).total <= available:
            yield f"engine.kv_bits = {bits}"
            break
    context = largest_context(plan, available)
    if context >= _SMALLEST_CONTEXT:
        yield f"engine.context = {context}"
    small = [entry for entry in entries().values() if entry.memory_bytes <= min(available, plan.total - 1)]
    if small:
        yield f"--model local:{max(small, key=lambda entry: entry.memory_bytes).name}"
    yield "a model on a server (--model openai:MODEL@URL)"


def largest_context(plan: Plan, available: int) -> int:
    """Tokens in thousands and twenty-fours that fit beside the weights; 0 where not even those fit."""
    room = available - plan.weights - plan.scratch
    if room <= 0 or not plan.cache_per_token:
        return 0
    return min(plan.context, int(room / plan.cache_per_token) // 1024 * 1024)


def in_gb(size: int) -> str:
    """`4.7 GB`, or `12.3 MB` where that says more."""
    return f"{size / 1e9:.1f} GB" if size >= 50_000_000 else f"{size / 1e6:.1f} MB"


def _scratch(shape: Shape) -> int:
    """One batch in float32: the hidden states and their copies, the feed-forward part, the scores of every token."""
    return BATCH * 4 * (8 * shape.hidden + 3 * shape.inner + shape.vocabulary)


def _adapter_bytes(adapter: Path | None) -> int:
    if adapter is None:
        return 0
    return sum(t.size_bytes for t in safetensors_tensors(adapter / "adapters.safetensors").values())


# --- MLX directories -----------------------------------------------------------------------------------------------

Config = Mapping[str, object]


def _directory(path: Path) -> tuple[int, Shape, float]:
    """Bytes of weights, shape, bits of a number in the cache."""
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise WeightsMissing(f"{path} is not an MLX model directory: it has no model*.safetensors.")
    tensors = {name: tensor for file in files for name, tensor in safetensors_tensors(file).items()}
    kinds = {tensor.kind for name, tensor in tensors.items() if "norm" in name} or {"F16"}
    bits = max(_CACHE_BITS.get(kind, 16) for kind in kinds)
    return sum(t.size_bytes for t in tensors.values()), shape_of(_config(path / "config.json")), bits


def _config(path: Path) -> Config:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WeightsMissing(f"{path.parent} has no config.json.", "It is needed beside the weights.") from error
    except ValueError as error:
        raise WeightsDamaged(f"{path} is not JSON: {error}.", "Fetch the model again.") from error
    if not isinstance(found, dict):
        raise WeightsDamaged(f"{path} is not a table.", "Fetch the model again.")
    inner = found.get("text_config")
    return {**found, **inner} if isinstance(inner, dict) else found


def shape_of(config: Config) -> Shape:
    """From `config.json`, or as much of it as the catalogue knows."""
    layers, heads = _int(config, "num_hidden_layers"), _int(config, "num_attention_heads")
    hidden = _int(config, "hidden_size")
    size = _int(config, "head_dim", hidden // heads if heads else 0)
    active = _int(config, "num_experts_per_tok") * _int(config, "moe_intermediate_size")
    return Shape(
        layers=layers,
        kv_heads=layers * _int(config, "num_key_value_heads", heads),
        heads=heads,
        key_size=size,
        value_size=size,
        hidden=hidden,
        inner=active or _int(config, "intermediate_size"),
        vocabulary=_int(config, "vocab_size"),
        context=_int(config, "max_position_embeddings"),
    )


def _int(config: Config, key: str, default: int = 0) -> int:
    found = config.get(key)
    return found if isinstance(found, int) else default


# --- GGUF files ----------------------------------------------------------------------------------------------------

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def _gguf(path: Path) -> tuple[int, Shape, float]:
    headers = [gguf_header(part) for part in _parts(path)]
    shape = _shape_of_gguf(headers[0].metadata, headers[0].lengths)
    # llama.cpp keeps its cache at 16 bits, whatever the weights are.
    return sum(t.size_bytes for header in headers for t in header.tensors.values()), shape, 16


def _parts(path: Path) -> tuple[Path, ...]:
    """Every file of a model that was split, all of which llama.cpp loads."""
    split = _SPLIT.search(path.name)
    if not split:
        return (path,)
    count = int(split[2])
    stem = path.name[: split.start()]
    return tuple(path.with_name(f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1))


def _shape_of_gguf(metadata: Mapping[str, Value], lengths: Mapping[str, int]) -> Shape:
    arch = str(metadata.get("general.architecture", ""))
    values = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    layers, hidden = _whole(values, "block_count"), _whole(values, "embedding_length")
    heads = _largest(values.get("attention.head_count", 0))
    size = hidden // heads if heads else 0
    active = _whole(values, "expert_used_count") * _whole(values, "expert_feed_forward_length")
    return Shape(
        layers=layers,
        kv_heads=_over_layers(values.get("attention.head_count_kv", heads), layers),
        heads=heads,
        key_size=_whole(values, "attention.key_length", size),
        value_size=_whole(values, "attention.value_length", size),
        hidden=hidden,
        inner=active or _largest(values.get("feed_forward_length", 0)),
        vocabulary=lengths.get("tokenizer.ggml.tokens", _whole(values, "vocab_size")),
        context=_whole(values, "context_length"),
    )


def _whole(values: Mapping[str, Value], key: str, default: int = 0) -> int:
    found = values.get(key)
    return found if isinstance(found, int) else default


def _largest(value: Value) -> int:
    items = value if isinstance(value, tuple) else (value,)
    return max((item for item in items if isinstance(item, int)), default=0)


def _over_layers(value: Value, layers: int) -> int:
    if isinstance(value, tuple):
        return sum(item for item in value if isinstance(item, int))
    return layers * value if isinstance(value, int) else 0


# --- this machine --------------------------------------------------------------------------------------------------


def available_bytes(memory_gb: float | None = None, *, root: Path = Path("/")) -> int:
    """Memory that a model may take: `memory_gb` if the user set it, or else nearly all that is free to be had here.

    Linux: what the kernel calls available, and less where a control group (a container) is limited. macOS: the share
    of memory that the kernel calls free. `root` is where /proc and /sys are.
    """
    if memory_gb is not None:
        return int(memory_gb * 1e9)
    found = _macos() if sys.platform == "darwin" else min(_meminfo(root), *_cgroups(root), _NO_LIMIT)
    return int(found * (1 - _KEPT_FREE))


def _meminfo(root: Path) -> int:
    try:
        text = (root / "proc/meminfo").read_text("utf-8")
    except OSError:
        return _NO_LIMIT
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else _NO_LIMIT


def _cgroups(root: Path) -> Iterator[int]:
    """What each group this process is in, and each above it, has left."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left_in(root / "sys/fs/cgroup", path, names=("memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            yield from _left_in(root / "sys/fs/cgroup/memory", path, names=names)


def _left_in(mount: Path, path: str, *, names: tuple[str, str]) -> Iterator[int]:
    inside = Path(path.strip("/"))
    for group in {mount / inside, *(mount / parent for parent in inside.parents), mount}:
        limit, used = (_number_in(group / name) for name in names)
        if limit is not None and used is not None and limit < _NO_LIMIT:
            yield max(0, limit - used + _reclaimable(group / "memory.stat"))


def _number_in(file: Path) -> int | None:
    try:
        text = file.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _reclaimable(stat: Path) -> int:
    """Pages of files that were read, which count as used and are given back when others want them."""
    try:
        found = re.search(r"^(?:total_)?inactive_file (\d+)", stat.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _macos() -> int:
    """Memory of the machine times the share that the kernel calls free; three quarters where it does not say."""
    size = _sysctl("hw.memsize")
    if size is None:
        return _NO_LIMIT
    free = _sysctl("kern.memorystatus_level")
    return size * (75 if free is None else free) // 100


def _sysctl(name: str) -> int | None:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(done.stdout) if done.stdout.strip().isdigit() else None
