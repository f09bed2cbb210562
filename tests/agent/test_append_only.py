"""Every request to a local model begins with the one before it, byte for byte: only what is new has to be read."""

from itertools import pairwise

from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
from tests.agent.conftest import Local, Project, prompts
from tests.backends.tiny import ScriptedEngine

from punie.agent import TurnEnded
from punie.agent.events import UsageUpdated
from punie.agent.permissions import Permissions

FIND = '<tool_call>\n{"name": "find_symbol", "arguments": {"name": "Flask"}}\n</tool_call>'
EDIT = '<tool_call>\n{"name": "write_file", "arguments": {"path": "new.txt", "content": "x"}}\n</tool_call>'


def assert_only_grown(engine: ScriptedEngine, *, requests: int) -> None:
    given = prompts(engine)
    assert len(given) == requests
    for before, after in pairwise(given):
        assert len(after) > len(before)
        assert after[: len(before)] == before


def stored(end: TurnEnded) -> list[ModelMessage]:
    """The conversation as it comes back from a file."""
    return ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json([*end.messages]))


async def test_after_tool_steps_and_further_turns(project: Project, local: Local):
    model, engine = local(FIND, "It is there:\n[[result]]", "Yes.", FIND, "Again.")
    _, first = await project.turn(model=model)
    _, second = await project.turn(model=model, history=first.messages)
    await project.turn(model=model, history=second.messages)
    assert_only_grown(engine, requests=5)


async def test_after_a_reply_that_was_asked_again(project: Project, local: Local):
    broken = '<tool_call>\n{"name": "find_symbol", "arguments": {"na'
    model, engine = local(broken, FIND, "  ", "It is at src/nowhere.py:7.", "At src/nowhere.py:8.", "Yes.")
    _, first = await project.turn(model=model)
    await project.turn(model=model, history=first.messages)
    assert_only_grown(engine, requests=6)


async def test_after_calls_that_were_wrong(project: Project, local: Local):
    unknown = FIND.replace("find_symbol", "find_thing")
    wrong = FIND.replace('"name": "Flask"', '"nme": "Flask"')
    model, engine = local(unknown, wrong, FIND.replace("}}\n", "},}\n"), FIND + "\n" + FIND, "Done.", "Yes.")
    _, first = await project.turn(model=model)
    await project.turn(model=model, history=first.messages)
    assert_only_grown(engine, requests=6)


async def test_in_a_resumed_session(project: Project, local: Local):
    model, engine = local(FIND, "There:\n[[result]]")
    _, first = await project.turn(model=model)
    again, other = local("Yes.")
    await project.turn(model=again, history=stored(first))
    other.requests.insert(0, engine.requests[-1])
    assert_only_grown(other, requests=2)


async def test_after_a_turn_that_was_stopped(project: Project, local: Local):
    model, engine = local(EDIT, "Going on.")
    _, first = await project.turn(model=model)
    assert first.stop_reason == "denied"
    await project.turn(model=model, history=first.messages)
    assert_only_grown(engine, requests=2)


async def test_after_a_mode_switch(project: Project, local: Local):
    model, engine = local(EDIT, "Refused.", EDIT, "Done.")
    _, first = await project.turn(model=model, permissions=Permissions("plan"))
    assert first.tool_calls[0].outcome == "denied"
    _, second = await project.turn(model=model, permissions=Permissions("acceptEdits"), history=first.messages)
    assert second.tool_calls[0].outcome == "ok"
    assert_only_grown(engine, requests=4)


async def test_what_was_reused_is_told_after_every_request(project: Project, local: Local):
    model, engine = local(FIND, "There.")
    events, _ = await project.turn(model=model)
    told = [event for event in events if isinstance(event, UsageUpdated)]
    sizes = [len(prompt) for prompt in prompts(engine)]
    assert [usage.input_tokens for usage in told] == [sizes[0], sum(sizes)]
    assert [usage.cached_tokens for usage in told] == [sizes[0] - 1, sum(sizes) - 2]
