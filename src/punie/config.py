"""Settings: defaults < user file < trusted project file < `PUNIE_*` environment < flags, as one frozen value.

Nothing here reads the process environment or the working directory by itself: both come in by argument.
A `.env` file is never read, and a project file counts only when the user trusts its directory. Rules about
permissions add up over the layers: what one of them denies, no other one takes back.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from platformdirs.unix import Unix
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from punie.errors import ConfigError
from punie.extensions import Check, Hooks, RuleText
from punie.local_models import EngineOptions, ModelName, NonEmpty, Positive, UserModel
from punie.rules import Rule, RuleSet, parse_rule, split_rules
from punie.trust import TrustStore, locked, project_root, read_own, state_directory, workspace_key, write_private

TOOL_NAMES = (
    "read_file",
    "list_files",
    "search",
    "find_symbol",
    "find_subclasses",
    "find_references",
    "edit_file",
    "write_file",
    "run_command",
)
"""The tools that every model can be given; the embedded one was trained on these."""

MORE_TOOLS = ("write_todos", "load_skill")
"""What only larger models get besides."""

INSTRUCTION_FILES = ("AGENTS.md", "CLAUDE.md")
"""What people write down for agents; the second name counts where there is no file of the first beside it."""

SKILL_PLACES = (".agents/skills", ".claude/skills")
"""Where folders of skills lie, in a project and in the user's home."""

# A project file may tune the work, never widen what Punie may do or where its words are sent.
PROJECT_KEYS = frozenset(
    {"model", "stop_sequences", "tools", "instructions", "temperature", "max_tokens", "seed", "limits"}
    | {"disallowed_tools", "permissions", "hooks", "checks", "check_tries"}
)

# Lists that add up over the layers, so that no layer can take back what another one refuses.
_ADDING_UP = frozenset({"permissions.deny", "permissions.ask", "permissions.allow", "disallowed_tools"})
_RULES = _ADDING_UP | {"allowed_tools"}

# Tables whose keys are names that the user chose.
_NAMED = ("aliases.", "models.", "model_tools.")

PermissionMode = Literal["plan", "default", "acceptEdits", "auto", "dontAsk", "bypassPermissions"]
TelemetryTarget = Literal["off", "otlp", "file"]


class PermissionRules(BaseModel):
    """What needs no question, what always needs one, and what is refused, in this order of strength from the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deny: tuple[RuleText, ...] = ()
    """Rules for what is refused; tried first. The lists of all files add up."""
    ask: tuple[RuleText, ...] = ()
    """Rules for what is always asked about; tried next."""
    allow: tuple[RuleText, ...] = ()
    """Rules for what needs no question; tried last."""


class Limits(BaseModel):
    """Where a turn ends at the latest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_turns: Positive = 12
    """Requests to the model in one turn."""
    max_tool_calls: Positive = 24
    """Tool calls in one turn."""
    max_total_tokens: Positive | None = None
    """Tokens read and written in one turn; unset: any number."""
    command_timeout_s: Annotated[float, Field(gt=0, le=600)] = 120
    """Seconds that a command may take unless its call asks for another time; 600 at most."""
    tool_lines: Annotated[int, Field(gt=0, le=200)] = 200
    """Lines of tool output the model is shown at most."""


class SandboxOptions(BaseModel):
    """What commands are confined to. Only the user sets this: never a project."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["auto", "required", "off"] = "auto"
    """"auto" takes the best that works here, "required" refuses to start without one, "off" runs commands bare."""
    network: bool = False
    """Whether every command may use the network; otherwise only one that was allowed to."""
    environment: tuple[NonEmpty, ...] = ()
    """More variables for commands: exact names, or patterns such as "CARGO_*" that never match a secret."""


class SessionOptions(BaseModel):
    """How long conversations are kept; 0 keeps them for ever, and any number of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_days: Annotated[int, Field(ge=0)] = 90
    """Days after which a conversation is deleted to which nothing was added."""
    keep: Annotated[int, Field(ge=0)] = 1_000
    """Conversations of all directories together; the ones that changed last stay."""


