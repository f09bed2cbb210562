import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic_ai import CancellationToken
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ModelResponseStreamEvent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models import CompletedStreamedResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from tests.agent.conftest import Local, Project
from tests.stubs import Canned, scripted

from punie.agent import Event, TurnEnded, create_agent, run_turn
from punie.agent.approval import Decision, Request, approve_all, deny, session
from punie.agent.events import Notice, Text, TextReplaced, Thinking, ToolCalled, ToolReturned, UsageUpdated
from punie.backends._notices import tell
from punie.config import AgentConfig, Limits
from punie.tools import Workspace

FIND = ("find_symbol", {"name": "Flask"})
PLACE = "src/app_Module.py:4"
WRITE = ("write_file", {"path": "new.txt", "content": "x\n"})


def shape(events: list[Event]) -> list[str]:
    """The events as short lines; text deltas joined."""
    lines: list[str] = []
    for event in events:
        match event:
            case Text(delta) if lines and lines[-1].startswith("text "):
                lines[-1] += delta
            case Text(delta):
                lines.append(f"text {delta}")
            case TextReplaced(text):
                lines.append(f"replaced {text!r}")
            case ToolCalled(name=name, arguments=arguments):
                lines.append(f"call {name} {json.dumps(arguments)}")
            case ToolReturned(name=name, outcome=outcome):
                lines.append(f"{outcome} {name}")
            case Notice(text):
                lines.append(f"notice {text.split(':')[0]}")
            case TurnEnded(stop_reason=reason, exit_code=code):
                lines.append(f"end {reason} {code}")
            case UsageUpdated() | Thinking():
                pass
    return lines


def text_shown(events: list[Event]) -> str:
    """What a front end that follows the rules shows since the last tool result."""
    text = ""
    for event in events:
        match event:
            case Text(delta):
                text += delta
            case TextReplaced(new):
                text = new
            case ToolReturned():
                text = ""
            case _:
                pass
    return text


def open_calls(messages: list[ModelMessage]) -> set[str]:
    calls = {p.tool_call_id for m in messages for p in m.parts if isinstance(p, ToolCallPart)}
    return calls - {p.tool_call_id for m in messages for p in m.parts if isinstance(p, ToolReturnPart)}


async def test_a_turn_from_call_to_answer(project: Project):
    events, end = await project.turn(FIND, f"Flask is at {PLACE}.")
    assert shape(events) == [
        'call find_symbol {"name": "Flask"}',
        "ok find_symbol",
        f"text Flask is at {PLACE}.",
        "end done 0",
    ]
    assert (end.answer, end.turns, end.error) == (f"Flask is at {PLACE}.", 2, None)
    (record,) = end.tool_calls
    assert record.output.splitlines()[1].startswith(PLACE)
    assert 0 < record.duration_s == end.timing.tools_s < end.timing.total_s


async def test_usage_is_told_after_every_reply(project: Project):
    events, end = await project.turn(FIND, "There.")
    told = [event for event in events if isinstance(event, UsageUpdated)]
    assert len(told) == 2
    assert told[-1] == end.usage
    assert told[0].output_tokens < told[1].output_tokens


async def test_timing_of_a_local_engine_is_summed_over_the_replies_of_this_turn(project: Project):
    def reply(part: TextPart | ToolCallPart) -> ModelResponse:
        timing = {"load_s": 0.5, "prefill_s": 0.25, "decode_s": 2.0}
        return ModelResponse(parts=[part], provider_details={"timing": timing})

    model = Canned(reply(ToolCallPart(*FIND)), reply(TextPart("Here.")), reply(TextPart("Again.")))
    _, end = await project.turn(model=model)
    assert (end.timing.load_s, end.timing.prefill_s, end.timing.decode_s) == (1.0, 0.5, 4.0)
    _, end = await project.turn(model=model, history=end.messages)
    assert end.timing.decode_s == 2.0


async def test_the_answer_remembers_earlier_turns(project: Project):
    _, first = await project.turn(FIND, "Found it.")
    _, second = await project.turn(f"As said: {PLACE}.", history=first.messages)
    assert second.answer == f"As said: {PLACE}."
    assert len(second.messages) == len(first.messages) + 2


