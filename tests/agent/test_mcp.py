"""MCP servers: real programs and real HTTP servers, those that behave and those that do not."""

import asyncio
import gc
import json
import os
import re
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.models.function import AgentInfo
from tests.agent.conftest import Local, Project
from tests.stubs import Reply, scripted

from punie.agent import Event, Permissions, TurnEnded, create_agent, run_turn
from punie.agent._mcp_tools import MAX_DESCRIPTION, Offered, accepted, full_name, result_text
from punie.agent._pins import Pins
from punie.agent.approval import Decision, Gate, Request, always, approve_all, deny, once, refuse
from punie.agent.events import Notice
from punie.agent.hooks import HookRunner
from punie.agent.mcp import MAX_STARTS, Connection, Servers
from punie.config import AgentConfig, PermissionMode, SandboxOptions
from punie.errors import ConfigError, McpError
from punie.extensions import Definition, Hook, Hooks, McpServer, checked_name, filled, read_servers, write_server
from punie.rules import RuleSet, parse_rule
from punie.tools import Workspace

SERVER = Path(__file__).with_name("mcp_server.py")
LEAKY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""The library leaves streams unclosed when an address cannot be connected to."""
WORDS = ("properties", "required", "items", "anyOf", "$ref", "$schema", "enum", "description", "pattern", "a")
CONTEXT = cast("RunContext[Workspace]", SimpleNamespace(max_retries=1))
FIND = ("mcp__words__find", {"query": "x"})


def program(*arguments: str, **fields: Any) -> McpServer:
    return McpServer(command=sys.executable, args=(str(SERVER), *arguments), **fields)


def defined(server: McpServer, *, name: str = "words", scope: Any = "user") -> Definition:
    return Definition(name, scope, Path("mcp.json"), server)


@asynccontextmanager
async def connected(server: McpServer, *, root: Path, **environment: str) -> AsyncIterator[Connection]:
    definition = defined(server)
    connection = Connection(definition, server, directory=root, environment={"PATH": os.environ["PATH"], **environment})
    try:
        await connection.start()
        yield connection
    finally:
        await connection.close()


async def failure(connection: Connection, tool: str = "find") -> str:
    with pytest.raises(ToolFailed) as caught:
        await connection.call(f"mcp__words__{tool}", {}, CONTEXT)
    return caught.value.message


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- one server ---


async def test_a_server_gets_a_short_environment_and_leaves_nothing_behind(tmp_path: Path):
    server = program("good", env={"OWN": "declared", "API_TOKEN": "declared too"})
    async with connected(server, root=tmp_path, HOME="/h", OTHER="x", SECRET_KEY="s") as connection:
        assert await connection.call("mcp__words__find", {"query": "x"}, CONTEXT) == "found x"
        shown = json.loads(await connection.call("mcp__words__show", {}, CONTEXT))
        spawned = int(await connection.call("mcp__words__spawn", {}, CONTEXT))
        assert is_alive(spawned)
        await connection.ping()
    assert {name: shown["environment"].get(name) for name in ("OWN", "API_TOKEN", "HOME")} == {
        "OWN": "declared",
        "API_TOKEN": "[redacted:API_TOKEN]",  # it got it, and the model does not
        "HOME": "/h",
    }
    assert not shown["environment"].keys() & {"OTHER", "SECRET_KEY"}
    assert shown["cwd"] == str(tmp_path)
    assert not is_alive(shown["pid"])
    assert not is_alive(spawned)


async def test_long_results_keep_both_ends_and_errors_are_the_servers_own(tmp_path: Path):
    async with connected(program("good"), root=tmp_path) as connection:
        lines = (await connection.call("mcp__words__long", {}, CONTEXT)).splitlines()
        assert (lines[0], lines[-1]) == ("line 0", "line 99999")
        assert len(lines) <= 201
        assert any("left out here" in line for line in lines)
        assert "fail" in await failure(connection, "fail")
        said = await failure(connection, "die")
        assert said == "The MCP server words failed. The server is gone: it ended with exit status 3: out of words."
        assert not connection.running
        assert "is not running" in await failure(connection)
        with pytest.raises(McpError, match="does not answer"):
            await connection.ping()


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("flood", "it sent more than 2000 messages that nobody had asked for"),
        ("odd", "it writes other things than MCP messages"),
        ("endless", "it sent a message of more than 4 MB"),
        ("wrong-id", "did not answer within 0.5 s"),
        ("garbled", "its answer does not fit the protocol: content: Input should be a valid list"),
        ("lying", "Invalid structured content returned by tool find"),
    ],
)
async def test_what_a_server_does_to_a_call_is_told_to_the_model(tmp_path: Path, behaviour: str, said: str):
    timeout_s = 0.5 if behaviour == "wrong-id" else 60
    async with connected(program(behaviour, tool_timeout_sec=timeout_s), root=tmp_path) as connection:
        assert said in await failure(connection)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (program("exit"), "it ended with exit status 7: no licence"),
        (program("silent", startup_timeout_sec=0.5), "did not answer within 0.5 s"),
        (program("endless-list"), "pagination limit"),
        (program("no-object"), "its answer does not fit the protocol: tools.0.inputSchema.type"),
        (McpServer(command="no-such-program"), "there is no program 'no-such-program'"),
        (McpServer(command="./no/such/program"), "there is no program './no/such/program'"),
        (McpServer(url="http://127.0.0.1:9/mcp"), "cannot be reached"),
        (McpServer(url="http://[::1/mcp"), "no usable address"),
    ],
)
@LEAKY
async def test_a_server_that_cannot_be_started_says_why(tmp_path: Path, server: McpServer, said: str):
    with pytest.raises(McpError) as caught:
        async with connected(server, root=tmp_path):
            pass
    assert said in str(caught.value)
    assert caught.value.next_step
    assert len(str(caught.value).splitlines()) <= 3


async def test_pictures_are_named_and_text_is_kept(tmp_path: Path):
    async with connected(program("picture"), root=tmp_path) as connection:
        result = await connection.call("mcp__words__find", {}, CONTEXT)
    assert result == "[image/png, 3 bytes: only text is shown here]\na cat"


def test_nothing_is_left_when_the_program_that_started_a_server_is_killed(tmp_path: Path):
    script = f"""
