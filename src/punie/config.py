"""Settings: defaults < user file < trusted project file < `PUNIE_*` environment < flags, as one frozen value.

Nothing here reads the process environment or the working directory by itself: both come in by argument.
A `.env` file is never read, and a project file counts only when the user's own file trusts its directory.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from platformdirs.unix import Unix
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from punie.errors import ConfigError
from punie.local_models import EngineOptions, ModelName, NonEmpty, Positive, UserModel

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

# A project file may tune the work, never widen what Punie may do or where its words are sent.
PROJECT_KEYS = frozenset(
    {"model", "stop_sequences", "tools", "instructions", "temperature", "max_tokens", "seed", "limits"}
    | {"disallowed_tools"}
)

# Tables whose keys are names that the user chose.
_NAMED = ("aliases.", "models.")

PermissionMode = Literal["plan", "default", "acceptEdits", "auto", "dontAsk", "bypassPermissions"]


class Limits(BaseModel):
    """Where a turn ends at the latest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_turns: Positive = 12
    """Requests to the model in one turn."""
    max_tool_calls: Positive = 24
    max_total_tokens: Positive | None = None
    command_timeout_s: Annotated[float, Field(gt=0, le=600)] = 120
    tool_lines: Annotated[int, Field(gt=0, le=200)] = 200
    """Lines of tool output the model is shown at most."""


class AgentConfig(BaseModel):
    """What one agent is: its model, its tools and how it samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: NonEmpty = "local"
    stop_sequences: tuple[NonEmpty, ...] = ()
    tools: tuple[str, ...] = TOOL_NAMES
    instructions: str | None = None
    """None takes the built-in instructions."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Positive = 512
    """Tokens of one reply of the model."""
    seed: Annotated[int, Field(ge=0)] = 0
    limits: Limits = Limits()
    engine: EngineOptions = EngineOptions()
    models: Mapping[ModelName, UserModel] = Field(default_factory=dict)
    """The user's own local models by name: `[models.mine]` is used as `local:mine`."""


class Settings(AgentConfig, BaseSettings):
    """Everything a user can set. Keys for services are not here: they come from the environment or the keyring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aliases: Mapping[str, NonEmpty] = Field(default_factory=dict)
    """Short names for model specs: `fast = "openai:qwen@http://127.0.0.1:8080/v1"`."""
    permission_mode: PermissionMode = "default"
    allowed_tools: tuple[str, ...] = ()
    disallowed_tools: tuple[str, ...] = ()
    trusted_projects: tuple[str, ...] = ()
    """Directories whose `.punie/config.toml` is read. Trust does not reach into directories below."""
    cache_dir: Path | None = None
    save_sessions: bool = True

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
        values["tools"] = tuple(name for name in self.tools if name not in self.disallowed_tools)
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
    notices: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[str, object, str]]:
        """Every dotted key with its value and its source, in the order of definition."""
        for key in setting_keys():
            yield key, value_of(self.settings, key), self.sources[key]


def setting_keys() -> tuple[str, ...]:
    """Every key that can be set, dotted."""
    limits = tuple(f"limits.{name}" for name in Limits.model_fields)
    engine = tuple(f"engine.{name}" for name in EngineOptions.model_fields)
    plain = (name for name in Settings.model_fields if name not in {"limits", "engine"})
    return (*plain, *limits, *engine)


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


def project_config_file(cwd: Path) -> Path | None:
    """The nearest `.punie/config.toml` from cwd up to the directory that holds `.git`; None when there is none."""
    cwd = cwd.resolve()
    candidates = [cwd, *cwd.parents]
    roots = [index for index, path in enumerate(candidates) if (path / ".git").exists()]
    reach = roots[0] + 1 if roots else 1
    files = (path / ".punie" / "config.toml" for path in candidates[:reach])
    return next((file for file in files if file.is_file()), None)


@dataclass(frozen=True)
class _Entry:
    value: object
    source: str


_Layer = Mapping[str, _Entry]
"""Dotted key -> the value one source gives it."""


def load_settings(*, cwd: Path, env: Mapping[str, str], flags: Mapping[str, object]) -> Resolved:
    """Merge the layers. `flags` maps dotted keys to values; None means the flag was not given.

    Raises ConfigError naming file, line and key.
    """
    user_file = user_config_file(env)
    project_file = project_config_file(cwd)
    layers = [_toml_layer(user_file)]
    notices: tuple[str, ...] = ()
    if project_file and _is_trusted(project_file, layers[0]):
        layers.append(_project_layer(project_file))
    elif project_file:
        notices = (f"{project_file} is not read: {project_file.parent.parent} is not in trusted_projects.",)
    layers += [_env_layer(env), _flag_layer(flags)]
    for layer in layers:
        _check(layer)
    settings, sources = _merge(layers)
    return Resolved(settings, sources, user_file=user_file, project_file=project_file, notices=notices)


def _toml_layer(file: Path) -> _Layer:
    """The file's keys, each with its line; an absent file is an empty layer."""
    try:
        text = file.read_text("utf-8")
        tables = tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text (byte {error.start}).") from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{file}:{line[1]}" if line else f"{file}"
        raise ConfigError(f"{place}: invalid TOML: {error}.", "`punie config edit` opens the file.") from error
    return {key: _Entry(value, f"{file}:{_line_of(key, text)}") for key, value in _flat(tables)}


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
        return [word.strip() for word in text.split(",") if word.strip()]


def _flag_layer(flags: Mapping[str, object]) -> _Layer:
    given = {key: value for key, value in flags.items() if value is not None}
    return {key: _Entry(value, "--" + key.split(".")[-1].replace("_", "-")) for key, value in given.items()}


def _is_trusted(project_file: Path, user: _Layer) -> bool:
    entry = user.get("trusted_projects")
    paths = entry.value if entry and isinstance(entry.value, list) else ()
    directory = project_file.parent.parent
    return any(isinstance(path, str) and Path(path).expanduser().resolve() == directory for path in paths)


def _project_layer(file: Path) -> _Layer:
    layer = _toml_layer(file)
    for key, entry in layer.items():
        if key.split(".")[0] in Settings.model_fields and key.split(".")[0] not in PROJECT_KEYS:
            raise ConfigError(f"{entry.source}: a project cannot set '{key}'.", "Set it in your own config.toml.")
    model = layer.get("model")
    if model and "@" in str(model.value):
        raise ConfigError(
            f"{model.source}: a project cannot choose the server its model runs on ('model').",
            "Name the server in your own config.toml under [aliases].",
        )
    return layer


def _check(layer: _Layer) -> None:
    """Refuse unknown keys and values of the wrong kind while the place they stand in is known."""
    for key, entry in layer.items():
        if key not in setting_keys() and not key.startswith(_NAMED):
            raise ConfigError(f"{entry.source}: unknown setting '{key}'.{_did_you_mean(key)}")
        try:
            Settings.model_validate(_nested({key: entry.value}))
        except ValidationError as error:
            raise ConfigError(f"{entry.source}: setting '{key}' is wrong: {_problem(error)}") from error


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
