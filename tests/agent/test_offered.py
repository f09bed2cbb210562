"""Which tools a model is offered: by its kind, its size, and what the user chose for it."""

from pathlib import Path

import pytest
from pydantic_ai.models.test import TestModel
from tests.agent.conftest import Local

from punie.agent import create_agent
from punie.agent.offered import is_large, is_large_local, offered
from punie.backends.catalogue import Entry, entries
from punie.config import MORE_TOOLS, TOOL_NAMES, AgentConfig, Settings
from punie.errors import ConfigError
from punie.local_models import UserModel

ALL = (*TOOL_NAMES, *MORE_TOOLS)


def service(name: str, window: int | None = None) -> TestModel:
    return TestModel(model_name=name, profile={"context_window": window})


def test_the_embedded_model_sees_what_it_was_trained_on_and_a_large_one_everything(local: Local):
    embedded, _ = local()
    embedded.compact = True
    assert offered(AgentConfig(), embedded, skills=True) == TOOL_NAMES
    assert offered(AgentConfig(tools=("search", *MORE_TOOLS)), embedded, skills=True) == ("search",)
    assert offered(AgentConfig(), service("claude"), skills=True) == ALL
    assert offered(AgentConfig(), service("claude")) == (*TOOL_NAMES, "write_todos")


@pytest.mark.parametrize(
    ("name", "window", "large"),
    [
        ("claude-sonnet-5", None, True),
        ("gpt-5-mini", 400_000, True),
        ("some-model", 8192, False),
        ("some-model", 16_384, True),
        ("qwen2.5-coder:1.5b", None, False),
        ("Llama-3.2-1B-Instruct-Q4_K_M", 131_072, False),
        ("gemma-3-270m-it", None, False),
        ("qwen2.5-coder:7b", 32_768, True),
        ("Qwen3-Coder-30B-A3B-Instruct", None, True),
        ("mlx-community/Qwen2.5-3B-Instruct-4bit", None, True),
    ],
)
def test_of_a_service_the_window_and_the_number_in_the_name_count(name: str, window: int | None, *, large: bool):
    assert is_large(AgentConfig(model=f"openai:{name}"), service(name, window)) is large


@pytest.mark.parametrize(
    ("spec", "large"),
    [
        ("local", False),
        ("local:smollm2-135m+off", False),
        ("local:qwen2.5-coder-7b", True),
        ("local:qwen3-coder-30b", True),
        ("local:mine", False),
        ("local:unheard-of", False),
        ("gguf:/m/qwen2.5-0.5b-instruct-q8_0.gguf", False),
        ("gguf:/m/qwen2.5-7b-instruct-q4_k_m.gguf+/adapter", True),
        ("gguf:/m/unknown.gguf", False),
        ("mlx:mlx-community/Qwen2.5-Coder-7B-Instruct-4bit", True),
    ],
)
def test_of_a_local_model_the_parameters_or_the_name_count(local: Local, spec: str, *, large: bool):
    model, _ = local()
    mine = UserModel(path=Path("/m/some.gguf"))
    assert is_large(AgentConfig(model=spec, models={"mine": mine}), model) is large


def test_weights_of_which_nothing_is_known_are_judged_by_their_size(tmp_path: Path):
    file, folder = tmp_path / "some.gguf", tmp_path / "some"
    folder.mkdir()
    for place in (file, folder / "model.safetensors"):
        place.touch()
        path = file if place is file else folder
        assert not is_large_local(Entry(name="some", path=path))
        with place.open("r+b") as opened:
            opened.truncate(2_000_000_000)  # no block of it is written
        assert is_large_local(Entry(name="some", path=path))
    assert not is_large_local(Entry(name="some", path=file, context_window=8192))


def test_what_is_chosen_for_a_model_is_what_it_gets(local: Local):
    chosen = {"claude*": ("read_file", "write_todos"), "local*": ("search", "load_skill"), "*": ("read_file",)}
    config = AgentConfig(model="local", model_tools=chosen)
    embedded, _ = local()
    embedded.compact = True
    assert offered(config, embedded, skills=True) == ("search", "load_skill")
    assert offered(config, embedded) == ("search",)
    assert offered(config.model_copy(update={"model": "claude"}), service("claude")) == ("read_file", "write_todos")
    assert offered(config.model_copy(update={"model": "openai:x"}), service("x")) == ("read_file",)


def test_tools_chosen_alone_are_all_of_them():
    large = service("claude")
    assert offered(AgentConfig(tools=("search",)), large) == ("search",)
    assert offered(AgentConfig(tools=("search",), more_tools=("write_todos",)), large) == ("search", "write_todos")
    assert offered(AgentConfig(more_tools=()), large, skills=True) == TOOL_NAMES


def test_what_the_user_takes_away_is_gone_everywhere():
    taken = ("write_todos", "Bash", "mcp__x")
    config = Settings(disallowed_tools=taken, model_tools={"local": ("search", "run_command")}).agent_config()
    assert offered(config.model_copy(update={"model": "claude"}), service("claude"), skills=True) == (
        *(name for name in TOOL_NAMES if name != "run_command"),
        "load_skill",
    )
    assert config.model_tools == {"local": ("search",)}
    assert offered(Settings(tools=("search",)).agent_config(), service("x")) == ("search",)


@pytest.mark.parametrize("wrong", [{"more_tools": ("grep",)}, {"model_tools": {"*": ("read_file", "grep")}}])
def test_a_tool_that_there_is_not_is_named(wrong: dict[str, object]):
    with pytest.raises(ConfigError, match="Unknown tool: grep"):
        create_agent(AgentConfig.model_validate(wrong), model=service("x"))


def test_every_entry_of_the_catalogue_has_a_size():
    assert {name: is_large_local(model) for name, model in entries().items()} == {
        "smollm2-135m": False,
        "qwen2.5-coder-7b": True,
        "qwen3-coder-30b": True,
    }