class AgentConfig(BaseModel):
    """What one agent is: its model, its tools and how it samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: NonEmpty = "local"
    """A model spec, or an alias of one."""
    stop_sequences: tuple[NonEmpty, ...] = ()
    """Texts at which a reply of the model ends."""
    tools: tuple[str, ...] = TOOL_NAMES
    """The tools that the model gets, by name."""
    more_tools: tuple[str, ...] = MORE_TOOLS
    """Tools that models get besides which are large enough for them; none where `tools` alone is chosen."""
    model_tools: Mapping[NonEmpty, tuple[str, ...]] = Field(default_factory=dict)
    """All the tools of the models whose spec a pattern fits: `"openai:qwen*" = ["read_file", "search"]`."""
    instructions: str | None = None
    """None takes the built-in instructions."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 takes the likeliest token each time, more than 0 draws; 2 at most."""
    max_tokens: Positive = 512
    """Tokens of one reply of the model; unless set, models larger than the embedded one may take 8,192."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Where drawing begins; the same seed gives the same text where a backend has seeds."""
    limits: Limits = Limits()
    engine: EngineOptions = EngineOptions()
    models: Mapping[ModelName, UserModel] = Field(default_factory=dict)
    """The user's own local models by name: `[models.mine]` is used as `local:mine`."""

    def tools_beyond(self) -> tuple[str, ...]:
        """What a large model gets besides `tools`, which are all of them where they were chosen alone."""
        chosen = self.model_fields_set
        return () if "tools" in chosen and "more_tools" not in chosen else self.more_tools


class Settings(AgentConfig, BaseSettings):
    """Everything a user can set. Keys for services are not here: they come from the environment or the keyring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aliases: Mapping[str, NonEmpty] = Field(default_factory=dict)
    """Short names for model specs: `fast = "openai:qwen@http://127.0.0.1:8080/v1"`."""
    permission_mode: PermissionMode = "default"
    """What is free, asked about or refused; `bypassPermissions` is taken from the command line only."""
    allowed_tools: tuple[RuleText, ...] = ()
    """Rules that allow, like `permissions.allow`; those of a stronger source replace the others."""
    disallowed_tools: tuple[RuleText, ...] = ()
    """A tool's name takes the tool away from the model; a rule denies what it covers."""
    permissions: PermissionRules = PermissionRules()
    trusted_projects: tuple[str, ...] = ()
    """Directories trusted besides those of `punie trust`. Trust does not reach into projects below."""
    cache_dir: Path | None = None
    """Where weights and corpora are kept; unset: the system's cache directory."""
    save_sessions: bool = True
    """Whether conversations are stored, and with them what `/undo` needs."""
    sessions: SessionOptions = SessionOptions()
    agents_md_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens that AGENTS.md files may take. None: an eighth of the model's window, and of an embedded model nothing."""
    skills_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens that names and descriptions of skills may take. None: a fiftieth of the model's window. 0: no skills."""
    sandbox: SandboxOptions = SandboxOptions()
    mcp_environment: tuple[NonEmpty, ...] = ()
    """Variables that the MCP servers of projects may be given, by their exact names."""
    telemetry: TelemetryTarget = "off"
    """Where spans of what the agent does go: nowhere, to an OTLP collector, or to a file in the state directory."""
    telemetry_content: bool = False
    """Whether they hold what was said, and arguments and results of tools, too."""
    checks: tuple[Check, ...] = ()
    """What is run after a turn that changed files: "ruff", "types", "tests", and tables with a command of your own."""
    check_tries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often in one turn the model is told what failed, and mends it; 0 only shows it to you."""
    check_small_models: bool = False
    """Whether the checks run with a small embedded model too."""
    hooks: Hooks = Hooks()
    """Commands before and after calls and at the end of a turn. Those of a project stand in `Resolved`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values given to the constructor, nothing else: `load_settings` brings the files and the environment."""
        return (init_settings,)

    def agent_config(self) -> AgentConfig:
        """The part an agent is made of: model aliases resolved, disallowed tools taken out."""
        # What was not set stays unset, so that the agent can tell a default from a choice.
        values = {name: getattr(self, name) for name in AgentConfig.model_fields if name in self.model_fields_set}
        values["model"] = self.aliases.get(self.model, self.model)
        taken = {
            name for text in self.disallowed_tools if (rule := parse_rule(text)).spec is None for name in rule.tools
        }

        def left(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(name for name in names if name not in taken)

        values |= {"tools": left(self.tools), "more_tools": left(self.tools_beyond())}
        values["model_tools"] = {pattern: left(names) for pattern, names in self.model_tools.items()}
        if not self.save_sessions:  # then nothing of what was said stays on the disk
            values["engine"] = self.engine.model_copy(update={"prefix_cache": False})
        return AgentConfig(**values)


@dataclass(frozen=True)
class Resolved:
    """The settings in force, and where each one comes from."""

    settings: Settings
    sources: Mapping[str, str]
    """Dotted key -> "default", "PATH:LINE", "PUNIE_NAME" or "--flag"."""
    user_file: Path
    project_file: Path | None
    """The project's file, whether it was read or not."""
    root: Path = Path()
    """The directory that trust is about."""
    trusted: bool = False
    rules: RuleSet = field(default_factory=RuleSet)
    """The permission rules of all layers, each with its source."""
    project_hooks: Hooks = field(default_factory=Hooks)
    """The hooks of the project's file; each waits for the user's agreement."""
    local_file: Path | None = None
    """Where the rules that the user grants in this directory are kept, outside of it."""
    notices: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[str, object, str]]:
        """Every dotted key with its value and its source, in the order of definition."""
        for key in setting_keys():
            yield key, value_of(self.settings, key), self.sources[key]


