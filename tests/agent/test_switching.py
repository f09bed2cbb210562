"""One conversation, several models: what each of them is sent about what the others did."""

import json
from itertools import pairwise
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models import override_allow_model_requests
from pydantic_ai.models.function import AgentInfo, FunctionModel
from tests.agent.conftest import Local, Project, prompts
from tests.stubs import StubServer, claude_events, openai_chunks, serving

from punie.agent import TurnEnded
from punie.backends import claude, openai
from punie.config import AgentConfig

FIND = '<tool_call>\n{"name": "find_symbol", "arguments": {"name": "Flask"}}\n</tool_call>'
PLACE = "src/app_Module.py:4"
LIST = ("list_files", {"glob": "*.md"})
READ = ("read_file", {"path": "notes.md"})


@pytest.fixture(autouse=True)
def _allow_loopback_requests():
    with override_allow_model_requests(True):
        yield


async def local_turn(project: Project, local: Local, *, history=()) -> TurnEnded:
    """A turn of a local model with a call, an answer that points at its result, and a broken call before them."""
    model, _ = local('<tool_call>\n{"name": "find_symbol", "arguments": {"na', FIND, "It is here:\n[[result]]")
    _, end = await project.turn(model=model, history=history)
    assert PLACE in end.answer
    return end


async def openai_turn(project: Project, *, history) -> tuple[TurnEnded, list[list[dict[str, Any]]]]:
    async with serving(openai_chunks(call=LIST), openai_chunks("One note.")) as stub:
        model = openai.build(f"m@{stub.url}/v1", AgentConfig(), env={})
        _, end = await project.turn(model=model, history=history)
    return end, [request["messages"] for request in asked(stub, "/chat/completions")]


async def claude_turn(project: Project, *, history) -> tuple[TurnEnded, list[list[dict[str, Any]]]]:
    async with serving(claude_events(call=READ), claude_events("Nothing in it.")) as stub:
        env = {"ANTHROPIC_API_KEY": "secret", "ANTHROPIC_BASE_URL": stub.url}
        _, end = await project.turn(model=claude.build("", AgentConfig(), env=env), history=history)
    return end, [request["messages"] for request in asked(stub, "/v1/messages")]


def asked(stub: StubServer, path: str) -> list[dict[str, Any]]:
    return [request for each, _, request in stub.requests if each.split("?")[0].endswith(path)]


def check_openai(messages: list[dict[str, Any]]) -> None:
    """Every call is followed at once by its results, every id is used once, and arguments are JSON objects."""
    seen: set[str] = set()
    waiting: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting
        for call in message.get("tool_calls") or ():
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
            assert call["id"] not in seen
            seen.add(call["id"])
            waiting.add(call["id"])
    assert not waiting


def check_claude(messages: list[dict[str, Any]]) -> None:
    """Turns alternate, and the results of a turn's calls are in the turn right after it."""
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
    for before, after in pairwise(messages):
        calls = {block["id"] for block in before["content"] if block["type"] == "tool_use"}
        results = {block["tool_use_id"] for block in after["content"] if block["type"] == "tool_result"}
        assert calls == results
    for message in messages:
        assert all(block.get("text", "-").strip() for block in message["content"])


async def test_local_then_a_server_then_claude_then_local_again(project: Project, local: Local, tokenizer):
    first = await local_turn(project, local)
    second, to_openai = await openai_turn(project, history=first.messages)
    third, to_claude = await claude_turn(project, history=second.messages)
    for messages in to_openai:
        check_openai(messages)
        text = json.dumps(messages)
        assert "[[result]]" not in text, "what a local model wrote for itself must not leak"
        assert PLACE in text
    for messages in to_claude:
        check_claude(messages)
        text = json.dumps(messages)
        assert "[[result]]" not in text
        assert "One note." in text
    model, engine = local("All clear.")
    _, last = await project.turn(model=model, history=third.messages)
    assert last.answer == "All clear."
    read = tokenizer.decode(list(prompts(engine)[0]), skip_special_tokens=False)
    assert "It is here:\n[[result]]<|im_end|>" in read, "a local model reads its own words"
    assert '{"name": "list_files", "arguments": {"glob": "*.md"}}' in read
    assert "One note.<|im_end|>" in read
    assert "Nothing in it.<|im_end|>" in read


async def test_a_broken_native_call_does_not_poison_the_next_model(project: Project, local: Local):
    async with serving(openai_chunks(call=READ), openai_chunks("Read.")) as stub:
        stub.answers = [_broken_arguments(), *stub.answers]
        model = openai.build(f"m@{stub.url}/v1", AgentConfig(), env={})
        _, end = await project.turn(model=model)
    assert end.answer == "Read."
    for request in asked(stub, "/chat/completions"):
        check_openai(request["messages"])
    _, to_claude = await claude_turn(project, history=end.messages)
    check_claude(to_claude[0])
    model, _ = local("Fine.")
    _, last = await project.turn(model=model, history=end.messages)
    assert last.answer == "Fine."


def _broken_arguments():
    answer = openai_chunks(call=("read_file", {"path": "BROKEN"}))
    return type(answer)(answer.body.replace(b'\\"BROKEN\\"}', b'\\"BRO'), answer.status, answer.content_type)


async def test_every_call_has_its_result_whoever_made_it(project: Project, local: Local):
    first = await local_turn(project, local)
    seen: list[list[ModelMessage]] = []

    async def answer(messages: list[ModelMessage], info: AgentInfo):
        del info
        seen.append(messages)
        yield "Seen."

    await project.turn(model=FunctionModel(stream_function=answer), history=first.messages)
    calls = [p for m in seen[0] if isinstance(m, ModelResponse) for p in m.parts if isinstance(p, ToolCallPart)]
    results = [p for m in seen[0] if isinstance(m, ModelRequest) for p in m.parts if isinstance(p, ToolReturnPart)]
    assert [call.tool_call_id for call in calls] == [result.tool_call_id for result in results]
    assert len({call.tool_call_id for call in calls}) == len(calls) == 1
