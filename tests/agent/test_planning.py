"""In plan mode nothing is changed, whatever the model asks for, whatever rules allow and whoever agreed to it."""

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from tests.agent.conftest import Local, Project, prompts
from tests.agent.test_append_only import assert_only_grown
from tests.agent.test_hooks import Turns
from tests.stubs import Canned, scripted

from punie.agent import Permissions, TurnEnded, create_agent, run_turn
from punie.agent._pins import Pins
from punie.agent.approval import Decision, Gate, Request, approve_all, once
from punie.agent.compaction import compacted
from punie.agent.hooks import HookRunner
from punie.agent.mcp import Servers
from punie.agent.memory import Memory
from punie.agent.permissions import Call, authorize
from punie.agent.planning import BEGUN, ENDED
from punie.config import AgentConfig, Limits
from punie.extensions import Definition, Hook, Hooks, McpServer
from punie.rules import RuleSet, parse_rule
from punie.tools import TOOLS, Sandbox, SandboxState, Workspace
from punie.tools._process import run

EVERYTHING = RuleSet(
    allow=tuple(
        map(parse_rule, ("Bash", "Edit", "Write", "Read", "run_command", "Edit(**)", "Bash(touch:*)", "mcp__notes"))
    )
)
EDIT = ("edit_file", {"path": "notes.md", "old": "nothing", "new": "much"})
WRITE = ("write_file", {"path": "new.txt", "content": "x\n"})
COMMANDS = (
    "touch made",
    "echo x > made",
    "echo x >> notes.md",
    "ls; touch made",
    "ls && rm notes.md",
    "ls $(touch made)",
    "ls `touch made`",
    "cat <(touch made)",
    "rm notes.md",
    "mv notes.md made",
    "cp notes.md made",
    "tee made < notes.md",
    "sed -i s/nothing/much/ notes.md",
    "sed -n 'w made' notes.md",
    "sort -o made notes.md",
    "uniq notes.md made",
    "find . -name notes.md -delete",
    "find . -exec touch made ';'",
    "find . -fprint made",
    "python3 -c \"open('made', 'w')\"",
    "bash -c 'touch made'",
    "env touch made",
    "xargs touch < notes.md",
    "git init made",
    "mkdir made",
    "ln -s notes.md made",
    "chmod 000 notes.md",
    "truncate -s 0 notes.md",
    "./ls",
    "PATH=. ls",
    "cd src && touch made",
    "nohup touch made &",
    "cat <<X > made\nx\nX",
    "",
)
SERVER = """
import sys
from pathlib import Path
from mcp.server import MCPServer
from mcp_types import ToolAnnotations
server = MCPServer("notes")
@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def keep(text: str) -> str:
    Path(sys.argv[1]).write_text(text)
    return "kept"
server.run("stdio")
"""