def setting_keys() -> tuple[str, ...]:
    """Every key that can be set, dotted."""
    limits = tuple(f"limits.{name}" for name in Limits.model_fields)
    engine = tuple(f"engine.{name}" for name in EngineOptions.model_fields)
    rules = tuple(f"permissions.{name}" for name in PermissionRules.model_fields)
    sandbox = tuple(f"sandbox.{name}" for name in SandboxOptions.model_fields)
    hooks = tuple(f"hooks.{name}" for name in Hooks.model_fields)
    sessions = tuple(f"sessions.{name}" for name in SessionOptions.model_fields)
    tables = {"limits", "engine", "permissions", "sandbox", "hooks", "sessions"}
    plain = (name for name in Settings.model_fields if name not in tables)
    return (*plain, *limits, *engine, *rules, *sandbox, *sessions, *hooks)


def value_of(settings: Settings, key: str) -> object:
    """The value under a dotted key."""
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def user_config_file(env: Mapping[str, str]) -> Path:
    """`config.toml` in XDG_CONFIG_HOME/punie, by default ~/.config/punie, on every system."""
    base = env.get("XDG_CONFIG_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "punie" / "config.toml"
    home = env.get("HOME", "")
    if Path(home).is_absolute():
        return Path(home) / ".config" / "punie" / "config.toml"
    return Unix("punie").user_config_path / "config.toml"


def home_of(env: Mapping[str, str]) -> Path | None:
    """The home directory the environment names, None when it names none."""
    home = env.get("HOME", "")
    return Path(home) if Path(home).is_absolute() else None


def project_config_file(cwd: Path, *, home: Path | None = None) -> Path | None:
    """`.punie/config.toml` at the root of the project that cwd lies in; None when there is none.

    One further down, or behind a link, is none: it is this one that commands are kept from.
    """
    file = project_root(cwd, home=home) / ".punie" / "config.toml"
    return file if file.is_file() and not (file.is_symlink() or file.parent.is_symlink()) else None


def _passed_over(cwd: Path, root: Path, *, read: Path | None) -> tuple[str, ...]:
    """What to say of the nearest file that looks like the settings of the project, if it is not the one."""
    places = [path for path in (cwd.resolve(), *cwd.resolve().parents) if path.is_relative_to(root)]
    near = next((file for path in places if (file := path / ".punie" / "config.toml").is_file()), None)
    if near is None or near == read:
        return ()
    return (f"{near} is not read: a command could change it. Only {root / '.punie'} counts, and only without links.",)


def instruction_files(directories: Sequence[Path]) -> tuple[Path, ...]:
    """The file for agents in each directory that has one. Nothing is opened."""
    names = (next((d / name for name in INSTRUCTION_FILES if os.path.lexists(d / name)), None) for d in directories)
    return tuple(file for file in names if file is not None)


def directories_down_to(cwd: Path, root: Path) -> list[Path]:
    """The directories from the root of a project down to one in it."""
    return [path for path in (cwd, *cwd.parents) if path.is_relative_to(root)][::-1]


def own_skill_places(*, user: Path | None, home: Path | None) -> list[Path]:
    """Where the user's own skills may lie; `user` is the directory of the settings."""
    own = [user / "skills"] if user else []
    return own + [home / place for place in SKILL_PLACES if home]


def project_skill_places(cwd: Path, root: Path) -> list[Path]:
    """Where a project's skills may lie, those nearest to where the work goes on first."""
    return [path / place for path in directories_down_to(cwd, root)[::-1] for place in SKILL_PLACES]


def local_rules_file(root: Path, env: Mapping[str, str]) -> Path:
    """Where the rules granted in one directory are kept: in the user's state directory, never in the project."""
    return state_directory(env) / "projects" / f"{workspace_key(root)}.toml"


def trust_store(env: Mapping[str, str]) -> TrustStore:
    """The user's store of trusted directories."""
    return TrustStore(state_directory(env), home_of(env))


def remember_rules(file: Path, rules: Sequence[str], *, root: Path) -> None:
    """Add rules to what is allowed in a directory from now on. Raises ConfigError if they cannot be written."""
    try:
        with locked(file.parent):
            known = _toml_layer(file).get("permissions.allow")
            before = known.value if known and isinstance(known.value, list) else []
            lines = [f"  {json.dumps(rule)}," for rule in dict.fromkeys([*map(str, before), *rules])]
            header = "# What was always allowed in " + json.dumps(str(root))
            write_private(file, "\n".join([header, "[permissions]", "allow = [", *lines, "]", ""]))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}.") from error


