"""One long sitting at a keyboard, on a usual and on a small terminal, and what a shell sees of it."""

import asyncio
import json
import os
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.control import Control
from tests.ui.pseudo import CTRL_C, CTRL_D, PUNIE, Start, Terminal, ready
from tests.ui.scripted_server import Call, ScriptedServer
from tests.ui.test_chat import SIZES, TAB, prompt, sent, shows

from punie.ui._keyboard import be_quiet, nothing_typed_for, quiet_keys
from punie.ui._screen import Rows, wraps_anew

UP, CTRL_O, CTRL_U, CTRL_Z = "\x1b[A", "\x0f", "\x15", "\x1a"
EDIT = Call("edit_file", {"path": "a.py", "old": "pass", "new": "return 1"})
WIDE = "日本語 한국어 e\u0301 naïve 👩‍👩‍👧 🇩🇪 \u0915\u094d\u0937"

FROM_AFAR = {"SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22", "SSH_TTY": "/dev/pts/0"}

SITTING = [
    ("/help", "what can be typed here"),
    ("/zzzz", "There is no /zzzz. /help lists what there is."),
    ("/doctr", "There is no /doctr. Did you mean /doctor?"),
    ("/model", "openai:scripted"),
    ("/models", "smollm2-135m"),
    ("/adapter on", "has no adapters"),
    ("/mode", "Permission mode: acceptEdits"),
    ("/permissions", "mode     acceptEdits"),
    ("/diff", "+    return 1"),
    ("/undo", "Taken back: a.py"),
    ("/redo", "Done again: a.py"),
    ("/undo", "Taken back: a.py"),
    ("/context", "together"),
    ("/tokens", "together"),
    ("/compact", "keeps all of it"),
    ("/rename a long sitting", "This conversation is now: a long sitting"),
    ("/sessions", "a long sitting"),
    ("/export talk.jsonl", "Written:"),
    ("/copy", "Copied:"),
    ("/config model", "model ="),
    ("/config max_tokens", "max_tokens = 512"),
    ("/memory", "No AGENTS.md is in force"),
    ("/doctor", "sandbox"),
    ("/new", "A new conversation."),
    ("/resume 1", "Going on after"),
    ("/fork", "Going on after"),
    ("/clear", "A new conversation."),
]


@SIZES
def test_every_command_in_one_sitting(
    start: Start, server: ScriptedServer, project: Path, rows: int, columns: int
) -> None:
    server.script = [[EDIT], [f"Changed it. {WIDE}"], ["A summary."], ["# Notes for agents"], ["Bye."]]
    # As over ssh: nothing says that more than sixteen colours can be shown.
    terminal = ready(
        start(
            "--permission-mode",
            "acceptEdits",
            rows=rows,
            columns=columns,
            TERM="xterm",
            COLORTERM="",
            SSH_CONNECTION="x",
        )
    )
    terminal.enter(f"change it {WIDE}")
    terminal.until(lambda text: "Changed it." in text and prompt(terminal) == ">", "no answer")
    assert WIDE in json.dumps(server.requests[-1], ensure_ascii=False)
    for typed, wanted in SITTING:
        before = "".join(terminal.text.split()).count("".join(wanted.split()))
        terminal.enter(typed)
        terminal.until(
            lambda text, wanted=wanted, before=before: (
                "".join(text.split()).count("".join(wanted.split())) > before and prompt(terminal) == ">"
            ),
            f"{typed} never showed {wanted!r}",
        )
    assert (project / "talk.jsonl").stat().st_size > 0
    assert "pass" in (project / "a.py").read_text()
    asked = len(server.requests)
    terminal.enter("/init")
    terminal.until(lambda _: len(server.requests) > asked, "the model was not asked")
    terminal.until(shows("Notes for agents"), "no answer")
    terminal.until(lambda _: prompt(terminal) == ">", "no prompt")
    terminal.type("thrown away")
    terminal.until(lambda _: prompt(terminal) == "> thrown away", "not shown")
    terminal.type(CTRL_C)
    terminal.until(shows("Up brings the line back"), "not told")
    terminal.until(lambda _: prompt(terminal) == ">", "no prompt")
    terminal.type(UP)
    terminal.until(lambda _: prompt(terminal) == "> thrown away", "not brought back")
    terminal.type(CTRL_U)
    terminal.enter("/exit")
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.text
    colours = {(cell.fg, cell.bg) for row in terminal.screen.buffer.values() for cell in row.values()}
    assert {background for _, background in colours} == {"default"}  # as it is: light or dark
    assert {front for front, _ in colours}.isdisjoint({"black", "white", "brightwhite"})
    assert b"38;2;" not in terminal.raw


def test_the_prompt_waits_for_no_library_that_only_an_answer_needs() -> None:
    heavy = {"pydantic_ai", "mlx", "numpy", "sqlite3", "httpx2", "openai", "anthropic", "mcp", "punie.redaction"}
    said = f"import punie.ui.terminal, sys; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Shell(Terminal):
    """An interactive shell that starts `punie` when it is told to, as a person does."""

    def __init__(self, cwd: Path, env: dict[str, str]) -> None:
        plain = {"PS1": "shell$ ", "PATH": f"{PUNIE.parent}{os.pathsep}{os.environ['PATH']}"}
        super().__init__("--norc", "--noprofile", "-i", cwd=cwd, env={**env, **plain}, program=Path("/bin/bash"))


