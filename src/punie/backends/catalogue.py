"""The named models: those of `catalogue.toml` and the user's own, what they need, where their weights come from."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from punie.errors import ConfigError
from punie.local_models import EngineName, ModelFacts, PackagedFile, UserModel

__all__ = ["EMBEDDED", "Entry", "PackagedFile", "entries", "entry", "known", "split_name"]

EMBEDDED = "smollm2-135m"


class Entry(ModelFacts):
    """One named model."""

    name: str
    origin: Literal["catalogue", "yours"] = "catalogue"
    folder: str = ""
    """Its directory in the cache: its name, or that of the model whose weights it shares."""
    dialect: Literal["compact", "hermes", "qwen3-coder"] | None = None
    """How its template writes a tool call: JSON in <tool_call> (Hermes, compact), or tags in it (Qwen3-Coder)."""
    end: tuple[str, ...] = ()
    """The tokens that end a turn, for people: engines read the template and these from the weights."""
    end_ids: tuple[int, ...] = ()
    """Their numbers."""
    config: Mapping[str, int] = {}
    """What of `config.json` memory depends on, to plan a training run before there are weights."""

    @property
    def source(self) -> Literal["package", "hub", "folder"]:
        """Where its weights come from: the package index, the model hub, or a place of the user's."""
        if self.path:
            return "folder"
        return "package" if self.package else "hub"

    def runs_on(self, engine: EngineName) -> bool:
        """Whether this engine can run it, and there are weights for it."""
        if engine not in self.engines:
            return False
        if self.path:
            return self.path.is_dir() == (engine == "mlx")
        if self.package:
            return True
        return bool(self.mlx_id if engine == "mlx" else self.gguf_id)


@cache
def entries() -> Mapping[str, Entry]:
    """Every model of the catalogue by its name."""
    tables = tomllib.loads(files("punie.backends").joinpath("catalogue.toml").read_text("utf-8"))
    return MappingProxyType({name: Entry(name=name, **table) for name, table in tables.items()})


def known(models: Mapping[str, UserModel]) -> Mapping[str, Entry]:
    """The catalogue and the user's own models, which come first where they have the same name.

    Raises ConfigError for one whose `base` is not in the catalogue.
    """
    own = {name: _entry_of(name, model) for name, model in models.items()}
    return MappingProxyType({**entries(), **own})


def entry(name: str, models: Mapping[str, UserModel] | None = None) -> Entry:
    """The model of that name. Raises ConfigError that names the nearest one, or all."""
    found = known(models or {})
    if name not in found:
        raise ConfigError(f"There is no local model named {name!r}.", nearest(name, tuple(found)))
    return found[name]


def nearest(name: str, names: tuple[str, ...]) -> str:
    """The next step for a name that is not there."""
    close = get_close_matches(name.lower(), names, n=1, cutoff=0.5) or [n for n in names if n.startswith(name.lower())]
    meant = f"Did you mean local:{close[0]}? " if close else ""
    return f"{meant}Known: {', '.join(names)}."


def split_name(text: str) -> tuple[str, Path | None]:
    """`NAME+ADAPTER` as its two parts; the embedded model where the name is empty."""
    name, plus, adapter = text.partition("+")
    return name or EMBEDDED, Path(adapter).expanduser() if plus and adapter else None


_SOURCES = frozenset({"path", "mlx_id", "mlx_revision", "gguf_id", "gguf_name", "gguf_revision", "package", "file"})


def _entry_of(name: str, model: UserModel) -> Entry:
    said = {key: getattr(model, key) for key in model.model_fields_set - {"base"}}
    if not model.base:
        return Entry(**{"name": name, "origin": "yours", "title": name, **said})
    if model.base not in entries():
        raise ConfigError(
            f"models.{name}: there is no model named {model.base!r} in the catalogue.",
            nearest(model.base, tuple(entries())),
        )
    base = entries()[model.base]
    inherited = {key: getattr(base, key) for key in base.model_fields_set}
    if own_weights := _SOURCES & set(said):
        inherited = {key: value for key, value in inherited.items() if key not in _SOURCES | {"gguf_sha256"}}
    folder = name if own_weights else model.base
    return Entry(**{**inherited, **said, "name": name, "origin": "yours", "folder": folder})
