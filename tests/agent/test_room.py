"""A conversation that is too long for the model: what is left out, what stays, and what it costs the prompt."""

from itertools import pairwise

import pytest
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ToolReturnPart
from pydantic_ai.models import override_allow_model_requests
from tests.agent.conftest import Local, Project, prompts
from tests.stubs import Answer, openai_chunks, serving

from punie.agent import Event, TurnEnded
from punie.agent.events import Notice
from punie.backends.openai import build
from punie.config import AgentConfig

LINES = 60
CALLS = [
    f'<tool_call>\n{{"name": "read_file", "arguments": {{"path": "{name}.txt"}}}}\n</tool_call>' for name in "abcdef"
]


@pytest.fixture
def files(project: Project) -> Project:
    for name in "abcdef":
        (project.root / f"{name}.txt").write_text("".join(f"{name} line {number}\n" for number in range(LINES)))
    return project


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice) and "too long" in event.text]


def results(end: TurnEnded) -> list[str]:
    parts = [part for message in end.messages if isinstance(message, ModelRequest) for part in message.parts]
    return [str(part.content) for part in parts if isinstance(part, ToolReturnPart)]


async def test_the_oldest_results_are_left_out_and_the_turn_goes_on(files: Project, local: Local, tokenizer):
    model, engine = local(*CALLS[:4], "Read.", context_window=4000)
    events, end = await files.turn(model=model)
    assert (end.answer, end.stop_reason) == ("Read.", "done")
    assert notices(events)
    last = tokenizer.decode(list(prompts(engine)[-1]), skip_special_tokens=False)
    assert "d line 59" in last, "the last result must stay"
    assert "a line 59" not in last
    assert "(61 lines left out to make room; call read_file(path='a.txt') again to see them)" in last
    assert all(f"{name} line 59" in result for name, result in zip("abcd", results(end), strict=True)), (
        "nothing is lost"
    )


async def test_after_that_the_prompt_only_grows_again_also_in_a_resumed_session(files: Project, local: Local):
    model, engine = local(*CALLS[:3], "Read.", "Yes.", "Still.", context_window=4000)
    _, first = await files.turn(model=model)
    sent = len(engine.requests)
    stored = ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json([*first.messages]))
    _, second = await files.turn(model=model, history=stored)
    await files.turn(model=model, history=second.messages)
    given = prompts(engine)[sent - 1 :]
    assert len(given) == 3
    for before, after in pairwise(given):
        assert after[: len(before)] == before


async def test_what_cannot_be_made_to_fit_is_a_clear_error(files: Project, local: Local):
    model, engine = local(CALLS[0], "Never said.", context_window=2600)
    events, end = await files.turn(model=model)
    assert (end.stop_reason, end.exit_code) == ("error", 1)
    assert end.error
    assert "2600" in end.error
    assert len(engine.requests) == 1
    assert not notices(events), "the last result is never left out"


async def test_a_command_is_not_to_be_run_again_to_see_what_it_said(files: Project, local: Local, tokenizer):
    from punie.agent.approval import approve_all

    run = '<tool_call>\n{"name": "run_command", "arguments": {"command": "seq 1 400"}}\n</tool_call>'
    model, engine = local(run, CALLS[0], CALLS[1], "Done.", context_window=3600)
    _, end = await files.turn(model=model, approve=approve_all)
    assert end.answer == "Done."
    last = tokenizer.decode(list(prompts(engine)[-1]), skip_special_tokens=False)
    assert "lines left out to make room)" in last
    assert "call run_command" not in last


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"code": 400, "message": "request (9000 tokens) exceeds the available context size (4096 tokens)",'
        b' "type": "exceed_context_size_error"}}',
        b'{"error": {"message": "This model\'s maximum context length is 4096 tokens.", "code": null}}',
    ],
    ids=["llama.cpp", "vLLM"],
)
async def test_a_server_that_says_so_is_asked_once_more_with_less(files: Project, body: bytes):
    reads = [openai_chunks(call=("read_file", {"path": f"{name}.txt"})) for name in "ab"]
    too_long = Answer(body, 400, "application/json")
    with override_allow_model_requests(True):
        async with serving(*reads, too_long, openai_chunks("Read.")) as stub:
            model = build(f"m@{stub.url}/v1", AgentConfig(), env={})
            events, end = await files.turn(model=model)
    asked = [request for path, _, request in stub.requests if path.endswith("/chat/completions")]
    assert end.answer == "Read."
    assert len(notices(events)) == 1
    tools = [message["content"] for message in asked[-1]["messages"] if message["role"] == "tool"]
    assert tools[0].startswith("(61 lines left out to make room")
    assert "b line 59" in tools[1]
