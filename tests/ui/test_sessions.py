"""Stored sessions and undo as a person uses them: flags, `punie sessions`, and the chat's commands."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.ui.pseudo import CTRL_D, Terminal, ready
from tests.ui.scripted_server import Call, ScriptedServer

EDIT = Call("edit_file", {"path": "a.py", "old": "Greeter", "new": "Waver"})
REMOVE = Call("run_command", {"command": "rm a.py; echo new > b.py"})
Punie = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("PUNIE_", "XDG_", "CI"))}
    base.pop("NO_COLOR", None)
    return {**base, **{f"XDG_{kind.upper()}_HOME": str(tmp_path / kind) for kind in ("config", "state", "cache")}}


@pytest.fixture
def punie(project: Path, places: dict[str, str]) -> Punie:
    def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "punie", *arguments],
            cwd=project,
            env={**places, **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=250,
        )

    return run


def prompts(request: dict[str, object]) -> list[object]:
    messages = request["messages"]
    assert isinstance(messages, list)
    return [message["content"] for message in messages if message["role"] == "user"]


def test_one_answer_after_the_other_in_one_session(punie: Punie, server: ScriptedServer) -> None:
    server.script = [[EDIT], ["Done."], ["Again."], ["Apart."]]
    model = ("-m", server.spec, "--permission-mode", "acceptEdits", "--output-format", "json")
    first = json.loads(punie("-p", "change it", *model).stdout)
    second = json.loads(punie("-p", "and now", "--continue", *model).stdout)
    assert second["session_id"] == first["session_id"]
    assert prompts(server.requests[-1]) == ["change it", "and now"]
    copied = json.loads(punie("-p", "or else", "--resume", first["session_id"][:8], "--fork", *model).stdout)
    assert copied["session_id"] != first["session_id"]
    assert prompts(server.requests[-1]) == ["change it", "and now", "or else"]
    listed = punie("sessions").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [copied["session_id"][:8], first["session_id"][:8]]


def test_sessions_are_shown_exported_imported_and_deleted(punie: Punie, server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [[Call("read_file", {"path": "a.py"})], ["A Greeter.\x1b[31m"]]
    done = punie("-p", "what is there?", "-m", server.spec, "--output-format", "stream-json")
    id_ = json.loads(done.stdout.splitlines()[0])["session_id"]
    shown = punie("sessions", "show", id_[:6]).stdout
    assert "## You\n\nwhat is there?" in shown
    assert "`read_file`" in shown
    assert "A Greeter." in shown
    assert "\x1b" not in shown
    file = tmp_path / "out.jsonl"
    assert punie("sessions", "export", id_, "-o", str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert punie("sessions", "export", id_, "-o", str(file)).returncode == 2
    copy = punie("sessions", "import", str(file)).stdout.strip()
    assert copy != id_
    assert punie("sessions", "show", copy).stdout.splitlines()[4:] == shown.splitlines()[4:]
    assert punie("sessions", "rm", id_, copy).returncode == 0
    assert punie("sessions", "list", "--all").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--continue",), "There is no session of"),
        (("--resume", "abcd1234"), "No session begins with 'abcd1234'"),
        (("--resume",), "--resume needs an ID with -p"),
        (("--fork",), "--fork needs a session to copy"),
        (("--continue", "--no-session"), "--no-session cannot go on"),
    ],
)
def test_what_cannot_be_gone_on_with(punie: Punie, arguments: tuple[str, ...], complaint: str) -> None:
    done = punie("-p", "hello", "-m", "openai:x@http://127.0.0.1:9/v1", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_state_that_cannot_be_written_stops_the_turn_but_not_without_a_session(
    punie: Punie, server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "state" / "punie").mkdir(parents=True)
    (tmp_path / "state" / "punie" / "sessions").write_text("in the way")
    server.script = [["Hello."]]
    refused = punie("-p", "hello", "-m", server.spec)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "cannot be stored in" in refused.stderr
    assert "--no-session" in refused.stderr
    assert not server.requests
    done = punie("-p", "hello", "-m", server.spec, "--no-session")
    assert (done.returncode, done.stdout) == (0, "Hello.\n")


@pytest.fixture
def chat(project: Path, places: dict[str, str], server: ScriptedServer) -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        env = {**places, "TERM": "xterm-256color"}
        terminal = Terminal("--model", server.spec, *arguments, cwd=project, env=env)
        terminals.append(terminal)
        return ready(terminal)

    yield start
    for terminal in terminals:
        terminal.kill()


def test_undo_and_redo_in_the_chat_and_in_a_resumed_one(
    chat: Callable[..., Terminal], server: ScriptedServer, project: Path
) -> None:
    server.script = [[EDIT], ["Renamed."], [REMOVE], ["Removed."], ["Still here."]]
    terminal = chat("--permission-mode", "acceptEdits")
    terminal.enter("rename it")
    terminal.wait("Renamed.")
    terminal.enter("remove it")
    terminal.wait("Allow this?")
    terminal.enter("y")
    terminal.wait("Removed.")
    terminal.enter("/undo")
    terminal.wait("Taken back: ", "is not taken back")
    assert (project / "a.py").read_text() == "class Waver:\n    pass\n"
    assert not (project / "b.py").exists()
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0

    terminal = chat("--continue")
    terminal.wait("Going on after", "> remove it", "Removed.")
    terminal.enter("/redo")
    terminal.wait("Done again: ")
    assert not (project / "a.py").exists()
    (project / "b.py").write_text("mine\n")
    terminal.enter("/undo")
    terminal.wait("left as it is: b.py: it was changed since")
    terminal.enter("/undo")
    terminal.until(lambda text: text.count("Taken back: a.py") == 2, "took nothing back the second time")
    assert (project / "a.py").read_text() == "class Greeter:\n    pass\n"
    assert (project / "b.py").read_text() == "mine\n"
    terminal.enter("/undo")
    terminal.wait("Nothing to take back.")
    terminal.enter("and now?")
    terminal.wait("Still here.")
    assert prompts(server.requests[-1]) == ["rename it", "remove it", "and now?"]


def test_sessions_resume_and_fork_in_the_chat(chat: Callable[..., Terminal], server: ScriptedServer) -> None:
    server.script = [["One."], ["Two."], ["Three."]]
    terminal = chat()
    terminal.enter("/fork")
    terminal.wait("There is nothing to copy yet.")
    terminal.enter("first")
    terminal.wait("One.")
    terminal.enter("/clear")
    terminal.wait("A new conversation.")
    terminal.enter("second")
    terminal.wait("Two.")
    terminal.enter("/sessions")
    shown = terminal.wait("/resume NUMBER")
    listed = [line.split() for line in shown.splitlines() if "messages  " in line]
    assert [line[-1] for line in listed] == ["second", "first"]
    terminal.enter("/resume 2")
    terminal.wait("Going on after 2 messages.", "> first\n")
    terminal.enter("/fork")
    terminal.enter("third")
    terminal.wait("Three.")
    assert prompts(server.requests[-1]) == ["first", "third"]
    terminal.enter("/sessions")
    assert terminal.wait("4 messages  first")


def test_old_sessions_are_deleted_beside_a_turn_and_on_demand(
    punie: Punie, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = [["Well."]]
    for _ in range(2):
        assert punie("-p", "hello", "-m", server.spec).returncode == 0
    done = punie("sessions", "prune", PUNIE_SESSIONS__KEEP="1")
    assert done.stdout == "deleted 1 of 2 sessions\n"
    database = tmp_path / "state" / "punie" / "sessions" / "sessions.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE sessions SET created = 1")
        connection.execute("UPDATE messages SET written = 1")
        connection.commit()
    server.script = [[Call("run_command", {"command": "sleep 1"})], ["Well."]]
    server.requests.clear()
    assert punie("-p", "hello", "-m", server.spec, "--yolo", "--continue").returncode == 0
    listed = punie("sessions").stdout.splitlines()
    assert len(listed) == 1
    assert "6 messages" in listed[0]