async def test_a_call_written_as_text_runs_once_and_is_not_shown(project: Project):
    call = '{"name": "find_symbol", "arguments": {"name": "Flask"}}'
    events, _ = await project.turn(f"I look.\n<tool_call>\n{call}\n</tool_call>", "There it is.")
    assert shape(events) == [
        "text I look.\n",
        "notice repaired",
        'call find_symbol {"name": "Flask"}',
        "ok find_symbol",
        "text There it is.",
        "end done 0",
    ]


@pytest.mark.parametrize("text", ['{"name": "rm", "arguments": {}}', "<tool_call>\n{", "<function=rm>"])
async def test_an_answer_that_is_only_a_call_is_never_a_success(project: Project, text: str):
    _, end = await project.turn(*[text] * 4)
    assert (end.stop_reason, end.exit_code, end.answer) == ("error", 1, "")
    assert end.turns == 3


@pytest.mark.parametrize("text", ["\n", "  \n "])
async def test_an_empty_answer_is_never_a_success(project: Project, text: str):
    _, end = await project.turn(*[text] * 4)
    assert (end.stop_reason, end.exit_code, end.answer) == ("error", 1, "")


async def test_an_empty_reply_is_asked_again(project: Project):
    _, end = await project.turn("\n", "Better.")
    assert (end.stop_reason, end.answer) == ("done", "Better.")


async def test_an_invented_place_is_asked_about_once_then_marked(project: Project):
    events, end = await project.turn("It is at src/no.py:3.", "It is at `src/no.py:4`.")
    assert shape(events) == [
        "text It is at src/no.py:3.",
        "notice asked again",
        "replaced ''",
        "text It is at `src/no.py:4`.",
        "replaced 'It is at `src/no.py:4` (unverified).'",
        "notice Places marked (unverified) were not shown by any tool.",
        "end done 0",
    ]
    assert text_shown(events) == end.answer
    last = end.messages[-1]
    assert isinstance(last, ModelResponse)
    assert last.text == end.answer, "a session that is shown again must not show the place as a fact"


async def test_a_place_looked_up_after_the_question_is_not_marked(project: Project):
    _, end = await project.turn(f"It is at {PLACE}.", FIND, f"It is at {PLACE}.")
    assert end.answer == f"It is at {PLACE}."


async def test_a_case_slip_is_mended(project: Project):
    events, end = await project.turn(FIND, "It is at src/app_module.py:4.")
    assert end.answer == f"It is at {PLACE}."
    assert text_shown(events) == end.answer
    assert end.turns == 2


async def test_a_compact_model_is_not_asked_again(project: Project):
    model = scripted("It is at src/no.py:3.")
    vars(model)["compact"] = True
    _, end = await project.turn(model=model)
    assert (end.answer, end.turns) == ("It is at src/no.py:3 (unverified).", 1)


async def test_the_same_call_again_and_again_ends_the_turn(project: Project):
    _, end = await project.turn(*[FIND] * 20)
    assert (end.stop_reason, end.exit_code, end.turns) == ("loop", 4, 8)
    outcomes = [record.outcome for record in end.tool_calls]
    assert outcomes == ["ok"] * 4 + ["error"] * 4
    assert "gave the same result 3 times" in end.tool_calls[2].output.splitlines()[0]
    assert "same result" not in end.tool_calls[1].output
    assert not open_calls([*end.messages])


async def test_two_calls_in_turns_end_it_too(project: Project):
    _, end = await project.turn(*[FIND, ("list_files", {})] * 10)
    assert (end.stop_reason, end.turns) == ("loop", 9)


async def test_repeated_text_stops_the_model_and_is_cut(project: Project):
    events, end = await project.turn("Start.\n" + "The same line again.\n" * 200)
    assert (end.stop_reason, end.exit_code) == ("loop", 4)
    assert end.answer == "Start.\nThe same line again.\n\n[cut: the model repeated itself]"
    assert text_shown(events) == end.answer
    assert len([event for event in events if isinstance(event, Text)]) < 30, "the model was not stopped"
    last = end.messages[-1]
    assert isinstance(last, ModelResponse)
    assert last.text == end.answer


async def test_a_reply_that_repeats_itself_is_cut_without_a_stream_too(project: Project):
    agent = create_agent(AgentConfig(), model=Canned(ModelResponse(parts=[TextPart("Yes, it is so. " * 50)])))
    result = await agent.run("q", deps=Workspace(project.root))
    assert result.output == "Yes, it is so.\n\n[cut: the model repeated itself]"


