import asyncio
import io
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from punie.agent import create_agent
from punie.agent.events import Thinking, UsageUpdated
from punie.config import AgentConfig, Limits
from punie.errors import UsageError
from punie.tools import Workspace
from punie.ui import plain
from punie.ui.options import OutputFormat

ABOUT = plain.About(model="local", model_id="scripted", session_id="1234", cwd="/somewhere")
CTRL_C = object()
"""In a script: the user interrupts here, and the model would go on only much later."""
Reply = str | DeltaToolCall | object


def scripted(*turns: Sequence[Reply]) -> FunctionModel:
    """A model that gives one scripted reply for each request, the last one for ever."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        del info
        done = sum(isinstance(m, ModelRequest) for m in messages) - 1
        for index, reply in enumerate(turns[min(done, len(turns) - 1)]):
            if reply is CTRL_C:
                await asyncio.sleep(0.1)
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(30)
            elif isinstance(reply, DeltaToolCall):
                yield {index: reply}
            elif isinstance(reply, str):
                yield reply

    return FunctionModel(stream_function=stream)


def call(tool: str, /, **arguments: object) -> DeltaToolCall:
    return DeltaToolCall(name=tool, json_args=json.dumps(arguments), tool_call_id=f"{tool}-1")


class Run:
    """One `-p` run against a scripted model."""

    def __init__(
        self, root: Path, *turns: Sequence[Reply], output_format: OutputFormat = "text", limits: Limits | None = None
    ) -> None:
        config = AgentConfig(limits=limits or Limits())
        agent = create_agent(config, model=scripted(*turns))
        out, err = io.StringIO(), io.StringIO()
        show = plain.show_for(output_format, about=ABOUT, out=out, err=err)
        self.code = plain.answer(agent, "question", workspace=Workspace(root), config=config, show=show)
        self.out = out.getvalue()
        self.err = err.getvalue()

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("class Greeter:\n    pass\n")
    return tmp_path


# --- text ---


def test_what_each_request_read_anew_is_said_to_those_who_ask() -> None:
    err = io.StringIO()
    show = plain.show_for("text", about=ABOUT, out=io.StringIO(), err=err, verbose=True)
    for usage in (UsageUpdated(100, 5, 0), UsageUpdated(100, 5, 0), UsageUpdated(220, 9, 90)):
        show.take(usage)
    assert [line.partition(" in ")[0] for line in err.getvalue().splitlines()] == [
        "punie: request 1: reused 0 / prefilled 100 tokens, wrote 5",
        "punie: request 2: reused 90 / prefilled 30 tokens, wrote 4",
    ]


def test_thinking_is_a_line_of_its_own_in_the_stream_and_no_text() -> None:
    out = io.StringIO()
    plain.show_for("stream-json", about=ABOUT, out=out, err=io.StringIO()).take(Thinking("Hm."))
    assert json.loads(out.getvalue().splitlines()[1]) == {"type": "thinking", "text": "Hm."}
    formats: tuple[OutputFormat, ...] = ("text", "json")
    for output_format in formats:
        silent = io.StringIO()
        plain.show_for(output_format, about=ABOUT, out=silent, err=silent).take(Thinking("Hm."))
        assert silent.getvalue() == ""


def test_text_puts_the_answer_on_stdout_and_the_tool_on_stderr(root: Path) -> None:
    run = Run(root, [call("find_symbol", name="Greeter")], ["It is in ", "a.py:1-2."])
    assert run.code == 0
    assert run.out == "It is in a.py:1-2.\n"
    assert run.err.startswith("• find_symbol(name='Greeter') → 1 definition of Greeter (")
    assert len(run.err.splitlines()) == 1


def test_text_neutralises_what_a_model_sends_to_the_terminal(root: Path) -> None:
    run = Run(root, ["be\x1b]0;pwned\x07fore \x1b[2J\u202eafter"])
    assert run.out == "before after\n"


def test_text_neutralises_what_a_tool_found(root: Path) -> None:
    (root / "b.txt").write_text("needle \x1b]52;c;AAAA\x07\x1b[31m\n")
    run = Run(root, [call("search", pattern="needle \x1b")], ["none"])
    assert "\x1b" not in run.err
    assert "\x07" not in run.err


def test_a_permission_that_nobody_gives_ends_with_3(root: Path) -> None:
    run = Run(root, [call("write_file", path="b.py", content="x = 1\n")], ["done"])
    assert run.code == 3
    assert "permission" in run.err
    assert not (root / "b.py").exists()


def test_a_limit_ends_with_4(root: Path) -> None:
    turns = [[call("find_symbol", name=f"Name{n}")] for n in range(5)]
    run = Run(root, *turns, limits=Limits(max_turns=2))
    assert run.code == 4
    assert run.err.splitlines()[-1].strip()


def test_an_empty_answer_is_no_success(root: Path) -> None:
    run = Run(root, [""])
    assert run.code == 1
    assert run.err.startswith("punie: ")


# --- json ---

KEYS = {
    "answer", "model", "model_id", "session_id", "stop_reason", "turns", "tool_calls", "usage", "timing", "error",
}  # fmt: skip


def test_json_is_one_object_and_nothing_else(root: Path) -> None:
    run = Run(root, [call("find_symbol", name="Greeter")], ["a.py:1"], output_format="json")
    assert run.code == 0
    assert set(run.json) == KEYS
    assert run.json["answer"] == "a.py:1"
    assert run.json["model"] == "local"
    assert run.json["model_id"] == "scripted"
    assert run.json["session_id"] == "1234"
    assert run.json["stop_reason"] == "done"
    assert run.json["turns"] == 2
    assert run.json["error"] is None
    assert run.out.count("\n") == 1


def test_json_shapes_of_calls_usage_and_timing(root: Path) -> None:
    run = Run(root, [call("find_symbol", name="Greeter")], ["a.py:1"], output_format="json")
    calls = run.json["tool_calls"]
    assert isinstance(calls, list)
    (one,) = calls
    assert set(one) == {"name", "arguments", "outcome", "output", "duration_s"}
    assert one["name"] == "find_symbol"
    assert one["arguments"] == {"name": "Greeter"}
    assert one["outcome"] == "ok"
    assert one["output"].startswith("1 definition of Greeter\n")
    assert isinstance(one["duration_s"], float)
    usage, timing = run.json["usage"], run.json["timing"]
    assert isinstance(usage, dict)
    assert isinstance(timing, dict)
    assert set(usage) == {"input_tokens", "output_tokens", "cached_tokens"}
    assert set(timing) == {"total_s", "load_s", "prefill_s", "decode_s", "tools_s"}


def test_json_cuts_long_outputs_at_4000_characters(root: Path) -> None:
    (root / "long.txt").write_text("word " * 30 + "\n" + ("x" * 100 + "\n") * 150)
    run = Run(root, [call("read_file", path="long.txt")], ["read"], output_format="json")
    calls = run.json["tool_calls"]
    assert isinstance(calls, list)
    assert len(calls[0]["output"]) == 4000


@pytest.mark.parametrize(
    ("turns", "stop_reason", "code"),
    [
        ([[call("write_file", path="b.py", content="x")], ["done"]], "denied", 3),
        ([[""]], "error", 1),
    ],
)
def test_json_says_why_it_stopped(root: Path, turns: list[list[Reply]], stop_reason: str, code: int) -> None:
    run = Run(root, *turns, output_format="json")
    assert (run.json["stop_reason"], run.code) == (stop_reason, code)
    assert isinstance(run.json["error"], str)
    assert set(run.json) == KEYS


def test_json_survives_odd_text(root: Path) -> None:
    run = Run(root, ["lone \ud800 surrogate \u2028 and \x1b"], output_format="json")
    run.out.encode("ascii")
    assert run.json["answer"] == "lone \ud800 surrogate \u2028 and \x1b"


# --- stream-json ---


def test_stream_json_is_one_event_a_line(root: Path) -> None:
    run = Run(root, [call("find_symbol", name="Greeter")], ["It is in ", "a.py:1-2."], output_format="stream-json")
    kinds = [line["type"] for line in run.lines]
    assert kinds[0] == "session"
    assert kinds[-1] == "done"
    assert set(kinds) == {"session", "text", "tool_call", "tool_result", "usage", "done"}
    assert kinds.index("tool_call") < kinds.index("tool_result") < kinds.index("text")
    by_kind = {str(line["type"]): line for line in run.lines}
    assert by_kind["session"] == {
        "type": "session",
        "model": "local",
        "model_id": "scripted",
        "session_id": "1234",
        "cwd": "/somewhere",
    }
    assert set(by_kind["tool_call"]) == {"type", "id", "name", "arguments"}
    assert set(by_kind["tool_result"]) == {"type", "id", "name", "outcome", "output", "duration_s"}
    assert set(by_kind["usage"]) == {"type", "input_tokens", "output_tokens", "cached_tokens"}
    assert set(by_kind["done"]) == KEYS | {"type"}


def test_stream_json_text_adds_up_to_the_answer(root: Path) -> None:
    run = Run(root, ["It is ", "here", "."], output_format="stream-json")
    text = ""
    for line in run.lines:
        if line["type"] == "text":
            text = str(line["text"]) if line.get("replaces") else text + str(line["text"])
    assert text == run.lines[-1]["answer"] == "It is here."


# --- signals ---


def test_ctrl_c_keeps_the_partial_answer(root: Path) -> None:
    started = time.monotonic()
    run = Run(root, ["The first half", CTRL_C, "and the second"])
    assert run.code == 130
    assert run.out == "The first half\n"
    assert time.monotonic() - started < 10


def test_ctrl_c_still_gives_one_json_object(root: Path) -> None:
    run = Run(root, ["The first half", CTRL_C], output_format="json")
    assert run.code == 130
    assert run.json["answer"] == "The first half"
    assert run.json["stop_reason"] == "interrupted"


# --- the prompt ---


def pipe(text: bytes) -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    return os.fdopen(reader, "r")


def test_prompt_from_the_argument() -> None:
    with Path(os.devnull).open() as nothing:
        assert plain.full_prompt(" why? ", stdin=nothing) == "why?"
    assert plain.full_prompt("why?", stdin=None) == "why?"


def test_prompt_from_standard_input() -> None:
    with pipe(b"why?\n") as stdin:
        assert plain.full_prompt(None, stdin=stdin) == "why?"


def test_standard_input_is_appended_to_the_argument() -> None:
    with pipe(b"line 1\nline 2\n") as stdin:
        assert plain.full_prompt("explain", stdin=stdin) == "explain\n\n<stdin>\nline 1\nline 2\n</stdin>"


def test_bytes_that_are_no_text_are_replaced() -> None:
    with pipe(b"caf\xe9") as stdin:
        assert plain.full_prompt(None, stdin=stdin) == "caf\ufffd"


@pytest.mark.parametrize("argument", [None, "", "  \n"])
def test_no_prompt_at_all_is_a_usage_error(argument: str | None) -> None:
    with pipe(b" \n") as stdin, pytest.raises(UsageError, match="nothing to answer"):
        plain.full_prompt(argument, stdin=stdin)


def test_a_pipe_that_stays_open_is_waited_for_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()

    def write_late() -> None:
        time.sleep(plain._SECONDS_BEFORE_HINT + 0.5)
        os.write(writer, b"late")
        os.close(writer)

    thread = threading.Thread(target=write_late)
    thread.start()
    with os.fdopen(reader, "r") as stdin:
        assert plain.full_prompt("explain", stdin=stdin).endswith("<stdin>\nlate\n</stdin>")
    thread.join()
    assert "waiting for standard input" in capsys.readouterr().err