@pytest.fixture
def shell(project: Path, tmp_path: Path) -> Iterator[Terminal]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PUNIE_", "XDG_", "NO_COLOR"))}
    places = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}
    terminal = Shell(project, {**env, **places, "TERM": "xterm-256color"})
    terminal.wait("shell$")
    yield terminal
    terminal.kill()


def test_the_shell_has_its_terminal_back_whenever_the_chat_is_stopped(shell: Terminal, server: ScriptedServer) -> None:
    def looks_usable(number: int) -> None:
        shell.enter(f"stty -a | tr ' ;' '\\n\\n' | grep -xcE 'echo|icanon|icrnl|isig'; echo seen {number}")
        shell.until(lambda text: f"\n4\nseen {number}\n" in text, "the terminal is not as it was")

    server.script = [["Half an answer. ", "And ", 60.0]]
    shell.enter(f"punie --model {server.spec}")
    ready(shell)
    shell.type("a draft" + CTRL_Z)  # at the prompt, with text
    shell.wait("Stopped")
    looks_usable(1)
    shell.enter("fg")
    shell.until(lambda _: prompt(shell) == "> a draft", "the line is lost")
    shell.enter()
    shell.wait("Half an answer.")
    shell.type("meanwhile")
    shell.wait("meanwhile▏")
    shell.type(CTRL_Z)  # in the middle of an answer
    shell.until(lambda text: text.count("Stopped") == 2, "not stopped")
    looks_usable(2)
    shell.enter("fg")
    shell.until(lambda _: any("meanwhile▏" in line for line in shell.screen.display), "the line is lost")
    shell.type(CTRL_C)
    shell.until(lambda _: prompt(shell) == "> meanwhile", "not given back")
    shell.type(CTRL_U + CTRL_D)
    shell.until(lambda _: shell.screen.display[shell.screen.cursor.y].startswith("shell$"), "it did not end")
    looks_usable(3)


def test_the_terminal_is_set_back_to_how_the_shell_had_it_however_often_it_was_made_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave) as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        before = termios.tcgetattr(slave)
        with quiet_keys(), quiet_keys() as restore:
            assert termios.tcgetattr(slave) != before
            restore()
            assert termios.tcgetattr(slave) == before
            be_quiet()
        assert termios.tcgetattr(slave) == before
    os.close(master)


def test_return_after_unfolding_still_sends(start: Start, server: ScriptedServer) -> None:
    server.script = [[Call("read_file", {"path": "a.py"})], ["Read."], ["Sent."]]
    terminal = ready(start(rows=24, columns=80))
    terminal.enter("read it")
    terminal.until(lambda text: "Read." in text and prompt(terminal) == ">", "no answer")
    terminal.type(f"and now?{CTRL_O}\r")
    terminal.wait("Sent.", "▾ read_file")
    assert "and now?" in sent(server)


def test_a_menu_gets_room_only_where_there_is_one(start: Start) -> None:
    terminal = ready(start(rows=15, columns=40))
    for _ in range(6):
        terminal.enter("/mode")
    terminal.until(lambda text: text.count("Permission mode:") == 6, "not told")
    terminal.until(lambda _: terminal.screen.display[-2].rstrip() == ">", "rows are wasted")
    terminal.type("/perm")
    terminal.wait("/permissions")
    terminal.type(TAB)
    terminal.until(lambda _: prompt(terminal) == "> /permissions", "not completed")


async def test_while_somebody_types_nothing_is_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    tty.setcbreak(slave)
    waited: list[float] = []
    typed = [b"y", b"yes\r", b"y", b"", b"\x03"]

    async def passes(seconds: float) -> None:
        waited.append(seconds)
        os.write(master, typed.pop(0))

    with os.fdopen(slave) as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        monkeypatch.setattr(asyncio, "sleep", passes)
        await nothing_typed_for(0.3)
        os.set_blocking(slave, False)
        with pytest.raises(BlockingIOError):
            os.read(slave, 1)
        assert waited == [0.3] * 4
        tty.setraw(slave)
        with pytest.raises(KeyboardInterrupt):
            await nothing_typed_for(0.3)
    os.close(master)


@pytest.mark.parametrize(("wraps", "up"), [(True, 3), (False, 0)])
def test_rows_that_were_wrapped_anew_are_erased_once(*, wraps: bool, up: int) -> None:
    console = Console(width=80, height=24, force_terminal=True, file=StringIO(), legacy_windows=False)
    rows = Rows(console, wraps=wraps)
    console.print(rows.drawn("x" * 75 + "\n" + "short\n" + "y" * 41))
    assert rows.process_renderables([]) == []
    console.width = 25
    erased = rows.process_renderables([])
    assert sum(str(control.segment.text).count("\x1b[1A") for control in erased if isinstance(control, Control)) == up
    assert rows.process_renderables([]) == []


@pytest.mark.parametrize(
    ("env", "wraps"),
    [
        ({"TERM": "xterm-256color"}, False),
        ({"TERM": "xterm-256color", "VTE_VERSION": "7600"}, True),
        ({"TERM": "tmux-256color"}, True),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, True),
        ({"TERM": "linux"}, False),
    ],
)
def test_which_terminals_wrap_anew(env: dict[str, str], *, wraps: bool) -> None:
    assert wraps_anew(env) is wraps
