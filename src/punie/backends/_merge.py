"""A LoRA or DoRA adapter in MLX's format merged into a GGUF file, tensor by tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as made_by
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from punie.backends._adapters import KINDS
from punie.backends._files import Progress
from punie.backends._gguf import Heads, dequantised, hf_name, open_gguf, text_field
from punie.errors import ConfigError, WeightsDamaged, WeightsMissing

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter, ReaderTensor

    Array = np.ndarray[Any, np.dtype[np.float32]]

WEIGHTS = "adapters.safetensors"
CONFIG = "adapter_config.json"
TEMPLATE = "tokenizer.chat_template"
_COMPUTED = ("GGUF.", "general.architecture", "general.file_type")


class _LoraParameters(BaseModel):
    model_config = ConfigDict(extra="ignore")

    scale: float


class _AdapterConfig(BaseModel):
    """What of MLX's `adapter_config.json` decides how the adapter is applied."""

    model_config = ConfigDict(extra="ignore")

    fine_tune_type: str = "lora"
    lora_parameters: _LoraParameters


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes of linear layers: y = x W^T + scale (x A) B, so W changes by scale (A B)^T.

    DoRA (Liu et al. 2024) then stretches each row of the changed weight to a length that was learned.
    """

    scale: float
    factors: Mapping[str, tuple["Array", "Array"]]
    """Hugging Face name of the layer -> A of shape (in, rank), B of shape (rank, out)."""
    magnitudes: Mapping[str, "Array"] = made_by(default_factory=dict)
    """Of DoRA: name of the layer -> length of each row of its weight, shape (out,); empty for LoRA."""

    @classmethod
    def load(cls, directory: Path) -> "Adapter":
        """Read an adapter directory. Raises WeightsMissing, WeightsDamaged or ConfigError."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            text = (directory / CONFIG).read_text("utf-8")
            config = _AdapterConfig.model_validate_json(text)
            tensors = load_file(directory / WEIGHTS)
        except FileNotFoundError as error:
            missing = f"{directory} is not an adapter: it has no {Path(error.filename or WEIGHTS).name}."
            raise WeightsMissing(missing, f"An adapter directory holds {CONFIG} and {WEIGHTS}.") from error
        except (ValidationError, SafetensorError, UnicodeDecodeError, OSError) as error:
            raise WeightsDamaged(
                f"The adapter in {directory} cannot be read: {_first_line(error)}.",
                "Copy the adapter once more from where it was trained.",
            ) from error
        if config.fine_tune_type not in KINDS:
            raise ConfigError(
                f"{directory}: adapters of kind {config.fine_tune_type!r} cannot be merged.",
                f"These can: {' and '.join(KINDS)}.",
            )
        factors = _factors(tensors, directory)
        lengths = _magnitudes(tensors, factors, directory) if config.fine_tune_type == "dora" else {}
        return cls(config.lora_parameters.scale, factors, lengths)

    def changed(self, layer: str, weight: "Array") -> "Array":
        """The layer's weight, shape (out, in) in Hugging Face's order of rows, with the adapter in it."""
        a, b = self.factors[layer]
        summed = weight + self.scale * (a @ b).T
        lengths = self.magnitudes.get(layer)
        return summed if lengths is None else summed * (lengths / np.linalg.norm(summed, axis=1))[:, None]


def _factors(tensors: Mapping[str, Any], directory: Path) -> dict[str, tuple["Array", "Array"]]:
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    try:
        return {
            layer: (tensors[f"{layer}.lora_a"].astype(np.float32), tensors[f"{layer}.lora_b"].astype(np.float32))
            for layer in layers
        }
    except KeyError as error:
        raise WeightsDamaged(f"The adapter in {directory} has no {error}.", "Is it in MLX's format?") from error


def _magnitudes(
    tensors: Mapping[str, Any], factors: Mapping[str, tuple["Array", "Array"]], directory: Path
) -> dict[str, "Array"]:
    found: dict[str, Array] = {}
    for layer, (_, b) in factors.items():
        lengths = tensors.get(f"{layer}.m")
        if lengths is None or lengths.shape != (b.shape[1],):
            cause = f"The DoRA adapter in {directory} has no fitting {layer}.m."
            raise WeightsDamaged(cause, "Copy the adapter once more from where it was trained.")
        found[layer] = lengths.astype(np.float32)
    return found


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def merge(base: Path, adapter: Adapter, *, target: Path, on_progress: Progress, template: str = "") -> None:
    """Write `base` with the adapter to `target`: changed tensors as Q8_0, the others and the metadata unchanged.

    `template` takes the place of the chat template in the metadata.
    """
    from gguf import GGUFWriter, LlamaFileType

    reader = open_gguf(base)
    _refuse_misfit(reader, adapter, base)
    writer = GGUFWriter(None, text_field(reader, "general.architecture"))
    _copy_metadata(reader, writer, without=(TEMPLATE,) if template else ())
    if template:
        writer.add_chat_template(template)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    for tensor in reader.tensors:
        _declare(tensor, writer, changed=_layer(tensor) in adapter.factors)
    writer.write_header_to_file(target)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, data in enumerate(_contents(reader, adapter), start=1):
        writer.write_tensor_data(data)
        on_progress("merge", done, len(reader.tensors))
    writer.close()


def _layer(tensor: "ReaderTensor") -> str:
    return hf_name(tensor.name).removesuffix(".weight")


def _refuse_misfit(reader: "GGUFReader", adapter: Adapter, base: Path) -> None:
    shapes = {_layer(t): tuple(int(n) for n in t.shape) for t in reader.tensors if t.name.endswith(".weight")}
    for layer, (a, b) in adapter.factors.items():
        if shapes.get(layer) != (a.shape[0], b.shape[1]):
            raise ConfigError(
                f"The adapter does not fit {base.name}: it changes {layer} of shape {(a.shape[0], b.shape[1])}, "
                f"the model has {shapes.get(layer, 'no such layer')}.",
                "Use it with the model it was trained on.",
            )


def _copy_metadata(reader: "GGUFReader", writer: "GGUFWriter", *, without: tuple[str, ...] = ()) -> None:
    from gguf import GGUFValueType

    for key, field in reader.fields.items():
        if key.startswith((*_COMPUTED, *without)):
            continue
        items = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=items)


def _declare(tensor: "ReaderTensor", writer: "GGUFWriter", *, changed: bool) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if not changed:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, raw_dtype=tensor.tensor_type)
        return
    kind = GGMLQuantizationType.Q8_0
    block, size = GGML_QUANT_SIZES[kind]
    shape = [int(n) for n in reversed(tensor.shape)]
    count = int(np.prod(shape)) // block * size
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), count, raw_dtype=kind)


def _contents(reader: "GGUFReader", adapter: Adapter) -> Iterator[Any]:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    heads = Heads.of(reader)
    for tensor in reader.tensors:
        if _layer(tensor) not in adapter.factors:
            yield tensor.data
            continue
        weight = heads.unpermute(tensor.name, dequantised(tensor))
        changed = heads.permute(tensor.name, adapter.changed(_layer(tensor), weight))
        yield quantize(changed, GGMLQuantizationType.Q8_0)
