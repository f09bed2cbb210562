"""Weights fetched from the model hub into the cache: room first, resumed where they were cut off, checked at the end.

The hub's own library lists the files and knows the user's login; it comes with `tokenizers`. Its downloads begin anew
in every run, which is too much to lose of 18 GB.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from punie.backends import _files
from punie.backends._download import Refused, resume
from punie.backends._files import Progress
from punie.backends._weights import model_dir, place_of
from punie.backends.catalogue import Entry
from punie.errors import EngineMissing, NetworkRefused, UsageError, WeightsDamaged, WeightsMissing
from punie.local_models import EngineName

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MLX_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")
_SPARE = 200_000_000
"""Bytes that stay free on the disk."""


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    sha256: str | None
    """Known of large files."""


@dataclass(frozen=True)
class _Source:
    repository: str
    revision: str
    patterns: Sequence[str]
    sha256: str | None

    @classmethod
    def of(cls, model: Entry, engine: EngineName) -> "_Source":
        if engine == "mlx" and model.mlx_id:
            return cls(model.mlx_id, model.mlx_revision or "main", MLX_FILES, None)
        if engine == "llamacpp" and model.gguf_id and model.gguf_name:
            patterns = (model.gguf_name, model.gguf_name.replace("-00001-of-", "-?????-of-"))
            return cls(model.gguf_id, model.gguf_revision or "main", patterns, model.gguf_sha256)
        raise UsageError(
            f"{model.name} is not on the model hub.", f"`punie models info {model.name}` says where it is."
        )


def pull(
    model: Entry, *, engine: EngineName, cache_dir: Path, on_progress: Progress, endpoint: str | None = None
) -> Path:
    """Fetch what is not here and return where the weights are. `endpoint`: a hub other than the configured one.

    Raises NetworkRefused, WeightsMissing (also for a full disk), WeightsDamaged or UsageError.
    """
    source, place = _Source.of(model, engine), place_of(model, engine, cache_dir)
    root = model_dir(cache_dir, model.folder or model.name)
    with _files.locked(root):
        if place.exists():
            return place
        directory = place.with_name(f"{place.name}.part") if engine == "mlx" else root
        _fetch_all(_api(endpoint), source, directory, place=place, on_progress=on_progress)
        if engine == "mlx":
            directory.rename(place)
    return place


def _fetch_all(api: "HfApi", source: _Source, directory: Path, *, place: Path, on_progress: Progress) -> None:
    commit, files = _listing(api, source, place=place)
    whole = sum(file.size for file in files)
    _refuse_without_room(directory, whole - sum(_there(directory, file) for file in files))
    done = 0
    for file in files:
        before = done
        _fetch(
            api,
            source,
            commit,
            file=file,
            directory=directory,
            on_progress=lambda stage, now, _, before=before: on_progress(stage, before + now, whole),
        )
        done += file.size


def _api(endpoint: str | None) -> "HfApi":
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise EngineMissing(
            f"The model hub's library cannot be imported ({error}).", "pip install huggingface_hub"
        ) from error
    return HfApi(endpoint=endpoint)


def _listing(api: "HfApi", source: _Source, *, place: Path) -> tuple[str, tuple[_File, ...]]:
    """The commit, and the wanted files of it."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.hf_api import RepoFile

    by_hand = f"Check the connection and run it again, or put the weights at {place}"
    try:
        commit = api.model_info(source.repository, revision=source.revision).sha or source.revision
        found = api.list_repo_tree(source.repository, revision=commit, recursive=True)
        files = tuple(
            _File(file.path, file.size, file.lfs.sha256 if file.lfs else None)
            for file in found
            if isinstance(file, RepoFile) and any(fnmatch(file.path, pattern) for pattern in source.patterns)
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise WeightsMissing(
            f"The model hub has no {source.repository} for you: it answers {status}.", by_hand
        ) from error
    except (httpx2.TransportError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkRefused(f"The model hub cannot be reached: {reason}.", by_hand) from error
    if not files:
        raise WeightsMissing(f"{source.repository} has no {source.patterns[0]}.", "Mend the entry of the model.")
    return commit, files


def _there(directory: Path, file: _File) -> int:
    """Bytes that need not be fetched again."""
    whole, part = directory / file.name, _part(directory / file.name)
    return next((path.stat().st_size for path in (whole, part) if path.exists()), 0)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _refuse_without_room(directory: Path, needed: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if needed + _SPARE > free:
        raise WeightsMissing(
            f"There is no room for {needed / 1e9:.1f} GB in {directory}: {free / 1e9:.1f} GB are free.",
            "Free some space, or choose another directory with PUNIE_CACHE_DIR.",
        )


def _fetch(api: "HfApi", source: _Source, commit: str, *, file: _File, directory: Path, on_progress: Progress) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    path = directory / file.name
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(source.repository, file.name, revision=commit, endpoint=api.endpoint)
    try:
        resume(url, _part(path), headers=build_hf_headers(), on_progress=on_progress)
    except Refused as error:
        raise NetworkRefused(f"The model hub does not give {file.name}: {error.reason}.", "Run it again.") from error
    _check(_part(path), file, expected=source.sha256 or file.sha256, on_progress=on_progress)
    _part(path).replace(path)
    if source.sha256 or file.sha256:
        _files.stamp(path, source.sha256 or file.sha256 or "")


def _check(part: Path, file: _File, *, expected: str | None, on_progress: Progress) -> None:
    """Refuse, and remove, what is not the file that was listed."""
    found, size = _files.sha256(part) if expected else None, part.stat().st_size
    if size == file.size and found == expected:
        return
    part.unlink()
    wrong = f"{size:,} of {file.size:,} bytes" if size != file.size else f"SHA-256 {found}, expected {expected}"
    raise WeightsDamaged(f"{file.name} arrived damaged: {wrong}.", "It was removed; run the command again.")
