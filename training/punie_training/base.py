"""The model a run starts from."""

import hashlib
from pathlib import Path
from typing import Any

from punie.backends import _mlx_model
from punie.backends._files import sha256
from punie.errors import ModelError

_KNOWN = ("llama", "qwen2")


def load(path: Path) -> Any:
    """Load a GGUF file or an MLX model directory. Raises ModelError for a kind that cannot be trained."""
    model = _mlx_model.load(path)
    if model.model_type not in _KNOWN:
        raise ModelError(f"Models of kind {model.model_type!r} cannot be trained.", f"These can: {', '.join(_KNOWN)}.")
    return model


def digest(path: Path) -> str:
    """SHA-256 of the weights: of the file, or over those of every weight file in the directory."""
    if not path.is_dir():
        return sha256(path)
    each = [sha256(file) for file in sorted(path.glob("*.safetensors"))]
    return hashlib.sha256("".join(each).encode()).hexdigest()
