"""What the MLX engine needs on disk: a directory with weights, a tokenizer, a chat template and the tokens that end."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from punie.backends import _weights
from punie.backends._adapters import refuse_other_base, refuse_other_template
from punie.backends._files import Progress
from punie.backends._weights import silent
from punie.errors import ModelError, NetworkRefused, WeightsDamaged, WeightsMissing

_AGAIN = "Fetch the model again."
_WANTED = ("*.json", "*.safetensors", "*.jinja")


class _Config(BaseModel):
    """The part of `config.json` and `generation_config.json` that is used."""

    model_config = ConfigDict(extra="ignore")

    max_position_embeddings: int = 4096
    eos_token_id: int | tuple[int, ...] | None = None


class _NamedTemplate(BaseModel):
    name: str
    template: str


class _TokenizerConfig(BaseModel):
    model_config = ConfigDict(extra="ignore")

    chat_template: str | tuple[_NamedTemplate, ...] | None = None


@dataclass(frozen=True)
class ModelFiles:
    """A model on this disk, ready for the engine."""

    weights: Path
    tokenizer: Path
    template: str
    """The chat template's source; "" if it has none."""
    context_window: int
    end: frozenset[int]
    """Tokens that end a turn."""

    def template_with(self, adapter: Path | None) -> str:
        """The chat template to use. Raises ModelError where there is none, ConfigError for an adapter of others."""
        template = (adapter and _weights.template_of(adapter)) or self.template
        if not template:
            raise ModelError(f"{self.weights} has no chat template.", "Use an instruct or chat model.")
        if adapter:
            refuse_other_template(adapter, template)
            refuse_other_base(adapter, self.weights)
        return template


def embedded_files(cache_dir: Path, *, on_progress: Progress = silent) -> ModelFiles:
    """The embedded model, converted the first time; its adapter stays beside it."""
    base = _weights.ensure_base(cache_dir, on_progress)
    tokenizer = _weights.ensure_tokenizer(cache_dir)
    from punie.backends import _mlx_model  # an extra, and slow to import

    directory = _mlx_model.ensure_directory(base, tokenizer=tokenizer, cache=base.parent)
    return _described(directory, template=_weights.shipped_template())


def directory_files(path: str) -> ModelFiles:
    """A directory of the user's, or the model of that name on the hub."""
    local = Path(path).expanduser()
    directory = local if local.is_dir() else _from_hub(path)
    if not (directory / "tokenizer.json").is_file():
        raise WeightsMissing(f"{directory} has no tokenizer.json.", "It is needed beside the weights.")
    return _described(directory, template=_template(directory))


def _described(directory: Path, *, template: str) -> ModelFiles:
    config, generation = (_read(directory / name) for name in ("config.json", "generation_config.json"))
    return ModelFiles(
        directory,
        directory / "tokenizer.json",
        template=template,
        context_window=config.max_position_embeddings,
        end=frozenset((*_ids(config), *_ids(generation))),
    )


def _read(path: Path) -> _Config:
    try:
        return _Config.model_validate_json(path.read_bytes()) if path.is_file() else _Config()
    except ValidationError as error:
        raise WeightsDamaged(f"{path} is not what MLX writes: {error.errors()[0]['msg']}.", _AGAIN) from error


def _ids(config: _Config) -> tuple[int, ...]:
    found = config.eos_token_id
    return (found,) if isinstance(found, int) else found or ()


def _template(directory: Path) -> str:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    described = directory / "tokenizer_config.json"
    if not described.is_file():
        return ""
    try:
        found = _TokenizerConfig.model_validate_json(described.read_bytes()).chat_template
    except ValidationError as error:
        raise WeightsDamaged(f"{described} is not what MLX writes: {error.errors()[0]['msg']}.", _AGAIN) from error
    if isinstance(found, tuple):
        return next((t.template for t in found if t.name == "default"), "")
    return found or ""


def _from_hub(name: str) -> Path:
    """Fetch through the hub's own library, which comes with mlx-lm."""
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise WeightsMissing(f"There is no directory {name}.", "Check the path after `mlx:`.")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ModelError(f"MLX models cannot be fetched ({error}).", "pip install 'punie[mlx]'") from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except LocalEntryNotFoundError as error:
        raise NetworkRefused(
            f"{name} is not here and the model hub cannot be reached.", "Check the connection and ask again."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise WeightsMissing(
            f"The model hub has no {name} for you: {status}.", "Check the name after `mlx:`."
        ) from error
