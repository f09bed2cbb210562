"""How MCP servers are reached: a program on pipes under the supervisor of commands, or an address over HTTP.

The pipes are read here and not by the library, which keeps a line of any length in memory, lets a server write without
end, and leaves it behind when Punie is killed. This module needs the `mcp` extra; it is imported when a server is used.
"""

import asyncio
import contextlib
import math
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import mcp_types
from fastmcp.client.transports import ClientTransport, StreamableHttpTransport
from fastmcp.client.transports.base import TransportOptions
from mcp import ClientSession
from mcp.shared.message import SessionMessage

from punie.extensions import McpServer
from punie.tools._environment import child_environment
from punie.tools._programs import find_program
from punie.tools._sandbox import MAX_FILE_BYTES, MAX_OPEN_FILES, MAX_PROCESSES, supervised

MAX_MESSAGE_BYTES = 4 << 20
MAX_UNASKED = 2_000
"""Messages that answer nothing, between two requests: more are a flood."""
MAX_ODD_LINES = 200
"""Lines on standard output that are no messages."""
STDERR_BYTES = 4_000
GRACE_S = 1.0
"""For the program to end by itself once its standard input is closed; the supervisor takes up to 6 s more."""
KILL_S = 8.0

_IGNORED = ("notifications/message", "notifications/progress", "notifications/resources", "notifications/prompts")


class Program(ClientTransport):
    """One run of a server's program. `fault` says afterwards why it ended, if it ended by itself."""

    def __init__(self, server: McpServer, *, directory: Path, environment: Mapping[str, str]) -> None:
        self._server = server
        self._directory = directory
        self._environment = environment
        self._stderr: deque[bytes] = deque(maxlen=STDERR_BYTES // 100)
        self._process: asyncio.subprocess.Process | None = None
        self._unasked = 0
        self._odd = 0
        self.fault = ""

    @asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_kwargs: Any
    ) -> AsyncIterator[ClientSession]:
        """Start the program and speak with it. Raises FileNotFoundError if there is no such program."""
        options = transport_options or TransportOptions()
        incoming_end, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, outgoing_end = anyio.create_memory_object_stream[SessionMessage](0)
        async with self._running() as process, anyio.create_task_group() as tasks:
            tasks.start_soon(self._read, process, incoming_end)
            tasks.start_soon(self._write, process, outgoing_end)
            tasks.start_soon(self._read_errors, process)
            try:
                async with options.session_class(incoming, outgoing, **session_kwargs) as session:
                    yield session
            finally:
                tasks.cancel_scope.cancel()
                for stream in (incoming_end, incoming, outgoing, outgoing_end):
                    stream.close()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        with supervised(self._plan()) as (arguments, note):
            process = await asyncio.create_subprocess_exec(
                *arguments,
                pass_fds=(note,),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                env={"PATH": os.defpath},
                start_new_session=True,
                limit=MAX_MESSAGE_BYTES,
            )
        self._process = process
        try:
            yield process
        finally:
            ending = asyncio.ensure_future(_end(process))
            with anyio.CancelScope(shield=True):
                await asyncio.shield(ending)

    def _plan(self) -> dict[str, Any]:
        """What the supervisor starts: the program itself, never a shell, with the variables of its entry alone."""
        search_path = self._environment.get("PATH", os.defpath)
        return {
            "argv": [self._program(search_path), *self._server.args],
            "env": child_environment(self._environment) | dict(self._server.env),
            "cwd": str(self._directory),
            "nofile": MAX_OPEN_FILES,
            "fsize": MAX_FILE_BYTES,
            "max_processes": MAX_PROCESSES,
        }

    def _program(self, search_path: str) -> str:
        command = self._server.command or ""
        path = Path(command).expanduser()
        found = str(self._directory / path) if "/" in command else find_program(command, path=search_path)
        if found is None or not os.access(found, os.X_OK) or Path(found).is_dir():
            raise FileNotFoundError(command)
        return found

    async def _read(self, process: asyncio.subprocess.Process, into: Any) -> None:
        """Hand on message after message; the end of the stream tells the session that there will be no more."""
        assert process.stdout is not None  # noqa: S101 - it was started with pipes
        async with into:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                while not self.fault:
                    try:
                        line = await process.stdout.readline()
                    except ValueError:
                        self.fault = f"it sent a message of more than {MAX_MESSAGE_BYTES >> 20} MB"
                        break
                    if not line:
                        self.fault = await self._farewell(process)
                        break
                    message = self._message(line)
                    if message is not None:
                        await into.send(message)
                        continue
                    await asyncio.sleep(0)  # a flood must not keep others from their turn
        if process.returncode is None:
            _send(process, signal.SIGTERM)

    def _message(self, line: bytes) -> SessionMessage | None:
        """The message in a line, if it is one that somebody waits for."""
        try:
            message = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            self._odd += bool(line.strip())
            if self._odd > MAX_ODD_LINES:
                self.fault = "it writes other things than MCP messages to its standard output"
            return None
        if isinstance(message, mcp_types.JSONRPCResponse | mcp_types.JSONRPCError):
            return SessionMessage(message)
        self._unasked += 1
        if self._unasked > MAX_UNASKED:
            self.fault = f"it sent more than {MAX_UNASKED} messages that nobody had asked for"
        return None if message.method.startswith(_IGNORED) else SessionMessage(message)

    async def _farewell(self, process: asyncio.subprocess.Process) -> str:
        """How the program ended, and the last thing it said about it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await process.wait()
        status = process.returncode
        how = "it closed its standard output" if status is None else f"it ended with exit status {status}"
        return f"{how}: {self.last_words}" if self.last_words else how

    @property
    def last_words(self) -> str:
        """The last line the program wrote to standard error."""
        lines = b"".join(self._stderr).decode("utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def _read_errors(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101
        while data := await process.stderr.read(100):
            self._stderr.append(data)

    async def _write(self, process: asyncio.subprocess.Process, outgoing: Any) -> None:
        assert process.stdin is not None  # noqa: S101
        async with outgoing:
            async for message in outgoing:
                self._unasked = 0
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                with contextlib.suppress(ConnectionError):  # the reader sees the end, and says how it came
                    process.stdin.write(text.encode() + b"\n")
                    await process.stdin.drain()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the program's input, wait a moment, then let the supervisor end it and all that it started."""
    if process.stdin is not None:
        process.stdin.close()
    for patience, number in ((GRACE_S, signal.SIGTERM), (KILL_S, signal.SIGKILL), (KILL_S, None)):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await process.wait()
        if process.returncode is not None or number is None:
            break
        _send(process, number)
    # A process out of the supervisor's reach may hold the pipes; nobody reads them any more.
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


