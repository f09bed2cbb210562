"""The named models of `catalogue.toml`: what they are, what they need, where their weights come from."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict

from punie.errors import ConfigError

EMBEDDED = "smollm2-135m"


class PackagedFile(BaseModel):
    """A weights file that travels inside a wheel on the package index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    wheel_sha256: str
    member: str
    """The file's path inside the wheel."""


class Entry(BaseModel):
    """One named model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    licence: str
    parameters: int
    size_bytes: int
    """Of the weights file, or of the 4-bit weights where several are published."""
    memory_bytes: int
    context_window: int
    engines: tuple[Literal["llamacpp", "mlx"], ...]
    source: Literal["package", "hub"]
    """`package`: Punie fetches it through the package index. `hub`: the user places the file, or MLX fetches it."""
    note: str
    package: str | None = None
    file: PackagedFile | None = None
    mlx_id: str | None = None
    """Repository of the converted weights on the model hub."""
    gguf_id: str | None = None
    gguf_name: str | None = None


@cache
def entries() -> Mapping[str, Entry]:
    """Every named model by its name."""
    tables = tomllib.loads(files("punie.backends").joinpath("catalogue.toml").read_text("utf-8"))
    return MappingProxyType({name: Entry(name=name, **table) for name, table in tables.items()})


def entry(name: str) -> Entry:
    """The model of that name. Raises ConfigError that lists the names there are."""
    if name not in entries():
        raise ConfigError(f"There is no local model named {name!r}.", f"Known: {', '.join(entries())}.")
    return entries()[name]
