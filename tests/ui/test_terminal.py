"""The installed `punie` in a pseudo-terminal, typed at like a person; the screen is read as a terminal shows it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.ui.pseudo import CTRL_C, CTRL_D, CTRL_J, ESCAPE, Start, lines, ready
from tests.ui.scripted_server import Call, ScriptedServer


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "a.py").write_text("class Greeter:\n    def hello(self):\n        return 1\n")
    return root


def test_the_prompt_is_there_at_once(start: Start) -> None:
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    python_start = time.monotonic() - before
    terminal = ready(start())
    # 0.4 s on an idle machine, where Python starts in 0.01 s; here other tests may run at the same time.
    assert time.monotonic() - terminal.started < max(1.0, 80 * python_start)


def test_a_question_with_a_tool_and_a_streamed_answer(start: Start, server: ScriptedServer) -> None:
    server.script = [
        [Call("find_symbol", {"name": "Greeter"})],
        [
            "It is ",
            "here:\n",
            "a.py:1-3 class Greeter\n\n",
            0.2,
            "# More\n\nIt has **one**, `__init__` is not it.",
        ],
    ]
    terminal = ready(start())
    terminal.enter("where is Greeter?")
    shown = lines(terminal.wait("is not it.", "tokens in"))
    assert any(line.startswith("• find_symbol(name='Greeter') → 1 definition of Greeter (") for line in shown)
    assert "It is here:" in shown
    assert "a.py:1-3 class Greeter" in shown
    assert "# More" in shown
    assert "It has one, __init__ is not it." in shown


def test_a_prompt_on_the_command_line_is_the_first_one(start: Start, server: ScriptedServer) -> None:
    server.script = [["Nothing to look up."]]
    terminal = start("say something")
    shown = lines(terminal.wait("Nothing to look up.", "tokens in"))
    assert "> say something" in shown


def test_a_long_answer_is_in_the_scrollback_whole_and_once(start: Start, server: ScriptedServer) -> None:
    code = "".join(f"x{n} = {n}\n" for n in range(120))
    server.script = [["Code:\n\n```python\n", *(code[i : i + 50] for i in range(0, len(code), 50)), 0.3, "```\n\nEnd."]]
    terminal = ready(start())
    terminal.enter("write code")
    shown = lines(terminal.wait("End.", "tokens in"))
    assert [line for line in shown if line.startswith("x") and " = " in line] == [f"x{n} = {n}" for n in range(120)]


def test_nothing_a_model_or_a_tool_says_reaches_the_terminal_as_control(
    start: Start, server: ScriptedServer, project: Path
) -> None:
    (project / "evil.txt").write_text("needle \x1b]0;title\x07 \x1b]52;c;AAAA\x07 end\n")
    server.script = [
        [Call("read_file", {"path": "evil.txt"})],
        ["before \x1b]0;model title\x07\x1b]52;c;BBBB\x07\u202e after"],
    ]
    terminal = ready(start())
    terminal.enter("read it")
    terminal.wait("before", "after", "tokens in")
    assert b"\x1b]" not in terminal.raw
    assert b"\x07" not in terminal.raw
    assert "\u202e".encode() not in terminal.raw


# --- asking ---

EDIT = Call("edit_file", {"path": "a.py", "old": "return 1", "new": "return 2"})


def test_an_edit_shows_its_diff_and_is_made_once_allowed(start: Start, server: ScriptedServer, project: Path) -> None:
    server.script = [[EDIT], ["Edited."]]
    terminal = ready(start())
    terminal.enter("change it")
    shown = lines(terminal.wait("Allow this? ["))
    assert "-        return 1" in shown
    assert "+        return 2" in shown
    assert "return 1" in (project / "a.py").read_text()
    terminal.enter("y")
    terminal.wait("Edited.", "tokens in")
    assert "return 2" in (project / "a.py").read_text()


def test_a_refusal_reaches_the_model_with_its_reason(start: Start, server: ScriptedServer, project: Path) -> None:
    server.script = [[EDIT], ["I leave it."]]
    terminal = ready(start())
    terminal.enter("change it")
    terminal.wait("Allow this? [")
    terminal.type("d")
    terminal.wait("Why not?")
    terminal.enter("keep the API")
    terminal.wait("I leave it.", "tokens in")
    assert "return 1" in (project / "a.py").read_text()
    assert "keep the API" in str(server.requests[-1])


def test_what_was_typed_before_the_question_does_not_answer_it(
    start: Start, server: ScriptedServer, project: Path
) -> None:
    server.script = [[1.5, EDIT], ["Edited."]]
    terminal = ready(start())
    terminal.enter("change it")
    terminal.settle(0.7)
    terminal.enter("y")
    terminal.wait("Allow this? [")
    terminal.settle(1.0)
    assert "return 1" in (project / "a.py").read_text()
    assert len(server.requests) == 1


def test_session_is_not_asked_again(start: Start, server: ScriptedServer, project: Path) -> None:
    second = Call("edit_file", {"path": "a.py", "old": "return 2", "new": "return 3"})
    server.script = [[EDIT], [second], ["Both."]]
    terminal = ready(start())
    terminal.enter("change it twice")
    terminal.wait("Allow this? [")
    terminal.enter("s")
    shown = terminal.wait("Both.", "tokens in")
    assert shown.count("Allow this?") == 1
    assert "return 3" in (project / "a.py").read_text()


def test_always_is_kept_for_the_next_conversation(start: Start, server: ScriptedServer) -> None:
    server.script = [[Call("run_command", {"command": "make -v"})], ["One."]]
    terminal = ready(start())
    terminal.enter("run it")
    assert "a always Bash(make -v)" in terminal.wait("Allow this? [")
    terminal.enter("a")
    terminal.wait("One.", "tokens in")
    server.script = [[Call("run_command", {"command": "make -v"})], ["Two."]]
    again = ready(start())
    again.enter("run it again")
    assert "Allow this?" not in again.wait("Two.", "tokens in")


def test_a_project_with_settings_is_asked_about_first(start: Start, server: ScriptedServer, project: Path) -> None:
    (project / ".punie").mkdir()
    (project / ".punie" / "config.toml").write_text('[permissions]\ndeny = ["Bash(make:*)"]\n')
    server.script = [[Call("run_command", {"command": "make -v"})], ["Over."]]
    terminal = start()
    assert ".punie/config.toml" in terminal.wait("Trust this directory? [y/N]")
    terminal.enter("y")
    ready(terminal).enter("run it")
    terminal.wait("Over.", "tokens in")
    assert "the rule Bash(make:*)" in str(server.requests[-1])


def test_a_command_is_shown_whole_with_hidden_characters_spelled_out(start: Start, server: ScriptedServer) -> None:
    command = "echo one; " + "true; " * 60 + "printf '\x1b[31m' # \u202e\necho last"
    server.script = [[Call("run_command", {"command": command})], ["ok"]]
    terminal = ready(start())
    terminal.enter("run it")
    shown = terminal.wait("Allow this? [")
    joined = "".join(shown.split())
    assert "".join(command.replace("\x1b", "␛").replace("\u202e", "<U+202E>").split()) in joined
    assert "2 invisible or control characters" in shown
    terminal.enter("n")
    terminal.wait("denied", "tokens in")


def test_ctrl_c_at_a_question_stops_the_turn(start: Start, server: ScriptedServer, project: Path) -> None:
    server.script = [[EDIT], ["never"]]
    terminal = ready(start())
    terminal.enter("change it")
    terminal.wait("Allow this? [")
    terminal.type(CTRL_C)
    terminal.wait("Stopped.")
    assert "return 1" in (project / "a.py").read_text()
    assert len(server.requests) == 1


@pytest.mark.parametrize(("mode", "made"), [("acceptEdits", True), ("bypassPermissions", True), ("plan", False)])
def test_permission_modes(start: Start, server: ScriptedServer, project: Path, *, mode: str, made: bool) -> None:
    server.script = [[EDIT], ["Over."]]
    terminal = ready(start("--permission-mode", mode))
    terminal.enter("change it")
    shown = terminal.wait("Over.", "tokens in")
    assert ("return 2" in (project / "a.py").read_text()) is made
    assert mode in shown
    assert "Allow this?" not in shown


# --- stopping and leaving ---


def test_ctrl_c_keeps_the_partial_answer_and_a_valid_history(start: Start, server: ScriptedServer) -> None:
    server.script = [["The first half is here.\n\n", 0.2, "and more", 30.0, "never"], ["Second answer."]]
    terminal = ready(start())
    terminal.enter("first question")
    terminal.wait("and more")
    terminal.type(CTRL_C)
    shown = terminal.wait("Stopped.")
    assert "The first half is here." in shown
    terminal.settle(2.2)  # past the time in which a second Ctrl-C would leave
    terminal.enter("second question")
    terminal.wait("Second answer.", "tokens in")
    sent = str(server.requests[-1]["messages"])
    assert "first question" in sent
    assert "The first half is here." in sent
    assert "second question" in sent


def test_what_is_typed_while_it_answers_waits_for_the_next_prompt(start: Start, server: ScriptedServer) -> None:
    server.script = [["Answer one.", 1.5, " End."], ["Answer two."]]
    terminal = ready(start())
    terminal.enter("one")
    terminal.wait("Answer one.")
    terminal.enter("two")
    terminal.wait("Answer two.")
    assert "two" in str(server.requests[-1]["messages"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_being_ended_from_outside_restores_the_terminal(start: Start, number: int, code: int) -> None:
    terminal = ready(start())
    terminal.child.kill(number)
    assert terminal.exit_code() == code
    assert terminal.raw.rfind(b"\x1b[?2004l") > terminal.raw.rfind(b"\x1b[?2004h")


def test_ctrl_c_twice_leaves_with_130(start: Start) -> None:
    terminal = ready(start())
    terminal.type(CTRL_C)
    terminal.wait("Ctrl-C again")
    terminal.type(CTRL_C)
    assert terminal.exit_code() == 130


@pytest.mark.parametrize("leave", [CTRL_D, "/exit\r", "/quit\r"])
def test_leaving_is_no_failure(start: Start, leave: str) -> None:
    terminal = ready(start())
    terminal.type(leave)
    assert terminal.exit_code() == 0


def test_the_terminal_is_left_as_it_was(start: Start, server: ScriptedServer) -> None:
    server.script = [["Hello."]]
    terminal = start("hi")
    terminal.wait("Hello.", "tokens in")
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0
    assert terminal.raw.rfind(b"\x1b[?25h") > terminal.raw.rfind(b"\x1b[?25l")
    assert terminal.raw.rfind(b"\x1b[?2004l") > terminal.raw.rfind(b"\x1b[?2004h")


# --- typing ---


def test_several_lines_are_one_prompt(start: Start, server: ScriptedServer) -> None:
    server.script = [["Read."]]
    terminal = ready(start())
    terminal.type("one" + CTRL_J + "two\\\r" + "three" + ESCAPE + "\r" + "four")
    terminal.wait("four")
    terminal.type("\x1b[200~ five\nsix\x1b[201~")
    terminal.wait("six")
    terminal.enter()
    terminal.wait("Read.", "tokens in")
    assert "one\\ntwo\\nthree\\nfour five\\nsix" in str(server.requests[-1]["messages"])


def test_files_are_completed_and_named_without_the_mark(start: Start, server: ScriptedServer, project: Path) -> None:
    (project / "configuration.py").write_text("x = 1\n")
    server.script = [["Ready."], ["Read."]]
    terminal = ready(start())
    terminal.enter("hello")
    terminal.wait("Ready.", "tokens in")
    terminal.type("what is in @confi")
    terminal.wait("configuration.py")
    terminal.type("\t")
    terminal.settle(0.3)
    terminal.enter("?")
    terminal.wait("Read.")
    assert "what is in configuration.py?" in str(server.requests[-1]["messages"]).replace("@", "")


def test_slash_commands(start: Start, server: ScriptedServer) -> None:
    server.script = [["One."], ["Two."]]
    terminal = ready(start())
    terminal.enter("/help")
    terminal.wait("/model", "/clear", "/exit", "Ctrl-J")
    terminal.enter("/nonsense")
    terminal.wait("There is no /nonsense.")
    terminal.enter("remember the blue door")
    terminal.wait("One.")
    terminal.enter("/tokens")
    terminal.wait("100 tokens in, 10 out")
    terminal.enter("/clear")
    terminal.wait("A new conversation.")
    terminal.enter("again")
    terminal.wait("Two.")
    assert "blue door" not in str(server.requests[-1]["messages"])


def test_the_model_can_be_changed_and_a_bad_one_changes_nothing(start: Start, server: ScriptedServer) -> None:
    server.script = [["One."], ["Two."], ["Three."]]
    terminal = ready(start())
    terminal.enter("first")
    terminal.wait("One.", "tokens in")
    terminal.enter("/model local:nonsense")
    terminal.wait("nonsense", "Model: openai:scripted")
    terminal.enter("/model gguf:/nowhere.gguf")
    terminal.wait("There is no model file /nowhere.gguf")
    terminal.enter("second")
    terminal.wait("Two.")
    terminal.enter("/model " + server.spec.replace("scripted", "other"))
    terminal.wait("Model: openai:other")
    terminal.enter("third")
    terminal.wait("Three.")
    assert server.requests[-1]["model"] == "other"
    assert "first" in str(server.requests[-1]["messages"])


def test_what_was_typed_is_remembered_for_the_user_alone(start: Start, tmp_path: Path, server: ScriptedServer) -> None:
    server.script = [["One."]]
    terminal = ready(start())
    terminal.enter("remember me")
    terminal.wait("One.")
    history = tmp_path / "state" / "punie" / "history"
    assert "remember me" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.parent.stat().st_mode & 0o777 == 0o700
    again = ready(start())
    again.type("\x1b[A")
    again.wait("remember me")


def test_no_session_stores_nothing(start: Start, tmp_path: Path, server: ScriptedServer) -> None:
    server.script = [["One."]]
    terminal = ready(start("--no-session"))
    terminal.enter("forget me")
    terminal.wait("One.")
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0
    assert not (tmp_path / "state").exists()


def test_no_color_has_no_colour(start: Start, server: ScriptedServer) -> None:
    server.script = [
        [Call("find_symbol", {"name": "Greeter"})],
        ["# Title\n\n**bold** `code`\n\n```python\nx = 1\n```"],
    ]
    terminal = ready(start(NO_COLOR="1"))
    terminal.enter("hi")
    terminal.wait("Title", "x = 1", "tokens in")
    colours = {cell.fg for row in terminal.screen.buffer.values() for cell in row.values()}
    assert colours == {"default"}


def test_a_server_that_is_not_there_is_told_and_the_chat_goes_on(start: Start) -> None:
    terminal = ready(start("--model", "openai:x@http://127.0.0.1:9/v1"))
    terminal.enter("hello")
    terminal.wait("No answer from the server")
    terminal.enter("/help")
    terminal.wait("what can be typed here")
