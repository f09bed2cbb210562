"""The model a run starts from."""

import hashlib
from pathlib import Path
from typing import Any

from punie.backends import _mlx_model
from punie.backends._files import sha256

from punie.backends._mlx import ON_GPU, mx  # isort: skip
from mlx.utils import tree_map

from punie.errors import ModelError

_KNOWN = ("llama", "qwen2")


def load(path: Path, *, widen: bool = not ON_GPU) -> Any:
    """Load a GGUF file or an MLX model directory. Raises ModelError for a kind that cannot be trained.

    `widen`: in float32 what is stored in 16 bits, scales of quantised weights too; on a CPU it is many times quicker.
    """
    model = _mlx_model.load(path)
    if model.model_type not in _KNOWN:
        raise ModelError(f"Models of kind {model.model_type!r} cannot be trained.", f"These can: {', '.join(_KNOWN)}.")
    if widen:
        model.update(tree_map(_widened, model.parameters()))
        mx.eval(model.parameters())
    return model


def _widened(values: mx.array) -> mx.array:
    return values.astype(mx.float32) if values.dtype in (mx.float16, mx.bfloat16) else values


def digest(path: Path) -> str:
    """SHA-256 of the weights: of the file, or over those of every weight file in the directory."""
    if not path.is_dir():
        return sha256(path)
    each = [sha256(file) for file in sorted(path.glob("*.safetensors"))]
    return hashlib.sha256("".join(each).encode()).hexdigest()
