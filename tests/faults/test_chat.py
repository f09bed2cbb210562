"""Ctrl-C and kill -9 in the states of a chat: the prompt comes back, the terminal is sane, the session opens again."""

import signal
from collections.abc import Iterator

import pytest
from tests.backends.tiny import wait_until
from tests.faults.ground import CANARY, LEAK, Ground, open_calls
from tests.ui.pseudo import CTRL_C, CTRL_D, Terminal, ready
from tests.ui.scripted_server import Call, ScriptedServer, serving


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving() as scripted:
        yield scripted


@pytest.fixture
def ground() -> Iterator[Ground]:
    with Ground() as made:
        yield made


def chat(ground: Ground, server: ScriptedServer, *flags: str) -> Terminal:
    env = {**ground.env, "TERM": "xterm-256color"}
    return ready(Terminal("--model", server.spec, *flags, cwd=ground.project, env=env))


def test_ctrl_c_in_every_state_of_a_chat(ground: Ground, server: ScriptedServer):
    asks = Call("run_command", {"command": f"{LEAK}; (trap '' TERM; setsid sleep 1000 &); touch started; sleep 1000"})
    server.script = [[30.0, "Never."], ["Half of an ", 30.0, "answer."], [asks], [asks], [30.0, "Never."], ["Well."]]
    terminal = chat(ground, server)
    try:
        terminal.enter("before the first word")
        assert wait_until(lambda: len(server.requests) == 1, seconds=60)
        stopped(terminal, 1)
        terminal.enter("in the middle")
        terminal.wait("Half of an")
        stopped(terminal, 2)
        terminal.enter("at the question")
        terminal.wait("Allow this?")
        stopped(terminal, 3)
        terminal.enter("in the tool")
        terminal.until(lambda text: text.count("Allow this?") == 2, "asked nothing")
        terminal.enter("y")
        assert wait_until((ground.project / "started").exists, seconds=60)
        stopped(terminal, 4)
        terminal.enter("once more")
        assert wait_until(lambda: len(server.requests) == 5, seconds=60)
        stopped(terminal, 5)
        terminal.enter("and now?")
        terminal.wait("Well.")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    finally:
        terminal.kill()
    assert "Traceback" not in terminal.text
    assert CANARY not in terminal.text + str(server.requests)
    assert not open_calls(ground.conversation())
    assert ground.faults() == []


def stopped(terminal: Terminal, times: int) -> None:
    """Press Ctrl-C and wait for the prompt."""
    terminal.type(CTRL_C)
    terminal.until(lambda text: text.count("Stopped.") == times, f"did not stop {times} times")


def test_a_chat_that_is_killed_at_a_question_goes_on(ground: Ground, server: ScriptedServer):
    server.script = [[Call("write_file", {"path": "c.txt", "content": "sea\n"})], ["Well."]]
    terminal = chat(ground, server)
    try:
        terminal.enter("write it")
        terminal.wait("Allow this?")
        terminal.child.kill(signal.SIGKILL)
        terminal.child.wait()
    finally:
        terminal.kill()
    assert not (ground.project / "c.txt").exists()
    terminal = chat(ground, server, "--continue")
    try:
        terminal.enter("and now?")
        terminal.wait("Well.")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    finally:
        terminal.kill()
    assert wait_until(lambda: not ground.left(), seconds=10)
    assert ground.faults() == []
