"""MCP servers, hooks and telemetry of a run: found with the settings, made when an agent is, ended with the program."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from punie.config import Resolved, TelemetryTarget, home_of
from punie.extensions import PROJECT_FILE, USER_FILE, Definition, Hooks, read_servers
from punie.trust import state_directory
from punie.ui._clean import clean

if TYPE_CHECKING:
    from punie.agent._pins import Pins
    from punie.agent.hooks import HookRunner
    from punie.agent.mcp import Servers
    from punie.agent.telemetry import Telemetry


@dataclass(frozen=True)
class Found:
    """The servers that are written down, and what there is to say about the files."""

    definitions: tuple[Definition, ...] = ()
    notices: tuple[str, ...] = ()
    waiting: tuple[Path, ...] = ()
    """A project's file that would be read if the project were trusted."""


def find_servers(resolved: Resolved) -> Found:
    """The user's servers, and those of the project if it is trusted; where a name is taken the user's own one counts.

    Raises ConfigError for a mistake in the user's own file.
    """
    own, _ = read_servers(resolved.user_file.with_name(USER_FILE), "user")
    file = resolved.root / PROJECT_FILE
    if not resolved.trusted:
        notice = f"{file} is not read: {resolved.root} is not trusted. `punie trust` trusts it."
        return Found(own, (notice,), (file,)) if file.is_file() else Found(own)
    project, problems = read_servers(file, "project")
    taken = {definition.name for definition in own}
    problems += tuple(
        f"{file}: your own server {each.name} counts, not this one." for each in project if each.name in taken
    )
    return Found((*own, *(each for each in project if each.name not in taken)), problems)


@dataclass(frozen=True)
class Extensions:
    """What an agent gets besides its own tools."""

    found: Found = Found()
    own_hooks: Hooks = field(default_factory=Hooks)
    project_hooks: Hooks = field(default_factory=Hooks)
    project_variables: tuple[str, ...] = ()
    root: Path = Path()
    directory: Path = Path()
    """Where the programs of servers are started."""
    environment: Mapping[str, str] = field(default_factory=dict)
    tells: TelemetryTarget = "off"
    """Where telemetry goes."""
    tells_content: bool = False

    @classmethod
    def of(cls, resolved: Resolved, *, env: Mapping[str, str]) -> "Extensions":
        """Those of the settings. Raises ConfigError for a mistake in the user's own files."""
        settings = resolved.settings
        return cls(
            find_servers(resolved),
            own_hooks=settings.hooks,
            project_hooks=resolved.project_hooks,
            project_variables=settings.mcp_environment,
            root=resolved.root,
            directory=resolved.root if resolved.trusted else home_of(env) or Path("/"),
            environment=env,
            tells=settings.telemetry,
            tells_content=settings.telemetry_content,
        )

    @property
    def pins(self) -> "Pins":
        """What the user agreed to."""
        from punie.agent._pins import Pins

        return Pins(state_directory(self.environment), self.root)

    @cached_property
    def servers(self) -> "Servers | None":
        """The servers of this run, none of them started yet; None if there are none."""
        if not self.found.definitions:
            return None
        from punie.agent.mcp import Servers

        return Servers(
            self.found.definitions,
            self.pins,
            root=self.root,
            directory=self.directory,
            environment=self.environment,
            project_variables=self.project_variables,
        )

    @cached_property
    def hooks(self) -> "HookRunner | None":
        """The hooks of this run; None if there are none."""
        if not (self.own_hooks or self.project_hooks):
            return None
        from punie.agent.hooks import HookRunner

        return HookRunner(self.own_hooks, self.project_hooks, pins=self.pins)

    @cached_property
    def telemetry(self) -> "Telemetry | None":
        """What gets the spans of this run; None unless the user switched it on. ConfigError if it cannot be had."""
        if self.tells == "off":
            return None
        from punie.agent import telemetry  # imports OpenTelemetry's SDK

        if self.tells == "otlp":
            return telemetry.to_collector(environment=self.environment, content=self.tells_content)
        state_dir = state_directory(self.environment)
        return telemetry.to_file(state_dir, environment=self.environment, content=self.tells_content)

    async def close(self) -> None:
        """End the servers that were started, and send what telemetry still holds."""
        if "servers" in vars(self) and self.servers is not None:
            await self.servers.close()
        told = self.telemetry.close() if "telemetry" in vars(self) and self.telemetry is not None else ""
        if told:
            sys.stderr.write(f"punie: {clean(told)}\n")
