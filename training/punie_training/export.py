"""An adapter in the forms that other programs read: PEFT, GGUF LoRA, a merged GGUF, a merged MLX directory."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from punie.backends import _gguf, _merge
from punie.backends._adapters import refuse_other_base
from punie.backends._files import Progress, write_text
from punie.backends._gguf import Heads
from punie.backends._weights import silent
from punie.errors import ConfigError, UsageError
from punie_training.trained import Trained, filling, named_base, write_card

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

    Matrix = np.ndarray[Any, np.dtype[np.float16]]

Form = Literal["peft", "gguf-lora", "gguf", "mlx"]
_MERGED: tuple[Form, ...] = ("gguf", "mlx")
"""In which the adapter is part of the weights."""
_ORIGINALS = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen2.5-coder-7b": "Qwen/Qwen2.5-Coder-7B-Instruct",
    "qwen3-coder-30b": "Qwen/Qwen3-Coder-30B-A3B-Instruct",
}
"""Where the unquantised weights are that PEFT and others load."""
_PEFT = "AutoPeftModelForCausalLM.from_pretrained(DIRECTORY)"


def export(trained: Trained, *, to: Form, base: Path, out: Path, on_progress: Progress = silent) -> Path:
    """Write the directory `out` in the form named; raises ConfigError or UsageError for what does not fit it."""
    if out.suffix in {".gguf", ".safetensors"}:
        raise UsageError(f"{out} names a file; an export is a directory.", f"Try --out {out.with_suffix('')}")
    if trained.lora.magnitudes and to not in _MERGED:
        raise ConfigError(f"{to} is for LoRA; {trained.directory} is DoRA.", f"Use --to {' or '.join(_MERGED)}.")
    if to == "mlx":
        return _to_mlx(trained, base, out)
    if to != "peft" and base.is_dir():
        raise ConfigError(f"{base} is an MLX directory; {to} is made from a GGUF file.", "Give one with --base.")
    refuse_other_base(trained.directory, base)
    with filling(out) as part:
        if to == "peft":
            _write_peft(trained, part)
        elif to == "gguf-lora":
            _write_gguf_lora(trained, base, part)
        else:
            _write_gguf(trained, base, part, on_progress)
    return out


def _to_mlx(trained: Trained, base: Path, out: Path) -> Path:
    from punie_training.fuse import fuse  # needs MLX

    return fuse(trained, base=base, out=out).directory


# --- PEFT ----------------------------------------------------------------------------------------------------------


def _write_peft(trained: Trained, part: Path) -> None:
    from safetensors.numpy import save_file

    save_file(_peft_matrices(trained), part / "adapter_model.safetensors", metadata={"format": "pt"})
    write_text(part / "adapter_config.json", json.dumps(_peft_config(trained), indent=2) + "\n")
    write_card(trained, part, form="LoRA adapter for PEFT", use=_PEFT)


def _peft_matrices(trained: Trained) -> dict[str, "Matrix"]:
    """`lora_A` of shape (rank, in) and `lora_B` of shape (out, rank): both are the other way round in MLX."""
    found: dict[str, Matrix] = {}
    for name, (a, b) in trained.lora.factors.items():
        found[f"base_model.model.{name}.lora_A.weight"] = _half(a.T)
        found[f"base_model.model.{name}.lora_B.weight"] = _half(b.T)
    return found


def _peft_config(trained: Trained) -> Mapping[str, object]:
    model, alpha = named_base(trained), trained.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": _ORIGINALS.get(model.name, model.title) if model else None,
        "inference_mode": True,
        "r": trained.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        **_peft_targets(list(trained.lora.factors)),
    }


def _peft_targets(names: list[str]) -> Mapping[str, object]:
    """The last parts of the names and the blocks they are in; whole names where the blocks are not alike."""
    leaves = sorted({name.rpartition(".")[2] for name in names})
    blocks = sorted({int(found[1]) for name in names if (found := re.search(r"\.layers\.(\d+)\.", name))})
    if len(names) != len(leaves) * len(blocks):
        return {"target_modules": names}
    return {"target_modules": leaves, "layers_to_transform": blocks}


def _half(matrix: np.ndarray[Any, Any]) -> "Matrix":
    return np.ascontiguousarray(matrix, dtype=np.float16)


# --- GGUF ----------------------------------------------------------------------------------------------------------


def _write_gguf_lora(trained: Trained, base: Path, part: Path) -> None:
    from gguf import GGUFWriter

    reader = _gguf.open_gguf(base)
    writer = GGUFWriter(part / "adapter.gguf", _gguf.text_field(reader, "general.architecture"))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", trained.alpha)
    writer.add_name(str(trained.manifest.get("name", trained.directory.name)))
    _add_factors(trained, reader, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    use = "llama-server --jinja -m BASE.gguf --lora adapter.gguf --chat-template-file chat_template.jinja"
    write_card(trained, part, form="LoRA adapter for llama.cpp", use=use)


def _add_factors(trained: Trained, reader: "GGUFReader", writer: "GGUFWriter") -> None:
    """Both matrices transposed, rows of queries and keys in llama.cpp's order."""
    heads = Heads.of(reader)
    names = {_gguf.hf_name(t.name).removesuffix(".weight"): t.name for t in reader.tensors}
    for name, (a, b) in trained.lora.factors.items():
        writer.add_tensor(f"{names[name]}.lora_a", _half(a.T))
        writer.add_tensor(f"{names[name]}.lora_b", _half(heads.permute(names[name], b.T)))


def _write_gguf(trained: Trained, base: Path, part: Path, on_progress: Progress) -> None:
    target = part / "model-Q8_0.gguf"
    _merge.merge(base, trained.lora, target=target, on_progress=on_progress, template=trained.template)
    use = "llama-server --jinja -m model-Q8_0.gguf\npunie --model gguf:model-Q8_0.gguf"
    write_card(trained, part, form="GGUF model with the adapter merged in, changed tensors as Q8_0", use=use)
