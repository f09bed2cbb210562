import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from tests.backends import tiny

from punie import backends
from punie.backends import _weights, build, split_adapter
from punie.backends._local import LocalModel
from punie.backends._weights import adapter_hash, model_dir, shipped_adapter
from punie.backends.catalogue import EMBEDDED, entry
from punie.config import AgentConfig, Settings
from punie.errors import ConfigError, WeightsDamaged, WeightsMissing

CONFIG = AgentConfig()

OFFLINE = """
import asyncio, socket, sys
def refuse(*arguments):
    raise SystemExit(f"reached for the network: {arguments[1:]}")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = refuse
import subprocess
subprocess.Popen.__init__ = refuse
from pathlib import Path
from pydantic_ai import Agent
from punie.backends import build
from punie.config import AgentConfig, Settings
config = AgentConfig(model="local")
model = build("local", config, cache_dir=Path(sys.argv[1]))
print(asyncio.run(Agent(model).run("What is the capital of France?", model_settings={"max_tokens": 30})).output)
"""


@pytest.mark.parametrize("spec", ["", "nothing", "gguf:", "mlx:", "ftp:x", "LOCAL"])
def test_specs_that_mean_nothing_say_what_can_be_written(spec, tmp_path):
    with pytest.raises(ConfigError) as caught:
        build(spec, CONFIG, cache_dir=tmp_path)
    assert "gguf:PATH" in caught.value.next_step


@pytest.mark.parametrize(
    ("spec", "meant"),
    [("qwen2.5-coder-7b", "local:qwen2.5-coder-7b"), ("locl", "local"), ("cluade", "claude"), ("mine", "local:mine")],
)
def test_a_spec_that_is_nearly_one_names_it(spec: str, meant: str, tmp_path: Path) -> None:
    config = Settings.model_validate({"models": {"mine": {"path": "/tmp/mine"}}}).agent_config()
    with pytest.raises(ConfigError) as caught:
        build(spec, config, cache_dir=tmp_path)
    assert f"Did you mean {meant}?" in caught.value.next_step


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="nope") as caught:
        build("local:nope", CONFIG, cache_dir=tmp_path)
    assert EMBEDDED in caught.value.next_step


async def test_what_is_said_stays_on_the_disk_only_if_sessions_do(tiny_gguf, tmp_path):
    for saved in (True, False):
        config = Settings(save_sessions=saved).agent_config()
        model = build(f"gguf:{tiny_gguf}", config, cache_dir=tmp_path)
        assert isinstance(model, LocalModel)
        assert bool((await model.loaded()).prefixes) == saved
        model.close()


def test_services_are_built_by_their_own_modules():
    model = build("openai:m@http://127.0.0.1:1/v1", CONFIG)
    assert isinstance(model, OpenAIChatModel)
    assert model.model_name == "m"


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a.gguf", ("a.gguf", None)), ("a.gguf+b", ("a.gguf", "b")), ("c++/a.gguf+b", ("c++/a.gguf", "b"))],
)
def test_an_adapter_follows_a_plus(text, parts):
    path, adapter = split_adapter(text)
    assert (path, adapter and str(adapter)) == parts


def test_a_plus_that_is_part_of_a_name(tmp_path):
    path = tmp_path / "a+b.gguf"
    path.touch()
    assert split_adapter(str(path)) == (str(path), None)


async def test_a_gguf_of_the_users_answers(tiny_gguf, tmp_path):
    adapter = tiny.write_adapter(tmp_path / "mine")
    model = build(f"gguf:{tiny_gguf}+{adapter}", CONFIG, cache_dir=tmp_path / "cache")
    assert isinstance(model, LocalModel)
    assert model.model_name == f"tiny+mine@{adapter_hash(adapter)}"
    assert not model.compact
    result = await Agent(model).run("hello", model_settings={"max_tokens": 8})
    assert result.usage.output_tokens == 8
    assert model.context_window == tiny.WINDOW
    assert result.response.provider_details is not None
    assert result.response.provider_details["timing"]["load_s"] > 0
    model.close()


async def test_what_goes_wrong_while_loading_is_told_by_the_request(tmp_path):
    with pytest.raises(WeightsMissing, match=r"nothing\.gguf"):
        await Agent(build(f"gguf:{tmp_path}/nothing.gguf", CONFIG, cache_dir=tmp_path)).run("hi")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(WeightsDamaged, match=r"bad\.gguf"):
        await Agent(build(f"gguf:{tmp_path}/bad.gguf", CONFIG, cache_dir=tmp_path)).run("hi")


@pytest.mark.skipif(backends.prefers_mlx(), reason="here MLX fetches the weights")
@pytest.mark.parametrize("name", ["qwen2.5-coder-7b", "qwen3-coder-30b"])
def test_a_model_that_must_be_placed_by_hand_says_where(name, tmp_path):
    with pytest.raises(WeightsMissing, match=name) as caught:
        build(f"local:{name}", CONFIG, cache_dir=tmp_path)
    model = entry(name)
    assert str(model_dir(tmp_path, name) / str(model.gguf_name)) in caught.value.next_step
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.skipif(backends.prefers_mlx(), reason="here MLX runs it")
async def test_a_model_that_was_placed_by_hand_runs(tmp_path):
    model = entry("qwen2.5-coder-7b")
    path = model_dir(tmp_path, model.name) / str(model.gguf_name)
    path.parent.mkdir(parents=True)
    tiny.write_gguf(path)
    built = build(f"local:{model.name}", CONFIG, cache_dir=tmp_path)
    assert built.context_window in (tiny.WINDOW, None), "of the file, once it is loaded"
    assert (await Agent(built).run("hello", model_settings={"max_tokens": 4})).usage.output_tokens == 4


def test_the_package_is_light():
    heavy = ("numpy", "gguf", "pydantic_ai", "mlx", "xllamacpp", "httpx2")
    code = f"import sys, punie.backends; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(backends.prefers_mlx(), reason="llama.cpp is not the local engine here")
def test_a_local_answer_reaches_for_no_network(weights_cache):
    """Not even for a name or another process: everything is in the cache."""
    _weights.ensure_tokenizer(weights_cache)
    adapter = shipped_adapter()
    if adapter is not None:
        _weights.embedded_files(weights_cache, adapter=adapter)
    command = [sys.executable, "-c", OFFLINE, str(weights_cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.skipif(backends.prefers_mlx(), reason="llama.cpp is not the local engine here")
def test_the_embedded_model_is_named_with_its_adapter(weights_cache):
    model = build("local", CONFIG, cache_dir=weights_cache)
    assert isinstance(model, LocalModel)
    adapter = shipped_adapter()
    assert model.model_name == (f"{EMBEDDED}+punie@{adapter_hash(adapter)}" if adapter else EMBEDDED)
    assert (model.compact, model.context_window) == (True, 8192)
    model.close()