def state(root: Path) -> dict[str, tuple[int, str]]:
    """Every path below a directory, with what it is and holds."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }


def planning(*, rules: RuleSet = EVERYTHING) -> Permissions:
    return Permissions("plan", rules, uses_sandbox=True, trusted=True)


async def test_an_obedient_model_changes_nothing_while_planning(project: Project):
    calls = [EDIT, WRITE, *(("run_command", {"command": command}) for command in COMMANDS)]
    calls += [("write_file", {"path": f"{place}/x", "content": "x"}) for place in (".git/hooks", "..", "/tmp")]
    calls += [("mcp__notes__keep", {"text": "x"}), ("edit_file", {"path": "notes.md", "old": "", "new": ""})]
    (project.root / "ls").write_text("#!/bin/sh\ntouch made\n")
    (project.root / "ls").chmod(0o755)
    before, above = state(project.root), sorted(project.root.parent.iterdir())
    config = AgentConfig(limits=Limits(max_turns=len(calls) + 2, max_tool_calls=len(calls) + 2))
    _, end = await project.turn(*calls, "Done.", approve=approve_all, permissions=planning(), config=config)
    assert state(project.root) == before
    assert sorted(project.root.parent.iterdir()) == above
    assert len(end.tool_calls) == len(calls)
    assert {call.outcome for call in end.tool_calls} <= {"denied", "error"}
    assert end.answer == "Done."


@pytest.mark.parametrize("name", sorted(set(TOOLS) | {"mcp__notes__keep", "something_new"}))
def test_only_tools_that_are_known_to_change_nothing_run(tmp_path: Path, name: str):
    (tmp_path / "x").write_text("x")
    call = Call(name, {"path": "x", "command": "make", "name": "x"})
    verdict = authorize(call, root=tmp_path, permissions=planning(), sandbox_works=True, granted={name, f"{name} make"})
    reads = {"read_file", "list_files", "search", "find_symbol", "find_subclasses", "find_references"}
    assert (verdict.kind == "allow") is (name in reads | {"write_todos", "load_skill"})
    assert verdict.kind in {"allow", "deny"}


@pytest.mark.parametrize(
    ("command", "sandbox", "kind"),
    [
        ("ls src", True, "allow"),
        ("cat notes.md | wc -l", True, "allow"),
        ("grep -rn Flask src", True, "allow"),
        ("ls src", False, "deny"),
        ("ls ..", True, "deny"),
        ("cat .env", True, "deny"),
        ("cat /etc/passwd", True, "deny"),
        *((command, True, "deny") for command in COMMANDS),
    ],
)
def test_commands_that_only_read_run_in_a_sandbox(tmp_path: Path, command: str, kind: str, *, sandbox: bool):
    (tmp_path / "src").mkdir()
    call = Call("run_command", {"command": command})
    verdict = authorize(call, root=tmp_path, permissions=planning(), sandbox_works=sandbox)
    assert verdict.kind == kind
    if kind == "deny":
        assert "off while planning" in verdict.reason


def test_a_rule_can_take_reading_commands_away_too(tmp_path: Path):
    call = Call("run_command", {"command": "ls"})
    for rules in (RuleSet(ask=(parse_rule("Bash(ls:*)"),)), RuleSet(deny=(parse_rule("Bash"),))):
        permissions = replace(planning(), rules=rules)
        assert authorize(call, root=tmp_path, permissions=permissions, sandbox_works=True).kind == "deny"


async def test_a_yes_that_comes_after_the_mode_changed_counts_for_nothing(project: Project):
    async def approve(request: Request) -> Decision:
        del request
        gate.permissions = replace(gate.permissions, mode="plan")
        return once

    for call in (WRITE, ("run_command", {"command": "touch made"})):
        gate = Gate(approve, Permissions("default"))
        before = state(project.root)
        agent = create_agent(AgentConfig(), model=scripted(call, "Done."), gate=gate)
        stream = run_turn(agent, "go", workspace=Workspace(project.root), config=AgentConfig())
        end = [event async for event in stream][-1]
        assert isinstance(end, TurnEnded)
        assert end.tool_calls[0].outcome == "error"
        assert "off while planning" in end.tool_calls[0].output
        assert state(project.root) == before


async def test_the_tools_of_a_server_do_not_run_whatever_the_server_says_of_them(project: Project, tmp_path: Path):
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    made = tmp_path / "made by the server"
    server = McpServer(command=sys.executable, args=(str(program), str(made)))
    definition = Definition(name="notes", server=server, scope="user", file=tmp_path / "mcp.json")
    pins = Pins(tmp_path / "state", project.root)
    pins.add(definition)
    servers = Servers([definition], pins, root=project.root, directory=project.root, environment=dict(os.environ))
    try:
        for mode, outcome in (("plan", "denied"), ("default", "ok")):
            model = scripted(("mcp__notes__keep", {"text": "x"}), "Done.")
            permissions = replace(planning(), mode=mode)
            agent = create_agent(AgentConfig(), model=model, permissions=permissions, servers=servers)
            stream = run_turn(agent, "go", workspace=Workspace(project.root), config=AgentConfig())
            end = [event async for event in stream][-1]
            assert isinstance(end, TurnEnded)
            assert [call.outcome for call in end.tool_calls] == [outcome]
            assert made.exists() is (mode == "default")
    finally:
        await servers.close()


async def test_hooks_that_follow_a_change_do_not_run_and_those_that_stop_calls_do(project: Project):
    hooks = Hooks(
        before_tool=(Hook(command="echo not that >&2; exit 2", match="Read(notes.md)"),),
        after_tool=(Hook(command="touch after"),),
        turn_end=(Hook(command="touch ended"),),
    )
    turns = Turns(project.root, own=hooks)
    read = [("read_file", {"path": path}) for path in ("notes.md", "src/app_Module.py")]
    _, end = await turns.turn(*read, "Done.", mode="plan")
    assert [call.outcome for call in end.tool_calls] == ["error", "ok"]
    assert "not that" in end.tool_calls[0].output
    assert not (project.root / "after").exists()
    assert not (project.root / "ended").exists()
    await turns.turn(read[1], "Done.", mode="default")
    assert (project.root / "after").exists()
    assert (project.root / "ended").exists()


async def test_a_link_that_leads_elsewhere_since_it_was_judged_is_not_followed(project: Project):
    (project.root / ".env").write_text("KEY=1\n")
    (project.root / "link").symlink_to("notes.md")
    swap = Hooks(before_tool=(Hook(command="ln -sfn .env link"),))
    _, end = await Turns(project.root, own=swap).turn(("read_file", {"path": "link"}), "Done.", mode="plan")
    assert "leads to another place than a moment ago" in end.tool_calls[0].output
    assert (project.root / "link").readlink() == Path(".env")


# --- what the model is told ---


def said(messages: list[ModelMessage]) -> list[str]:
    requests = (message for message in messages if isinstance(message, ModelRequest))
    parts = (part for message in requests for part in message.parts)
    return [str(part.content) for part in parts if isinstance(part, UserPromptPart)]


async def test_it_is_told_once_and_told_again_when_planning_is_over(project: Project):
    history: list[ModelMessage] = []
    for mode in ("default", "plan", "plan", "acceptEdits", "default"):
        permissions = Permissions(mode)
        _, end = await project.turn("Done.", permissions=permissions, history=history)
        history = list(end.messages)
    asked = "Where is Flask?"
    assert said(history) == [asked, BEGUN, asked, asked, ENDED, asked, asked]
    assert len(BEGUN.split()) < 45


async def test_it_is_told_again_when_a_summary_took_its_place(project: Project):
    _, end = await project.turn("First.", permissions=Permissions("plan"))
    done = await compacted(end.messages, model=Canned(ModelResponse([TextPart("We looked.")])))
    _, end = await project.turn("Second.", permissions=Permissions("plan"), history=done.messages)
    assert said(list(end.messages)).count(BEGUN) == 2


async def test_nothing_that_was_sent_before_changes(project: Project, local: Local):
    model, engine = local("One.", "Two.", "Three.")
    history: list[ModelMessage] = []
    config = AgentConfig(model="gguf:some-7b.gguf")
    for mode in ("default", "plan", "default"):
        _, end = await project.turn(model=model, permissions=Permissions(mode), history=history, config=config)
        history = list(end.messages)
    assert said(history).count(BEGUN) == said(history).count(ENDED) == 1
    assert_only_grown(engine, requests=3)


async def test_it_is_said_behind_the_results_of_a_turn_that_was_stopped(project: Project):
    _, first = await project.turn(WRITE)
    assert first.stop_reason == "denied"
    _, second = await project.turn("A plan.", permissions=Permissions("plan"), history=first.messages)
    requests = [message for message in second.messages if isinstance(message, ModelRequest)]
    kinds = [[part.part_kind for part in message.parts] for message in requests]
    assert [kind for kinds_of_one in kinds[1:] for kind in kinds_of_one] == [
        "tool-return",
        "user-prompt",
        "user-prompt",
    ]
    assert said(list(second.messages))[-2] == BEGUN


async def test_instructions_of_a_directory_are_no_place_for_it(project: Project):
    """They come behind a result; a service refuses words between a call and its result."""
    (project.root / "src/AGENTS.md").write_text("Be brief.")

    async def approve(request: Request) -> Decision:
        del request
        gate.permissions = replace(gate.permissions, mode="plan")
        return once

    gate = Gate(approve, Permissions("default"))
    edit = ("edit_file", {"path": "notes.md", "old": "nothing", "new": "x"})
    read = ("read_file", {"path": "src/app_Module.py"})
    memory = Memory(project.root.resolve(), project=project.root.resolve())
    agent = create_agent(AgentConfig(), model=scripted(edit, read, "Done."), gate=gate, memory=memory)
    stream = run_turn(agent, "go", workspace=Workspace(project.root), config=AgentConfig())
    end = [event async for event in stream][-1]
    assert isinstance(end, TurnEnded)
    assert "Be brief." in "".join(said(list(end.messages)))
    assert BEGUN not in said(list(end.messages))


async def test_the_embedded_model_is_told_nothing(project: Project, local: Local):
    shown: list[tuple[tuple[int, ...], ...]] = []
    for mode in ("plan", "default"):
        model, engine = local("There.")
        model.compact = True
        await project.turn(model=model, permissions=Permissions(mode))
        shown.append(tuple(prompts(engine)))
    assert shown[0] == shown[1]


# --- the sandbox ---

BY_FORCE = (
    "touch made",
    "echo x >> notes.md",
    "mkdir made",
    "rm notes.md",
    "mv notes.md made",
    "ln notes.md made",
    "cd src && touch made",
    "touch $PWD/made",
    "touch /proc/self/cwd/made",
    "git init -q made",
)


@pytest.mark.skipif(sys.platform != "linux", reason="these are the sandboxes of Linux")
@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
async def test_no_command_can_write_into_the_workspace_whatever_it_is(
    project: Project, kind: Literal["bubblewrap", "landlock"]
):
    sandbox = Sandbox(project.root, environment=os.environ, state=SandboxState(kind, "given"))
    sandbox.read_only = True
    before = state(project.root)
    # Landlock knows nothing of modes.
    for command in (*BY_FORCE, *(["chmod 600 notes.md"] if kind == "bubblewrap" else [])):
        outcome = await run(command, sandbox=sandbox, timeout_s=60)
        assert outcome.status != 0, command
        assert state(project.root) == before, command
    assert (await run("cat notes.md > $TMPDIR/x; cat $TMPDIR/x", sandbox=sandbox, timeout_s=60)).head == b"nothing\n"
    sandbox.read_only = False
    assert (await run("touch made", sandbox=sandbox, timeout_s=60)).status == 0
    assert (project.root / "made").exists()


async def test_neither_a_hook_nor_a_program_under_a_harmless_name_changes_anything(project: Project, tmp_path: Path):
    """A directory of the workspace that stands in PATH may hold anything under the name of `ls`."""
    (project.root / "bin").mkdir()
    (project.root / "bin/ls").write_text("#!/bin/sh\necho mine; touch made\n")
    (project.root / "bin/ls").chmod(0o755)
    environment = {**os.environ, "PATH": f"{project.root}/bin{os.pathsep}{os.environ['PATH']}"}
    hooks = HookRunner(
        Hooks(before_tool=(Hook(command="touch hooked; exit 0"),)), Hooks(), pins=Pins(tmp_path, tmp_path)
    )
    made = []
    for mode in ("plan", "acceptEdits"):
        model = scripted(("run_command", {"command": "ls"}), "Done.")
        agent = create_agent(AgentConfig(), model=model, permissions=replace(planning(), mode=mode), hooks=hooks)
        workspace = Workspace(project.root, environment=environment)
        stream = run_turn(agent, "go", workspace=workspace, config=AgentConfig())
        end = [event async for event in stream][-1]
        assert isinstance(end, TurnEnded)
        assert "mine" in end.tool_calls[0].output
        made.append(sorted(path.name for path in project.root.iterdir() if path.name in {"made", "hooked"}))
    assert made == [[], ["hooked", "made"]]
