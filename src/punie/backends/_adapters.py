"""Whether an adapter belongs to the model it is loaded on: read from configuration, manifest and headers alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from punie.backends import _files
from punie.backends._headers import Tensor, gguf_header, safetensors_tensors
from punie.backends.catalogue import EMBEDDED, entries
from punie.errors import ConfigError, WeightsDamaged, WeightsMissing

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
KINDS = ("lora", "dora")
"""Adapters that are changes of single layers."""
MANIFEST, TEMPLATE = "manifest.json", "chat_template.jinja"
_AGAIN = "Copy the adapter once more from where it was trained."
_SHOWN = 12
"""Hexadecimal digits of a hash that are shown."""
_GROUPS, _BITS = (32, 64, 128), frozenset({2, 3, 4, 5, 6, 8})
"""Of MLX's quantised layers."""
_QUICKLY_HASHED = 1 << 28
"""Bytes that are hashed in a fraction of a second; larger weights are known by name and shape."""


class _Lora(BaseModel):
    model_config = ConfigDict(extra="ignore")

    scale: float
    rank: int | None = None


class _Config(BaseModel):
    """What of MLX's `adapter_config.json` decides how the adapter is applied."""

    model_config = ConfigDict(extra="ignore")

    fine_tune_type: str = "lora"
    lora_parameters: _Lora


class _Settings(BaseModel):
    model_config = ConfigDict(extra="ignore")

    base: str = ""


class _Identity(BaseModel):
    model_config = ConfigDict(extra="ignore")

    template: str = ""


class _Scores(BaseModel):
    model_config = ConfigDict(extra="ignore")

    identity: _Identity = _Identity()


class Manifest(BaseModel):
    """What training noted: of which weights, and with which chat template, the adapter was made."""

    model_config = ConfigDict(extra="ignore")

    base: str = ""
    """SHA-256 of the weights it was trained on."""
    base_name: str = ""
    """Of the file or directory with those weights."""
    template: str = ""
    """SHA-256 of the chat template, or its beginning."""
    settings: _Settings = _Settings()
    scores: _Scores = _Scores()

    @property
    def template_hash(self) -> str:
        """Of the template it was trained or measured with; "" where nobody noted it."""
        return self.template or self.scores.identity.template

    @property
    def known_as(self) -> str:
        """The base's name in the catalogue; "" of one that is not in it."""
        by_hash = {e.file.sha256 if e.file else e.gguf_sha256 or "": e.name for e in entries().values()}
        hashed = next((name for sha256, name in by_hash.items() if self.base and sha256.startswith(self.base)), "")
        # A recipe names the embedded model when nobody names another one: that says nothing of other weights.
        return hashed or (self.settings.base if self.settings.base in entries().keys() - {EMBEDDED} else "")

    @property
    def title(self) -> str:
        """What people call the base, or the beginning of its hash."""
        return self.known_as or self.base_name or self.base[:_SHOWN]


def template_of(adapter: Path) -> str | None:
    """The chat template that the adapter was trained with, if it brings one."""
    path = adapter / TEMPLATE
    try:
        return path.read_text("utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsDamaged(f"{path} cannot be read: {error}.", _AGAIN) from error


def manifest_of(adapter: Path) -> Manifest:
    """What training noted; nothing where there is no manifest. Raises WeightsDamaged."""
    path = adapter / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes()) if path.is_file() else Manifest()
    except (ValidationError, OSError) as error:
        raise WeightsDamaged(f"{path} cannot be read: {_reason(error)}.", _AGAIN) from error


def refuse_other_template(adapter: Path, template: str) -> None:
    """Raise ConfigError when the adapter was trained with another chat template than `template`.

    With another one the model is asked in words that it was not trained on, and answers worse without a sign of why.
    """
    trained = manifest_of(adapter).template_hash
    used = hashlib.sha256(template.encode()).hexdigest()
    if trained and not used.startswith(trained):
        raise ConfigError(
            f"{adapter} was trained with the chat template {trained[:_SHOWN]}, and would run with {used[:_SHOWN]}.",
            f"Put the template it was trained with at {adapter / TEMPLATE}, or train it again.",
        )


def refuse_other_base(adapter: Path, weights: Path) -> None:
    """Raise ConfigError when the adapter is not one for these weights (a GGUF file or an MLX directory).

    Raises WeightsMissing and WeightsDamaged for an adapter that is not whole.
    """
    layers = read_layers(adapter)
    manifest = manifest_of(adapter)
    _refuse_other_name(adapter, manifest, weights)
    shapes = _shapes(weights)
    for name, changed in layers.items():
        found = shapes.get(name)
        if found and changed.shape not in found:
            why = f"changes {name} of shape {changed.shape}, the model has {found[0]}"
            raise _misfit(adapter, manifest, weights, why)
        if not found and shapes and not changed.of_experts:
            raise _misfit(adapter, manifest, weights, f"changes {name}, which the model does not have")


@dataclass(frozen=True)
class Layer:
    """What an adapter changes of one layer."""

    shape: tuple[int, int]
    """(in, out) of the layer."""
    rank: int
    of_experts: bool = False


