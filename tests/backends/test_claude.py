import pytest
from pydantic_ai.models import override_allow_model_requests
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


async def turn(stub: StubServer, tmp_path, **settings) -> TurnEnded:
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


def test_a_named_model():
    assert build("claude-opus-4-8", AgentConfig(), env={"ANTHROPIC_API_KEY": "k"}).model_name == "claude-opus-4-8"
