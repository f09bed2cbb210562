"""A model with its adapter inside, as an MLX directory; says how much of the adapter survives quantisation."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from punie.backends import _files, _gguf, _mlx_model
from punie.backends._adapters import refuse_other_base

from punie.backends._mlx import ON_GPU, mx, nn  # isort: skip
from mlx.utils import tree_unflatten
from mlx_lm.utils import dequantize_model, quantize_model, save_config, save_model

from punie.wire import Example
from punie_training import base as bases
from punie_training.plan import shared_prefix
from punie_training.trained import Trained, filling, linear_layers, shape_of, write_card

WIDTHS = (4, 5, 6, 8)
GROUP = 64
"""Weights that share a scale, as MLX's own conversion has it."""
_COPIED = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "generation_config.json", "*.jinja")


@dataclass(frozen=True)
class Survival:
    """What is left of the adapter's change D of the weights W after they were rounded to so many bits: R = Q(W+D)-W."""

    bits: int
    cosine: float
    """cos(R, D): what share of the real change is the learned one; 1 where rounding adds nothing."""
    projection: float
    """<R, D> / <D, D>: how much of the learned change is there, besides what rounding adds."""


@dataclass(frozen=True)
class Agreement:
    """How often two models name the same next token."""

    same: int
    tokens: int
    conversations: int

    @property
    def value(self) -> float:
        """The share."""
        return self.same / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Fused:
    """A merged model on disk."""

    directory: Path
    survival: tuple[Survival, ...]
    agreement: Agreement | None


def fuse(
    trained: Trained,
    *,
    base: Path,
    out: Path,
    bits: int | None = None,
    group: int = GROUP,
    probes: Sequence[Example] = (),
) -> Fused:
    """Merge the adapter into `base` (a GGUF file or an MLX directory) and write an MLX directory.

    Without `bits` the changed layers are stored unquantised. `probes`: conversations to compare the result on.
    Raises ConfigError for an adapter of another base, UsageError for a directory that is not empty.
    """
    refuse_other_base(trained.directory, base)
    model, config = _opened(base)
    layers = linear_layers(model)
    before = _choices(_adapted(base, trained), probes) if probes else []
    changed = {name: layers[name] for name in trained.lora.factors}
    measured = survival(changed, trained, group=group)
    merged = [(name, _merged(m, _delta(trained, name, _weight(m)))) for name, m in changed.items()]
    model.update_modules(tree_unflatten(merged))
    if bits:
        model, config = quantize_model(model, config, group, bits)
    with filling(out) as part:
        _save(model, part)
        save_config(config, part / "config.json")
        _write_rest(trained, base=base, part=part, form=f"MLX model, {_precision(bits)}, adapter merged in")
        after = _choices(_quick(_mlx_model.load(part)), probes) if probes else []
    return Fused(out, measured, _agreement(before, after) if probes else None)


def _opened(base: Path) -> tuple[Any, dict[str, Any]]:
    """The model in memory and its configuration."""
    model = bases.load(base, widen=False)
    if base.is_dir():
        return model, json.loads((base / "config.json").read_text("utf-8"))
    return model, {**_gguf.config(base), "torch_dtype": _mlx_model.PRECISION}


def _weight(layer: Any) -> mx.array:
    """The layer's matrix in float32, shape (out, in)."""
    if not isinstance(layer, nn.QuantizedLinear):
        return layer.weight.astype(mx.float32)
    rounded: Any = layer
    whole = mx.dequantize(
        rounded.weight,
        scales=rounded.scales,
        biases=rounded.biases,
        group_size=rounded.group_size,
        bits=rounded.bits,
        mode=rounded.mode,
    )
    return whole.astype(mx.float32)


def _delta(trained: Trained, name: str, weight: mx.array) -> mx.array:
    """What the adapter adds to the layer's weight."""
    return mx.array(trained.lora.changed(name, np.array(weight))) - weight


def _merged(layer: Any, delta: mx.array) -> nn.Linear:
    inputs, outputs = shape_of(layer)
    whole = nn.Linear(inputs, outputs, bias="bias" in layer)
    precision = getattr(mx, _mlx_model.PRECISION)
    whole.weight = (_weight(layer) + delta).astype(precision)
    if "bias" in layer:
        whole.bias = layer.bias
    mx.eval(whole.weight)  # the difference is in float32: of all layers of a large model together it would fill memory
    return whole