async def test_a_local_engine_that_stopped_its_own_repetition(project: Project):
    details = {"stop": "repetition"}
    response = ModelResponse(parts=[TextPart("So it goes.")], provider_details=details, finish_reason="length")
    events, end = await project.turn(model=Canned(response))
    assert (end.stop_reason, end.exit_code, end.turns) == ("loop", 4, 1)
    assert end.answer == "So it goes.\n\n[cut: the model repeated itself]" == text_shown(events)


async def test_the_turn_limit_keeps_what_there_is(project: Project):
    config = AgentConfig(limits=Limits(max_turns=2))
    calls = [("list_files", {"glob": f"*{number}"}) for number in range(5)]
    _, end = await project.turn(*calls, config=config)
    assert (end.stop_reason, end.exit_code, end.turns) == ("limit", 4, 2)
    assert len(end.tool_calls) == 2
    assert not open_calls([*end.messages])


async def test_the_tool_call_limit_holds_for_calls_made_at_once(project: Project):
    config = AgentConfig(limits=Limits(max_tool_calls=3))
    calls = [("list_files", {"glob": f"*{number}"}) for number in range(5)]
    _, end = await project.turn(calls, "Done.", config=config)
    assert (end.stop_reason, end.exit_code) == ("limit", 4)
    assert not open_calls([*end.messages])


async def test_the_token_limit(project: Project):
    config = AgentConfig(limits=Limits(max_total_tokens=10))
    _, end = await project.turn(FIND, "Done.", config=config)
    assert (end.stop_reason, end.turns) == ("limit", 1)
    assert end.error
    assert end.error.startswith("The token limit of 10 was reached.")


async def test_fewer_lines_of_tool_output(project: Project):
    config = AgentConfig(limits=Limits(tool_lines=2))
    _, end = await project.turn(("read_file", {"path": "src/app_Module.py"}), "Read.", config=config)
    assert end.tool_calls[0].output.splitlines()[2:] == ["... 4 more lines; ask for a smaller part"]


async def test_of_a_long_command_the_end_is_shown_too(project: Project):
    config = AgentConfig(limits=Limits(tool_lines=4))
    command = ("run_command", {"command": "seq 100"})
    _, end = await project.turn(command, "Ran.", config=config, approve=approve_all)
    note = "... 97 more lines; ask for a smaller part"
    assert end.tool_calls[0].output.splitlines()[1:] == ["1", note, "99", "100"]
    _, end = await project.turn(("run_command", {"command": "seq 1000"}), "Ran.", approve=approve_all)
    whole = end.tool_calls[0].output.splitlines()
    assert len(whole) == 200
    assert (whole[1], whole[-1]) == ("1", "1000")
    assert "left out here" in whole[100]


async def test_an_answer_cut_off_at_max_tokens_is_a_limit(project: Project):
    cut = ModelResponse(parts=[TextPart("Half an ans")], finish_reason="length")
    _, end = await project.turn(model=Canned(cut))
    assert (end.stop_reason, end.exit_code, end.answer) == ("limit", 4, "Half an ans")


@pytest.mark.parametrize("arguments", [{}, "{bad", {"name": ["a"]}, {"nam": "Flask"}])
async def test_wrong_arguments_are_explained_and_the_third_time_end_the_turn(project: Project, arguments: dict | str):
    _, end = await project.turn(*[("find_symbol", arguments)] * 5)
    assert (end.stop_reason, end.exit_code, end.turns) == ("error", 1, 3)
    assert "find_symbol(name)" in end.tool_calls[0].output
    assert end.error
    assert end.error.startswith("The model called find_symbol wrongly time after time")


async def test_wrong_arguments_can_be_put_right(project: Project):
    _, end = await project.turn(("find_symbol", {}), FIND, "There.")
    assert (end.stop_reason, [r.outcome for r in end.tool_calls]) == ("done", ["error", "ok"])


async def test_an_unknown_tool_is_answered_with_the_known_ones(project: Project):
    _, end = await project.turn(("grep", {"q": "x"}), "Sorry, there.")
    assert end.stop_reason == "done"
    assert "find_symbol" in end.tool_calls[0].output


