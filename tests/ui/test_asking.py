"""The question about a call, and the one about a project: what is shown, and which letters answer."""

import os
from io import StringIO
from pathlib import Path

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from punie.agent.approval import Decision, Request, always, deny, network, once, session
from punie.config import trust_store
from punie.ui._ask import Question, choices, decision_of
from punie.ui._setup import prepare
from punie.ui.options import Options
from punie.ui.trust import offer

COMMAND = Request("run_command", {"command": "make"}, "make", rules=("Bash(make)",), without_network=True)
LOSES = Request("run_command", {"command": "rm x"}, "rm x", warning="`rm` deletes files: 1 file.", every_time=True)


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        ("y", once),
        ("YES", once),
        ("s", session),
        ("a", always),
        ("w", network),
        ("n", deny()),
        ("no keep it", deny("keep it")),
        ("", deny()),
        ("  ", deny()),
        ("maybe", None),
        ("yy", None),
    ],
)
def test_one_letter_answers_and_nothing_means_no(answer: str, decision: Decision | None):
    assert decision_of(answer, COMMAND) == decision


@pytest.mark.parametrize("answer", ["s", "session", "a", "always", "w"])
def test_what_is_not_offered_is_no_answer(answer: str):
    assert [key for key, _ in choices(LOSES)] == ["y"]
    assert decision_of(answer, LOSES) is None


async def shown(request: Request, keys: str) -> tuple[str, Decision]:
    """What the user sees of a question, and what the typed keys decide."""
    out = StringIO()
    console = Console(file=out, width=60, highlight=False)
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        question = Question(console, prompt=PromptSession[str](), stop=lambda: None)
        pipe.send_text(keys)
        decision = await question.ask(request)
    return out.getvalue(), decision


async def test_everything_that_matters_is_shown_whole():
    request = Request(
        tool="run_command",
        arguments={"command": "env bash -c x"},
        preview="env bash -c 'rm \u202ex'",
        resolved=("bash -c", "rm \u202ex"),
        reason="`env` runs other commands",
        warning="`rm` deletes files: 3 files\u200b.",
    )
    text, decision = await shown(request, "n keep\r")
    assert "env bash -c 'rm <U+202E>x'" in text
    assert "Careful: 1 invisible or control characters are spelled out." in text
    assert "runs: rm <U+202E>x" in text
    assert "Asked because: `env` runs other commands" in text
    assert "Careful: `rm` deletes files: 3 files<U+200B>." in text
    assert decision == deny("keep")


async def test_the_rule_that_always_would_keep_is_shown():
    text, decision = await shown(COMMAND, "a\r")
    assert "a always Bash(make)" in text
    assert "s yes, this very command for this session" in text
    assert decision == always


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
