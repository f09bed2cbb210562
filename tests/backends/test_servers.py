"""`openai:` against servers as they are, not as their documents describe them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic_ai import Agent, ModelSettings
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse
from pydantic_ai.models import Model, override_allow_model_requests
from pydantic_ai.models.openai import OpenAIChatModel
from tests.backends import tiny
from tests.backends.servers import Served, llama_server, llama_server_binary, mlx_lm_server, xllamacpp_server

from punie.backends import _gguf, build
from punie.config import AgentConfig

QUESTION: list[ModelMessage] = [ModelRequest.user_text_prompt("hello the")]


def mlx_directory(path: Path) -> Path:
    """The tiny model as an MLX directory."""
    from punie.backends import _mlx_model

    gguf = tiny.write_gguf(path / "tiny.gguf")
    _gguf.tokenizer(gguf).save(str(path / "tokenizer.json"))
    directory = _mlx_model.ensure_directory(gguf, tokenizer=path / "tokenizer.json", cache=path)
    described = {
        "chat_template": tiny.TEMPLATE,
        "eos_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    return directory


@pytest.fixture(autouse=True)
def allowed() -> Iterator[None]:
    with override_allow_model_requests(True):
        yield


@pytest.fixture(scope="module", params=["xllamacpp", "mlx_lm", "llama-server"])
def served(request, tmp_path_factory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("served")
    match request.param:
        case "xllamacpp":
            running = xllamacpp_server(tiny.write_gguf(place / "tiny.gguf"))
        case "mlx_lm":
            if not find_spec("mlx_lm"):
                pytest.skip("MLX is not installed")
            running = mlx_lm_server(mlx_directory(place))
        case _:
            if not llama_server_binary():
                pytest.skip("no llama-server on this machine: set LLAMA_SERVER to its path")
            running = llama_server(tiny.write_gguf(place / "tiny.gguf"))
    with running as found:
        yield found


@pytest.fixture
async def model(served) -> AsyncIterator[Model]:
    model = build(f"openai:{served.model}@{served.base_url}", AgentConfig())
    assert isinstance(model, OpenAIChatModel)
    yield model
    await model.client.close()


def settings(**given) -> ModelSettings:
    return ModelSettings(temperature=0.0, seed=1, **given)  # type: ignore[typeddict-item]


async def ask(model: Model, **given) -> ModelResponse:
    return await model_request(model, QUESTION, model_settings=settings(max_tokens=16, **given))


async def test_it_answers_and_tells_usage_and_why_it_ended(model, served):
    response = await ask(model)
    assert response.text
    assert response.finish_reason == "length"
    assert response.usage.output_tokens == 16
    assert response.usage.input_tokens > 5


async def test_it_streams_the_same_answer(model):
    whole = await ask(model)
    async with model_request_stream(model, QUESTION, model_settings=settings(max_tokens=16)) as stream:
        events = [event async for event in stream]
    streamed = stream.get()
    assert len(events) > 2
    assert (streamed.text, streamed.finish_reason) == (whole.text, whole.finish_reason)
    assert streamed.usage.output_tokens == whole.usage.output_tokens


async def test_a_stop_sequence_ends_the_answer_before_it(model):
    free = (await ask(model)).text or ""
    stop = next(c for c in free[2:] if c.isprintable() and c.isascii() and c not in free[:2])
    response = await ask(model, stop_sequences=[stop])
    assert response.text == free[: free.index(stop)]
    assert response.finish_reason == "stop"


async def test_what_was_read_before_is_told_as_cached(model):
    await ask(model)
    again = await ask(model)
    assert again.usage.cache_read_tokens > 5


async def test_cancelling_frees_the_server_for_the_next_question(model):
    async def run() -> None:
        async with model_request_stream(model, QUESTION, model_settings=settings(max_tokens=400)) as stream:
            async for _ in stream:
                break

    await asyncio.wait_for(run(), 5)
    assert (await asyncio.wait_for(ask(model), 5)).text


async def test_an_agent_goes_on_with_what_was_said(model):
    agent = Agent(model, model_settings=settings(max_tokens=4))
    first = await agent.run("hello")
    second = await agent.run("the", message_history=first.all_messages())
    assert len(second.all_messages()) == 4