async def test_a_change_nobody_can_allow_ends_the_turn(project: Project):
    events, end = await project.turn(WRITE, "Done!")
    assert shape(events) == [
        'call write_file {"path": "new.txt", "content": "x\\n"}',
        "denied write_file",
        "end denied 3",
    ]
    assert not (project.root / "new.txt").exists()
    assert not open_calls([*end.messages])
    _, after = await project.turn("I could not write.", history=end.messages)
    assert after.stop_reason == "done"


async def test_a_refused_change_is_told_to_the_model(project: Project):
    async def no(request: Request) -> Decision:
        assert request.preview
        return deny("not this file")

    _, end = await project.turn(WRITE, "Then not.", approve=no)
    assert (end.stop_reason, end.exit_code) == ("done", 0)
    assert [(r.outcome, r.output) for r in end.tool_calls] == [("denied", "The user refused this call: not this file.")]
    assert not (project.root / "new.txt").exists()


async def test_a_change_that_was_allowed_is_made(project: Project):
    _, end = await project.turn(WRITE, "Done.", approve=approve_all)
    assert end.tool_calls[0].outcome == "ok"
    assert (project.root / "new.txt").read_text() == "x\n"


async def test_a_grant_for_the_session_covers_the_tool_but_only_the_same_command(project: Project):
    asked: list[str] = []

    async def ask(request: Request) -> Decision:
        asked.append(f"{request.tool} {request.arguments.get('command', '')}".strip())
        return session

    other = ("write_file", {"path": "b.txt", "content": "y"})
    one, two = ("run_command", {"command": "echo 1"}), ("run_command", {"command": "echo 2"})
    await project.turn(WRITE, other, one, one, two, "Done.", approve=ask)
    assert asked == ["write_file", "run_command echo 1", "run_command echo 2"]


async def test_the_time_a_person_takes_is_not_the_tools_time(project: Project):
    async def slow(request: Request) -> Decision:
        await asyncio.sleep(0.3)
        return Decision("once")

    _, end = await project.turn(WRITE, "Done.", approve=slow)
    assert 0 < end.timing.tools_s <= end.timing.total_s - 0.3


class Rewriting(CompletedStreamedResponse):
    """A stream that puts another text in place of the one it has written."""

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for delta in ("Let me ", "think [[result]]"):
            for event in self._parts_manager.handle_text_delta(vendor_part_id="text", content=delta):
                yield event
        yield self._parts_manager.handle_part(vendor_part_id="text", part=self.get().parts[0])


async def test_a_model_may_rewrite_what_it_has_streamed(project: Project):
    class Model(Canned):
        @asynccontextmanager
        async def request_stream(self, messages, model_settings, model_request_parameters, run_context=None):
            response = ModelResponse(parts=[TextPart("Here: x.")])
            yield Rewriting(response, model_request_parameters=model_request_parameters)

    events, end = await project.turn(model=Model())
    assert shape(events) == ["text Let me think [[result]]", "replaced ''", "text Here: x.", "end done 0"]
    assert text_shown(events) == end.answer == "Here: x."


def slow_model(*, call: bool = False) -> FunctionModel:
    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        if call:
            yield {0: DeltaToolCall("run_command", '{"command": "sleep 20"}')}
            return
        yield "Partial answer"
        await asyncio.sleep(20)

    return FunctionModel(stream_function=stream)


@pytest.mark.parametrize("call", [False, True])
async def test_a_cancelled_task_still_gets_the_end_of_the_turn(project: Project, call: bool):
    events: list[Event] = []
    begun = asyncio.Event()

    async def consume() -> None:
        config = AgentConfig()
        agent = create_agent(config, model=slow_model(call=call), approve=approve_all)
        async for event in run_turn(agent, "q", workspace=Workspace(project.root), config=config):
            events.append(event)
            begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert (end.stop_reason, end.exit_code, end.answer) == ("interrupted", 130, "" if call else "Partial answer")
    assert not open_calls([*end.messages])
    assert ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json([*end.messages]))
    _, after = await project.turn("Going on.", history=end.messages)
    assert after.answer == "Going on."


async def test_a_cancelled_token_ends_the_turn_without_cancelling_the_task(project: Project):
    token, config = CancellationToken(), AgentConfig()
    agent = create_agent(config, model=slow_model())
    events: list[Event] = []
    stream = run_turn(agent, "q", workspace=Workspace(project.root), config=config, cancellation=token)
    async for event in stream:
        events.append(event)
        token.cancel()
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert (end.stop_reason, end.answer) == ("interrupted", "Partial answer")