@dataclass(frozen=True)
class _Entry:
    value: object
    source: str
    places: tuple[str, ...] = ()
    """The source of each item of a list, where it is known."""

    def items(self) -> Iterator[tuple[object, str]]:
        """Every item of a list with its source."""
        values = self.value if isinstance(self.value, list | tuple) else ()
        places = self.places or (self.source,) * len(values)
        yield from zip(values, places, strict=True)


_Layer = Mapping[str, _Entry]
"""Dotted key -> the value one source gives it."""


def load_settings(*, cwd: Path, env: Mapping[str, str], flags: Mapping[str, object]) -> Resolved:
    """Merge the layers. `flags` maps dotted keys to values; None means the flag was not given.

    Raises ConfigError naming file, line and key.
    """
    home = home_of(env)
    root, user_file = project_root(cwd, home=home), user_config_file(env)
    project_file, local_file = project_config_file(cwd, home=home), local_rules_file(root, env)
    user = _toml_layer(user_file)
    trusted = root in trust_store(env) or _is_listed(root, user, home=home)
    layers = [user]
    notices = _passed_over(cwd, root, read=project_file)
    project_hooks = Hooks()
    if project_file and trusted:
        project, project_hooks = _without_hooks(_project_layer(project_file, user))
        layers.append(project)
    elif project_file:
        notices = (f"{project_file} is not read: {root} is not trusted. `punie trust` trusts it.", *notices)
    layers += [_local_layer(local_file), _env_layer(env)]
    for layer in layers:
        _refuse_bypass(layer)
    layers.append(_flag_layer(flags))
    for layer in layers:
        _check(layer)
    settings, sources = _merge(layers)
    return Resolved(
        settings,
        sources,
        user_file=user_file,
        project_file=project_file,
        root=root,
        trusted=trusted,
        rules=_rules_of(layers),
        project_hooks=project_hooks,
        local_file=local_file,
        notices=notices,
    )


def _toml_layer(file: Path) -> _Layer:
    """The file's keys, each with its line; an absent file is an empty layer."""
    try:
        text = read_own(file).decode("utf-8").replace("\r\n", "\n")
        tables = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text (byte {error.start}).") from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{file}:{line[1]}" if line else f"{file}"
        raise ConfigError(f"{place}: invalid TOML: {error}.", "`punie config edit` opens the file.") from error
    return {key: _entry(file, text, key=key, value=value) for key, value in _flat(tables)}


def _entry(file: Path, text: str, *, key: str, value: object) -> _Entry:
    first = _line_of(key, text)
    if key not in _RULES or not isinstance(value, list):
        return _Entry(value, f"{file}:{first}")
    lines = list(enumerate(text.splitlines(), start=1))[first - 1 :]
    found = (next((number for number, line in lines if _quoted_in(line, item)), first) for item in value)
    return _Entry(value, f"{file}:{first}", tuple(f"{file}:{number}" for number in found))