# --- HTTP ---


class _Capped(httpx2.AsyncByteStream):
    """A body, or a stream of events, of bounded length."""

    def __init__(self, stream: httpx2.AsyncByteStream, *, lines: float) -> None:
        self._stream = stream
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ReadError when it gets too long."""
        seen = lines = 0
        async for chunk in self._stream:
            seen += len(chunk)
            lines += chunk.count(b"\n")
            if seen > MAX_MESSAGE_BYTES or lines > self._lines:
                raise httpx2.ReadError(f"it sent an answer of more than {MAX_MESSAGE_BYTES >> 20} MB")
            yield chunk

    async def aclose(self) -> None:
        """Close what is read."""
        await self._stream.aclose()


class _Client(httpx2.AsyncClient):
    """A client that follows no redirect, for keys would travel with it, and reads no body without end."""

    async def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        """Send a request."""
        stream = bool(how.pop("stream", False))
        response = await super().send(request, stream=True, **how)
        if response.status_code in {401, 403}:  # the library keeps the status to itself
            await response.aclose()
            raise httpx2.RequestError(f"status {response.status_code} {response.reason_phrase}")
        if isinstance(response.stream, httpx2.AsyncByteStream):
            events = response.headers.get("content-type", "").startswith("text/event-stream")
            # An event takes three or four lines.
            response.stream = _Capped(response.stream, lines=4 * MAX_UNASKED if events else math.inf)
        if not stream:
            await response.aread()
        return response


def address(server: McpServer) -> StreamableHttpTransport:
    """The transport to a server at an address. Proxies of the environment are used, but never for this machine.

    Raises ValueError if it is no address.
    """
    try:
        url = httpx2.URL(server.url or "")
    except httpx2.InvalidURL as error:
        raise ValueError(str(error)) from error
    local = url.host in {"localhost", "::1"} or url.host.startswith("127.")

    def client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
        **_: Any,
    ) -> httpx2.AsyncClient:
        return _Client(
            headers=headers,
            auth=auth,
            timeout=timeout or httpx2.Timeout(30.0, read=300.0),
            follow_redirects=False,
            trust_env=not local,
        )

    return StreamableHttpTransport(str(url), headers=dict(server.headers), httpx_client_factory=client)