async def test_leaving_early_leaves_no_task_behind(project: Project):
    config = AgentConfig()
    agent = create_agent(config, model=slow_model())
    stream = run_turn(agent, "q", workspace=Workspace(project.root), config=config)
    await anext(stream)
    await stream.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_tool_that_crashes_ends_the_turn_and_names_the_tool(project: Project):
    config = AgentConfig(tools=("list_files",))
    agent = create_agent(config, model=scripted(("boom", {})))

    @agent.tool_plain
    def boom() -> str:
        """Fail."""
        raise ZeroDivisionError("oops")

    events = [e async for e in run_turn(agent, "q", workspace=Workspace(project.root), config=config)]
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert (end.stop_reason, end.exit_code) == ("error", 1)
    assert end.error == "The tool boom crashed: ZeroDivisionError: oops"


async def test_messages_of_every_ending_can_be_stored(project: Project):
    for replies in ([FIND, "x."], [WRITE], [FIND] * 20, ["\n"] * 4, [("nope", {})] * 4):
        _, end = await project.turn(*replies)
        stored = ModelMessagesTypeAdapter.dump_json([*end.messages])
        assert len(ModelMessagesTypeAdapter.validate_json(stored)) == len(end.messages)
        assert isinstance(end.messages[0], ModelRequest)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (("edit_file", {"path": "notes.md", "old": "absent", "new": "x"}), "old is not in notes.md"),
        (("edit_file", {"path": "none.md", "old": "a", "new": "b"}), "No such file: none.md"),
        (("write_file", {"path": "notes.md", "content": "x"}), "Read it with read_file before writing over it"),
    ],
)
async def test_nobody_is_asked_about_a_change_that_cannot_be_made(project: Project, call, reason: str):
    async def ask(request: Request) -> Decision:
        raise AssertionError(f"asked about {request.preview}")

    _, end = await project.turn(call, "I see.", approve=ask)
    assert (end.stop_reason, end.answer) == ("done", "I see.")
    assert [record.outcome for record in end.tool_calls] == ["error"]
    assert reason in end.tool_calls[0].output


async def test_what_a_backend_tells_is_heard_while_the_request_still_waits(project: Project):
    heard = asyncio.Event()

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        tell("busy: asking again in 2 s")
        await asyncio.wait_for(heard.wait(), timeout=5)
        yield "Here."

    config = AgentConfig()
    agent = create_agent(config, model=FunctionModel(stream_function=stream))
    events: list[Event] = []
    async for event in run_turn(agent, "q", workspace=Workspace(project.root), config=config):
        events.append(event)
        if isinstance(event, Notice):
            heard.set()
    assert shape(events) == ["notice busy", "text Here.", "end done 0"]


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_thinking_is_told_apart_from_the_answer(project: Project, size: int):
    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        text = "<think>\nWhere is src/no.py:3?\n</think>\n\nHello."
        for start in range(0, len(text), size):
            yield text[start : start + size]

    events, end = await project.turn(model=FunctionModel(stream_function=stream))
    assert "".join(event.delta for event in events if isinstance(event, Thinking)).strip() == "Where is src/no.py:3?"
    assert text_shown(events) == end.answer == "Hello."
    assert end.turns == 1


async def test_native_thinking_is_told_and_is_no_answer(project: Project):
    response = ModelResponse(parts=[ThinkingPart("Let me see."), TextPart("Hello.")])
    events, end = await project.turn(model=Canned(response))
    assert "".join(event.delta for event in events if isinstance(event, Thinking)) == "Let me see."
    assert text_shown(events) == end.answer == "Hello."


async def test_lines_of_an_earlier_result_are_not_passed_off_as_new_ones(project: Project, local: Local):
    call = '<tool_call>{"name": "find_symbol", "arguments": {"name": "Flask"}}</tool_call>'
    model, _ = local(call, "Flask is defined here:\n[[result]]", "It printed:\n[[result]]")
    events, end = await project.turn(model=model)
    assert not [event for event in events if isinstance(event, Notice)]
    events, end = await project.turn(model=model, history=end.messages)
    assert PLACE in end.answer
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "Nothing was looked up or run for this; the lines are those of an earlier result."
    ]
