"""What a user adds to Punie as they write it down: MCP servers and hooks.

Servers stand in `mcp.json` beside the user's config.toml and in `.mcp.json` of a project, in the format that other
agents read too. Hooks stand under `[hooks]` in config.toml. Nothing is started here.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from punie.errors import ConfigError
from punie.local_models import NonEmpty
from punie.rules import parse_rule
from punie.trust import write_private

USER_FILE, PROJECT_FILE = "mcp.json", ".mcp.json"
MAX_FILE_BYTES = 1_000_000
MAX_NAME = 32

_NAME = re.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")
_VARIABLE = re.compile(r"\$\{(\w+)(:-([^}]*))?\}")
_KINDS = {"stdio": "stdio", "http": "http", "streamable-http": "http", "streamable_http": "http"}

Scope = Literal["user", "project"]
Seconds = Annotated[float, Field(gt=0, le=600)]
RuleText = Annotated[str, AfterValidator(lambda text: parse_rule(text).text)]


class McpServer(BaseModel):
    """How a server is reached: a program that speaks on its standard streams, or an address."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    command: NonEmpty | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = Field(default_factory=dict)
    url: NonEmpty | None = None
    headers: Mapping[str, str] = Field(default_factory=dict)
    models: tuple[NonEmpty, ...] = ()
    """Patterns of model specs that see its tools; none: every model but the small embedded ones."""
    startup_timeout_sec: Seconds = 30
    tool_timeout_sec: Seconds = 120

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("it needs either a command or a url")
        if self.url is not None and not self.url.startswith(("http://", "https://", "${")):
            raise ValueError("its url must start with http:// or https://")
        return self

    def line(self) -> str:
        """The command line, or the address, in one line."""
        return self.url or " ".join(map(_quoted, (self.command or "", *self.args)))


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./${}-]+", word) else json.dumps(word, ensure_ascii=False)


@dataclass(frozen=True)
class Definition:
    """A server under its name, and where it is written."""

    name: str
    scope: Scope
    file: Path
    server: McpServer

    def fingerprint(self) -> dict[str, str]:
        """A digest of each part that decides what is started and what it is told, before variables are filled in."""
        server = self.server
        parts: dict[str, object] = {"command": server.command, "args": server.args, "url": server.url}
        parts |= {f"env {name}": value for name, value in server.env.items()}
        parts |= {f"header {name}": value for name, value in server.headers.items()}
        return {name: digest(value) for name, value in parts.items() if value}


def digest(value: object) -> str:
    """SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def checked_name(name: str) -> str:
    """A name as it is. Raises ValueError: two underscores would blur where the server ends and its tool begins."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} letters and digits, with single - or _ between them")
    return name


# --- files ---


def read_servers(file: Path, scope: Scope) -> tuple[tuple[Definition, ...], tuple[str, ...]]:
    """The servers of a file, and what is wrong with the entries that were passed over.

    In the user's own file nothing is passed over: raises ConfigError instead. An absent file has no servers.
    """
    found: list[Definition] = []
    problems: list[str] = []
    try:
        for name, entry in _entries(file):
            try:
                found.append(Definition(checked_name(name), scope, file, _server(entry, strict=scope == "user")))
            except ValueError as error:
                problems.append(f"{file}: server '{name[:MAX_NAME]}': {_said(error)}.")
    except ValueError as error:
        problems.append(f"{file}: {error}.")
    if problems and scope == "user":
        raise ConfigError(problems[0], f"Mend it, or take it away: `punie mcp remove NAME`, or edit {file}.")
    return tuple(sorted(found, key=lambda definition: definition.name)), tuple(problems)


def _entries(file: Path) -> Iterator[tuple[str, object]]:
    servers = load(file).get("mcpServers", {})
    if not isinstance(servers, dict):
        raise ValueError("'mcpServers' is not a table")
    yield from servers.items()


def load(file: Path) -> dict[str, object]:
    """The JSON object in a file, empty if there is none. Raises ValueError with what is wrong with it."""
    if not file.is_file():
        return {}
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"is longer than {MAX_FILE_BYTES // 1_000_000} MB")
    try:
        loaded = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError("is not a JSON object")
    return loaded


def _server(entry: object, *, strict: bool) -> McpServer:
    if not isinstance(entry, dict):
        raise ValueError("it is not a table")
    kind = str(entry.get("type", "stdio" if "command" in entry else "http"))
    if kind not in _KINDS:
        raise ValueError(f"its type '{kind}' is not spoken here: stdio and http are")
    fields = {name: value for name, value in entry.items() if name != "type"}
    if not strict:  # what other programs keep in the same file
        fields = {name: value for name, value in fields.items() if name in McpServer.model_fields}
    server = McpServer.model_validate(fields)
    if (server.url is not None) != (_KINDS[kind] == "http"):
        raise ValueError(f"its type is '{kind}', but it has {'a url' if server.url else 'a command'}")
    return server


