import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest
from pydantic_ai.models import ModelRequestParameters, override_allow_model_requests
from tests.backends import services
from tests.stubs import Answer, StubServer, claude_events, serving

from punie.agent import TurnEnded, create_agent, run_turn
from punie.backends.claude import DEFAULT_MODEL, build
from punie.config import AgentConfig
from punie.errors import ConfigError
from punie.tools import Workspace

FIND = ("find_symbol", {"name": "Flask"})


@pytest.fixture(autouse=True)
def _allow_loopback_requests():
    with override_allow_model_requests(True):
        yield


async def turn(stub: StubServer | services.Service, tmp_path, **settings) -> TurnEnded:
    (tmp_path / "app.py").write_text("class Flask:\n    pass\n")
    config = AgentConfig(**settings)
    env = {"ANTHROPIC_API_KEY": "secret", "ANTHROPIC_BASE_URL": stub.url}
    agent = create_agent(config, model=build("", config, env=env))
    events = [e async for e in run_turn(agent, "Where?", workspace=Workspace(tmp_path), config=config)]
    end = events[-1]
    assert isinstance(end, TurnEnded)
    return end


async def test_a_whole_turn_over_http(tmp_path):
    async with serving(claude_events(call=FIND), claude_events("It is at app.py:1.")) as stub:
        end = await turn(stub, tmp_path, stop_sequences=("END",))
    assert (end.answer, end.exit_code) == ("It is at app.py:1.", 0)
    path, headers, sent = stub.requests[0]
    assert path.startswith("/v1/messages")
    assert "secret" in headers["authorization"]
    assert (sent["model"], sent["stop_sequences"]) == (DEFAULT_MODEL, ["END"])
    assert sent["tools"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "5m"}
    assert sent["system"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "5m"}
    assert stub.requests[1][2]["tools"] == sent["tools"], "a changed tool list is paid for anew"


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, "authentication_error", "The server refused the key"),
        (404, "not_found_error", "The server does not know the model"),
        (429, "rate_limit_error", "The server's rate limit was reached"),
        (529, "overloaded_error", "The server is overloaded"),
    ],
)
async def test_a_failing_service_ends_the_turn_with_its_cause(tmp_path, status: int, kind: str, said: str):
    body = f'{{"type": "error", "error": {{"type": "{kind}", "message": "no"}}}}'.encode()
    async with serving(Answer(body, status, "application/json")) as stub:
        end = await turn(stub, tmp_path)
    assert (end.stop_reason, end.exit_code) == ("error", 1)
    assert end.error
    assert end.error.startswith(said), end.error


async def test_a_dropped_stream_ends_the_turn(tmp_path):
    async with serving(Answer(claude_events("Half an answer").body[:700], close_early=True)) as stub:
        end = await turn(stub, tmp_path)
    assert (end.stop_reason, end.exit_code) == ("error", 1)


@pytest.mark.parametrize("env", [{}, {"ANTHROPIC_API_KEY": "  "}])
def test_without_a_key_it_says_what_to_set(env: dict[str, str]):
    with pytest.raises(ConfigError) as caught:
        build("", AgentConfig(), env=env)
    lines = str(caught.value).splitlines()
    assert (lines[0], lines[-1]) == ("Claude needs a key.", "Or use --model local.")
    assert "ANTHROPIC_API_KEY" in lines[1]
    assert "keyring set punie ANTHROPIC_API_KEY" in lines[1]
    assert caught.value.exit_code == 2


# --- what is sent ----------------------------------------------------------------------------------------------------

THOUGHT = {"type": "thinking", "thinking": "I call find_symbol with Quart.", "signature": "sig"}
LOOK = services.tool_use("find_symbol", name="Flask")


def marks(value: object) -> int:
    """How many cache breakpoints a request sets, the one the service sets by itself included."""
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(marks(item) for item in value.values())
    return sum(marks(item) for item in value) if isinstance(value, list) else 0


