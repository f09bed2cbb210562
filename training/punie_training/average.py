"""The mean of adapters of one chain of runs, each begun from the one before.

Late runs at a high learning rate end at points around a better one; the mean of their weights comes nearer to it than
any of them (Izmailov et al. 2018, stochastic weight averaging). Factors are averaged, not their products, which is
close to the same for runs that began from each other and far from it for others.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from punie.backends import _weights
from punie.backends._adapters import CONFIG, TEMPLATE, WEIGHTS
from punie.backends._files import write_text
from punie.backends._mlx import mx
from punie.errors import ConfigError, UsageError
from punie_training.adapter import write_arrays
from punie_training.trained import Trained, filling

_FEWEST = 2


def average(adapters: Sequence[Path], out: Path) -> Path:
    """Write the mean of the adapters into the directory `out`, with the last one's manifest and what it was made of.

    Raises UsageError for fewer than two, ConfigError where they differ in anything but the values of their weights.
    """
    if len(adapters) < _FEWEST:
        raise UsageError("One adapter has no mean.", "Name two or more, in the order they were trained.")
    last = Trained.load(adapters[-1])
    for adapter in adapters[:-1]:
        _refuse_unlike(Trained.load(adapter), last)
    loaded = [cast("dict[str, mx.array]", mx.load(str(adapter / WEIGHTS))) for adapter in adapters]
    shapes = [{name: value.shape for name, value in arrays.items()} for arrays in loaded]
    unlike = next((adapter for adapter, found in zip(adapters, shapes, strict=True) if found != shapes[-1]), None)
    if unlike:
        raise ConfigError(f"{unlike} and {adapters[-1]} change other layers, or by other ranks.")
    mean = {
        name: (sum((a[name].astype(mx.float32) for a in loaded), mx.zeros(value.shape)) / len(loaded)).astype(
            value.dtype
        )
        for name, value in loaded[-1].items()
    }
    made_of = [_weights.adapter_hash(adapter) for adapter in adapters]
    manifest = {**last.manifest, "name": out.name, "averaged": made_of}
    with filling(out) as part:
        write_text(part / CONFIG, (adapters[-1] / CONFIG).read_text("utf-8"))
        write_text(part / TEMPLATE, last.template)
        write_text(part / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        write_arrays(part / WEIGHTS, mean, metadata={})
    return out


def _refuse_unlike(one: Trained, other: Trained) -> None:
    for what, values in (
        ("base", (one.manifest.get("base"), other.manifest.get("base"))),
        ("chat template", (one.template, other.template)),
        ("scale", (one.lora.scale, other.lora.scale)),
        ("rank", (one.rank, other.rank)),
        ("kind", (bool(one.lora.magnitudes), bool(other.lora.magnitudes))),
    ):
        if values[0] != values[1]:
            raise ConfigError(f"{one.directory} and {other.directory} differ in their {what}.", "Average one chain.")
