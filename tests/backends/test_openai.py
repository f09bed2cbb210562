import pytest
from pydantic_ai.models import override_allow_model_requests
from tests.stubs import Answer, StubServer, openai_chunks, serving

from punie.agent import TurnEnded, create_agent, run_turn
from punie.agent.events import Text
from punie.backends._refusals import is_loopback
from punie.backends.openai import build
from punie.config import AgentConfig
from punie.errors import ConfigError
from punie.tools import Workspace

FIND = ("find_symbol", {"name": "Flask"})


@pytest.fixture(autouse=True)
def _allow_loopback_requests():
    with override_allow_model_requests(True):
        yield


async def turn(stub: StubServer, tmp_path, *, env: dict[str, str] | None = None, **settings) -> tuple[str, TurnEnded]:
    """One turn against the stub; the text that was streamed and the end."""
    (tmp_path / "app.py").write_text("class Flask:\n    pass\n")
    config = AgentConfig(**settings)
    agent = create_agent(config, model=build(f"some/model:7b@{stub.url}/v1", config, env=env or {}))
    events = [e async for e in run_turn(agent, "Where?", workspace=Workspace(tmp_path), config=config)]
    end = events[-1]
    assert isinstance(end, TurnEnded)
    return "".join(event.delta for event in events if isinstance(event, Text)), end


async def test_a_whole_turn_over_http(tmp_path):
    async with serving(openai_chunks(call=FIND), openai_chunks("It is at app.py:1.")) as stub:
        text, end = await turn(stub, tmp_path, stop_sequences=("<|im_end|>", "END"), temperature=0.25, seed=9)
    assert (text, end.answer, end.exit_code) == ("It is at app.py:1.", "It is at app.py:1.", 0)
    assert (end.usage.input_tokens, end.usage.output_tokens) == (22, 14)
    path, headers, sent = stub.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer not-needed"
    assert sent["model"] == "some/model:7b"
    assert sent["stop"] == ["<|im_end|>", "END"], "stop_sequences must reach the wire as stop"
    assert (sent["temperature"], sent["seed"]) == (0.25, 9)
    assert [tool["function"]["name"] for tool in sent["tools"]][:2] == ["read_file", "list_files"]
    assert stub.requests[1][2]["messages"][-1]["role"] == "tool"


async def test_a_call_the_server_gave_as_text_is_made(tmp_path):
    call = '<tool_call>\n{"name": "find_symbol", "arguments": {"name": "Flask"}}\n</tool_call>'
    async with serving(openai_chunks(call), openai_chunks("At app.py:1.")) as stub:
        text, end = await turn(stub, tmp_path)
    assert [record.outcome for record in end.tool_calls] == ["ok"]
    assert text == end.answer == "At app.py:1."


async def test_a_reply_cut_off_at_the_token_limit(tmp_path):
    async with serving(openai_chunks("Half an", finish="length")) as stub:
        _, end = await turn(stub, tmp_path)
    assert (end.stop_reason, end.exit_code, end.answer) == ("limit", 4, "Half an")


JSON = "application/json"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(b'{"error": {"message": "slow down"}}', 429, JSON), "The server's rate limit was reached"),
        (Answer(b'{"error": {"message": "no such model"}}', 404, JSON), "The server does not know the model"),
        (Answer(b'{"error": {"message": "bad key"}}', 401, JSON), "http://127.0.0.1"),
        (Answer(b'{"error": {"message": "boom"}}', 500, JSON), "The model failed: some/model:7b, status 500"),
        (Answer(b"<html>oops</html>", 502, "text/html"), "The model failed"),
        (Answer(b"data: {not json\n\n"), "The model failed: Failed to decode response as JSON"),
        (Answer(openai_chunks("Half").body[:300], close_early=True), "No answer from the server"),
        (Answer(b"", 200), "The model"),
        (Answer(b"\xff\xfe\x00garbage"), "The model"),
    ],
)
async def test_a_failing_server_ends_the_turn_with_its_cause(tmp_path, answer: Answer, said: str):
    async with serving(answer) as stub:
        _, end = await turn(stub, tmp_path)
    assert (end.stop_reason, end.exit_code) == ("error", 1)
    assert end.error
    assert end.error.startswith(said), end.error
    assert len(end.error.splitlines()) <= 3


async def test_a_server_that_recovers_is_asked_again(tmp_path):
    async with serving(Answer(b"{}", 503, JSON), openai_chunks("Hello.")) as stub:
        _, end = await turn(stub, tmp_path)
    assert end.answer == "Hello."


async def test_nobody_listens(tmp_path):
    async with serving() as stub:
        pass
    _, end = await turn(stub, tmp_path)
    assert (end.exit_code, end.error is not None and end.error.startswith("No answer from the server")) == (1, True)


@pytest.mark.parametrize(
    ("name", "cause", "step"),
    [
        ("", "openai: needs a model name.", "openai:MODEL@http"),
        ("gpt", "The OpenAI service needs a key.", "Set OPENAI_API_KEY"),
        ("m@", "'' is not a server address.", "openai:m@http://HOST:PORT/v1"),
        ("m@127.0.0.1:80", "'127.0.0.1:80' is not a server address.", "openai:m@http://HOST:PORT/v1"),
    ],
)
def test_a_wrong_spec_says_what_to_write(name: str, cause: str, step: str):
    with pytest.raises(ConfigError) as caught:
        build(name, AgentConfig(), env={})
    assert caught.value.cause == cause
    assert step in caught.value.next_step


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("m@http://127.0.0.1:1/v1", "secret"),
        ("m@https://models.example/v1", "secret"),
        ("m@http://models.example/v1", "not-needed"),
        ("m", "secret"),
    ],
)
def test_the_key_never_travels_in_the_clear(name: str, key: str):
    assert build(name, AgentConfig(), env={"OPENAI_API_KEY": "secret"}).client.api_key == key


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("localhost.example", False)],
)
def test_loopback(host: str, local: bool):
    assert is_loopback(host) is local
