"""From flags and settings to what a conversation needs: a config, a permission mode, a model and an agent."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from punie.config import (
    MORE_TOOLS,
    TOOL_NAMES,
    AgentConfig,
    PermissionMode,
    Resolved,
    Settings,
    home_of,
    load_settings,
    project_skill_places,
    remember_rules,
)
from punie.errors import ConfigError, UsageError
from punie.rules import RuleSet
from punie.trust import state_directory
from punie.ui._agents_md import agent_files, is_embedded
from punie.ui._extensions import Extensions
from punie.ui._progress import OnProgress
from punie.ui._verbose import settings_lines
from punie.ui.options import MODES, Options

if TYPE_CHECKING:
    from pydantic_ai import Agent
    from pydantic_ai.models import Model

    from punie.agent.approval import Approver, Gate
    from punie.agent.checks import Checks
    from punie.agent.memory import Memory
    from punie.agent.permissions import Permissions
    from punie.agent.skills import Skills
    from punie.tools import Workspace


@dataclass(frozen=True)
class Setup:
    """Everything decided before a model is loaded."""

    settings: Settings
    config: AgentConfig
    mode: PermissionMode
    root: Path
    notices: tuple[str, ...]
    session_id: str
    state_dir: Path
    """Where Punie keeps things of its own."""
    rules: RuleSet = field(default_factory=RuleSet)
    trusted: bool = False
    """Whether the project's own files count for more than data."""
    waiting: tuple[Path, ...] = ()
    """Files of the project that would be read if it were trusted."""
    local_file: Path | None = None
    """Where the rules granted in this directory are kept."""
    home: Path | None = None
    project: Path | None = None
    """The root of the project if it is trusted."""
    user_dir: Path | None = None
    """Where the user's own settings lie."""
    about: tuple[str, ...] = ()
    """What every request will begin with, and about what that costs."""
    checks_by_user: bool = False
    """Whether the checks that are switched on were written down by the user, and not by the project."""
    sources: tuple[str, ...] = ()
    """Which files, variables and flags set what."""
    extensions: Extensions = field(default_factory=Extensions)
    """MCP servers and hooks; whoever runs an agent ends them."""

    def remember(self, rules: Sequence[str]) -> None:
        """Keep rules that the user allowed for good. Raises ConfigError if they cannot be written."""
        if self.local_file is not None:
            remember_rules(self.local_file, rules, root=self.root)

    def with_mode(self, mode: PermissionMode) -> "Setup":
        """Return the same in another permission mode. Raises ConfigError where it cannot be had."""
        if mode == "auto":
            _need_sandbox(self.settings)
        return replace(self, mode=mode)

    def with_model(self, spec: str) -> "Setup":
        """Return the same with another model, which may be an alias."""
        resolved = self.settings.aliases.get(spec, spec)
        return replace(self, config=self.config.model_copy(update={"model": resolved}))


def prepare(options: Options, *, env: Mapping[str, str]) -> Setup:
    """Read the settings and check what names tools and modes. Loads no model library."""
    resolved = load_settings(cwd=options.cwd, env=env, flags=options.flags())
    settings = resolved.settings
    _check_tools([*settings.tools, *settings.more_tools, *chain(*settings.model_tools.values())])
    mode = settings.permission_mode
    if mode not in MODES:
        source = resolved.sources["permission_mode"]
        raise ConfigError(f"{source}: permission mode '{mode}' is not available.", f"Choose one of {', '.join(MODES)}.")
    if mode == "auto":
        _need_sandbox(settings)
    _need_telemetry(settings, resolved.sources["telemetry"])
    written = agent_files(resolved, options.cwd)
    extensions = Extensions.of(resolved, env=env)
    unchecked = f"Checks are not run: {resolved.root} is not trusted. `punie trust` trusts it."
    skills = _skills_waiting(resolved, options.cwd)
    unread = (f"{path.relative_to(resolved.root)} is not read: {resolved.root} is not trusted." for path in skills)
    waiting = [resolved.project_file, *written.of_project, *extensions.found.waiting, *skills]
    return Setup(
        settings=settings,
        config=settings.agent_config(),
        mode=mode,
        root=options.cwd,
        notices=tuple(
            filter(
                None,
                [
                    *resolved.notices,
                    written.refusal,
                    *unread,
                    *extensions.found.notices,
                    unchecked if settings.checks and not resolved.trusted else "",
                ],
            )
        ),
        session_id=uuid.uuid4().hex,
        state_dir=state_directory(env),
        rules=resolved.rules,
        trusted=resolved.trusted,
        waiting=() if resolved.trusted else tuple(filter(None, waiting)),
        local_file=resolved.local_file,
        home=home_of(env),
        project=resolved.root if resolved.trusted else None,
        user_dir=resolved.user_file.parent,
        about=(written.line,) if written.line else (),
        checks_by_user=not resolved.sources["checks"].startswith(f"{resolved.project_file}:"),
        sources=tuple(settings_lines(resolved)),
        extensions=extensions,
    )


def _skills_waiting(resolved: Resolved, cwd: Path) -> list[Path]:
    """Where skills of a project lie that is not trusted; nothing for the embedded model, which would get none."""
    if resolved.trusted or resolved.settings.skills_tokens == 0 or is_embedded(resolved):
        return []
    return [path for path in project_skill_places(cwd.resolve(), resolved.root) if path.is_dir()]


def _need_sandbox(settings: Settings) -> None:
    """Raises ConfigError where commands cannot be confined: then nobody may wave them all through."""
    from punie.tools import sandbox_state

    state = sandbox_state(settings.sandbox)
    if not state.active:
        cause = f"Permission mode 'auto' needs a sandbox, and none works here: {state.reason}."
        raise ConfigError(cause, "acceptEdits lets edits through and asks about commands.")


