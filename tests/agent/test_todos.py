"""The list of steps through a conversation: asked about by nobody, and kept when what was said is summed up."""

import json
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from tests.agent.conftest import Project
from tests.stubs import Canned, scripted

from punie.agent import Permissions, SessionStore, TurnEnded, create_agent, run_turn
from punie.agent.approval import Decision, Request
from punie.agent.compaction import compacted, sent
from punie.agent.todos import todos_in
from punie.config import AgentConfig, PermissionMode
from punie.rules import RuleSet, parse_rule
from punie.tools import Workspace

FIRST = ("write_todos", {"todos": [{"content": "Look", "status": "in_progress"}]})
SECOND = (
    "write_todos",
    {"todos": [{"content": "Look", "status": "completed"}, {"content": "Mend it", "status": "pending"}]},
)
KEPT = "1 of 2 done\n[x] Look\n[ ] Mend it"


async def nobody_is_asked(request: Request) -> Decision:
    raise AssertionError(f"asked about {request.tool}")


async def test_nobody_is_asked_in_any_mode_and_nothing_is_written(project: Project):
    modes: tuple[PermissionMode, ...] = ("plan", "default", "acceptEdits", "dontAsk", "bypassPermissions")
    before = sorted(project.root.rglob("*"))
    for mode in modes:
        _, end = await project.turn(SECOND, "Done.", approve=nobody_is_asked, permissions=Permissions(mode))
        assert [(call.outcome, call.output) for call in end.tool_calls] == [("ok", KEPT)]
    assert sorted(project.root.rglob("*")) == before


async def test_a_list_that_comes_as_text_is_read(project: Project):
    steps = json.dumps(SECOND[1]["todos"])
    _, end = await project.turn(("write_todos", {"todos": steps}), ("write_todos", {"todos": "[{"}), "Done.")
    assert [(call.outcome, call.output) for call in end.tool_calls[:1]] == [("ok", KEPT)]
    assert end.tool_calls[1].output == "`todos` is wrong: Input should be a valid array. Call it as write_todos(todos)."


async def test_a_rule_can_deny_it(project: Project):
    rules = RuleSet(deny=(parse_rule("write_todos"),))
    _, end = await project.turn(SECOND, "Done.", permissions=Permissions("default", rules))
    assert end.tool_calls[0].outcome == "denied"


async def test_the_list_is_what_was_written_last(project: Project):
    assert todos_in([]) == ""
    wrong = ("write_todos", {"todos": [{"content": "Look", "status": "done"}]})
    _, end = await project.turn(FIRST, SECOND, wrong, "Done.")
    assert todos_in(end.messages) == KEPT
    _, end = await project.turn(("write_todos", {"todos": []}), "Done.", history=end.messages)
    assert todos_in(end.messages) == ""


def said(messages: list[ModelMessage]) -> str:
    requests = (message for message in messages if isinstance(message, ModelRequest))
    parts = (part for message in requests for part in message.parts)
    return "\n".join(str(part.content) for part in parts if isinstance(part, UserPromptPart))


async def test_it_stays_when_what_was_said_is_summed_up_by_the_model_or_without_one(project: Project):
    for model in (Canned(ModelResponse([TextPart("We looked.")])), Canned(ModelResponse([TextPart("")]))):
        _, end = await project.turn(SECOND, "Looked.")
        done = await compacted(end.messages, model=model)
        assert said(sent(done.messages)).endswith(f"The list of steps, as it was kept last:\n{KEPT}")
        assert todos_in(done.messages) == KEPT
        again = await compacted(done.messages, model=Canned(ModelResponse([TextPart("Still.")])))
        assert said(sent(again.messages)).count(KEPT) == 1


async def test_it_is_there_again_when_a_conversation_is_resumed(project: Project, tmp_path: Path):
    config = AgentConfig()
    with SessionStore(tmp_path / "state") as store:
        session = store.create(project.root)
        agent = create_agent(config, model=scripted(SECOND, "Looked."))
        stream = run_turn(agent, "go", workspace=Workspace(project.root), config=config, session=session)
        events = [event async for event in stream]
        assert isinstance(events[-1], TurnEnded)
        session.close()
        resumed = store.resume(project.root)
        assert todos_in(resumed.messages) == KEPT
        resumed.close()
