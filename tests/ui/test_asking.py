"""The question about a call, and the one about a project: what is shown, and which letters answer."""

import os
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from punie.agent.approval import Decision, Request, always, deny, network, once, session
from punie.config import trust_store
from punie.ui._ask import Question, choices, decision_of, ends, key_of, keys
from punie.ui._setup import prepare
from punie.ui.options import Options
from punie.ui.trust import offer

COMMAND = Request("run_command", {"command": "make"}, "make", rules=("Bash(make)",), without_network=True)
LOSES = Request("run_command", {"command": "rm x"}, "rm x", warning="`rm` deletes files: 1 file.", every_time=True)


@pytest.mark.parametrize(
    ("key", "decision"),
    [("y", once), ("s", session), ("a", always), ("w", network), ("n", deny()), ("d", None), ("x", None), ("v", None)],
)
def test_one_letter_answers(key: str, decision: Decision | None):
    assert decision_of(key, COMMAND) == decision


@pytest.mark.parametrize("key", ["s", "a", "w"])
def test_what_is_not_offered_is_no_answer(key: str):
    assert [letter for letter, _ in choices(LOSES)] == ["y"]
    assert decision_of(key, LOSES) is None


@pytest.mark.parametrize(
    ("pressed", "key"),
    [
        (["y"], "y"),
        (["Y"], "y"),
        (["y", Keys.ControlM], "y"),
        ([Keys.ControlM], "n"),
        ([Keys.Escape], "n"),
        (["y", "e", "s"], ""),
        ([Keys.Escape, "y"], ""),
        ([Keys.ControlM, "y"], ""),
        ([Keys.BracketedPaste], ""),
        ([Keys.Up], ""),
        (["\x1c"], ""),
    ],
)
def test_only_a_letter_pressed_alone_is_an_answer(pressed: list[str], key: str):
    assert key_of([KeyPress(press) for press in pressed]) == key


@pytest.mark.parametrize("pressed", [[Keys.ControlC], ["y", Keys.ControlC]])
def test_ctrl_c_counts_wherever_it_comes(pressed: list[str]):
    with pytest.raises(KeyboardInterrupt):
        key_of([KeyPress(press) for press in pressed])


class Typist(StringIO):
    """A screen, and somebody who types the next of these keys each time a question stands on it."""

    def __init__(self, pipe: PipeInput, typed: Sequence[str]) -> None:
        super().__init__()
        self._pipe = pipe
        self._typed = list(typed)

    def write(self, text: str) -> int:
        if text.endswith("] ") or (text == "d\n" and self.getvalue().endswith("] ")):
            self._pipe.send_text(self._typed.pop(0))
        return super().write(text)