import asyncio, os, sys
from pathlib import Path
from punie.agent.mcp import Connection
from punie.extensions import Definition, McpServer
print([name for name in ("mcp", "fastmcp", "mcp_types") if name in sys.modules], flush=True)
server = McpServer(command=sys.executable, args=({str(SERVER)!r}, "mark", "started"))
definition = Definition("w", "user", Path(), server)
connection = Connection(definition, server, directory=Path.cwd(), environment=dict(os.environ))
async def main():
    await connection.start()
    print(connection._program._process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    (tmp_path / ".env").write_text("FASTMCP_LOG_LEVEL=nonsense\n")  # a library that read this would fail
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as punie:
        assert punie.stdout is not None
        assert punie.stdout.readline() == "[]\n"  # the extra is imported when a server is started
        supervisor = int(punie.stdout.readline())
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        assert len(children) == 1
        punie.kill()
        deadline = time.monotonic() + 30
        while (is_alive(supervisor) or is_alive(int(children[0]))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_alive(supervisor)
        assert not is_alive(int(children[0]))


# --- HTTP ---


@pytest.fixture(scope="module")
def address() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, str(SERVER), "http", str(port)], stderr=subprocess.DEVNULL) as server:
        while server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
        server.kill()


async def test_a_server_at_an_address(tmp_path: Path, address: str):
    async with connected(McpServer(url=address), root=tmp_path) as connection:
        assert await connection.call("mcp__words__find", {"query": "x"}, CONTEXT) == "found x"
        assert len((await connection.call("mcp__words__long", {}, CONTEXT)).splitlines()) <= 201
    async with connected(McpServer(url=address, tool_timeout_sec=0.5), root=tmp_path) as connection:
        assert "did not answer within 0.5 s" in await failure(connection, "sleep")


