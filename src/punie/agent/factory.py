"""One agent from one configuration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_ai import Agent, ModelSettings
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.models import Model
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset

from punie import tools
from punie.agent._recorded import Recorded
from punie.agent._redacted import Redacting
from punie.agent.approval import Approver, Gate, refuse
from punie.agent.checks import Checking, Checks
from punie.agent.compaction import Compacting
from punie.agent.guards import ReplyGuard, ToolGuard
from punie.agent.hooks import Hooked, HookRunner, TurnEnd
from punie.agent.instructions import instructions_for
from punie.agent.mcp import Servers
from punie.agent.memory import Memory, Nested
from punie.agent.offered import is_compact, is_large, offered
from punie.agent.permissions import Permissions
from punie.agent.planning import Planned, Planning
from punie.agent.skills import Loading, Skills
from punie.config import MORE_TOOLS, TOOL_NAMES, AgentConfig
from punie.errors import ConfigError
from punie.tools import Workspace

if TYPE_CHECKING:
    from punie.agent.telemetry import Telemetry

TOOL_RETRIES = 2
OUTPUT_RETRIES = 2
LARGE_MAX_TOKENS = 8192
"""Of a model that is not compact, unless configured: it may think before it writes."""


def create_agent(
    config: AgentConfig,
    *,
    model: Model | str | None = None,
    approve: Approver = refuse,
    permissions: Permissions | None = None,
    remember: Callable[[Sequence[str]], None] | None = None,
    memory: Memory | None = None,
    skills: Skills | None = None,
    servers: Servers | None = None,
    hooks: HookRunner | None = None,
    checks: Checks | None = None,
    gate: Gate | None = None,
    telemetry: "Telemetry | None" = None,
) -> Agent[Workspace, str]:
    """Build the agent; `model` takes the place of `config.model`, as a spec or as a PydanticAI model.

    `permissions` say what is free and what is denied, `approve` decides about the rest; by default everything that
    changes something is asked about, nobody answers, and that ends the turn. `remember` keeps the rules that are
    allowed for good. `memory` says which AGENTS.md files the model gets; by default none. `skills` are those that it
    can load if it is large enough; by default none. `servers`
    are MCP servers whose tools it gets besides its own; whoever made them ends them. `hooks` see its calls.
    `checks` are run after what it changed, and it is told what failed.
    `gate` takes the place of `approve` and `permissions`, for somebody who changes them while the agent works.
    `telemetry` gets spans of every run; whoever made it closes it.
    Raises ConfigError for an unknown tool or a model spec that cannot be read.
    """
    _refuse_unknown_tools(config)
    engine = _model(config, model)
    compact = is_compact(engine)
    memory = memory or Memory(Path(), tokens=0)
    budget = memory.budget_for(engine)
    written = memory.read(budget_tokens=budget)
    names = offered(config, engine, skills=bool(skills))
    skills = skills if skills and "load_skill" in names else Skills()
    gate = gate or Gate(approve, permissions or Permissions())
    if remember is not None:
        gate.remember = remember
    return Agent(
        engine,
        deps_type=Workspace,
        name="punie",
        instructions=instructions_for(config, compact=compact, written=written.text, skills=skills.text),
        model_settings=model_settings(config, engine),
        retries={"tools": TOOL_RETRIES, "output": OUTPUT_RETRIES},
        toolsets=[_toolset(config, names, gate, compact=compact, servers=servers, hooks=hooks)],
        capabilities=[
            Redacting(),
            *([TurnEnd(hooks, gate)] if hooks else []),
            *([Planning(gate)] if is_large(config, engine) else []),
            Nested(memory, budget, (*written.warnings, *skills.warnings)),
            Loading(skills),
            HandleDeferredToolCalls(gate.decide),
            ReplyGuard(small=compact),
            ToolGuard(config.limits),
            Compacting(),
            *([Checking(checks, gate, hooks, config.limits.max_turns)] if checks and checks.cover(engine) else []),
            *([telemetry.capability(engine)] if telemetry else []),
        ],
    )


def _toolset(
    config: AgentConfig,
    names: Sequence[str],
    gate: Gate,
    *,
    compact: bool,
    servers: Servers | None,
    hooks: HookRunner | None,
) -> AbstractToolset[Workspace]:
    """All tools, so wrapped that the decision about a call comes first, then its record, then the hooks."""
    found: AbstractToolset[Workspace] = tools.toolset(names)
    of_servers = servers.toolset(config.model, compact=compact, gate=gate) if servers else None
    if of_servers is not None:
        found = CombinedToolset([found, of_servers])
    found = Planned(found, gate)
    if hooks:
        found = Hooked(found, hooks, gate)
    return Recorded(found).approval_required(gate.needs_approval)


def model_settings(config: AgentConfig, model: Model) -> ModelSettings:
    """The sampling settings under PydanticAI's own keys: `stop_sequences`, never `stop`."""
    chosen = config.model_fields_set
    max_tokens = config.max_tokens if "max_tokens" in chosen or is_compact(model) else LARGE_MAX_TOKENS
    settings = ModelSettings(max_tokens=max_tokens, seed=config.seed)
    # Some Claude models sample in their own way and complain about any temperature, the default one included.
    if "temperature" in chosen or not model.profile.get("anthropic_disallows_sampling_settings"):
        settings["temperature"] = config.temperature
    if config.stop_sequences:
        settings["stop_sequences"] = list(config.stop_sequences)
    return settings


def _model(config: AgentConfig, model: Model | str | None) -> Model:
    if isinstance(model, Model):
        return model
    from punie import backends  # engines are slow to import and not needed when a model is given

    return backends.build(model or config.model, config)


def _refuse_unknown_tools(config: AgentConfig) -> None:
    known = (*TOOL_NAMES, *MORE_TOOLS)
    named = (name for names in (config.tools, config.more_tools, *config.model_tools.values()) for name in names)
    unknown = [name for name in dict.fromkeys(named) if name not in known]
    if unknown:
        raise ConfigError(f"Unknown tool: {', '.join(unknown)}.", f"Known tools: {', '.join(known)}.")
