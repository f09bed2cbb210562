"""MCP servers: whether they may be started, when they are, and what becomes of their tools and calls.

A server is started at the first turn of a model that sees its tools, never before the user agreed to exactly its
definition; tools that changed since the user saw them are asked about again. The calls come by `authorize` like all
others. Whatever a server does, the conversation goes on: the user is told, and the model gets an error it can read.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.toolsets import AbstractToolset
from pydantic_ai.toolsets.abstract import ToolsetTool

from punie.agent._mcp_tools import MAX_ERROR, PREFIX, Accepted, Offered, accepted, plain, result_text
from punie.agent._pins import Pins, changes
from punie.agent.approval import Gate, Request
from punie.agent.permissions import Call, authorize
from punie.backends._notices import tell
from punie.errors import ConfigError, McpError
from punie.extensions import Definition, McpServer, filled
from punie.redaction import Redactor, looks_secret
from punie.tools import Workspace

if TYPE_CHECKING:
    from pydantic_ai.mcp import MCPToolset

    from punie.agent._mcp_process import Program

__all__ = ["Connection", "Definition", "Servers", "Toolset"]

MAX_STARTS = 3
"""Starts of one server in one conversation."""
PING_S = 5.0
STOP_S = 20.0

_INSTALL = 'Install it with `pip install "punie[mcp]"`.'


class Connection:
    """One server while it runs: its tools, and calls to them."""

    def __init__(
        self, definition: Definition, server: McpServer, *, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self.definition = definition
        self._server = server
        self._directory = directory
        self._environment = environment
        self._inner: MCPToolset[Workspace] | None = None
        self._program: Program | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._redact = Redactor(keys=_keys(server))
        self.tools = Accepted()

    @property
    def running(self) -> bool:
        """Whether calls can be made."""
        ended = self._program is not None and self._program.fault
        return self._task is not None and not self._task.done() and not ended

    async def start(self) -> None:
        """Start the server and ask for its tools. Raises McpError with what went wrong and how to mend it."""
        inner = await asyncio.to_thread(self._made)
        self._stop = asyncio.Event()
        ready: asyncio.Future[Sequence[Offered]] = asyncio.get_running_loop().create_future()
        # A task of its own, because what is entered in one task has to be left in the same.
        self._task = asyncio.create_task(self._serve(inner, ready), name=f"mcp-{self.definition.name}")
        timeout_s = self._server.startup_timeout_sec
        try:
            async with asyncio.timeout(timeout_s):
                offered = await asyncio.shield(ready)
        except TimeoutError:
            ready.cancel()
            await self.close()
            step = "Try its command by hand, or raise startup_timeout_sec."
            raise McpError(f"{self._named} did not answer within {timeout_s:g} s.{self._last_words}", step) from None
        except asyncio.CancelledError:
            ready.cancel()
            await self.close()
            raise
        except Exception as error:
            await self.close()
            raise self._translated(error) from error
        self._inner, self.tools = inner, accepted(self.definition.name, offered)

    def _made(self) -> "MCPToolset[Workspace]":
        """The library's own toolset over our transport. Raises McpError where the libraries are missing."""
        _quieten()
        try:
            from fastmcp.client import Client
            from pydantic_ai.mcp import MCPToolset

            from punie.agent._mcp_process import Program, address
        except ImportError as error:
            raise McpError(f"MCP servers need packages that are not here: {error.name}.", _INSTALL) from error
        if self._server.url is None:
            self._program = Program(self._server, directory=self._directory, environment=self._environment)
        try:
            transport = self._program or address(self._server)
        except ValueError as error:
            raise McpError(f"{self._named} has no usable address: {error}.", "Mend its url.") from error
        client = Client(
            transport,
            name="punie",
            init_timeout=self._server.startup_timeout_sec,
            timeout=self._server.tool_timeout_sec,
            log_handler=_ignore,
            progress_handler=_ignore,
        )
        return MCPToolset(client, id=self.definition.name, tool_error_behavior="failed", max_retries=0)

    async def _serve(self, inner: "MCPToolset[Workspace]", ready: "asyncio.Future[Sequence[Offered]]") -> None:
        try:
            async with inner:
                offered = [_offered(tool) for tool in await inner.list_tools()]
                if not ready.done():
                    ready.set_result(offered)
                await self._stop.wait()
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the start
            if not ready.done():
                ready.set_exception(error)

    async def call(self, name: str, arguments: dict[str, Any], ctx: RunContext[Workspace]) -> str:
        """Call a tool by its full name. Raises ToolFailed with what the model should know, whatever the server does."""
        if self._inner is None or not self.running:
            raise ToolFailed(f"{self._named} is not running.{self._fault}")
        inner, own = self._inner, self.tools.names[name]
        tool = inner.tool_for_tool_def(replace(self.tools.tools[name], name=own), ctx=ctx)
        timeout_s = self._server.tool_timeout_sec
        try:
            async with asyncio.timeout(timeout_s):
                return self._redact(result_text(await inner.call_tool(own, arguments, ctx, tool)))
        except TimeoutError:
            await self._give_up_if_dead()
            raise ToolFailed(f"{self._named} did not answer within {timeout_s:g} s.{self._fault}") from None
        except (ToolFailed, ModelRetry) as error:
            raise ToolFailed(self._error_text(error.message)) from None
        except Exception as error:
            raise ToolFailed(self._error_text(_said(error))) from error

    def _error_text(self, said: str) -> str:
        """What the model is told of an error: the server's own words, and how the server ended, if it did."""
        text = self._redact(plain(said, limit=MAX_ERROR * 4).strip())
        return f"{self._named} failed.{self._fault}" if self._fault else text or f"{self._named} gave an empty error."

    async def ping(self) -> None:
        """Ask whether the server still answers. Raises McpError if it does not."""
        client = self._inner.client if self._inner is not None else None
        try:
            async with asyncio.timeout(PING_S):
                if client is None or not self.running:
                    raise ConnectionError("it is not running")
                if client.initialize_result is None:  # the stateless protocol has no ping
                    await client.list_tools()
                else:
                    await client.ping()
        except Exception as error:
            said = plain(_said(error), limit=MAX_ERROR)
            raise McpError(f"{self._named} started but does not answer: {said}.{self._fault}") from error

    async def _give_up_if_dead(self) -> None:
        """After a call without an answer: a server that does not even answer a ping is ended."""
        with contextlib.suppress(McpError):
            await self.ping()
            return
        await self.close()

    async def close(self) -> None:
        """End the server and everything it started."""
        task, inner = self._task, self._inner
        self._task = self._inner = None
        if task is None:
            return
        self._stop.set()
        await asyncio.wait({task}, timeout=0.0 if inner is None else STOP_S)  # one that never started is not waited for
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_S)

    @property
    def _named(self) -> str:
        return f"The MCP server {self.definition.name}"

    @property
    def _fault(self) -> str:
        fault = self._program.fault if self._program is not None else ""
        return f" The server is gone: {self._redact(plain(fault, limit=MAX_ERROR))}." if fault else ""

    @property
    def _last_words(self) -> str:
        words = self._program.last_words if self._program is not None else ""
        return f" It said: {self._redact(plain(words, limit=MAX_ERROR))}" if words else ""

    def _translated(self, error: Exception) -> McpError:
        """The error of a start in Punie's own words, with its cure."""
        cause = _first(error)
        if isinstance(error, McpError):
            return error
        if isinstance(cause, FileNotFoundError):
            step = "Install it, or give its whole path."
            return McpError(f"{self._named} cannot be started: there is no program '{cause}'.", step)
        said = plain(_said(error), limit=MAX_ERROR).strip().rstrip(".")
        if "401" in said or "403" in said or "Unauthorized" in said:
            step = "It wants a key: `punie mcp add ... --header 'Authorization: Bearer ${NAME_OF_A_VARIABLE}'`."
            return McpError(f"{self._named} refused us: {said}.", step)
        if self._server.url is not None:
            step = f"Is a server for streamable HTTP running at {plain(self._server.url, limit=200)}?"
            return McpError(f"{self._named} cannot be reached: {said}.", step)
        return McpError(f"{self._named} cannot be used: {said}.{self._fault}", "Try its command by hand.")