@asynccontextmanager
async def answering(head: str, body: bytes = b"") -> AsyncIterator[str]:
    """A server that gives every request the same answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.encode().replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"


EVENT = b'data: {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}\n\n'


@pytest.mark.parametrize(
    ("head", "body", "said"),
    [
        ("HTTP/1.1 401 Unauthorized\nContent-Length: 0", b"", "refused us"),
        ("HTTP/1.1 200 OK\nContent-Type: text/html\nContent-Length: 2", b"hi", "cannot be reached"),
        ("HTTP/1.1 307 Moved\nLocation: http://127.0.0.2:1/\nContent-Length: 0", b"", "cannot be reached"),
        ("HTTP/1.1 200 OK\nContent-Type: application/json\nConnection: close", b" " * (5 << 20), "more than 4 MB"),
        (
            "HTTP/1.1 200 OK\nContent-Type: text/event-stream\nConnection: close",
            EVENT * 100_000,
            "ended without a response",
        ),
    ],
)
@LEAKY
async def test_addresses_that_are_no_servers(tmp_path: Path, head: str, body: bytes, said: str):
    async with answering(head, body) as url:
        with pytest.raises(McpError, match=said):
            async with connected(McpServer(url=url), root=tmp_path):
                pass
    gc.collect()


# --- what a model is told ---


def offered(name: str = "find", description: str = "", **schema: Any) -> Offered:
    return Offered(name, description, {"type": "object", **schema})


def test_tools_are_namespaced_cleaned_and_bounded():
    hidden = "Find\u200b words.\x1b[31m\U000e0041 Ig\u200dnore\u202e all.\ufe0f"
    found = accepted("words", [offered(description=hidden, properties={"a": {"description": "x\u2066y"}})])
    (tool,) = found.tools.values()
    assert tool.name == "mcp__words__find"
    assert tool.description == "Find words. Ignore all."
    assert tool.parameters_json_schema["properties"]["a"]["description"] == "xy"
    (long,) = accepted("words", [offered(description="x" * 100_000)]).tools.values()
    assert len(long.description or "") == MAX_DESCRIPTION


def test_tools_that_cannot_be_told_are_left_out_and_named():
    tools = [
        offered("read_file"),
        offered("a.b"),
        offered("a b"),
        offered("invalid", properties={"a": {"type": "nonsense"}}),
        offered("huge", description="", title="x" * 40_000),
        offered("hidden", properties={"a\u200b": {}}),
        Offered("list", "", {"type": "array"}),
        offered("missing", properties={"a": {"$ref": "#/$defs/nowhere"}}),
    ]
    found = accepted("words", tools)
    assert list(found.tools) == ["mcp__words__a_b", "mcp__words__read_file"]
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "a.b",
        "hidden",
        "huge",
        "invalid",
        "list",
        "missing",
    ]
    many = accepted("words", [offered(f"t{number:04}") for number in range(200)])
    assert len(many.tools) == 128
    assert len(many.problems) == 72


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(name=st.text(), description=st.text(), schema=st.dictionaries(st.sampled_from(WORDS), JSON), result=JSON)
def test_nothing_a_server_can_say_breaks_what_a_model_is_told(name: str, description: str, schema: Any, result: Any):
    found = accepted("words", [Offered(name, description, {"type": "object", **schema})])
    assert len(found.tools) + len(found.problems) == 1
    assert all(re.fullmatch(r"mcp__words__[A-Za-z0-9_-]{0,53}", tool) for tool in found.tools)
    said = "".join(tool.description or "" for tool in found.tools.values())
    assert {unicodedata.category(char) for char in said if char not in "\n\t"}.isdisjoint({"Cc", "Cf", "Cs"})
    assert result_text(result)
    assert found.characters >= 0
    assert set(found.digests) <= {name}


def test_no_two_servers_can_share_a_tools_name_and_long_ones_fit_the_services():
    long = [full_name("words", "n" * 100), full_name("words", "n" * 101)]
    assert [len(name) for name in long] == [64, 64]
    assert long[0] != long[1]
    for name in ("a__b", "_a", "a_", "a.b", "a b", "", "a" * 33, "ä"):
        with pytest.raises(ValueError, match="letters and digits"):
            checked_name(name)


def test_results_of_every_kind_become_clean_text():
    assert result_text("a\x1b]0;title\x07b\u202ec") == "abc"
    assert result_text({"a": [1, 2]}).replace("\n", "").replace(" ", "") == '{"a":[1,2]}'
    assert result_text(["one", {"two": 2}]) == 'one\n{\n "two": 2\n}'
    assert result_text(None) == "null"
    assert result_text("") == "(no output)"
    huge = result_text("x" * 10_000_000)
    assert len(huge) < 25_000
    assert "characters left out here" in huge


# --- turns ---


@dataclass
class Turns:
    """Turns of a scripted model that may call the tools of servers."""

    root: Path
    definitions: Sequence[Definition]
    approved: bool = True
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    asked: list[Request] = field(default_factory=list)
    seen: list[AgentInfo] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pins = Pins(self.root.parent / "state", self.root)
        for definition in self.definitions if self.approved else ():
            self.pins.add(definition)
        self.servers = self.make()

    def make(self) -> Servers:
        root = self.root
        return Servers(self.definitions, self.pins, root=root, directory=root, environment=self.environment)

    async def turn(
        self,
        *replies: Reply,
        decision: Decision | None = once,
        mode: PermissionMode = "default",
        close: bool = True,
        model: Any = None,
        spec: str = "claude",
        **rules: Sequence[str],
    ) -> tuple[list[Event], TurnEnded]:
        async def approve(request: Request) -> Decision:
            self.asked.append(request)
            return await refuse(request) if decision is None else decision

        config = AgentConfig(model=spec)
        parsed = {name: tuple(map(parse_rule, texts)) for name, texts in rules.items()}
        agent = create_agent(
            config,
            model=model or scripted(*replies, seen=self.seen),
            approve=approve,
            permissions=Permissions(mode, RuleSet(**parsed)),
            remember=self.rules.extend,
            servers=self.servers,
        )
        try:
            stream = run_turn(agent, "Find x.", workspace=Workspace(self.root), config=config)
            events = [event async for event in stream]
        finally:
            if close:
                await self.servers.close()
        end = events[-1]
        assert isinstance(end, TurnEnded)
        return events, end

    def tools(self) -> set[str]:
        return {tool.name for tool in self.seen[-1].function_tools if tool.name.startswith("mcp__")}


def turns(project: Project, *arguments: str, approved: bool = True, **fields: Any) -> Turns:
    return Turns(project.root, [defined(program(*(arguments or ("quick",)), **fields))], approved=approved)


def notices(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Notice))


async def test_a_call_is_asked_about_and_always_stores_its_rule(project: Project):
    chat = turns(project, "good")
    _, end = await chat.turn(FIND, FIND, "Found.", decision=always)
    assert (end.tool_calls[0].outcome, end.tool_calls[0].output) == ("ok", "found x")
    (request,) = chat.asked  # although the server says that the tool only reads
    assert (request.tool, request.arguments, request.rules) == (FIND[0], FIND[1], (FIND[0],))
    assert chat.rules == [FIND[0]]


async def test_keys_a_server_was_given_do_not_come_back(project: Project):
    chat = turns(project, "good", env={"TOKEN": "Bearer tr0ub4dor-and-3-x", "MODE": "production"})
    _, end = await chat.turn(("mcp__words__reveal", {}), "Shown.", allow=["mcp__words"])
    told = str(end.messages)
    assert "production" in told
    assert "tr0ub4dor" not in told + end.tool_calls[0].output


@pytest.mark.parametrize(
    ("mode", "rules", "outcome", "code"),
    [
        ("default", {}, "denied", 3),
        ("default", {"allow": ["mcp__words__find"]}, "ok", 0),
        ("default", {"allow": ["mcp__words__*"]}, "ok", 0),
        ("default", {"allow": ["mcp__words__*"], "ask": ["mcp__words__f*"]}, "denied", 3),
        ("dontAsk", {}, "denied", 0),
        ("plan", {"allow": ["mcp__words"]}, "denied", 0),
        ("acceptEdits", {}, "denied", 3),
        ("bypassPermissions", {}, "ok", 0),
    ],
)
async def test_modes_and_rules_decide_without_anybody_to_ask(
    project: Project, *, mode: PermissionMode, rules: dict[str, Any], outcome: str, code: int
):
    _, end = await turns(project).turn(FIND, "Over.", decision=None, mode=mode, **rules)
    assert ([call.outcome for call in end.tool_calls], end.exit_code) == ([outcome], code)


async def test_a_denied_tool_is_not_even_shown_and_a_denied_server_not_started(project: Project, tmp_path: Path):
    chat = turns(project)
    await chat.turn("Hello.", deny=["mcp__words__find"])
    assert chat.tools() == set()
    chat = turns(project, "mark", str(tmp_path / "mark"))
    for rule in ("mcp__words", "mcp__words__*"):
        await chat.turn("Hello.", deny=[rule])
    assert not (tmp_path / "mark").exists()


async def test_the_turn_goes_on_whatever_a_server_does(project: Project):
    chat = turns(project, "flood")
    events, end = await chat.turn(FIND, "It broke.", allow=["mcp__words"])
    assert (end.answer, end.exit_code) == ("It broke.", 0)
    assert end.tool_calls[0].outcome == "error"
    assert "nobody had asked for" in end.tool_calls[0].output
    chat = turns(project, "exit")
    events, end = await chat.turn("Hello.")
    assert (end.answer, chat.tools()) == ("Hello.", set())
    assert "no licence" in notices(events)


async def test_a_server_that_ends_is_started_again_but_not_for_ever(project: Project):
    chat = turns(project, "flood")
    calls = [("mcp__words__find", {"query": str(number)}) for number in range(MAX_STARTS)]
    events, end = await chat.turn(*calls, "Enough.", allow=["mcp__words"])
    assert [call.outcome for call in end.tool_calls] == ["error"] * MAX_STARTS
    assert f"ended {MAX_STARTS} times" in notices(events)
    assert chat.tools() == set()


async def test_a_server_stays_between_turns_and_a_cancelled_call_ends(project: Project):
    chat = turns(project, "mark", str(project.root / "mark"))
    await chat.turn(FIND, "One.", close=False, allow=["mcp__words"])
    (project.root / "mark").unlink()
    await chat.turn(FIND, "Two.", close=False, allow=["mcp__words"])
    assert not (project.root / "mark").exists()
    await chat.servers.close()
    chat = turns(project, "wrong-id")
    task = asyncio.ensure_future(chat.turn(FIND, "Never.", allow=["mcp__words"]))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)


async def test_small_embedded_models_see_no_tools_unless_their_name_is_given(project: Project, local: Local):
    model, engine = local("Hello.", "Hello.")
    model.compact = True
    chat = turns(project)
    await chat.turn(model=model, spec="local")
    assert "mcp__" not in json.dumps(engine.requests, default=str)
    for patterns, spec, seen in ((("claude*",), "claude:x", True), (("claude*",), "openai:x", False)):
        chat = turns(project, models=patterns)
        await chat.turn("Hello.", spec=spec)
        assert bool(chat.tools()) is seen
    gate = cast("Any", None)
    named = turns(project, models=("local",))
    assert named.servers.toolset("local", compact=True, gate=gate) is not None
    assert turns(project).servers.toolset("local", compact=True, gate=gate) is None


async def test_hooks_see_the_calls_of_servers(project: Project):
    chat = turns(project)
    hook = Hook(command="cat >&2; exit 2", match="mcp__words")
    hooks = HookRunner(Hooks(before_tool=(hook,)), Hooks(), pins=chat.pins)
    config = AgentConfig(model="claude")
    model = scripted(FIND, ("list_files", {}), "I see.")
    agent = create_agent(config, model=model, approve=approve_all, servers=chat.servers, hooks=hooks)
    workspace = Workspace(project.root, sandbox=SandboxOptions(mode="off"))
    events = [event async for event in run_turn(agent, "x", workspace=workspace, config=config)]
    await chat.servers.close()
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert [call.outcome for call in end.tool_calls] == ["error", "ok"]
    assert '"tool_name": "mcp__words__find", "tool_input": {"query": "x"}' in end.tool_calls[0].output


# --- agreement ---


async def test_nothing_is_started_before_the_user_agrees(project: Project):
    mark = project.root / "mark"
    chat = turns(project, "mark", str(mark), approved=False)
    for decision in (None, deny()):
        chat.servers = chat.make()
        events, _ = await chat.turn("Hello.", decision=decision)
        assert not mark.exists()
        assert "punie mcp approve words" in notices(events)
    chat.servers = chat.make()
    await chat.turn("Hello.", decision=None, mode="bypassPermissions")
    chat.servers = chat.make()
    await chat.turn("Hello.", mode="dontAsk")
    assert not mark.exists()
    assert len(chat.asked) == 3  # nobody is asked in dontAsk
    assert str(SERVER) in (chat.asked[0].preview or "")
    assert chat.asked[0].every_time
    chat.servers = chat.make()
    await chat.turn("Hello.")
    assert mark.exists()
    mark.unlink()
    chat.servers = chat.make()
    await chat.turn("Hello.", decision=None)
    assert mark.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"args": (str(SERVER), "quick", "--evil")}, "args changed"),
        ({"command": "/bin/sh"}, "command changed"),
        ({"env": {"A": "1", "B": "2"}}, "env B is new"),
        ({"env": {"A": "2"}}, "env A changed"),
        ({"env": {}}, "env A is gone"),
        ({"command": None, "args": (), "url": "http://127.0.0.1:9/"}, "url is new"),
    ],
)
async def test_a_server_that_changed_is_asked_about_again(project: Project, change: dict[str, Any], named: str):
    chat = turns(project, env={"A": "1"})
    before = chat.definitions[0]
    chat.definitions = [Definition("words", "user", before.file, before.server.model_copy(update=change))]
    chat.servers = chat.make()
    events, _ = await chat.turn("Hello.", decision=None)
    assert named in chat.asked[0].reason
    assert named in notices(events)
    assert chat.tools() == set()


async def test_tools_that_changed_are_asked_about_again(project: Project):
    names = project.root / "names"
    names.write_text("find")
    server = McpServer(command="/bin/sh", args=("-c", f'exec {sys.executable} {SERVER} quick $(cat "{names}")'))
    chat = Turns(project.root, [defined(server)])
    await chat.turn("Hello.", decision=None)
    assert (chat.tools(), chat.asked) == ({"mcp__words__find"}, [])
    names.write_text("steal")
    chat.servers = chat.make()
    events, _ = await chat.turn("Hello.", decision=None)
    assert chat.tools() == set()
    assert "find is gone" in notices(events)
    assert "steal is new" in notices(events)
    chat.servers = chat.make()
    await chat.turn("Hello.", decision=once)
    assert chat.tools() == {"mcp__words__steal"}
    chat.servers = chat.make()
    chat.asked.clear()
    await chat.turn("Hello.", decision=None)
    assert (chat.tools(), chat.asked) == ({"mcp__words__steal"}, [])


async def test_a_turn_that_is_stopped_while_tools_are_asked_about_agrees_to_nothing(project: Project):
    chat = turns(project, "quick", "steal")
    chat.pins.add(chat.definitions[0], tools={"find": "0" * 64})
    asked = asyncio.Event()

    async def never(request: Request) -> Decision:
        chat.asked.append(request)
        asked.set()
        return await asyncio.get_running_loop().create_future()

    gate = Gate(never)
    task = asyncio.ensure_future(chat.servers.running(["words"], gate=gate))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.approve = refuse
    assert await chat.servers.running(["words"], gate=gate) == []
    await chat.servers.close()


async def test_agreement_to_one_project_is_none_to_another(tmp_path: Path):
    definition = defined(program("quick"), scope="project")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    Pins(tmp_path / "state", tmp_path / "a").add(definition)
    assert Pins(tmp_path / "state", tmp_path / "a").agrees(definition)
    assert not Pins(tmp_path / "state", tmp_path / "b").agrees(definition)
    (tmp_path / "state" / "approved.json").write_text('{"servers": 7}')
    assert not Pins(tmp_path / "state", tmp_path / "a").agrees(definition)
    assert len(list((tmp_path / "state").glob("approved.json.corrupt-*"))) == 1


async def test_a_server_of_the_users_own_is_the_same_program_everywhere(project: Project):
    (project.root / "server").write_text("#!/bin/sh\ntouch ran\n")
    (project.root / "server").chmod(0o755)
    chat = Turns(project.root, [defined(McpServer(command="./server"))])
    events, _ = await chat.turn("Hello.")
    assert "'./server' is another program in every directory" in notices(events)
    assert not (project.root / "ran").exists()


# --- files and variables ---


def test_files_of_projects_pass_over_what_is_wrong_and_those_of_users_refuse(tmp_path: Path):
    file = tmp_path / "mcp.json"
    good = {"type": "stdio", "command": "x", "args": ["a"], "env": {"A": "${B}"}}
    bad = {"both": {"command": "x", "url": "http://x"}, "none": {}, "sse": {"type": "sse", "url": "http://x"}}
    file.write_text(json.dumps({"mcpServers": {"good": good, "kept": {**good, "oauth": {}}, **bad, "odd": 3}}))
    found, problems = read_servers(file, "project")
    assert [definition.name for definition in found] == ["good", "kept"]
    assert len(problems) == 4
    with pytest.raises(ConfigError, match="server 'kept'"):
        read_servers(file, "user")
    for text in ("{", "[]", '{"mcpServers": []}', '{"a": ' * 100_000):
        file.write_text(text)
        assert len(read_servers(file, "project")[1]) == 1
    assert read_servers(tmp_path / "absent.json", "user") == ((), ())


def test_writing_a_server_keeps_everything_else(tmp_path: Path):
    file = tmp_path / ".mcp.json"
    file.write_text('{"other": 1, "mcpServers": {"a": {"command": "x", "oauth": {}}}}')
    file.chmod(0o640)
    assert not write_server(file, "b", McpServer(url="https://x"))
    assert write_server(file, "a", McpServer(url="https://x"))  # it is there: nothing changes
    assert json.loads(file.read_text()) == {
        "other": 1,
        "mcpServers": {"a": {"command": "x", "oauth": {}}, "b": {"type": "http", "url": "https://x"}},
    }
    assert file.stat().st_mode & 0o777 == 0o640
    assert write_server(file, "b", None)
    assert not write_server(file, "b", None)
    file.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        write_server(file, "b", None)
    assert file.read_text() == "{"


def test_variables_of_projects_are_those_the_user_names():
    server = McpServer(command="x", args=("${A}", "${B:-b}"), env={"T": "x ${A} y"}, headers={})
    environment = {"A": "secret", "B": "other"}
    user = filled(defined(server), environment=environment, project_variables=())
    assert (user.args, user.env) == (("secret", "other"), {"T": "x secret y"})
    project = defined(server, scope="project")
    with pytest.raises(ValueError, match="may not see A: add it to mcp_environment"):
        filled(project, environment=environment, project_variables=())
    named = filled(project, environment=environment, project_variables=("A",))
    assert named.args == ("secret", "b")
    with pytest.raises(ValueError, match="A is not set"):
        filled(defined(server), environment={}, project_variables=())
    # What a variable holds is not filled in again.
    assert filled(defined(server), environment={"A": "${B}"}, project_variables=()).args == ("${B}", "b")


async def test_without_the_extra_the_command_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fastmcp.client", None)
    with pytest.raises(McpError, match=r'pip install "punie\[mcp\]"'):
        async with connected(program("quick"), root=tmp_path):
            pass


async def test_everything_is_allowed_by_an_approver_that_allows_everything(project: Project):
    chat = turns(project, approved=False)
    config = AgentConfig(model="claude")
    agent = create_agent(config, model=scripted(FIND, "Found."), approve=approve_all, servers=chat.servers)
    events = [event async for event in run_turn(agent, "x", workspace=Workspace(project.root), config=config)]
    await chat.servers.close()
    assert isinstance(events[-1], TurnEnded)
    assert [call.outcome for call in events[-1].tool_calls] == ["ok"]
