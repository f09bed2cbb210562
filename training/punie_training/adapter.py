"""LoRA or DoRA on a model in memory, and the adapter directory it is saved to: MLX's format, in 16 bits."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from punie.backends._files import write_text
from punie.backends._mlx import mx
from punie.errors import ConfigError
from punie_training.recipe import Lora


def add_lora(model: Any, lora: Lora, *, seed: int) -> None:
    """Freeze the model and put trainable matrices beside the named layers; they change nothing yet."""
    names = {name for name, _ in model.layers[0].named_modules()}
    unknown = sorted(set(lora.keys) - names)
    if unknown:
        raise ConfigError(f"The model has no layer {', '.join(unknown)}.", "Mend `keys` under [lora] in the recipe.")
    if lora.layers != "all" and lora.layers > len(model.layers):
        raise ConfigError(f"The model has {len(model.layers)} blocks, the recipe asks for {lora.layers}.")
    mx.random.seed(seed)
    model.freeze()
    linear_to_lora_layers(model, _blocks(lora), _parameters(lora), use_dora=lora.kind == "dora")
    mx.eval(model.parameters())


def continue_from(model: Any, file: Path) -> None:
    """Put saved matrices into the trainable ones, in their precision: float16 is thirty times slower on a CPU."""
    saved = cast("dict[str, mx.array]", mx.load(str(file)))
    own = weights(model)
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in own.items()}:
        raise ConfigError(
            f"{file} does not fit the [lora] table of the recipe: {_difference(saved, own)}.",
            "Give [lora] the values of the run that it starts from.",
        )
    model.load_weights([(name, value.astype(own[name].dtype)) for name, value in saved.items()], strict=False)


def _difference(saved: Mapping[str, mx.array], own: Mapping[str, mx.array]) -> str:
    """The first matrix that one has and the other has not, or has in another shape."""
    name = min(n for n in saved.keys() | own.keys() if n not in saved or n not in own or saved[n].shape != own[n].shape)
    found, wanted = (str(tuple(m[name].shape)) if name in m else "none" for m in (saved, own))
    return f"{name} is {found} there, and {wanted} here"


def weights(model: Any) -> dict[str, mx.array]:
    """The trainable matrices by name."""
    return dict(tree_flatten(model.trainable_parameters()))


def save_adapter(
    trained: Mapping[str, mx.array], out: Path, *, lora: Lora, template: str, manifest: Mapping[str, object]
) -> Path:
    """Write `adapters.safetensors`, its configuration, the chat template and the manifest into `out`, all or nothing.

    Matrices are float16; the lengths of DoRA are float32, for an error in one is the same error in a whole row.
    """
    config = {"fine_tune_type": lora.kind, "num_layers": _blocks(lora), "lora_parameters": _parameters(lora)}
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write_text(part / "adapter_config.json", json.dumps(config, indent=2) + "\n")
        write_text(part / "chat_template.jinja", template)
        write_text(part / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        rounded = {name: _rounded(value) for name, value in trained.items()}
        write_arrays(part / "adapters.safetensors", rounded, metadata={})
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _rounded(value: mx.array) -> mx.array:
    return value.astype(mx.float16) if value.ndim > 1 else value


def write_arrays(path: Path, arrays: Mapping[str, mx.array], *, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under exactly this name, which MLX would otherwise end in `.safetensors`."""
    with path.open("wb") as file:
        mx.save_safetensors(file, dict(arrays), dict(metadata))  # type: ignore[arg-type]


def _blocks(lora: Lora) -> int:
    """As mlx-lm counts them: -1 stands for all."""
    return -1 if lora.layers == "all" else lora.layers


def _parameters(lora: Lora) -> dict[str, object]:
    return {"rank": lora.rank, "scale": lora.scale, "dropout": 0.0, "keys": list(lora.keys)}