def _keys(server: McpServer) -> dict[str, str]:
    """The secrets that a server is given, which must not come back with what it says; `Bearer KEY` is two of them."""
    given = {**server.env, **server.headers}
    secrets = {name: value for name, value in given.items() if looks_secret(name, value)}
    return secrets | {f"{name}'s last word": value.rpartition(" ")[2] for name, value in secrets.items()}


def _offered(tool: Any) -> Offered:
    return Offered(tool.name, tool.description or "", tool.input_schema)


def _first(error: BaseException) -> BaseException:
    """The first real error in groups of groups, and below wrappers."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    below = error.__cause__
    return _first(below) if isinstance(below, OSError | BaseExceptionGroup) else error


def _said(error: BaseException) -> str:
    """What is wrong, in one sentence; an answer that does not fit the protocol is not quoted whole."""
    cause = _first(error)
    if isinstance(cause, ValidationError):
        first = cause.errors(include_url=False, include_input=False)[0]
        return f"its answer does not fit the protocol: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(cause).removeprefix("[punie] ") or type(cause).__name__


async def _ignore(*_: object) -> None:
    """What a server logs is nobody's business here."""


def _quieten() -> None:
    """Keep the libraries from reading a project's `.env` and from writing to the terminal."""
    os.environ["FASTMCP_ENV_FILE"] = os.devnull
    os.environ["FASTMCP_LOG_ENABLED"] = "false"
    for name in ("mcp", "fastmcp", "client"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


# --- all of them ---


@dataclass
class _Slot:
    """A server of the conversation, whether it runs or not."""

    definition: Definition
    connection: Connection | None = None
    starts: int = 0
    out: bool = False
    """Whether it is not asked about or started any more."""
    waiting: tuple[str, ...] = ()
    """How its tools differ from those the user knows."""


@dataclass
class Servers:
    """The servers of one conversation. They are ended by `close`.

    `root` is the project, `directory` where programs are started: elsewhere if the project is not trusted, because
    many programs read settings where they are started.
    """

    definitions: Sequence[Definition]
    pins: Pins
    root: Path
    directory: Path
    environment: Mapping[str, str]
    project_variables: Collection[str] = ()
    _slots: dict[str, _Slot] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._slots = {each.name: _Slot(each) for each in self.definitions}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.definitions)

    def toolset(self, spec: str, *, compact: bool, gate: Gate) -> "Toolset | None":
        """The tools that a model sees; None if it sees none. `compact` says that it is a small embedded one."""
        names = [each.name for each in self.definitions if _is_for(each, spec, compact=compact)]
        return Toolset(self, tuple(names), gate) if names else None

    def connection(self, definition: Definition) -> Connection:
        """A connection that is not started yet. Raises McpError if a variable is missing, or a path is no whole one."""
        try:
            server = filled(definition, environment=self.environment, project_variables=self.project_variables)
        except ValueError as error:
            raise McpError(f"The MCP server {definition.name} is not started: {error}.") from error
        command = server.command or ""
        if definition.scope == "user" and "/" in command and not Path(command).expanduser().is_absolute():
            cause = (
                f"The MCP server {definition.name} is not started: '{command}' is another program in every directory."
            )
            raise McpError(cause, f"Give its whole path in {definition.file}.")
        return Connection(definition, server, directory=self.directory, environment=self.environment)

    async def running(self, names: Sequence[str], *, gate: Gate) -> list[Connection]:
        """The named servers that run, started if need be; what keeps one from it is told to the user once."""
        async with self._lock:
            slots = [self._slots[name] for name in names]
            for slot in slots:
                if not slot.out and slot.connection is None:
                    slot.out = not await self._may_start(slot.definition, gate)
            await asyncio.gather(*(self._started(slot) for slot in slots))
            for slot in slots:
                if slot.waiting:
                    await self._settle_tools(slot, gate)
            return [slot.connection for slot in slots if slot.connection is not None and not slot.out]

    async def _may_start(self, definition: Definition, gate: Gate) -> bool:
        """Whether the user agreed, now or earlier, to exactly this definition, and no rule forbids the server."""
        name = definition.name
        call = Call(f"{PREFIX}{name}__", {})
        verdict = authorize(call, root=self.root, permissions=replace(gate.permissions, mode="default"))
        if verdict.kind == "deny":
            return False
        if self.pins.agrees(definition):
            return True
        pin = self.pins.of(definition)
        differs = changes(pin.parts, definition.fingerprint()) if pin else ()
        why = f"it changed since you agreed to it: {', '.join(differs)}" if pin else "it is new here"
        request = Request(f"{PREFIX}{name}", {}, preview=_shown(definition), reason=why, every_time=True)
        if not await _agreed(gate, request):
            _tell_not_started(definition, why)
            return False
        self._keep(definition)
        return True

    async def _started(self, slot: _Slot) -> None:
        if slot.out or (slot.connection is not None and slot.connection.running):
            return
        if slot.starts >= MAX_STARTS:
            slot.out = True
            tell(f"The MCP server {slot.definition.name} ended {MAX_STARTS} times and is not started again.")
            return
        if slot.connection is not None:
            await slot.connection.close()
        slot.starts += 1
        try:
            connection = self.connection(slot.definition)
            await connection.start()
        except McpError as error:
            slot.out = True
            tell(" ".join(str(error).split("\n")))
            return
        slot.connection = connection
        self._compare(slot, connection)

    def _compare(self, slot: _Slot, connection: Connection) -> None:
        """Hold the tools against those the user knows; the first ones ever are taken as they are."""
        pin, found = self.pins.of(slot.definition), connection.tools
        if pin is None or pin.tools is None:
            self._keep(slot.definition, found)
        slot.waiting = changes(pin.tools, found.digests) if pin and pin.tools is not None else ()
        if found.problems and slot.starts == 1:
            first, *others = found.problems
            more = f" and {len(others)} more" if others else ""
            tell(f"The MCP server {slot.definition.name} has tools that are left out: {first}{more}.")

    async def _settle_tools(self, slot: _Slot, gate: Gate) -> None:
        """Ask about tools that are not those the user knows; without a yes the server is ended."""
        differs, connection, name = slot.waiting, slot.connection, slot.definition.name
        if connection is None:
            return
        why = f"its tools changed since you agreed to them: {', '.join(differs[:5])}"
        why += f" and {len(differs) - 5} more" if len(differs) > 5 else ""
        preview = "\n".join(f"{full}\n  {tool.description or ''}" for full, tool in connection.tools.tools.items())
        agreed = await _agreed(gate, Request(f"{PREFIX}{name}", {}, preview=preview, reason=why, every_time=True))
        slot.waiting = ()  # not before there is an answer: a turn that is stopped meanwhile has given none
        if agreed:
            self._keep(slot.definition, connection.tools)
            return
        slot.out = True
        await connection.close()
        _tell_not_started(slot.definition, why)

    def _keep(self, definition: Definition, tools: Accepted | None = None) -> None:
        """Remember what the user agreed to; if that cannot be written, it holds for this conversation only."""
        try:
            if tools is None:
                self.pins.add(definition)
            else:
                self.pins.add(definition, tools=tools.digests, characters=tools.characters)
        except ConfigError as error:
            tell(f"Agreed to for this conversation only: {error.cause}")

    async def close(self) -> None:
        """End all servers."""
        connections = [slot.connection for slot in self._slots.values() if slot.connection is not None]
        await asyncio.gather(*(connection.close() for connection in connections))


