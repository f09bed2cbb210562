"""What the user agreed to, by its content: MCP servers, their tools, and the hooks of a project.

It lies in the user's state directory, so that nothing in a repository has a vote. What cannot be understood there
counts as nothing agreed to, and is kept aside.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from punie.errors import ConfigError
from punie.extensions import Definition, Scope, digest
from punie.trust import locked, workspace_key, write_private

FILE = "approved.json"


class Pin(BaseModel):
    """One server as it was agreed to."""

    model_config = ConfigDict(extra="forbid")

    parts: dict[str, str]
    """The digest of each part of its definition."""
    tools: dict[str, str] | None = None
    """The digest of each of its tools; None until it was started for the first time."""
    characters: int = 0
    """Length of its tools as the model is told of them, as JSON."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = 1
    servers: dict[str, dict[str, Pin]] = Field(default_factory=dict)
    hooks: dict[str, list[str]] = Field(default_factory=dict)


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """What differs between two sets of digests, in words."""
    words = [f"{name} is new" for name in sorted(after.keys() - before.keys())]
    words += [f"{name} is gone" for name in sorted(before.keys() - after.keys())]
    words += [f"{name} changed" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]]
    return tuple(words)


@dataclass(frozen=True)
class Pins:
    """The store of one user, seen from one project."""

    directory: Path
    root: Path

    @property
    def file(self) -> Path:
        """Where it lies."""
        return self.directory / FILE

    def of(self, definition: Definition) -> Pin | None:
        """What was agreed to under the name of this server; it may be another one by now."""
        return self._load().servers.get(self._key(definition.scope), {}).get(definition.name)

    def agrees(self, definition: Definition) -> bool:
        """Whether the user agreed to exactly this definition."""
        pin = self.of(definition)
        return pin is not None and pin.parts == definition.fingerprint()

    def add(self, definition: Definition, *, tools: Mapping[str, str] | None = None, characters: int = 0) -> None:
        """Agree to a server as it is, and to its tools if they are known. Raises ConfigError if it cannot be kept."""
        pin = Pin(parts=definition.fingerprint(), tools=None if tools is None else dict(tools), characters=characters)
        with self._changing() as stored:
            stored.servers.setdefault(self._key(definition.scope), {})[definition.name] = pin

    def remove(self, name: str, scope: Scope) -> None:
        """Forget a server."""
        with self._changing() as stored:
            stored.servers.get(self._key(scope), {}).pop(name, None)

    def has_hook(self, hook: object) -> bool:
        """Whether the user agreed to this hook of the project."""
        return digest(hook) in self._load().hooks.get(workspace_key(self.root), [])

    def add_hook(self, hook: object) -> None:
        """Agree to a hook of the project."""
        with self._changing() as stored:
            known = stored.hooks.setdefault(workspace_key(self.root), [])
            known.append(digest(hook))

    def _key(self, scope: Scope) -> str:
        return "user" if scope == "user" else workspace_key(self.root)

    def _load(self) -> _Stored:
        try:
            text = self.file.read_bytes()
        except OSError:
            return _Stored()
        try:
            stored = _Stored.model_validate(json.loads(text))
        except (ValueError, RecursionError, ValidationError):
            with suppress(OSError):
                self.file.rename(self.file.with_name(f"{FILE}.corrupt-{time.time_ns()}"))
            return _Stored()
        return stored

    @contextmanager
    def _changing(self) -> Iterator[_Stored]:
        """The store while it is changed, under its lock; written when that went well."""
        try:
            with locked(self.directory):
                stored = self._load()
                yield stored
                write_private(self.file, stored.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"{self.file}: cannot be written: {error.strerror}.") from error
