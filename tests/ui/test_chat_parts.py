"""The pieces of the chat that need no terminal."""

from importlib import import_module
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart
from pydantic_ai.usage import RequestUsage
from rich.cells import cell_len

from punie.agent.events import Timing, TurnEnded, UsageUpdated
from punie.backends import build
from punie.backends._local import LocalModel
from punie.config import AgentConfig
from punie.errors import UsageError
from punie.ui import commands
from punie.ui._complete import matching
from punie.ui._markdown import split_long
from punie.ui._model_commands import with_adapter
from punie.ui._pastes import Pastes, WholeHistory
from punie.ui._status import Status, fitted
from punie.ui._typing import Typing


def test_every_command_has_a_handler_a_line_of_help_and_a_name_of_its_own() -> None:
    names = [name for command in commands.TABLE for name in (command.name, *command.also)]
    assert len(names) == len(set(names))
    for command in commands.TABLE:
        module, _, function = command.handler.partition(":")
        assert callable(getattr(import_module(f"punie.ui.{module}"), function))
        assert command.help
    for columns in (40, 80):
        text = "\n".join(line.plain for line in commands.help_lines(columns))
        assert all(f"/{command.name}" in text and command.help.split()[0] in text for command in commands.TABLE)
        assert max(map(len, text.splitlines())) <= columns


def test_every_command_is_in_the_docs() -> None:
    said = (Path(__file__).parents[2] / "docs" / "chat.md").read_text("utf-8")
    assert [command.name for command in commands.TABLE if f"`/{command.name}" not in said] == []


@pytest.mark.parametrize(
    ("typed", "meant"), [("/modle", "/mode"), ("/perm", "/permissions"), ("/hlep", "/help"), ("/zzzz", ""), ("/", "")]
)
def test_the_nearest_command(typed: str, meant: str) -> None:
    assert commands.nearest(typed) == meant


@pytest.mark.parametrize(
    ("spec", "wanted", "found"),
    [
        ("local", "off", "local:+off"),
        ("local:smollm2-135m+/a/b", "on", "local:smollm2-135m"),
        ("local:+off", "on", "local"),
        ("mlx:/models/x+/a/b", "off", "mlx:/models/x"),
        ("gguf:/models/x.gguf", "/new", "gguf:/models/x.gguf+/new"),
    ],
)
def test_the_spec_with_another_adapter(spec: str, wanted: str, found: str) -> None:
    assert with_adapter(spec, wanted) == found


@pytest.mark.parametrize(("spec", "wanted"), [("claude", "off"), ("mlx:/x", "on"), ("local", "")])
def test_an_adapter_that_cannot_be_had(spec: str, wanted: str) -> None:
    with pytest.raises(UsageError):
        with_adapter(spec, wanted)


async def test_the_base_model_can_be_had_alone() -> None:
    model = build("local:+off", AgentConfig())
    assert isinstance(model, LocalModel)
    try:
        await model.loaded()
        assert model.model_name == "smollm2-135m"
    finally:
        model.close()


def test_files_are_found_letter_by_letter_the_closest_first() -> None:
    paths = ["src/app/main.py", "docs/maintain.md", "src/model_main.py", "m/a/i/n.txt", "other.py"]
    assert matching("main", paths) == [
        "src/app/main.py",
        "docs/maintain.md",
        "src/model_main.py",
        "m/a/i/n.txt",
    ]
    assert matching("smm", paths) == ["docs/maintain.md", "src/model_main.py"]
    assert matching("zq", paths) == []


def test_a_long_paste_is_a_mark_and_the_history_has_all_of_it() -> None:
    pastes = Pastes()
    assert pastes.collapsed("a\r\nb") == "a\nb"
    text = "\n".join(map(str, range(500)))
    mark = pastes.collapsed(text)
    assert mark == "[pasted 500 lines]"
    assert pastes.collapsed(text) == mark
    other = pastes.collapsed(text + "0")
    assert other == "[pasted 500 lines #2]"
    assert pastes.collapsed("x" * 3000) == "[pasted 3,000 characters]"
    assert pastes.expanded(f"see {mark} and {other}") == f"see {text} and {text}0"
    assert pastes.expanded("[pasted 7 lines]") == "[pasted 7 lines]"
    history = WholeHistory(InMemoryHistory(), pastes)
    history.append_string(f"see {mark}")
    assert history.get_strings() == [f"see {text}"]


def test_the_status_says_the_most_important_first_and_never_too_much() -> None:
    status = Status(window=8192)
    reply = ModelResponse([TextPart("x")], usage=RequestUsage(input_tokens=2000, output_tokens=48))
    ended = TurnEnded("done", "x", (), 1, Timing(4.0, decode_s=2.0), UsageUpdated(2000, 48, 1500))
    status.take(ended, new=[ModelRequest.user_text_prompt("q"), reply])
    assert status.parts() == ["2,048 tokens in 8,192 (25 %)", "1,500 reused, 500 new", "24 tok/s", "4.0 s"]
    assert status.parts(short=True)[0] == "2,048/8,192"
    for width in range(5, 90):
        line = fitted(["a model 日本語", "default", *status.parts()], width=width)
        assert cell_len(line) <= width
    assert fitted(["model", "default", *status.parts()], width=48) == "model · default · 2,048 tokens in 8,192 (25 %)"
    status.forget()
    assert status.parts() == []
    assert status.window == 8192


def test_what_holds_for_long_is_taken_apart_without_loss() -> None:
    lines = [f"x{n} = {n}" for n in range(500)]
    pending = opener = ""
    seen: list[str] = []
    for piece in ["```python\n", *(f"{line}\n" for line in lines), "```\n", "\nEnd.\n\nMore"]:
        blocks, pending, opener = split_long(pending + piece, opener=opener)
        seen += [line for block in blocks for line in block.text.splitlines()]
        assert pending.count("\n") <= 82
    assert [line for line in seen if line.startswith("x")] == lines
    assert "End." in [*seen, *pending.splitlines()]
    assert opener == ""


def test_ctrl_d_meanwhile_leaves_after_what_was_sent_before_it_and_not_out_of_a_line() -> None:
    typing = Typing(Pastes())
    with create_pipe_input() as pipe, create_app_session(input=pipe):
        pipe.send_text("and then?\r\x04draft\x04")
        typing._all(pipe.read_keys())
    assert (typing.queued, typing.draft) == (["and then?", "/exit"], "draft")
