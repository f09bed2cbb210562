"""The chat typed at like a person, on a usual and on a small terminal, at good and at bad moments."""

import base64
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from pydantic_ai.messages import ModelMessagesTypeAdapter
from tests.ui.pseudo import CTRL_C, CTRL_D, ESCAPE, PUNIE, Start, Terminal, lines, ready
from tests.ui.scripted_server import Call, ScriptedServer

from punie.agent import SessionStore

SHIFT_TAB, CTRL_O, CTRL_R, CTRL_U, TAB = "\x1b[Z", "\x0f", "\x12", "\x15", "\t"
EDIT = Call("edit_file", {"path": "a.py", "old": "pass", "new": "return 1"})
SIZES = pytest.mark.parametrize(("rows", "columns"), [(24, 80), (15, 40)])


def paste(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


def sent(server: ScriptedServer) -> str:
    return str(server.requests[-1]["messages"])


def prompt(terminal: Terminal) -> str:
    """What stands in the input line."""
    return next((line for line in reversed(terminal.screen.display) if line.startswith(">")), "").rstrip()


def shows(wanted: str) -> Callable[[str], bool]:
    """Whether something is on the screen, however it was wrapped."""
    return lambda text: "".join(wanted.split()) in "".join(text.split())


@SIZES
def test_what_is_typed_meanwhile_is_queued_and_the_rest_stays_in_the_line(
    start: Start, server: ScriptedServer, rows: int, columns: int
) -> None:
    server.script = [["Answer one. ", "And ", go_on := Event(), "End one."], ["Answer two."]]
    terminal = ready(start(rows=rows, columns=columns))
    terminal.enter("one")
    terminal.wait("Answer one.")
    terminal.type("tow\x7f\x7fwo")
    terminal.wait("> two▏")
    terminal.enter()
    terminal.wait("queued: two")
    terminal.type("half a thought")
    terminal.wait("half a thought▏")
    go_on.set()
    terminal.wait("End one.", "> two", "Answer two.")
    terminal.until(lambda _: prompt(terminal) == "> half a thought", "the line is lost")
    assert len(server.requests) == 2
    assert "half" not in sent(server)


@SIZES
def test_escape_stops_and_gives_back_what_was_queued(
    start: Start, server: ScriptedServer, rows: int, columns: int
) -> None:
    server.script = [["Half an answer.\n\n", "more ", "and ", 60.0, "never"], ["Second."]]
    terminal = ready(start(rows=rows, columns=columns))
    terminal.enter("one")
    terminal.wait("more")
    terminal.enter("later")
    terminal.wait("queued: later")
    terminal.type(ESCAPE)
    terminal.wait("Stopped.")
    terminal.until(lambda _: prompt(terminal) == "> later", "the queue is lost")
    assert len(server.requests) == 1
    terminal.enter()
    terminal.wait("Second.")
    assert "Half an answer." in sent(server)


@SIZES
def test_tool_calls_unfold_and_modes_change(
    start: Start, server: ScriptedServer, project: Path, rows: int, columns: int
) -> None:
    (project / "long.txt").write_text("".join(f"row {n}\n" for n in range(60)))
    server.script = [[Call("read_file", {"path": "long.txt"})], ["Read."], [go_on := Event(), EDIT], ["Changed."]]
    terminal = ready(start(rows=rows, columns=columns))
    terminal.enter("read it")
    terminal.until(lambda _: prompt(terminal) == ">" and "Read." in terminal.text, "no end")
    assert "row 50" not in terminal.text
    terminal.type(CTRL_O)
    terminal.wait("row 50", "row 59")
    terminal.type(CTRL_O)
    terminal.wait("There is no earlier tool call.")
    terminal.until(lambda _: prompt(terminal) == ">", "no prompt")
    terminal.settle(0.2)
    terminal.enter("change it")
    terminal.until(lambda _: "(Esc stops)" in "\n".join(terminal.screen.display), "never began")
    terminal.type(SHIFT_TAB)
    terminal.wait("acceptEdits")
    go_on.set()
    terminal.wait("Changed.")
    assert "return 1" in (project / "a.py").read_text()
    assert "Allow this?" not in terminal.text
    terminal.type(SHIFT_TAB)
    terminal.wait("· plan")


def test_long_pastes_are_one_mark_and_sent_whole(start: Start, server: ScriptedServer) -> None:
    server.script = [["Got it. ", "And ", go_on := Event(), "All."], ["Twice."]]
    text = "\n".join(f"pasted row {n}" for n in range(500))
    terminal = ready(start(rows=24, columns=80))
    terminal.type(paste(text) + " what is it?")
    assert "pasted row 7" not in terminal.wait("[pasted 500 lines] what is it?")
    terminal.enter()
    terminal.wait("Got it.")
    assert "pasted row 499 what is it?" in sent(server)
    terminal.type(paste(text.replace("row", "line")))
    terminal.wait("[pasted 500 lines #2]")
    terminal.enter()
    terminal.wait("queued: [pasted 500 lines #2]")
    go_on.set()
    terminal.wait("Twice.")
    assert "pasted line 499" in sent(server)
    terminal.type(CTRL_R + "it?")
    terminal.wait("pasted row 499 what is it?")


def test_a_command_by_hand_is_run_and_told(start: Start, server: ScriptedServer, project: Path) -> None:
    server.script = [["I see."]]
    terminal = ready(start(rows=24, columns=80))
    terminal.enter("!echo by hand > made.txt; cat made.txt")
    assert "Allow this?" not in terminal.wait("exit 0", "by hand")
    terminal.enter("what did I do?")
    terminal.wait("I see.")
    assert "by hand" in sent(server)
    assert "$ echo by hand > made.txt" in sent(server)
    terminal.enter("/undo")
    terminal.wait("Taken back: made.txt")
    assert not (project / "made.txt").exists()
    terminal.enter("/mode plan")
    terminal.wait("Permission mode: plan")
    terminal.enter("!touch again")
    terminal.wait("off while planning")
    for nothing in ("!", "!!"):
        terminal.enter(nothing)
        terminal.wait("no command after the !")
        terminal.enter("/clear")


@pytest.mark.parametrize("command", ["rm -rf a.py", "touch a\u200bb"])
def test_a_command_by_hand_is_asked_about_where_it_loses_or_hides_something(
    start: Start, project: Path, command: str
) -> None:
    (project / "a.py").write_text("changed and stored nowhere\n")
    before = {*project.iterdir()}
    terminal = ready(start())
    terminal.enter(f"!{command}")
    terminal.wait("Allow this?")
    assert {*project.iterdir()} == before


def test_a_command_by_hand_has_the_network_after_two_marks(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        probe = (
            f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {listening.getsockname()[1]}), 2)'"
        )
        terminal = ready(start())
        terminal.enter(f"!{probe} && echo out")
        terminal.wait("exit 1")
        terminal.enter(f"!!{probe} && echo out")
        terminal.wait("exit 0")


