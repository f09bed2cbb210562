"""Models: the embedded one, files and directories on this machine, and services. Engines are imported when used."""

import platform
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from punie.backends._files import Progress
from punie.backends._weights import default_cache_dir, silent
from punie.backends.catalogue import EMBEDDED, entry
from punie.config import AgentConfig
from punie.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_ai.models import Model

__all__ = ["Progress", "build"]

_SERVICES = ("claude", "openai")
_FORMS = "local, local:NAME, mlx:PATH_OR_ID[+ADAPTER], gguf:PATH[+ADAPTER], claude[:MODEL] or openai:MODEL[@URL]"


def build(
    spec: str, config: AgentConfig, *, cache_dir: Path | None = None, on_progress: Progress | None = None
) -> "Model":
    """The model behind a spec. A local one begins to load at once, in the background, weights fetched if need be.

    What goes wrong while loading is raised by the first request. Raises ConfigError for a spec that cannot be read.
    """
    cache = cache_dir or default_cache_dir()
    progress = on_progress or silent
    kind, _, rest = spec.partition(":")
    if kind in _SERVICES:
        return import_module(f"punie.backends.{kind}").build(rest, config)
    if kind == "local":
        engine = "mlx" if prefers_mlx() else "llamacpp"
        name = entry(rest or EMBEDDED).name
        return import_module(f"punie.backends.{engine}").build_named(name, cache_dir=cache, on_progress=progress)
    if kind in {"mlx", "gguf"} and rest:
        engine = "mlx" if kind == "mlx" else "llamacpp"
        path, adapter = split_adapter(rest)
        return import_module(f"punie.backends.{engine}").build(path, adapter, cache_dir=cache, on_progress=progress)
    raise ConfigError(f"'{spec}' is not a model.", f"Write {_FORMS}.")


def prefers_mlx() -> bool:
    """Whether MLX is the faster engine here: on Apple's own processors, if it is installed."""
    return sys.platform == "darwin" and platform.machine() == "arm64" and find_spec("mlx") is not None


def split_adapter(text: str) -> tuple[str, Path | None]:
    """`PATH+ADAPTER` as its two parts; a path that exists as it is written has no adapter."""
    path, plus, adapter = text.rpartition("+")
    if not plus or Path(text).expanduser().exists():
        return text, None
    return path, Path(adapter).expanduser()