def survival(layers: Mapping[str, Any], trained: Trained, *, group: int = GROUP) -> tuple[Survival, ...]:
    """Round the merged layers to each width and compare the change with the adapter's, over all layers together."""
    return tuple(_survival(layers, trained, bits=bits, group=group) for bits in WIDTHS)


def _survival(layers: Mapping[str, Any], trained: Trained, *, bits: int, group: int) -> Survival:
    dots, wanted, found = 0.0, 0.0, 0.0
    for name, layer in layers.items():
        if shape_of(layer)[0] % group:
            continue
        weight = _weight(layer)
        delta = _delta(trained, name, weight)
        rounded = mx.dequantize(*mx.quantize(weight + delta, group, bits), group_size=group, bits=bits) - weight
        sums = mx.stack([(rounded * delta).sum(), (delta * delta).sum(), (rounded * rounded).sum()])
        dot, square, size = cast("list[float]", sums.tolist())
        dots, wanted, found = dots + dot, wanted + square, found + size
    return Survival(bits, _ratio(dots, (wanted * found) ** 0.5), _ratio(dots, wanted))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


# --- agreement -----------------------------------------------------------------------------------------------------


def _adapted(base: Path, trained: Trained) -> Any:
    """The base with the adapter beside its weights, as it was trained."""
    return _quick(_mlx_model.load(base, adapter=trained.directory))


def _quick(model: Any) -> Any:
    """The same weights in a form that is quick here: quantised products are forty times slower than others on a CPU."""
    return model if ON_GPU else dequantize_model(model)


def _choices(model: Any, probes: Sequence[Example]) -> list[list[int]]:
    """The most likely next token at every place behind what all conversations begin with."""
    start = shared_prefix(probes)
    return [_most_likely(model, row.tokens, start=start) for row in probes]


def _most_likely(model: Any, tokens: Sequence[int], *, start: int) -> list[int]:
    logits = model(mx.array([tokens[:-1]]))[0, start:]
    return cast("list[int]", logits.argmax(axis=-1).tolist())


def _agreement(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> Agreement:
    pairs = [pair for a, b in zip(before, after, strict=True) for pair in zip(a, b, strict=True)]
    return Agreement(sum(a == b for a, b in pairs), len(pairs), len(before))


# --- files ---------------------------------------------------------------------------------------------------------


def _save(model: Any, part: Path) -> None:
    try:
        save_model(part, model)
    except RuntimeError as error:  # what MLX makes of a failed write
        raise OSError(str(error)) from error


def _write_rest(trained: Trained, *, base: Path, part: Path, form: str) -> None:
    """Tokenizer, chat template (the adapter's, else the base's) and card."""
    if base.is_dir():
        for path in (path for pattern in _COPIED for path in base.glob(pattern)):
            shutil.copyfile(path, part / path.name)
    else:
        _gguf.tokenizer(base).save(str(part / "tokenizer.json"))
        described = {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens(base)}
        _files.write_text(part / "tokenizer_config.json", json.dumps(described, indent=2) + "\n")
        _files.write_text(part / "chat_template.jinja", _gguf.chat_template(base))
    write_card(trained, part, form=form, use="punie --model mlx:DIRECTORY")


def special_tokens(base: Path) -> Mapping[str, str]:
    """What a GGUF file begins and ends a text with, under the names that `tokenizer_config.json` has for it."""
    config, names = _gguf.config(base), _gguf.tokenizer(base)
    found = {kind: names.id_to_token(int(str(config[f"{kind}_id"]))) for kind in ("bos_token", "eos_token")}
    return {kind: token for kind, token in found.items() if token}


def _precision(bits: int | None) -> str:
    return f"{bits} bits" if bits else _mlx_model.PRECISION


def shown(fused: Fused, *, bits: int | None) -> str:
    """The figures for people."""
    lines = ["bits  survival  projection"]
    lines += [f"{s.bits:4}  {s.cosine:8.3f}  {s.projection:10.3f}" for s in fused.survival]
    if fused.agreement:
        a = fused.agreement
        lines.append(
            f"The same next token as with the adapter beside the weights: {a.value:.2%} of {a.tokens} tokens "
            f"in {a.conversations} conversations ({_precision(bits)})"
        )
    return "\n".join([*lines, f"{fused.directory}"])