async def shown(request: Request, *typed: str) -> tuple[str, Decision]:
    """What the user sees of a question, and what it becomes when each of these is typed as soon as it is asked for."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        screen = Typist(pipe, typed)
        console = Console(file=screen, width=60, highlight=False)
        question = Question(console, prompt=PromptSession[str](), stop=lambda: None, quiet_s=0)
        decision = await question.ask(request)
    return screen.getvalue(), decision


async def test_everything_that_matters_is_shown_whole():
    request = Request(
        tool="run_command",
        arguments={"command": "env bash -c x"},
        preview="env bash -c 'rm \u202ex'",
        resolved=("bash -c", "rm \u202ex"),
        reason="`env` runs other commands",
        warning="`rm` deletes files: 3 files\u200b.",
    )
    text, decision = await shown(request, "d", "keep\r")
    assert "env bash -c 'rm <U+202E>x'" in text
    assert "Careful: 1 invisible or control characters are spelled out." in text
    assert "runs: rm <U+202E>x" in text
    assert "Asked because: `env` runs other commands" in text
    assert "Careful: `rm` deletes files: 3 files<U+200B>." in text
    assert decision == deny("keep")


async def test_spaces_that_are_easily_overseen_are_spelled_out():
    request = Request("run_command", {}, f"echo ok{' ' * 57}; rm x \\ \necho a  \n    indented\t\n")
    text, _ = await shown(request, "n")
    assert "echo ok<57 spaces>; rm x \\␠\necho a␠␠\n    indented␉\n" in text


async def test_of_a_long_command_both_ends_are_shown_and_the_rest_is_counted():
    command = "\n".join(["echo first", *(f"echo {number:03}" for number in range(200)), "rm -rf last"])
    request = Request("run_command", {"command": command}, command)
    text, decision = await shown(request, "n")
    assert "echo first" in text
    assert "rm -rf last" in text
    left_out = [line for line in command.splitlines() if line not in text]
    assert f"Careful: {len(left_out)} lines, {len(chr(10).join(left_out))} characters between" in text
    assert "  v show all of it first\n  d no" in text
    assert decision == deny()


async def test_all_of_a_long_command_is_shown_on_demand_and_that_answers_nothing():
    command = "\n".join(f"echo {number:03}" for number in range(200))
    text, decision = await shown(Request("run_command", {}, command), "v", "y")
    assert command in text
    assert decision == once


async def test_a_long_line_is_cut_in_its_middle():
    command = "echo " + "".join(f"{number:05}" for number in range(2000)) + "; rm -rf last"
    text, _ = await shown(Request("run_command", {}, command), "n")
    assert "echo 0000000001" in text
    assert "; rm -rf last" in text
    assert "Careful: 1 line, " in text
    assert len(text) < 3000


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\nb", "\n\n", "x" * 40, ("x" * 25 + "\n") * 3])
@pytest.mark.parametrize("rows", [3, 4, 5, 20])
def test_nothing_is_lost_between_start_middle_and_end(text: str, rows: int):
    pieces = ends(text, rows=rows, width=10)
    assert "".join(pieces).replace("\n", "") == text.replace("\n", "")
    assert (pieces[0] == text) == (not pieces[1])


def test_what_can_be_viewed_can_only_be_viewed_where_something_is_left_out():
    assert decision_of("v", COMMAND) is None
    assert "  v " not in keys(COMMAND)


async def test_the_rule_that_always_would_keep_is_shown():
    text, decision = await shown(COMMAND, "a")
    assert "a always Bash(make)" in text
    assert "s yes, this very command for this session" in text
    assert decision == always


async def test_a_refusal_may_have_a_reason_and_anything_else_is_asked_again():
    text, decision = await shown(COMMAND, "x", "d", "keep it\r")
    assert decision == deny("keep it")
    assert "Allow this? [y/s/w/a/d/N] x\nAllow this? [y/s/w/a/d/N] d\n" in text


async def test_the_end_of_input_is_a_no():
    _, decision = await shown(COMMAND, "\x04")
    assert decision.kind == "deny"


# --- trust ---


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "project" / ".punie" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("max_tokens = 33\n")
    return {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}


def test_a_project_is_asked_about_before_it_is_read(
    tmp_path: Path, env: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    options = Options(cwd=tmp_path / "project")
    setup = prepare(options, env=env)
    assert setup.settings.max_tokens == 512
    questions: list[str] = []

    def answer(question: str) -> str:
        questions.append(question)
        return "y" if len(questions) > 1 else ""

    assert not offer(setup, env=env, ask=answer)
    assert options.cwd not in trust_store(env)
    assert offer(setup, env=env, ask=answer)
    assert questions == ["Trust this directory? [y/N] "] * 2
    assert ".punie/config.toml" in capsys.readouterr().out
    assert prepare(options, env=env).settings.max_tokens == 33


def test_nothing_is_asked_where_nothing_waits_or_trust_is_given(tmp_path: Path, env: dict[str, str]):
    def answer(question: str) -> str:
        raise AssertionError(question)

    other = Options(cwd=tmp_path)
    assert not offer(prepare(other, env=env), env=env, ask=answer)
    trust_store(env).add(tmp_path / "project")
    assert not offer(prepare(Options(cwd=tmp_path / "project"), env=env), env=env, ask=answer)