@SIZES
def test_commands_complete_and_correct_themselves(
    start: Start, server: ScriptedServer, rows: int, columns: int
) -> None:
    terminal = ready(start(rows=rows, columns=columns))
    terminal.enter("/modle")
    terminal.wait("There is no /modle. Did you mean")
    terminal.type("/perm" + TAB)
    terminal.until(lambda _: prompt(terminal) == "> /permissions", "the name was not completed")
    terminal.enter()
    terminal.wait("mode     default", "sandbox")
    terminal.type("/mode acc" + TAB)
    terminal.until(lambda _: prompt(terminal) == "> /mode acceptEdits", "the argument was not completed")
    terminal.enter()
    terminal.wait("Permission mode: acceptEdits")
    terminal.enter("/adapter off")
    terminal.until(shows("is no local model: it has no adapters."), "no reason")
    terminal.enter("/mode sideways")
    terminal.until(shows("There is no permission mode 'sideways'."), "no reason")
    terminal.enter("/config max_tok")
    terminal.wait("max_tokens = 512")
    assert server.requests == []


def test_a_conversation_is_named_shown_undone_and_exported(start: Start, server: ScriptedServer, project: Path) -> None:
    server.script = [[EDIT], ["Now it returns."]]
    terminal = ready(start("--permission-mode", "acceptEdits", rows=24, columns=80))
    terminal.enter("/diff")
    terminal.wait("Nothing is changed.")
    terminal.enter("change it")
    terminal.wait("Now it returns.", "tokens in context")
    terminal.enter("/diff")
    terminal.wait("-    pass", "+    return 1", "+++ b/a.py")
    terminal.enter("/rename about greeters")
    terminal.wait("This conversation is now: about greeters")
    terminal.enter("/sessions")
    assert any("about greeters" in line and "messages" in line for line in lines(terminal.wait("/resume NUMBER")))
    terminal.enter("/export talk.md")
    terminal.wait("Written:")
    assert "Now it returns." in (project / "talk.md").read_text()
    terminal.enter("/copy")
    terminal.wait("Copied: 15 characters.")
    assert base64.b64encode(b"Now it returns.") in terminal.raw
    terminal.enter("/undo")
    terminal.wait("Taken back: a.py")
    terminal.enter("/context")
    terminal.wait("conversation", "tool results", "together")
    terminal.enter("/memory")
    terminal.wait("No AGENTS.md is in force")
    terminal.enter("/compact")
    terminal.wait("tokens became", "keeps all of it")


