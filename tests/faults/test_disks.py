"""A state directory that is full or cannot be written: said in plain words, nothing is lost, and it goes on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.programs import program
from tests.ui.pseudo import CTRL_D, PUNIE, Terminal, ready
from tests.ui.scripted_server import Call, ScriptedServer, serving


def test_full_and_read_only_disks():
    found = program("disks", 3)
    assert found["faults"] == []
    assert found["commits"] >= 2


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving() as scripted:
        yield scripted


START = """#!/bin/sh
exec unshare --mount --propagation private {user} sh {script} {punie} "$@"
"""
# On a disk that can be written not a byte is left.
MOUNTED = """
mount -t tmpfs -o size=64k tmpfs {state}
test {option} = ro || head -c 1000000 /dev/zero > {state}/filler 2> /dev/null
mount -o remount,{option} {state}
exec "$@"
"""


def on_a_bad_disk(tmp_path: Path, *more: str, option: str, server: ScriptedServer) -> Terminal:
    """The chat in `project`, with a full or a read-only disk for its state."""
    project, state, start = tmp_path / "project", tmp_path / "state" / "punie", tmp_path / "start"
    project.mkdir(parents=True)
    state.mkdir(parents=True)
    user = "" if os.geteuid() == 0 else "--map-root-user"
    start.with_suffix(".sh").write_text(MOUNTED.format(option=option, state=state))
    start.write_text(START.format(user=user, script=start.with_suffix(".sh"), punie=PUNIE))
    start.chmod(0o700)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PUNIE_", "XDG_", "CI"))}
    env |= {"XDG_STATE_HOME": str(state.parent), "XDG_CONFIG_HOME": str(tmp_path / "config"), "TERM": "xterm"}
    return Terminal("--model", server.spec, "--yolo", *more, cwd=project, env=env, program=start)


def test_a_chat_goes_on_when_nothing_can_be_stored(server: ScriptedServer, tmp_path: Path):
    server.script = [[Call("run_command", {"command": "echo done >> made.txt"})], ["Well."]]
    terminal = on_a_bad_disk(tmp_path, option="rw", server=server)
    try:
        ready(terminal)
        for number in range(1, 5):
            terminal.enter(f"question {number} " + "word " * 200)
            terminal.until(lambda text, number=number: text.count("Well.") == number, "was not answered")
        terminal.enter("/undo")
        terminal.wait("cannot be stored in")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    finally:
        terminal.kill()
    assert "Traceback" not in terminal.text
    assert terminal.text.count("is not stored") == 1
    assert (tmp_path / "project" / "made.txt").read_text() == "done\n"


def test_a_chat_on_a_read_only_disk_begins_only_if_told_to(server: ScriptedServer, tmp_path: Path):
    server.script = [["Well."]]
    refused = on_a_bad_disk(tmp_path / "refused", option="ro", server=server)
    told = on_a_bad_disk(tmp_path / "told", "--no-session", option="ro", server=server)
    try:
        assert refused.exit_code() == 1
        assert "nothing of the conversation can be kept" in " ".join(refused.text.split())
        ready(told).enter("question")
        told.wait("Well.")
        told.type(CTRL_D)
        assert told.exit_code() == 0
    finally:
        refused.kill()
        told.kill()
    assert "Traceback" not in refused.text + told.text