def read_layers(adapter: Path) -> Mapping[str, Layer]:
    """The layers an adapter changes, by Hugging Face name. Raises WeightsMissing, WeightsDamaged or ConfigError."""
    config = _config(adapter)
    try:
        tensors = safetensors_tensors(adapter / WEIGHTS)
    except WeightsMissing as error:
        raise _not_an_adapter(adapter, WEIGHTS) from error
    except WeightsDamaged as error:
        raise WeightsDamaged(error.cause, _AGAIN) from error
    if config.fine_tune_type not in KINDS:
        return {}
    names = sorted({name.rpartition(".")[0] for name in tensors})
    layers = {name: _layer(name, tensors, adapter=adapter) for name in names}
    if config.fine_tune_type == "dora":
        _refuse_without_lengths(layers, tensors, adapter=adapter)
    wanted = config.lora_parameters.rank
    other = next((name for name, layer in layers.items() if wanted and layer.rank != wanted), None)
    if other:
        raise ConfigError(
            f"{adapter} says rank {wanted}, but {other} has rank {layers[other].rank}.",
            f"{CONFIG} and {WEIGHTS} are of two adapters: {_AGAIN[0].lower()}{_AGAIN[1:]}",
        )
    return layers


def _refuse_without_lengths(layers: Mapping[str, Layer], tensors: Mapping[str, Tensor], *, adapter: Path) -> None:
    for name, layer in layers.items():
        lengths = tensors.get(f"{name}.m")
        if lengths is None or lengths.shape != (layer.shape[1],):
            raise WeightsDamaged(f"The DoRA adapter in {adapter} has no fitting {name}.m.", _AGAIN)


def _config(adapter: Path) -> _Config:
    try:
        return _Config.model_validate_json((adapter / CONFIG).read_bytes())
    except FileNotFoundError as error:
        raise _not_an_adapter(adapter, CONFIG) from error
    except (ValidationError, OSError) as error:
        raise WeightsDamaged(f"{adapter / CONFIG} cannot be read: {_reason(error)}.", _AGAIN) from error


def _not_an_adapter(adapter: Path, missing: str) -> WeightsMissing:
    return WeightsMissing(
        f"{adapter} is not an adapter: it has no {missing}.", f"An adapter directory holds {CONFIG} and {WEIGHTS}."
    )


def _layer(name: str, tensors: Mapping[str, Tensor], *, adapter: Path) -> Layer:
    a, b = tensors.get(f"{name}.lora_a"), tensors.get(f"{name}.lora_b")
    if a is None or b is None:
        missing = f"{name}.lora_{'b' if a else 'a'}"
        raise WeightsDamaged(f"The adapter in {adapter} has no {missing}.", "Is it in MLX's format?")
    if len(b.shape) == 3:  # of a mixture of experts: A is (experts * rank, in), B is (experts, out, rank)
        return Layer((a.shape[-1], b.shape[1]), b.shape[2], of_experts=True)
    return Layer((a.shape[0], b.shape[-1]), a.shape[-1])


# --- the base ------------------------------------------------------------------------------------------------------


def _refuse_other_name(adapter: Path, manifest: Manifest, weights: Path) -> None:
    """Names first: the same model has other hashes in other formats."""
    trained, here = manifest.known_as, _name_of(weights)
    if trained:
        if here and trained != here:
            raise _misfit(adapter, manifest, weights, "is one for another model")
        return
    # Only of the same format can the same model have the same hash.
    if not (manifest.base and manifest.base_name) or manifest.base_name.endswith(".gguf") == weights.is_dir():
        return
    found = _quick_hash(weights)
    if found and not found.startswith(manifest.base):
        why = f"was trained on weights {manifest.base[:_SHOWN]}, these are {found[:_SHOWN]}"
        raise _misfit(adapter, manifest, weights, why)


def _name_of(weights: Path) -> str:
    """The catalogue's name of weights in the cache, whose directories are named so; "" of others."""
    return next((part for part in reversed(weights.parts) if part in entries()), "")


def _quick_hash(weights: Path) -> str:
    """As training computes it: of the file, or over those of every weight file in the directory. "" of large ones."""
    files = sorted(weights.glob("*.safetensors")) if weights.is_dir() else [weights]
    if sum(file.stat().st_size for file in files) > _QUICKLY_HASHED:
        return ""
    each = [_files.sha256(file) for file in files]
    return hashlib.sha256("".join(each).encode()).hexdigest() if weights.is_dir() else each[0]


def _misfit(adapter: Path, manifest: Manifest, weights: Path, why: str) -> ConfigError:
    trained = f"It was trained on {manifest.title}. " if manifest.title else ""
    return ConfigError(
        f"The adapter {adapter} does not fit {_name_of(weights) or weights.name}: it {why}.",
        f"{trained}Use it with the model it was trained on.",
    )


def _shapes(weights: Path) -> Mapping[str, Sequence[tuple[int, int]]]:
    """What (in, out) of every matrix can be, by Hugging Face name: packed weights leave a choice."""
    if not weights.is_dir():
        from punie.backends._gguf import hf_name  # it imports numpy, which is needed only when an adapter is new

        tensors = gguf_header(weights).tensors
        found = {hf_name(name).removesuffix(".weight"): tensor.shape for name, tensor in tensors.items()}
        return {name: [(shape[0], shape[1])] for name, shape in found.items() if name and len(shape) == 2}
    tensors = {
        n: t for file in sorted(weights.glob("model*.safetensors")) for n, t in safetensors_tensors(file).items()
    }
    names = {name.removesuffix(".weight") for name, tensor in tensors.items() if len(tensor.shape) == 2}
    return {name: _linear(name, tensors) for name in names if f"{name}.weight" in tensors}


def _linear(name: str, tensors: Mapping[str, Tensor]) -> Sequence[tuple[int, int]]:
    """Of packed weights every shape that MLX's group sizes and bits allow: layers may each have their own."""
    (out, width), scales = tensors[f"{name}.weight"].shape, tensors.get(f"{name}.scales")
    if scales is None:
        return [(width, out)]
    sizes = (scales.shape[1] * group for group in _GROUPS)
    return [(size, out) for size in sizes if (32 * width) % size == 0 and 32 * width // size in _BITS]


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(error).splitlines()[0] if str(error) else type(error).__name__
