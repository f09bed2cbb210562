"""What servers of one's own tell about themselves, in the words that each of them documents."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic_ai.models import override_allow_model_requests
from tests.backends.services import Play, Service, chat, said, serving

from punie.agent import TurnEnded, create_agent, run_turn
from punie.agent.events import Notice
from punie.backends._http import Client, Patience
from punie.backends._servers import same_model
from punie.backends.openai import Server, build
from punie.config import AgentConfig
from punie.tools import Workspace

OLLAMA_LIST = {"object": "list", "data": [{"id": "qwen3:8b", "object": "model", "created": 1, "owned_by": "library"}]}
OLLAMA_SHOW = {
    "parameters": 'stop                           "<|im_end|>"\ntemperature                    0.6',
    "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960, "qwen3.block_count": 36},
    "capabilities": ["completion", "tools"],
}
LM_STUDIO_LIST = {"data": [{"id": "qwen", "object": "model", "owned_by": "organization_owner"}], "object": "list"}
LM_STUDIO_MODELS = {
    "data": [
        {"id": "other", "type": "llm", "state": "not-loaded", "max_context_length": 32768},
        {"id": "qwen", "type": "llm", "state": "loaded", "max_context_length": 131072, "loaded_context_length": 4096},
    ]
}
VLLM_LIST = {"object": "list", "data": [{"id": "qwen", "owned_by": "vllm", "root": "/m", "max_model_len": 16384}]}
LLAMA_LIST = {
    "object": "list",
    "data": [{"id": "qwen.gguf", "owned_by": "llamacpp", "meta": {"n_vocab": 9, "n_ctx_train": 32768}}],
}
LLAMA_PROPS = {"default_generation_settings": {"id": 0, "n_ctx": 8192}, "total_slots": 1, "model_path": "/m/qwen.gguf"}
MLX_LIST = {"object": "list", "data": [{"id": "mlx-community/cached", "object": "model", "created": 1}]}
NDJSON = "application/x-ndjson"
PYTHON = {"server": "BaseHTTP/0.6 Python/3.11.7"}


@pytest.fixture(autouse=True)
def _allow_requests() -> Iterator[None]:
    with override_allow_model_requests(True):
        yield


async def meet(
    told: Mapping[str, Play], tmp_path: Path, *, name: str, reply: Play
) -> tuple[Server, list[str], Service]:
    """One turn against a server that tells this about itself."""
    async with serving(reply, told=told) as service:
        config = AgentConfig(max_tokens=77)
        http = Client(local=True, key_name="K", patience=Patience(retries=0))
        model = build(f"{name}@{service.url}/v1", config, env={}, http=http)
        assert isinstance(model, Server)
        assert model.context_window is None, "a name alone says nothing about a server"
        agent = create_agent(config, model=model)
        events = [e async for e in run_turn(agent, "Hello?", workspace=Workspace(tmp_path), config=config)]
    assert isinstance(events[-1], TurnEnded)
    assert events[-1].error is None
    return model, [event.text for event in events if isinstance(event, Notice)], service


async def test_llama_cpp_tells_the_context_of_its_slots(tmp_path: Path):
    told = {"/v1/models": said(LLAMA_LIST), "/props": said(LLAMA_PROPS)}
    model, notices, service = await meet(told, tmp_path, name="qwen", reply=chat("Hi.", model="qwen.gguf"))
    assert (model.context_window, notices) == (8192, [])
    assert service.asked[0].json["max_tokens"] == 77


@pytest.mark.parametrize("answering", ["mistral", "qwen.gguf"])
async def test_llama_cpp_answers_to_any_name_so_the_user_is_told(tmp_path: Path, answering: str):
    told = {"/v1/models": said(LLAMA_LIST), "/props": said(LLAMA_PROPS)}
    # Newer ones say in the answer too what they run; once is enough.
    _, notices, _ = await meet(told, tmp_path, name="mistral", reply=chat("Hi.", model=answering))
    assert notices == ["The server runs qwen.gguf, not mistral: that is what answers."]


async def test_lm_studio_tells_the_context_a_model_is_loaded_with(tmp_path: Path):
    told = {"/v1/models": said(LM_STUDIO_LIST), "/api/v0/models": said(LM_STUDIO_MODELS)}
    model, notices, _ = await meet(told, tmp_path, name="qwen", reply=chat("Hi.", model="qwen"))
    assert (model.context_window, notices) == (4096, [])


def ollama(*lines: Mapping[str, object], done: str = "stop") -> Play:
    """A streamed answer of /api/chat: lines of JSON, each in two pieces."""
    base = {"model": "qwen3:8b", "created_at": "2026-11-23T09:00:00Z", "done": False}
    last = {**base, "done": True, "done_reason": done, "prompt_eval_count": 21, "eval_count": 5, "message": {}}
    said = [{**base, "message": {"role": "assistant", "content": "", **line}} for line in lines]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (*said, last))
    return Play((body[:50], body[50:]), kind=NDJSON)


OLLAMA = {
    "/v1/models": said(OLLAMA_LIST),
    "/api/show": said(OLLAMA_SHOW),
    "/api/ps": said({"models": [{"name": "qwen3:8b", "model": "qwen3:8b", "context_length": 4096}]}),
}


async def test_ollama_is_asked_for_the_context_that_the_work_needs(tmp_path: Path):
    (tmp_path / "app.py").write_text("class Flask:\n    pass\n")
    call = {"function": {"index": 0, "name": "find_symbol", "arguments": {"name": "Flask"}}}
    plays = (ollama({"thinking": "Hm."}, {"tool_calls": [call]}), ollama({"content": "At "}, {"content": "app.py:1."}))
    async with serving(*plays, told=OLLAMA) as service:
        config = AgentConfig(stop_sequences=("END",), max_tokens=77, seed=3, temperature=0.5)
        http = Client(local=True, key_name="K", patience=Patience(retries=0))
        model = build(f"qwen3:8b@{service.url}/v1", config, env={}, http=http)
        agent = create_agent(config, model=model)
        events = [e async for e in run_turn(agent, "Where?", workspace=Workspace(tmp_path), config=config)]
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert (end.answer, end.error, model.context_window) == ("At app.py:1.", None, 32768)
    assert (end.usage.input_tokens, end.usage.output_tokens) == (42, 10)
    assert [record.arguments for record in end.tool_calls] == [{"name": "Flask"}]
    first, second = service.asked
    options = {"num_ctx": 32768, "num_predict": 77, "temperature": 0.5, "seed": 3, "stop": ["END"]}
    assert (first.path, first.json["options"]) == ("/api/chat", options)
    assert first.json["truncate"] is False, "a prompt that does not fit must not be cut without a word"
    assert first.json["tools"][0]["function"]["name"] == "read_file"
    asked, result = second.json["messages"][-2:]
    assert asked["tool_calls"][0]["function"] == {"name": "find_symbol", "arguments": {"name": "Flask"}}
    assert (result["role"], result["tool_name"]) == ("tool", "find_symbol")
    assert second.body.startswith(first.body[: first.body.index(b'], "stream"')]), "each request extends the one before"


@pytest.mark.parametrize(
    ("parameters", "loaded", "context"),
    [("num_ctx 8192", 4096, 8192), ("", 40960, 40960), ("", 131072, 40960), ("", 0, 32768), ("num_ctx x", 0, 32768)],
)
async def test_ollama_keeps_what_its_owner_chose(tmp_path: Path, parameters: str, loaded: int, context: int):
    running = said({"models": [{"name": "qwen3:8b", "context_length": loaded}]})
    told = {**OLLAMA, "/api/show": said({**OLLAMA_SHOW, "parameters": parameters}), "/api/ps": running}
    model, _, service = await meet(told, tmp_path, name="qwen3:8b", reply=ollama({"content": "Hi."}))
    assert (model.context_window, service.asked[0].json["options"]["num_ctx"]) == (context, context)


@pytest.mark.parametrize(
    ("play", "error"),
    [
        (ollama({"content": "Half"}, done="length"), "The answer was cut off at max_tokens."),
        (said({"error": "the input length exceeds the context length"}, 400), "The conversation is too long: "),
        (
            Play((b'{"error": "model runner has stopped"}\n',), kind=NDJSON),
            "The model failed: model runner",
        ),
        (
            Play((ollama({"content": "Half"}).body[:90],), kind=NDJSON, ends="close"),
            "The model failed: Failed to decode",
        ),
        (
            Play((ollama({"content": "Half"}).body.splitlines()[0],), kind=NDJSON, ends="close"),
            "No answer from the server",
        ),
        (Play((b"[]\n",), kind=NDJSON), "The answer of http"),
        (Play((b'{"message": 7}\n',), kind=NDJSON), "No answer from the server"),
    ],
)
async def test_what_ollama_breaks_off_is_no_answer(tmp_path: Path, play: Play, error: str):
    async with serving(play, told=OLLAMA) as service:
        config = AgentConfig()
        http = Client(local=True, key_name="K", patience=Patience(retries=0))
        agent = create_agent(config, model=build(f"qwen3:8b@{service.url}/v1", config, env={}, http=http))
        events = [e async for e in run_turn(agent, "Hello?", workspace=Workspace(tmp_path), config=config)]
    assert isinstance(events[-1], TurnEnded)
    assert (events[-1].error or "").startswith(error), events[-1].error


async def test_vllm_tells_how_long_its_model_may_get(tmp_path: Path):
    told = {"/v1/models": said(VLLM_LIST)}
    model, notices, _ = await meet(told, tmp_path, name="qwen", reply=chat("Hi.", model="qwen"))
    assert (model.context_window, notices) == (16384, [])


async def test_mlx_lm_is_asked_for_the_model_it_was_started_with(tmp_path: Path):
    listed = Play(said(MLX_LIST).pieces, headers=PYTHON, kind="application/json", ends="length")
    reply = chat("Hi.", model="default_model")
    _, notices, service = await meet({"/v1/models": listed}, tmp_path, name="qwen", reply=reply)
    assert service.asked[0].json["model"] == "default_model", "any other name makes the server load that"
    assert notices == ["mlx_lm.server has no model named qwen: asking the one it was started with (default_model)."]


async def test_mlx_lm_is_asked_for_a_model_that_it_lists(tmp_path: Path):
    listed = Play(said(MLX_LIST).pieces, headers=PYTHON, kind="application/json", ends="length")
    name = "mlx-community/cached"
    _, notices, service = await meet({"/v1/models": listed}, tmp_path, name=name, reply=chat("Hi.", model=name))
    assert (service.asked[0].json["model"], notices) == (name, [])


async def test_no_name_is_taken_from_the_head_of_a_list(tmp_path: Path):
    listed = {"data": [{"id": "a-huge-one", "owned_by": "vllm", "max_model_len": 1}, *VLLM_LIST["data"]]}
    model, notices, service = await meet(
        {"/v1/models": said(listed)}, tmp_path, name="qwen", reply=chat(model="qwen", words="Hi.")
    )
    assert (service.asked[0].json["model"], model.context_window, notices) == ("qwen", 16384, [])
    _, notices, service = await meet(
        {"/v1/models": said(listed)}, tmp_path, name="gone", reply=chat("Hi.", model="gone")
    )
    assert service.asked[0].json["model"] == "gone"
    assert notices == ["The server does not list gone; it lists a-huge-one, qwen."]


async def test_another_model_than_asked_for_is_named_once(tmp_path: Path):
    model, notices, _ = await meet({}, tmp_path, name="qwen", reply=chat("Hi.", model="tiny-llama"))
    assert notices == ["The server answered with tiny-llama, not with qwen."]
    assert model.context_window is None


@pytest.mark.parametrize("body", [b"[]", b"null", b"{", b'{"data": 3}', b'{"data": [null, {"id": 7}]}', b"<html>"])
async def test_a_server_that_tells_nonsense_is_still_asked(tmp_path: Path, body: bytes):
    play = Play((body,), kind="application/json", ends="length")
    paths = ["/v1/models", "/props", "/api/v0/models", "/api/show", "/api/ps"]
    told: dict[str, Play] = dict.fromkeys(paths, play)
    model, _, service = await meet(told, tmp_path, name="some-model", reply=chat("Hi."))
    assert (model.context_window, len(service.asked)) == (None, 1)


@pytest.mark.parametrize(
    ("asked", "served", "same"),
    [
        ("qwen", "qwen:latest", True),
        ("qwen:latest", "qwen", True),
        ("gpt-5", "gpt-5-2026-01-31", True),
        ("org/Qwen3-8B", "/models/qwen3-8b.gguf", True),
        ("qwen", "models\\qwen.gguf", True),
        ("qwen3:8b", "qwen3:30b", False),
        ("qwen", "tiny-llama", False),
    ],
)
def test_names_of_one_model(asked: str, served: str, same: bool):
    assert same_model(asked, served) is same
