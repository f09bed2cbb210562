"""The model a run starts from."""

import hashlib
from pathlib import Path
from typing import Any

from punie.backends import _gguf
from punie.backends._files import sha256
from punie.backends._mlx import ON_GPU, mx
from punie.errors import ModelError, WeightsMissing

_KNOWN = frozenset({"llama", "qwen2"})


def load(path: Path) -> Any:
    """Load a GGUF file (float32 on a CPU, float16 on a GPU) or an MLX model directory."""
    if not path.exists():
        raise WeightsMissing(f"There is no model at {path}.")
    model = _from_directory(path) if path.is_dir() else _from_gguf(path)
    if model.model_type not in _KNOWN:
        raise ModelError(f"Models of kind {model.model_type!r} cannot be trained.", f"These can: {', '.join(_KNOWN)}.")
    return model


def _from_gguf(path: Path) -> Any:
    from mlx_lm.utils import _get_classes

    config = _gguf.config(path)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    kind = mx.float16 if ON_GPU else mx.float32
    state = {name: mx.array(value).astype(kind) for name, value in _gguf.load_state(path).items()}
    model.load_weights(list(model.sanitize(state).items()))
    return model


def _from_directory(path: Path) -> Any:
    from mlx_lm.utils import load_model

    model, _ = load_model(path)
    return model


def digest(path: Path) -> str:
    """SHA-256 of the weights: of the file, or over those of every weight file in the directory."""
    if not path.is_dir():
        return sha256(path)
    each = [sha256(file) for file in sorted(path.glob("*.safetensors"))]
    return hashlib.sha256("".join(each).encode()).hexdigest()