def test_the_editor_opens_on_what_was_typed(start: Start, server: ScriptedServer, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "edited: " | cat - "$1" > "$1.new"\nmv "$1.new" "$1"\n')
    editor.chmod(0o755)
    server.script = [["Fine."]]
    terminal = ready(start(EDITOR=str(editor), VISUAL=str(editor)))
    terminal.type("first draft\x18\x05")
    terminal.until(lambda _: prompt(terminal) == "> edited: first draft", "not edited")
    terminal.type(CTRL_U)
    terminal.enter("/editor second")
    terminal.until(lambda _: prompt(terminal) == "> edited: second", "not edited")
    terminal.enter()
    terminal.wait("Fine.")
    assert "edited: second" in sent(server)


@SIZES
def test_an_answer_survives_a_changing_window(start: Start, server: ScriptedServer, rows: int, columns: int) -> None:
    code = [f"x{n} = {n}\n" for n in range(200)]
    server.script = [["```python\n", *code[:100], go_on := Event(), *code[100:], "```\n\nThat is all."]]
    terminal = ready(start(rows=rows, columns=columns))
    terminal.enter("write")
    terminal.wait("x97 = 97")
    terminal.resize(rows, columns - 12)  # fewer rows would lose lines: the emulator keeps none that it cuts off
    terminal.settle(0.2)
    terminal.resize(rows, columns + 20)
    go_on.set()
    terminal.until(lambda _: prompt(terminal) == ">" and "That is all." in terminal.text, "no end")
    shown = lines(terminal.text)
    written = [line for line in shown if line.startswith("x") and " = " in line]
    assert set(written) == {line.strip() for line in code}
    assert "x199 = 199" in written[-rows:]  # rows may stay twice where they were drawn again


def test_one_line_of_a_megabyte_and_wide_characters(start: Start, server: ScriptedServer) -> None:
    server.script = [
        [*("".join(f"日本語 {n * 500 + i} " for i in range(500)) for n in range(120)), "\n\nEnd of it."],
        ["Auch gut: 日本語の答え."],
    ]
    terminal = ready(start(rows=15, columns=40))
    terminal.enter("write")
    terminal.skip_to("End of it.")
    terminal.until(lambda _: prompt(terminal) == ">", "no prompt")
    terminal.type("漢字の質問")
    terminal.until(lambda _: "漢" in prompt(terminal), "not shown")
    terminal.enter()
    terminal.wait("Auch gut")
    assert "漢字の質問" in sent(server)


@pytest.mark.parametrize("moment", ["waiting", "tool", "twice"])
def test_ctrl_c_at_any_moment(start: Start, server: ScriptedServer, moment: str) -> None:
    slow = Call("run_command", {"command": "sleep 30"})
    server.script = [[slow] if moment == "tool" else [60.0, "never"], ["Still here."]]
    terminal = ready(start("--yolo", rows=24, columns=80))
    terminal.enter("go")
    terminal.wait("run_command" if moment == "tool" else "(Esc stops)")
    terminal.until(lambda _: bool(server.requests), "never asked")
    if moment == "twice":
        terminal.type(CTRL_C)
        terminal.wait("Stop")
        terminal.type(CTRL_C)
        assert terminal.exit_code() == 130
        return
    terminal.type(CTRL_C)
    terminal.wait("Stopped.")
    terminal.settle(2.1)  # past the time in which a second one would leave
    terminal.enter("are you there?")
    terminal.wait("Still here.")


def test_a_terminal_that_goes_away_leaves_the_session_whole(
    start: Start, server: ScriptedServer, tmp_path: Path, project: Path
) -> None:
    server.script = [
        ["First."],
        [Call("read_file", {"path": "a.py"})],
        ["Half of the second ", "answer ", 60.0, "and "],
        ["On."],
    ]
    terminal = ready(start(rows=24, columns=80))
    terminal.enter("the first question")
    terminal.wait("First.", "tokens in")
    terminal.enter("the second question")
    terminal.wait("Half of the second")
    terminal.child.close()
    with SessionStore(tmp_path / "state" / "punie" / "sessions") as store:
        messages = store.messages(store.list(project)[0].id)
    stored = ModelMessagesTypeAdapter.dump_json(list(messages)).decode()
    assert "the second question" in stored
    assert "class Greeter" in stored
    again = ready(start("--continue", rows=24, columns=80))
    again.wait("Going on after")
    again.enter("and?")
    again.wait("On.")
    assert "the second question" in sent(server)


def test_a_dumb_terminal_gets_plain_lines(start: Start, server: ScriptedServer) -> None:
    server.script = [[Call("find_symbol", {"name": "Greeter"})], ["It is **here**."]]
    terminal = ready(start(TERM="dumb"))
    terminal.enter("where is it?")
    shown = terminal.wait("It is here.", "tokens in context")
    assert "1 definition of Greeter" in shown
    assert b"\x1b" not in terminal.raw
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0


def test_without_a_terminal_there_is_a_reason_and_no_chat(project: Path) -> None:
    command = ["sh", "-c", f"{PUNIE} <&-"]
    closed = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    piped = subprocess.run([PUNIE], cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    for done in (closed, piped):
        assert done.returncode == 2
        assert "The chat needs a terminal." in done.stderr
        assert done.stdout == ""


def test_without_a_state_directory_the_chat_goes_on_only_if_told_to(
    start: Start, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = [["One."]]
    (tmp_path / "file").write_text("in the way")
    refused = start(XDG_STATE_HOME=str(tmp_path / "file"))
    assert refused.exit_code() == 1
    assert "cannot be written, so nothing of the conversation can be kept." in " ".join(refused.text.split())
    assert "--no-session" in refused.text
    told = ready(start("--no-session", XDG_STATE_HOME=str(tmp_path / "file")))
    told.enter("first")
    told.wait("One.")
    told.enter("/exit")
    assert told.exit_code() == 0


def test_a_conversation_that_cannot_be_stored_is_told_once(
    start: Start, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = [["One."], ["Two."]]
    state = tmp_path / "state" / "punie"
    (state / "history").mkdir(parents=True)
    (state / "sessions").write_text("in the way")
    terminal = ready(start())
    terminal.until(shows("history cannot be written: what you type is not kept."), "not told")
    terminal.enter("first")
    terminal.wait("One.", "This conversation is not stored")
    terminal.enter("second")
    assert terminal.wait("Two.").count("This conversation is not stored") == 1
    terminal.enter("/rename it")
    terminal.settle(0.5)
    terminal.enter("/exit")
    assert terminal.exit_code() == 0


def test_memory_says_when_a_model_gets_no_agents_md(start: Start, project: Path) -> None:
    (project / "AGENTS.md").write_text("# Rules\n")
    terminal = ready(start(PUNIE_AGENTS_MD_TOKENS="0"))
    terminal.enter("/memory")
    terminal.wait("This model gets no AGENTS.md")


def test_a_damaged_history_is_read_as_far_as_it_goes(start: Start, server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "state" / "punie" / "history"
    file.parent.mkdir(parents=True)
    file.write_bytes(
        b"\x00\xff\xfe\x1b[31m garbage\n+\x80\x1b]0;title\x07\n\n# 2026\n+a whole line\n\n+cut off \x1b[2J"
    )
    terminal = ready(start(rows=15, columns=40))
    terminal.type("\x1b[A\x1b[A")
    terminal.wait("a whole line")
    assert b"\x1b]0;title" not in terminal.raw
    assert b"\x1b[2J" not in terminal.raw
    server.script = [["Fine."]]
    terminal.enter()
    terminal.wait("Fine.")
    assert "a whole line" in sent(server)
