"""An MLX model directory with the weights of the tiny model, written without MLX."""

import json
from pathlib import Path

from safetensors.numpy import save_file
from tests.backends import tiny

from punie.backends import _gguf


def write(directory: Path, gguf: Path) -> Path:
    """Weights, configuration, tokenizer and chat template of a GGUF file."""
    directory.mkdir(parents=True)
    save_file(_gguf.load_state(gguf), directory / "model.safetensors", {"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(_gguf.config(gguf)))
    (directory / "chat_template.jinja").write_text(tiny.TEMPLATE)
    _gguf.tokenizer(gguf).save(str(directory / "tokenizer.json"))
    return directory
