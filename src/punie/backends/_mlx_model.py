"""Models in MLX, read from a GGUF file or an MLX directory, with an adapter fused in where that loses nothing."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten, tree_unflatten

from punie.backends import _files, _gguf
from punie.backends._mlx import ON_GPU, mx, nn
from punie.errors import ModelError, WeightsDamaged, WeightsMissing

PRECISION = "float16" if ON_GPU else "float32"
"""Of converted models. Products of 16-bit matrices are 30 times slower than 32-bit ones in MLX on a CPU."""
_ADAPTED = ("lora_a", "lora_b")


def load(path: Path, *, adapter: Path | None = None) -> Any:
    """Load a GGUF file or an MLX model directory, evaluated. Raises WeightsMissing, WeightsDamaged or ModelError."""
    if not path.exists():
        raise WeightsMissing(f"There is no model at {path}.", "Check the path after `mlx:`.")
    model = _from_directory(path) if path.is_dir() else from_gguf(path)
    if adapter:
        _adapt(model, adapter)
    model.eval()
    mx.eval(model.parameters())
    return model


def from_gguf(path: Path) -> Any:
    """A model with the dequantised weights of a GGUF file."""
    from mlx_lm.models import llama, qwen2, qwen3

    config = _gguf.config(path)
    kind = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3}[str(config["model_type"])]
    model: Any = kind.Model(kind.ModelArgs.from_dict(config))
    precision = getattr(mx, PRECISION)
    state = {name: mx.array(value).astype(precision) for name, value in _gguf.load_state(path).items()}
    model.load_weights(list(model.sanitize(state).items()))
    return model


def _from_directory(path: Path) -> Any:
    from mlx_lm.utils import load_model

    try:
        model, _ = load_model(path)
    except FileNotFoundError as error:
        raise WeightsMissing(f"{path} is not an MLX model directory: {error}.") from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise WeightsDamaged(f"MLX cannot load {path}: {_first_line(error)}.", "Fetch the model again.") from error
    return model


def _adapt(model: Any, adapter: Path) -> None:
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear
    from mlx_lm.tuner.utils import load_adapters

    try:
        load_adapters(model, str(adapter))
    except FileNotFoundError as error:
        raise WeightsMissing(f"There is no adapter in {adapter}.", "Check the path after `+`.") from error
    except (ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(f"The adapter {adapter} does not fit the model: {_first_line(error)}.") from error
    adapted = [(name, p.astype(mx.float32)) for name, p in _flat(model).items() if name.endswith(_ADAPTED)]
    model.load_weights(adapted, strict=False)
    layers = [(name, m) for name, m in model.named_modules() if hasattr(m, "fuse") and hasattr(m, "linear")]
    # Quantising the sum again would wipe out a part of the adapter: on quantised weights it stays beside them.
    quantised = nn.QuantizedLinear, QuantizedSwitchLinear
    exact = [(name, _fused(m)) for name, m in layers if not isinstance(m.linear, quantised)]
    model.update_modules(tree_unflatten(exact))


def _fused(layer: Any) -> Any:
    """The linear layer with the adapter in it, in the layer's precision: the lengths of DoRA have one of their own."""
    fused = layer.fuse()
    fused.weight = fused.weight.astype(layer.linear.weight.dtype)
    return fused


def _flat(model: Any) -> Mapping[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def ensure_directory(gguf: Path, *, tokenizer: Path, cache: Path) -> Path:
    """An MLX directory with the model of a GGUF file, converted the first time and then loaded in half the time."""
    target = cache / f"mlx-{PRECISION}"
    with _files.locked(cache):
        if not target.exists():
            part = cache / f"{target.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _write(from_gguf(gguf), part, config={**_gguf.config(gguf), "torch_dtype": PRECISION})
            shutil.copyfile(tokenizer, part / "tokenizer.json")
            part.rename(target)
    return target


def _write(model: Any, directory: Path, *, config: Mapping[str, object]) -> None:
    mx.save_safetensors(str(directory / "model.safetensors"), dict(_flat(model)), {"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