def _need_telemetry(settings: Settings, source: str) -> None:
    """Raises ConfigError where telemetry is on and its package is not there."""
    if settings.telemetry != "off" and find_spec("opentelemetry.sdk") is None:
        cause = f"{source}: telemetry needs OpenTelemetry, which is not installed."
        raise ConfigError(cause, "Install it with `pip install 'punie[otel]'`, or set telemetry = \"off\".")


def open_workspace(setup: Setup) -> "Workspace":
    """The workspace with the limits and the sandbox of the settings.

    Raises ConfigError if a sandbox is required and none works here.
    """
    from punie.tools import Workspace

    timeout_s = setup.config.limits.command_timeout_s
    sandbox = setup.settings.sandbox
    return Workspace(
        setup.root,
        command_timeout_s=timeout_s,
        sandbox=sandbox,
        state_dir=setup.state_dir,
        project=setup.project,
    )


def _check_tools(names: Collection[str]) -> None:
    known = (*TOOL_NAMES, *MORE_TOOLS)
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"There are {', '.join(known)}."
            raise UsageError(f"There is no tool named '{name}'.", hint)


def load_model(setup: Setup, on_progress: OnProgress) -> "Model":
    """Build the model of the config; fetches weights that are not here yet."""
    from punie.backends import build

    cache_dir = setup.settings.cache_dir
    model = build(setup.config.model, setup.config, cache_dir=cache_dir, on_progress=on_progress)
    _read_ahead(model, setup)
    return model


def _read_ahead(model: "Model", setup: Setup) -> None:
    """Let a local model read its instructions and tools while the user still types."""
    from punie.agent.instructions import instructions_for
    from punie.agent.offered import offered
    from punie.backends._local import LocalModel
    from punie.tools import toolset

    if isinstance(model, LocalModel):
        memory = memory_of(setup)
        written = memory.read(budget_tokens=memory.budget_for(model))
        skills = skills_of(setup, model)
        names = offered(setup.config, model, skills=bool(skills))
        told = skills.text if "load_skill" in names else ""
        instructions = instructions_for(setup.config, compact=model.compact, written=written.text, skills=told)
        model.warm(instructions, [tool.tool_def for tool in toolset(names).tools.values()])


def assemble(setup: Setup, *, model: "Model", ask: "Approver", gate: "Gate | None" = None) -> "Agent[Workspace, str]":
    """Make the agent; `ask` decides where the permission mode leaves it to the user, or `gate` about every call.

    The model is offered the same tools in every mode, so that a conversation keeps its beginning when the mode
    changes; what a mode does not allow is refused when it is called.
    """
    import pydantic_ai

    from punie.agent.factory import create_agent

    pydantic_ai.BANNER_ENABLED = False  # the terminal is Punie's to draw on
    return create_agent(
        setup.config,
        model=model,
        gate=gate or gate_for(setup, ask=ask),
        memory=memory_of(setup),
        skills=skills_of(setup, model),
        servers=setup.extensions.servers,
        hooks=setup.extensions.hooks,
        checks=checks_of(setup),
        telemetry=setup.extensions.telemetry,
    )


def memory_of(setup: Setup) -> "Memory":
    """Where AGENTS.md files may come from: of a project only if it is trusted, and none that may not be read."""
    from punie.agent.memory import Memory
    from punie.agent.permissions import hides

    return Memory(
        cwd=setup.root.resolve(),
        project=setup.project,
        user=setup.user_dir,
        hidden=hides(setup.project or setup.root, permissions_of(setup)),
        tokens=setup.settings.agents_md_tokens,
    )


def skills_of(setup: Setup, model: "Model") -> "Skills":
    """The skills for a model, of a project only if it is trusted; none for a small model."""
    from punie.agent.offered import is_large
    from punie.agent.skills import Skills, budget_for, find_skills

    if not is_large(setup.config, model):
        return Skills()
    budget = budget_for(model, tokens=setup.settings.skills_tokens)
    return find_skills(memory_of(setup), home=setup.home, budget_tokens=budget)


def checks_of(setup: Setup) -> "Checks | None":
    """What is run after a turn that changed files; nothing in a project that nobody trusts."""
    from punie.agent.checks import Checks

    settings = setup.settings
    if setup.project is None:
        return None
    return Checks(
        settings.checks,
        tries=settings.check_tries,
        by_user=setup.checks_by_user,
        small_models=settings.check_small_models,
    )


def permissions_of(setup: Setup) -> "Permissions":
    """The mode and the rules that calls are judged by."""
    from punie.agent.permissions import Permissions

    return Permissions(setup.mode, setup.rules, uses_sandbox=True, trusted=setup.trusted, home=setup.home)


def gate_for(setup: Setup, *, ask: "Approver") -> "Gate":
    """What decides about calls; `ask` where the permission mode leaves it to the user."""
    from punie.agent.approval import Gate

    return Gate(ask, permissions_of(setup), remember=setup.remember)


_IN_TURN: tuple[PermissionMode, ...] = ("default", "acceptEdits", "plan", "auto")
"""The modes that one key goes through; the two others are chosen by name."""


def mode_after(setup: Setup) -> PermissionMode:
    """The mode that the key for it takes next; `auto` only where a sandbox works."""
    place = _IN_TURN.index(setup.mode) + 1 if setup.mode in _IN_TURN else 0
    mode = _IN_TURN[place % len(_IN_TURN)]
    if mode != "auto":
        return mode
    from punie.tools import sandbox_state

    return "auto" if sandbox_state(setup.settings.sandbox).active else _IN_TURN[0]