def _is_for(definition: Definition, spec: str, *, compact: bool) -> bool:
    patterns = definition.server.models
    return any(fnmatchcase(spec, pattern) for pattern in patterns) if patterns else not compact


def _shown(definition: Definition) -> str:
    """All that would be started or reached, for the user to read; no variable is filled in."""
    server = definition.server
    lines = [server.line()]
    lines += [f"  {name}={value}" for name, value in server.env.items()]
    lines += [f"  {name}: {value}" for name, value in server.headers.items()]
    return "\n".join([*lines, f"  (from {definition.file})"])


async def _agreed(gate: Gate, request: Request) -> bool:
    """Whether the user says yes; nobody is asked in a mode that asks nobody."""
    if gate.permissions.mode == "dontAsk":
        return False
    return (await gate.approve(request)).kind not in {"deny", "nobody"}


def _tell_not_started(definition: Definition, why: str) -> None:
    tell(
        f"The MCP server {definition.name} is not used: {why}. "
        f"`punie mcp list` shows it, `punie mcp approve {definition.name}` agrees to it."
    )


class Toolset(AbstractToolset[Workspace]):
    """The tools of some servers, as one toolset of the agent. Between turns the servers stay."""

    def __init__(self, servers: Servers, names: tuple[str, ...], gate: Gate) -> None:
        self._servers = servers
        self._names = names
        self._gate = gate

    @property
    def id(self) -> str | None:
        """Name of the toolset."""
        return "mcp"

    async def get_tools(self, ctx: RunContext[Workspace]) -> dict[str, ToolsetTool[Workspace]]:
        """The tools that no rule takes away, by their full names."""
        found: dict[str, ToolsetTool[Workspace]] = {}
        for connection in await self._servers.running(self._names, gate=self._gate):
            for name, tool_def in connection.tools.tools.items():
                if not self._is_denied(name):
                    found[name] = _Tool(
                        toolset=self, tool_def=tool_def, max_retries=ctx.max_retries, args_validator=_validator(),
                        connection=connection,
                    )  # fmt: skip
        return found

    def _is_denied(self, name: str) -> bool:
        permissions = replace(self._gate.permissions, mode="default")
        return authorize(Call(name, {}), root=self._servers.root, permissions=permissions).kind == "deny"

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Workspace], tool: ToolsetTool[Workspace]
    ) -> str:
        """Call the tool on its server."""
        assert isinstance(tool, _Tool)  # noqa: S101 - get_tools makes no other
        return await tool.connection.call(name, tool_args, ctx)


@dataclass(kw_only=True)
class _Tool(ToolsetTool[Workspace]):
    """A tool with the server it belongs to."""

    connection: Connection


def _validator() -> Any:
    """Arguments are an object; whether they fit is the server's to say."""
    from pydantic_core import SchemaValidator, core_schema

    return SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()))