async def three_requests(tmp_path: Path) -> list[services.Asked]:
    """A turn with thinking and a call, then a second turn that goes on from it."""
    (tmp_path / "app.py").write_text("class Flask:\n    pass\n")
    plays = (services.claude(THOUGHT, LOOK, stop="tool_use"), services.claude(services.text("At app.py:1.")))
    async with services.serving(*plays, services.claude(services.text("You are welcome."))) as service:
        config = AgentConfig()
        env = {"ANTHROPIC_API_KEY": "secret", "ANTHROPIC_BASE_URL": service.url}
        agent = create_agent(config, model=build("", config, env=env))
        history: Sequence[ModelMessage] = ()
        for prompt in ("Where is Flask?", "Thanks."):
            turn = run_turn(agent, prompt, workspace=Workspace(tmp_path), config=config, history=history)
            end = [e async for e in turn][-1]
            assert isinstance(end, TurnEnded)
            assert end.error is None
            history = end.messages
        return service.asked


async def test_each_request_extends_the_one_before_byte_for_byte(tmp_path: Path):
    requests = await three_requests(tmp_path)
    assert len(requests) == 3
    for earlier, later in pairwise(requests):
        for key in ("tools", "system", "model", "max_tokens", "cache_control"):
            assert json.dumps(earlier.json[key]) == json.dumps(later.json[key]), key
        before, after = (json.dumps(asked.json["messages"]) for asked in (earlier, later))
        assert after.startswith(before.removesuffix("]"))
        assert len(after) > len(before)


async def test_the_service_caches_tools_instructions_and_the_conversation(tmp_path: Path):
    for asked in await three_requests(tmp_path):
        sent, ephemeral = asked.json, {"type": "ephemeral", "ttl": "5m"}
        assert sent["tools"][-1]["cache_control"] == sent["system"][-1]["cache_control"] == ephemeral
        assert sent["cache_control"] == ephemeral, "the service puts this one at the end of the conversation"
        assert marks(sent) == 3, "four are allowed"


async def test_thinking_goes_back_as_it_came_and_into_no_tool(tmp_path: Path):
    requests = await three_requests(tmp_path)
    replied = requests[1].json["messages"][1]["content"]
    assert replied[0] == THOUGHT
    assert replied[1]["input"] == {"name": "Flask"}, "the call is made with its own arguments"
    assert "Quart" not in json.dumps(requests[1].json["messages"][2]["content"])


async def test_cached_tokens_are_counted(tmp_path: Path):
    read = services.claude(services.text("Hi."), cache_read_input_tokens=900, cache_creation_input_tokens=50)
    async with services.serving(read) as service:
        end = await turn(service, tmp_path)
    assert (end.usage.input_tokens, end.usage.cached_tokens) == (961, 900)


async def test_tokens_are_counted_by_the_service_before_the_request():
    told = {"/v1/messages/count_tokens": services.said({"input_tokens": 1234})}
    async with services.serving(services.said({}), told=told) as service:
        env = {"ANTHROPIC_API_KEY": "secret", "ANTHROPIC_BASE_URL": service.url}
        model = build("", AgentConfig(), env=env)
        asked: list[ModelMessage] = [ModelRequest.user_text_prompt("How long is this?")]
        usage = await model.count_tokens(asked, None, ModelRequestParameters())
    assert usage.input_tokens == 1234
    assert service.asked == [], "nothing was generated"


def test_the_context_window_is_known():
    assert build("", AgentConfig(), env={"ANTHROPIC_API_KEY": "k"}).context_window == 1_000_000
    assert build("claude-haiku-4-5", AgentConfig(), env={"ANTHROPIC_API_KEY": "k"}).context_window == 200_000


async def test_a_prompt_that_is_too_long_is_told_apart(tmp_path: Path):
    error = {"type": "invalid_request_error", "message": "prompt is too long: 1000001 tokens > 1000000 maximum"}
    async with services.serving(services.said({"type": "error", "error": error}, 400)) as service:
        end = await turn(service, tmp_path)
    assert (end.error or "").startswith(
        "The conversation is too long: claude-sonnet-5-5, status 400: prompt is too long"
    )


async def test_an_overload_in_the_middle_of_a_stream_ends_the_turn(tmp_path: Path):
    whole = services.claude(services.text("Half")).body
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    event = f"event: error\ndata: {json.dumps(error)}\n\n".encode()
    async with services.serving(services.Play((whole[: whole.index(b"event: message_delta")], event))) as service:
        end = await turn(service, tmp_path)
        assert len(service.asked) == 1, "a part of the answer was seen"
    assert end.error
    assert end.error.startswith("The server is overloaded: claude-sonnet-5-5, status 529: Overloaded")


def test_a_named_model():
    assert build("claude-opus-4-8", AgentConfig(), env={"ANTHROPIC_API_KEY": "k"}).model_name == "claude-opus-4-8"
