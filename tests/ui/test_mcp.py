"""`punie mcp` and runs with MCP servers, as the installed program."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.ui.pseudo import CTRL_D, Start, ready
from tests.ui.scripted_server import Call, ScriptedServer

from punie import cli
from punie.errors import PunieError

PUNIE = Path(sys.executable).with_name("punie")
SERVER = str(Path(__file__).parents[1] / "agent" / "mcp_server.py")


@dataclass(frozen=True)
class Done:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


Punie = Callable[..., Done]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PUNIE_", "XDG_", "ANTHROPIC"))]:
        monkeypatch.delenv(name)
    for kind in ("config", "state", "cache"):
        monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", str(tmp_path / kind))


@pytest.fixture
def punie(places: None, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Punie:
    """The command line in this process, since each start of a program takes a second."""
    monkeypatch.chdir(project)

    def run(*arguments: str, **env: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            try:
                code = cli._run(list(arguments))
            except PunieError as error:
                code = cli._complain(error)
        told = capsys.readouterr()
        return Done(code, told.out, told.err)

    return run


def answered(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PUNIE), "-p", "hi", *arguments]
    return subprocess.run(command, cwd=project, input="", capture_output=True, text=True, timeout=250)


def listed(punie: Punie) -> Mapping[str, Mapping[str, object]]:
    return {row["name"]: row for row in json.loads(punie("mcp", "list", "--json").stdout)}


def test_from_added_to_removed(punie: Punie, tmp_path: Path) -> None:
    assert "No MCP servers" in punie("mcp").stdout
    done = punie("mcp", "add", "words", "--env", "TOKEN=${WORDS}", "--", sys.executable, SERVER, "quick", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "config" / "punie" / "mcp.json"
    entry = {"type": "stdio", "command": sys.executable, "args": [SERVER, "quick", "--json"]}
    assert json.loads(file.read_text()) == {"mcpServers": {"words": {**entry, "env": {"TOKEN": "${WORDS}"}}}}
    assert file.stat().st_mode & 0o777 == 0o600
    row = listed(punie)["words"]
    assert (row["state"], row["tools"], row["env"]) == ("approved", None, ["TOKEN"])
    assert punie("mcp", "add", "words", "--", "other").returncode == 2
    failed = punie("mcp", "test", "words")
    assert (failed.returncode, "the variable WORDS is not set" in failed.stderr) == (1, True)
    tried = punie("mcp", "test", "words", WORDS="x")
    assert tried.returncode == 0, tried.stderr
    assert "mcp__words__--json  Find words." in tried.stdout
    row = listed(punie)["words"]
    assert row["tools"] == 1
    assert isinstance(row["tokens"], int)
    assert 0 < row["tokens"] < 100
    assert "1 tools, about" in punie("mcp", "list").stdout
    file.write_text(file.read_text().replace("quick", "good"))
    assert listed(punie)["words"]["changed"] == ["args changed"]
    refused = punie("mcp", "test", "words", WORDS="x")
    assert (refused.returncode, "args changed" in refused.stderr) == (2, True)
    assert punie("mcp", "remove", "words").returncode == 0
    assert punie("mcp", "remove", "words").returncode == 2
    assert listed(punie) == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add",), "takes the name"),
        (("add", "a"), "takes a URL"),
        (("add", "a__b", "--", "x"), "cannot be the name"),
        (("add", "a", "--transport", "http", "--", "x"), "is no address"),
        (("add", "a", "https://x", "--env", "A=b"), "takes no arguments and no --env"),
        (("add", "a", "--header", "A: b", "--", "x"), "takes no --header"),
        (("add", "a", "--env", "A", "--", "x"), "is no value for --env"),
        (("list", "a"), "takes no name"),
        (("test", "a", "b"), "takes only a name"),
        (("test", "a"), "no MCP server named 'a'"),
    ],
)
def test_mistakes_are_told_in_three_lines(punie: Punie, arguments: tuple[str, ...], said: str) -> None:
    done = punie("mcp", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_projects_server_needs_trust_and_agreement(punie: Punie, project: Path, server: ScriptedServer) -> None:
    mark = project / "mark"
    entry = {"command": sys.executable, "args": [SERVER, "mark", str(mark)]}
    (project / ".mcp.json").write_text(json.dumps({"mcpServers": {"words": entry}}))
    assert ".mcp.json is not read" in punie("mcp").stderr
    assert punie("mcp", "approve", "words").returncode == 2
    assert punie("trust").returncode == 0
    server.script = [["One."], [Call("mcp__words__find", {})], ["Two."]]
    done = answered(project, "-m", server.spec)
    assert (done.returncode, done.stdout) == (0, "One.\n")
    assert "it is new here. `punie mcp list` shows it, `punie mcp approve words` agrees to it" in done.stderr
    assert punie("mcp", "test", "words").returncode == 2
    assert not mark.exists()
    assert punie("mcp", "approve", "words").returncode == 0
    arguments = ("-m", server.spec, "--allowed-tools", "mcp__words__*", "--output-format", "json")
    done = answered(project, *arguments)
    assert done.returncode == 0, done.stderr
    (call,) = json.loads(done.stdout)["tool_calls"]
    assert (call["name"], call["outcome"], call["output"]) == ("mcp__words__find", "ok", "found")
    assert "mcp__words__find" in json.dumps(server.requests[-1]["tools"])
    assert "mcp__" not in json.dumps(server.requests[0]["tools"])


def test_a_chat_asks_about_the_server_and_about_its_calls(
    start: Start, server: ScriptedServer, project: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    entry = {"command": sys.executable, "args": [SERVER, "mark", str(mark)]}
    file = tmp_path / "config" / "punie" / "mcp.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"mcpServers": {"words": entry}}))
    server.script = [[Call("mcp__words__find", {"query": "x"})], ["Found it."]]
    terminal = ready(start())
    terminal.enter("find x")
    shown = terminal.wait("mcp__words asks to run:", "it is new here", "Allow this? [y/d/N]")
    assert "mcp_server.py mark" in shown.replace("\n", "")
    assert not mark.exists()
    terminal.enter("y")
    terminal.wait("mcp__words__find asks to run:", '"query": "x"', "always mcp__words__find", "[y/s/a/d/N]")
    pid = int(mark.read_text())
    terminal.enter("a")
    terminal.wait("Found it.", "tokens in")
    assert Path(f"/proc/{pid}").exists()
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0
    assert not Path(f"/proc/{pid}").exists()
    (rules,) = (tmp_path / "state" / "punie" / "projects").glob("*.toml")
    assert '"mcp__words__find"' in rules.read_text()


def test_a_program_of_ones_own_is_kept_by_its_whole_path(punie: Punie, project: Path) -> None:
    for command in ("./tool", str(project / "tool")):
        assert punie("mcp", "add", "words", "--", command).returncode == 0
        assert listed(punie)["words"]["command"] == str(project / "tool")
        punie("mcp", "remove", "words")


def test_adding_for_a_project_writes_its_file_and_agrees(punie: Punie, project: Path) -> None:
    (project / ".mcp.json").write_text('{"other": true}')
    done = punie(
        "mcp", "add", "--project", "docs", "https://docs.example/mcp", "--header", "Authorization: Bearer ${T}"
    )
    assert "is not trusted, so it is not used yet" in done.stdout
    written = json.loads((project / ".mcp.json").read_text())
    entry = {"type": "http", "url": "https://docs.example/mcp", "headers": {"Authorization": "Bearer ${T}"}}
    assert written == {"other": True, "mcpServers": {"docs": entry}}
    punie("trust")
    row = listed(punie)["docs"]
    assert (row["scope"], row["state"], row["transport"]) == ("project", "approved", "http")
    refused = punie("mcp", "test", "docs")
    assert "may not see T: add it to mcp_environment" in refused.stderr
    assert punie("mcp", "remove", "docs", "--project").returncode == 0


def test_help_imports_no_library_for_servers() -> None:
    script = (
        "import sys\nfrom punie.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not [name for name in ('mcp', 'fastmcp', 'pydantic', 'pydantic_ai') if name in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mcp " in done.stdout