def _quoted_in(line: str, item: object) -> bool:
    return json.dumps(item, ensure_ascii=False) in line or f"'{item}'" in line


def _flat(tables: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in tables.items():
        if not isinstance(value, dict):
            yield key, value
        else:
            yield from ((f"{key}.{name}", item) for name, item in value.items())


def _line_of(key: str, text: str) -> int:
    """The line a dotted key is set on, 1 when it is written in a way that this does not follow."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            table = re.sub("[\"']", "", header[1]) + "."
            if f"{key}." == table:
                return number
        name = re.match(r"\s*([\w.\"'-]+)\s*=", line)
        if name and f"{key}.".startswith(table + re.sub("[\"']", "", name[1]) + "."):
            return number
    return 1


def _env_layer(env: Mapping[str, str]) -> _Layer:
    """`PUNIE_MAX_TOKENS=64`, `PUNIE_LIMITS__MAX_TURNS=3`; a tuple is JSON or words with commas; empty is unset."""
    names = sorted(name for name, text in env.items() if name.startswith("PUNIE_") and text)
    keys = {name: name.removeprefix("PUNIE_").lower().replace("__", ".") for name in names}
    return {key: _Entry(_from_text(key, env[name]), name) for name, key in keys.items()}


def _from_text(key: str, text: str) -> object:
    default = value_of(Settings(), key) if key in setting_keys() else ""
    if not isinstance(default, tuple | Mapping):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return list(split_rules(text)) if key in _RULES else [word.strip() for word in text.split(",") if word.strip()]


def _flag_layer(flags: Mapping[str, object]) -> _Layer:
    given = {key: value for key, value in flags.items() if value is not None}
    return {key: _Entry(value, "--" + key.split(".")[-1].replace("_", "-")) for key, value in given.items()}


def _is_listed(root: Path, user: _Layer, *, home: Path | None) -> bool:
    """Whether the user's own file names the directory; the home directory and `/` cannot be named."""
    entry = user.get("trusted_projects")
    paths = entry.value if entry and isinstance(entry.value, list) else ()
    if root in {Path(root.anchor), home and home.resolve()}:
        return False
    return any(isinstance(path, str) and Path(path).expanduser().resolve() == root for path in paths)


def _project_layer(file: Path, user: _Layer) -> _Layer:
    """What a trusted project sets. It never widens what Punie may do, and never says where its words are sent."""
    layer = _toml_layer(file)
    for key, entry in layer.items():
        if key.split(".")[0] in Settings.model_fields and key.split(".")[0] not in PROJECT_KEYS:
            raise ConfigError(f"{entry.source}: a project cannot set '{key}'.", "Set it in your own config.toml.")
    model = layer.get("model")
    if model and _names_a_service(str(model.value)):
        raise ConfigError(
            f"{model.source}: a project cannot choose the server its model runs on ('model').",
            "Name the server in your own config.toml under [aliases].",
        )
    own, tools = user.get("tools"), layer.get("tools")
    if own and tools and isinstance(own.value, list) and isinstance(tools.value, list):
        fewer = [name for name in tools.value if name in own.value]
        return {**layer, "tools": _Entry(fewer, tools.source)}
    return layer


def _without_hooks(layer: _Layer) -> tuple[_Layer, Hooks]:
    """A project's layer without its hooks, and the hooks: they come besides the user's own, never instead of them."""
    hooks = {key: entry for key, entry in layer.items() if key.startswith("hooks.")}
    _check(hooks)
    found = Hooks.model_validate({key.removeprefix("hooks."): entry.value for key, entry in hooks.items()})
    return {key: entry for key, entry in layer.items() if key not in hooks}, found


def _names_a_service(spec: str) -> bool:
    """Whether a model spec is anything but `local`, `local:NAME`, or a name that the user gave to one."""
    return spec.partition(":")[0] == "claude" or (":" in spec and not spec.startswith("local:")) or "@" in spec


def _local_layer(file: Path) -> _Layer:
    layer = _toml_layer(file)
    for key, entry in layer.items():
        if not key.startswith("permissions."):
            raise ConfigError(f"{entry.source}: only [permissions] may stand here, not '{key}'.", f"Delete {file}.")
    return layer


def _refuse_bypass(layer: _Layer) -> None:
    mode = layer.get("permission_mode")
    if mode and mode.value == "bypassPermissions":
        raise ConfigError(
            f"{mode.source}: permission mode 'bypassPermissions' can only be chosen on the command line.",
            "Give --permission-mode bypassPermissions, or --yolo, to the run that needs it.",
        )


def _rules_of(layers: Sequence[_Layer]) -> RuleSet:
    """The rules of all layers; a stronger layer adds to the others, only `allowed_tools` takes their place."""
    allowed = [layer["allowed_tools"] for layer in layers if "allowed_tools" in layer][-1:]

    def rules(*keys: str, more: Sequence[_Entry] = ()) -> tuple[Rule, ...]:
        entries = [*(layer[key] for layer in layers for key in keys if key in layer), *more]
        return tuple(parse_rule(str(text), source=place) for entry in entries for text, place in entry.items())

    return RuleSet(
        deny=rules("permissions.deny", "disallowed_tools"),
        ask=rules("permissions.ask"),
        allow=rules("permissions.allow", more=allowed),
    )


def _check(layer: _Layer) -> None:
    """Refuse unknown keys and values of the wrong kind while the place they stand in is known."""
    for key, entry in layer.items():
        if key not in setting_keys() and not key.startswith(_NAMED):
            raise ConfigError(f"{entry.source}: unknown setting '{key}'.{_did_you_mean(key)}")
        if key in _RULES:
            _check_rules(key, entry)
        try:
            Settings.model_validate(_nested({key: entry.value}))
        except ValidationError as error:
            raise ConfigError(f"{entry.source}: setting '{key}' is wrong: {_problem(error)}") from error


def _check_rules(key: str, entry: _Entry) -> None:
    for text, place in entry.items():
        try:
            parse_rule(str(text))
        except ValueError as error:
            raise ConfigError(f"{place}: {error}", f"It stands in '{key}'.") from None


def _problem(error: ValidationError) -> str:
    """What is wrong first, and in a table of a table where."""
    first = error.errors()[0]
    inside = ".".join(str(part) for part in first["loc"][2:])
    if first["type"] == "extra_forbidden":
        names = (*UserModel.model_fields, *(f"engine.{name}" for name in EngineOptions.model_fields))
        close = get_close_matches(inside, names, n=1)
        return f"there is no '{inside}'." + (f" Did you mean '{close[0]}'?" if close else "")
    said = first["msg"].removeprefix("Value error, ")
    return f"{inside}: {said}." if inside and not isinstance(first["loc"][-1], int) else f"{said}."


def _did_you_mean(key: str) -> str:
    close = get_close_matches(key, setting_keys(), n=1)
    return f" Did you mean '{close[0]}'?" if close else " `punie config show` lists every setting."


def _merge(layers: Sequence[_Layer]) -> tuple[Settings, Mapping[str, str]]:
    """Every layer is a settings source; pydantic-settings merges them, tables key by key."""
    layers = [*layers[:-1], {**layers[-1], **_added_up(layers)}]
    tables = [_nested({key: entry.value for key, entry in layer.items()}) for layer in layers]

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            *_others: PydanticBaseSettingsSource,
            **_named: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, init_kwargs=table) for table in reversed(tables))

    sources = dict.fromkeys(setting_keys(), "default")
    for layer in layers:
        for key, entry in layer.items():
            sources[key.split(".")[0] if key.startswith(_NAMED) else key] = entry.source
    return Layered(), MappingProxyType(sources)


def _added_up(layers: Sequence[_Layer]) -> _Layer:
    """The lists that no layer may shorten, whole, with the source of the strongest layer that adds to them."""
    found = {key: [layer[key] for layer in layers if key in layer] for key in _ADDING_UP}
    return {
        key: _Entry(list(dict.fromkeys(item for entry in entries for item, _ in entry.items())), entries[-1].source)
        for key, entries in found.items()
        if entries
    }


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys -> tables, one level deep."""
    tree: dict[str, object] = {}
    for key, value in flat.items():
        head, _, rest = key.partition(".")
        if not rest:
            tree[head] = value
            continue
        table = tree.setdefault(head, {})
        if isinstance(table, dict):
            table[rest] = value
    return tree
