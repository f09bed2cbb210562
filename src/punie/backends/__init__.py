"""Models: the embedded one, files and directories on this machine, and services. Engines are imported when used."""

import platform
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from punie.backends._files import Progress
from punie.backends._weights import default_cache_dir, find_weights, place_of, silent
from punie.backends.catalogue import EMBEDDED, Entry, entry, known, split_name
from punie.config import AgentConfig
from punie.errors import ConfigError
from punie.local_models import EngineName

if TYPE_CHECKING:
    from pydantic_ai.models import Model

__all__ = ["Progress", "build"]

_SERVICES = ("claude", "openai")
_FORMS = (
    "local, local:NAME[+ADAPTER|+off], mlx:PATH_OR_ID[+ADAPTER], gguf:PATH[+ADAPTER], claude[:MODEL] or "
    "openai:MODEL[@URL]"
)

NO_ADAPTER = "+off"
"""After a name: the base model alone, also where an adapter is shipped or configured for it."""

_FASTEST_FIRST: tuple[EngineName, ...] = ("mlx", "llamacpp")


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
        return _build_named(rest, config, cache_dir=cache, on_progress=progress)
    if kind in {"mlx", "gguf"} and rest:
        path, adapter = split_adapter(rest)
        engine = _module("mlx" if kind == "mlx" else "llamacpp")
        return engine.build(path, adapter, cache_dir=cache, on_progress=progress, options=config.engine)
    raise ConfigError(f"'{spec}' is not a model.", f"{_meant(spec, config)}Write {_FORMS}.")


def _meant(spec: str, config: AgentConfig) -> str:
    """A spec that can be written and looks like this one."""
    specs = ("local", *_SERVICES, *(f"local:{name}" for name in known(config.models)))
    by_name = {text.removeprefix("local:"): text for text in specs}
    close = get_close_matches(spec.lower(), by_name, n=1)
    return f"Did you mean {by_name[close[0]]}? " if close else ""


def _build_named(text: str, config: AgentConfig, *, cache_dir: Path, on_progress: Progress) -> "Model":
    name, adapter = split_name(text.removesuffix(NO_ADAPTER))
    bare = text.endswith(NO_ADAPTER)
    model = entry(name, config.models)
    own = None if bare else model.adapter
    options = config.engine.overridden(model.engine)
    given = {"cache_dir": cache_dir, "on_progress": on_progress, "options": options}
    engine = engine_for(model, cache_dir)
    if model.package:
        return _module(engine).build_named(EMBEDDED, adapter or own, bare=bare, **given)
    path = find_weights(model, engine=engine, cache_dir=cache_dir)
    return _module(engine).build(str(path), adapter or own, **given)


def _module(name: EngineName) -> ModuleType:
    return import_module(f"punie.backends.{name}")


def engine_for(model: Entry, cache_dir: Path) -> EngineName:
    """The engine that runs a named model here: the faster one, unless there are only weights for the other one.

    Raises ConfigError for a model that neither can run.
    """
    engines = _FASTEST_FIRST if prefers_mlx() else _FASTEST_FIRST[::-1]
    fit: list[EngineName] = [engine for engine in engines if model.runs_on(engine)]
    if not fit:
        raise ConfigError(f"There are no weights of {model.name} for an engine.", f"`punie models info {model.name}`")
    here: list[EngineName] = [engine for engine in fit if place_of(model, engine, cache_dir).exists()]
    return (here or fit)[0]


def prefers_mlx() -> bool:
    """Whether MLX is the faster engine here: on Apple's own processors, if it is installed."""
    return sys.platform == "darwin" and platform.machine() == "arm64" and find_spec("mlx") is not None


def split_adapter(text: str) -> tuple[str, Path | None]:
    """`PATH+ADAPTER` as its two parts; a path that exists as it is written has no adapter."""
    path, plus, adapter = text.rpartition("+")
    if not plus or Path(text).expanduser().exists():
        return text, None
    return path, Path(adapter).expanduser()
