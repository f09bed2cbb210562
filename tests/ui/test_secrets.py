"""What an installed `punie` gives away, and to whom: its screen, its output, its files, its tracebacks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from tests.ui.pseudo import PUNIE, Start, ready
from tests.ui.scripted_server import Call, ScriptedServer
from tests.ui.test_clean import HOSTILE

VALUE = "plain-Words-77-of-acme"
TOKEN = "ghp_a7QJBd0Kh8oOOL8dKLzdocJ2isAjIhKtJ0Rl12"
PASSWORD = "hunt3r-Tw0"
EDIT = Call("edit_file", {"path": "a.py", "old": "class Greeter", "new": "class Waiter"})


@pytest.fixture
def project(project: Path) -> Path:
    (project / "settings.toml").write_text(f'key = "{VALUE}"\ntoken = "{TOKEN}"\n')
    return project


def pieces(text: str) -> list[str]:
    return [text[place : place + 5] for place in range(0, len(text), 5)]


def sent(server: ScriptedServer) -> list[dict[str, object]]:
    """Every message of every request."""
    return [message for request in server.requests for message in cast("list[dict[str, object]]", request["messages"])]


def assert_clean(*texts: str) -> None:
    for text in texts:
        assert PASSWORD not in text
        assert VALUE not in text
        assert TOKEN not in text


def test_a_chat_gives_no_secret_away(start: Start, server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [[Call("read_file", {"path": "settings.toml"})], pieces(f"They are {VALUE} and {TOKEN}, it says.")]
    terminal = ready(start(ACME_API_KEY=VALUE))
    terminal.enter("what are they?")
    shown = terminal.wait("it says.")
    assert "[redacted:ACME_API_KEY] and [redacted:github-token]" in " ".join(shown.split())
    server.script.append([f"And {TOKEN} again."])
    terminal.enter(f"is {VALUE} one?")
    terminal.wait("again.")
    terminal.type("/exit\r")
    assert terminal.exit_code() == 0
    kept = [file.read_bytes().decode("latin-1") for file in (tmp_path / "state").rglob("*") if file.is_file()]
    assert any("is [redacted:ACME_API_KEY] one?" in text for text in kept)
    assert_clean(*kept, *(repr(each) for each in sent(server) if each["role"] != "assistant"))
    drawn = terminal.raw.replace(f"is {VALUE} one?".encode(), b"")  # what the user types is the user's own
    assert TOKEN.encode() not in drawn


@pytest.mark.parametrize("output_format", ["text", "json", "stream-json"])
def test_one_answer_gives_no_secret_away(
    server: ScriptedServer, project: Path, tmp_path: Path, output_format: str
) -> None:
    said = pieces(f"They are {VALUE} and {TOKEN}, it says.")
    server.script = [[Call("search", {"pattern": "key|token"})], [Call("read_file", {"path": "settings.toml"})], said]
    places = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}
    env = {**os.environ, **places, "ACME_API_KEY": VALUE}

    def punie(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(PUNIE), *arguments]
        nothing = subprocess.DEVNULL
        return subprocess.run(command, cwd=project, env=env, stdin=nothing, capture_output=True, text=True, check=False)

    spec = server.spec.replace("http://", f"http://someone:{PASSWORD}@")
    done = punie("-v", "-m", spec, "-p", f"is {TOKEN} one?", "--output-format", output_format)
    assert done.returncode == 0, done.stderr
    assert "They are [redacted:ACME_API_KEY] and [redacted:github-token]" in done.stdout
    assert "A secret in the prompt is kept from the model" in done.stderr
    assert_clean(done.stdout, done.stderr, repr(server.requests))
    if output_format == "json":
        exported = punie("sessions", "export", json.loads(done.stdout)["session_id"])
        assert "[redacted:github-token]" in exported.stdout
        assert_clean(exported.stdout)


def test_a_traceback_quotes_no_secret_and_no_control_sequence() -> None:
    program = (
        "import os, sys, punie.cli as cli\n"
        "def fail(arguments): raise RuntimeError('\\x1b]0;title\\x07 ' + os.environ['ACME_API_KEY'])\n"
        "cli._run = fail\n"
        "sys.exit(cli.main([]))\n"
    )
    env = {**os.environ, "ACME_API_KEY": VALUE}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: ␛]0;title␇ [redacted:ACME_API_KEY]" in done.stderr
    assert_clean(done.stderr)


def test_an_error_quotes_no_secret(tmp_path: Path) -> None:
    env = {**os.environ, "ACME_API_KEY": VALUE, "XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    command = [str(PUNIE), "-p", "x", "-m", f"openai:m@{VALUE}\x1b]0;title\x07"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "[redacted:ACME_API_KEY]" in done.stderr
    assert "\x1b" not in done.stderr
    assert_clean(done.stderr)


def test_the_state_is_for_the_user_alone(start: Start, server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [[EDIT], [Call("run_command", {"command": "seq 1 100000"})], ["Both done."]]
    old = os.umask(0o022)
    try:
        (tmp_path / "state" / "punie").mkdir(parents=True, mode=0o755)
        terminal = ready(start("--allowed-tools", "edit_file,run_command"))
    finally:
        os.umask(old)
    terminal.enter("do both")
    terminal.wait("Both done.")
    found = [tmp_path / "state" / "punie", *(tmp_path / "state" / "punie").rglob("*")]
    names = {path.name for path in found}
    assert {"history", "sessions.db", "sessions.db-wal", "sessions.db-shm"} <= names
    modes = {str(path): path.lstat().st_mode & 0o777 for path in found}
    assert not {path: oct(mode) for path, mode in modes.items() if mode & 0o077}


@pytest.mark.parametrize("typed", ["y", "n"])
def test_nothing_typed_before_a_question_answers_it(
    start: Start, server: ScriptedServer, project: Path, typed: str
) -> None:
    server.script = [[1.0, EDIT], ["Refused."]]
    terminal = ready(start())
    terminal.enter("change it")
    terminal.settle(0.5)
    terminal.enter(typed)
    terminal.type(typed)
    terminal.wait("Allow this? [")
    terminal.settle(0.5)
    assert len(server.requests) == 1
    terminal.enter()
    terminal.wait("denied", "Refused.")
    assert "class Greeter" in (project / "a.py").read_text()


def test_a_real_screen_is_only_written_on(start: Start, server: ScriptedServer, project: Path) -> None:
    (project / "evil.txt").write_text("\n".join(f"evil {text}" for text in HOSTILE.values()), "utf-8", "replace")
    answer = "\n\n".join(text.encode("utf-8", "replace").decode() for text in HOSTILE.values())
    server.script = [
        [Call("run_command", {"command": "cat evil.txt"})],
        [Call("search", {"pattern": "evil"})],
        [*pieces(answer), "\n\nThe end is here."],
    ]
    terminal = ready(start("--allowed-tools", "run_command"))
    terminal.enter("look")
    terminal.wait("The end is here.", "tokens in")
    assert terminal.screen.title == ""
    raw = terminal.raw.decode()
    for forbidden in ("\x1b]", "\x1bP", "\x1b_", "\x1b^", "\x1bX", "\x1bc", "\x9b", "\x9d", "\x07", "\u202e", "\u200b"):
        assert forbidden not in raw
    assert "\U000e0041" not in raw
    told = repr(server.requests[-1])
    for hidden in ("\\x1b", "\\u202e", "\\u200b", "\\x9b", "\\x07"):
        assert hidden not in told
    assert "<U+202E>" in told
    terminal.child.kill(signal.SIGTERM)
