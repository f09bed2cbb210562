"""Which tools a model is offered: the small ones those that a small model can choose from, the large ones all.

What a model is offered depends on its spec and its files, never on whether it is loaded: a local model reads its tools
ahead before anybody asks something.
"""

import re
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic_ai.models import Model

from punie.backends import split_adapter
from punie.backends.catalogue import Entry, entry, split_name
from punie.config import TOOL_NAMES, AgentConfig
from punie.errors import ConfigError

SMALLEST_PARAMETERS = 3_000_000_000
SMALLEST_FILE = 1_500_000_000
"""Bytes of weights whose parameters nobody states: about as many at four bits."""
SMALLEST_WINDOW = 16_384
_IN_A_NAME = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")


def is_compact(model: Model) -> bool:
    """Whether the model is one of the small embedded ones, which carry their own system text."""
    return bool(getattr(model, "compact", False))


def offered(config: AgentConfig, model: Model, *, skills: bool = False) -> tuple[str, ...]:
    """The names of the tools for this model, in order; `skills` says that there are some to load."""
    return named(config, compact=is_compact(model), large=is_large(config, model), skills=skills)


def named(config: AgentConfig, *, compact: bool, large: bool, skills: bool = False) -> tuple[str, ...]:
    """The same for a model of which only this is known: one that is compact was trained on a few tools."""
    fits = (names for pattern, names in config.model_tools.items() if fnmatchcase(config.model, pattern))
    names = next(fits, None)
    if names is None and compact:
        names = tuple(name for name in config.tools if name in TOOL_NAMES)
    elif names is None:
        names = (*config.tools, *(config.tools_beyond() if large else ()))
    return tuple(name for name in dict.fromkeys(names) if skills or name != "load_skill")


def is_large(config: AgentConfig, model: Model) -> bool:
    """Whether a model is large enough to plan, to keep a list and to choose among skills.

    Of a service nobody knows the size, unless it stands in the name: it counts as large. What a server says of its
    window does not count, because it is only asked when the tools are part of the first request already.
    """
    if is_compact(model):
        return False
    if model.system == "local":
        found = _entry_of(config)
        return found is not None and is_large_local(found)
    window, size = model.profile.get("context_window"), _size_in(model.model_name)
    return (window is None or window >= SMALLEST_WINDOW) and (not size or size >= SMALLEST_PARAMETERS)


def is_large_local(model: Entry) -> bool:
    """The same of a local model, by its parameters, its name or its file; one of an unknown size is not."""
    if model.context_window is not None and model.context_window < SMALLEST_WINDOW:
        return False
    parameters = model.parameters or _size_in(model.path.name if model.path else f"{model.name} {model.mlx_id or ''}")
    return parameters >= SMALLEST_PARAMETERS if parameters else _bytes_at(model.path) >= SMALLEST_FILE


def _entry_of(config: AgentConfig) -> Entry | None:
    kind, _, rest = config.model.partition(":")
    if kind in {"gguf", "mlx"} and rest:
        path = split_adapter(rest)[0]
        return Entry(name=path, path=Path(path))
    with suppress(ConfigError):
        return entry(split_name(rest)[0], config.models)
    return None


def _size_in(name: str) -> int:
    """The parameters that a name states (`7b`, `0.5B`, `270m`), the largest number of several; 0 if it states none."""
    scale = {"b": 1e9, "m": 1e6}
    return max((int(float(number) * scale[unit]) for number, unit in _IN_A_NAME.findall(name.lower())), default=0)


def _bytes_at(path: Path | None) -> int:
    with suppress(OSError):
        if path is not None and path.is_file():
            return path.stat().st_size
        if path is not None and path.is_dir():
            return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return 0
