"""The backends of the table. What is started is started once and shared by the cases."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from pydantic_ai import ModelSettings
from tests.backends import servers
from tests.backends.conformance import dialects, speaking
from tests.backends.conformance.engines import InProcess, Served
from tests.backends.conformance.played import PlayedChat, PlayedClaude

from punie.backends import _mlx_files
from punie.backends import llamacpp as llamacpp_engine
from punie.backends import mlx as mlx_engine
from punie.backends._local import LocalModel
from punie.backends._weights import embedded_files, shipped_adapter, silent
from punie.backends.catalogue import EMBEDDED
from punie.config import EngineOptions
from punie.wire import END_OF_TURN

SERVER_KEY = "sk-right"


@pytest.fixture(scope="session")
def built_gguf(tmp_path_factory) -> Path:
    return speaking.write_gguf(tmp_path_factory.mktemp("speaking") / "speaking.gguf")


@pytest.fixture(scope="session")
def built_mlx(tmp_path_factory) -> Path:
    return speaking.write_mlx(tmp_path_factory.mktemp("speaking-mlx"))


@contextmanager
def _in_process(engine: ModuleType, weights: Path, options: EngineOptions) -> Iterator[InProcess]:
    build = partial(engine.build, adapter=None, cache_dir=weights.parent, on_progress=silent, options=options)
    model = build(str(weights))
    trained = partial(_trained, engine)
    yield InProcess(model, spare=lambda: build(str(weights.parent / "nothing")), trained=trained)
    model.close()


def _trained(engine: ModuleType, cache: Path) -> LocalModel:
    options = EngineOptions(prefix_cache=False)
    return engine.build_named(EMBEDDED, None, cache_dir=cache, on_progress=silent, options=options)


def _llama_trained(cache: Path) -> AbstractContextManager[servers.Served]:
    files = embedded_files(cache, adapter=shipped_adapter())
    return servers.xllamacpp_server(files.weights, context=2048, threads=2, key=SERVER_KEY, template=files.template)


@contextmanager
def _mlx_trained(directory: Path, cache: Path) -> Iterator[servers.Served]:
    """The converted weights with what transformers wants beside them."""
    found, adapter = _mlx_files.embedded_files(cache), shipped_adapter()
    for file in found.weights.iterdir():
        (directory / file.name).symlink_to(file)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TURN}
    template = found.template_with(adapter)
    (directory / "tokenizer_config.json").write_text(json.dumps({**described, "chat_template": template}))
    with servers.mlx_lm_server(directory, adapter=adapter) as running:
        yield running


@pytest.fixture(scope="session")
def llamacpp(built_gguf) -> Iterator[InProcess]:
    with _in_process(llamacpp_engine, built_gguf, EngineOptions()) as backend:
        yield backend


@pytest.fixture(scope="session")
def mlx(built_mlx) -> Iterator[InProcess]:
    # With a grammar, what it leaves no choice about is put in token by token as the tokenizer cuts it: the built
    # weights would have to go on from tokens that they never say. The embedded model is asked with its grammar.
    with _in_process(mlx_engine, built_mlx, EngineOptions(grammar=False)) as backend:
        yield backend


@pytest.fixture(scope="session")
def llamacpp_server(built_gguf) -> Iterator[Served]:
    with servers.xllamacpp_server(built_gguf, context=speaking.WINDOW, key=SERVER_KEY) as running:
        yield Served(
            running.base_url,
            running.model,
            trained=_llama_trained,
            key=SERVER_KEY,
            window=speaking.WINDOW,
            breaking=ModelSettings(extra_body={"grammar": "this is no grammar"}),
            parallel=ModelSettings(parallel_tool_calls=True),
        )


@pytest.fixture(scope="session")
def mlx_server(built_mlx, tmp_path_factory) -> Iterator[Served]:
    trained = partial(_mlx_trained, tmp_path_factory.mktemp("embedded"))
    breaking = ModelSettings(extra_body={"logit_bias": "none"})
    with servers.mlx_lm_server(built_mlx) as running:
        yield Served(running.base_url, running.model, trained=trained, breaking=breaking)


@pytest.fixture(scope="session")
def openai() -> PlayedChat:
    return PlayedChat(None, dialects.OPENAI, local=False)


@pytest.fixture(scope="session")
def ollama() -> PlayedChat:
    return PlayedChat(dialects.CONTEXT, dialects.OLLAMA)


@pytest.fixture(scope="session")
def lm_studio() -> PlayedChat:
    return PlayedChat(dialects.CONTEXT, dialects.LM_STUDIO)


@pytest.fixture(scope="session")
def vllm() -> PlayedChat:
    return PlayedChat(dialects.CONTEXT, dialects.VLLM)


@pytest.fixture(scope="session")
def claude() -> PlayedClaude:
    return PlayedClaude()