def _said(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")


def write_server(file: Path, name: str, server: McpServer | None) -> bool:
    """Put a new server into a file, or take one out (None), in one step; whether there was one of that name.

    One that is there stays as it is, and so does whatever else stands in the file. Raises ConfigError if the file
    cannot be read or written.
    """
    try:
        whole = load(file)
        servers = whole.get("mcpServers", {})
        if not isinstance(servers, dict):
            raise ValueError("'mcpServers' is not a table")
    except ValueError as error:
        raise ConfigError(f"{file}: {error}.", "Mend it first.") from error
    known = name in servers
    if known == (server is not None):
        return known
    kept = {each: entry for each, entry in servers.items() if each != name}
    if server is not None:
        entry = server.model_dump(mode="json", exclude_defaults=True)
        kept[name] = {"type": "http" if server.url else "stdio", **entry}
    mode = file.stat().st_mode & 0o777 if file.exists() else (0o644 if file.name == PROJECT_FILE else 0o600)
    try:
        write_private(file, json.dumps({**whole, "mcpServers": kept}, indent=2, ensure_ascii=False) + "\n")
        file.chmod(mode)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}.") from error
    return known


# --- variables ---


def filled(definition: Definition, *, environment: Mapping[str, str], project_variables: Collection[str]) -> McpServer:
    """The server with `${NAME}` and `${NAME:-default}` filled in.

    A project's server only gets the variables that the user names for projects. Raises ValueError with what is missing.
    """
    allowed = None if definition.scope == "user" else project_variables

    def value(match: re.Match[str]) -> str:
        name, default = match[1], match[3]
        if allowed is None or name in allowed:
            if environment.get(name):
                return environment[name]
            if default is None:
                raise ValueError(f"the variable {name} is not set")
        elif default is None:
            raise ValueError(f"a project's server may not see {name}: add it to mcp_environment in your config.toml")
        return default or ""

    def fill(text: str) -> str:
        return _VARIABLE.sub(value, text)

    server = definition.server
    return server.model_copy(
        update={
            "command": None if server.command is None else fill(server.command),
            "args": tuple(map(fill, server.args)),
            "env": {name: fill(text) for name, text in server.env.items()},
            "url": None if server.url is None else fill(server.url),
            "headers": {name: fill(text) for name, text in server.headers.items()},
        }
    )


# --- hooks ---


class Hook(BaseModel):
    """A command that is run at one point of every turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: NonEmpty
    match: RuleText | None = None
    """A permission rule: the hook is run for the calls that it covers; None: for every call."""
    timeout_s: Seconds = 30


class Hooks(BaseModel):
    """The commands by the point at which they are run, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before_tool: tuple[Hook, ...] = ()
    """Commands before a tool is called; exit status 2 keeps it from being called."""
    after_tool: tuple[Hook, ...] = ()
    """Commands after a tool was called; exit status 2 tells the model what they wrote to standard error."""
    turn_end: tuple[Hook, ...] = ()
    """Commands at the end of a turn; `match` says nothing here."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.before_tool or self.after_tool or self.turn_end)


# --- checks ---

CheckName = Literal["ruff", "types", "tests"]


class OwnCheck(BaseModel):
    """A command that is run after a turn that changed files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: NonEmpty
    """`{files}` in it stands for the changed files, quoted for the shell."""
    files: NonEmpty = "*"
    """A pattern of .gitignore: the files that it is about. Where none of them was changed it is not run."""
    timeout_s: Seconds = 120

    @model_validator(mode="after")
    def _files_alone(self) -> Self:
        # Within quotes or a substitution the names of files would be code.
        if any("{files}" in word and word != "{files}" for word in _bare_words(self.command)):
            raise ValueError("{files} must stand alone in the command, without quotes")
        return self


def _bare_words(command: str) -> list[str]:
    """The words of a command with their quotes, the whole of it where quotes do not match."""
    try:
        return shlex.split(command, posix=False)
    except ValueError:
        return [command]


def _known_check(value: object) -> object:
    names = get_args(CheckName)
    if isinstance(value, str) and value not in names:
        raise ValueError(f"there is no check named '{value}': there are {', '.join(names)}, and tables with a command")
    return value


Check = Annotated[CheckName | OwnCheck, BeforeValidator(_known_check)]
