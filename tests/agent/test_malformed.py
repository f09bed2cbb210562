"""What models really send: every committed reply, through the real agent, once with a tool that reads, once with one
that changes something. What may run, what is asked again and what is an answer is written beside the reply.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models import Model
from tests.agent.conftest import Local, Project
from tests.stubs import Canned, scripted

from punie.agent import Event, TurnEnded
from punie.agent.approval import approve_all
from punie.agent.events import Notice
from punie.config import AgentConfig

Outcome = Literal["runs", "repaired", "asked", "text"]
READS = {"@tool": "read_file", "@Tool": "Read_File", "@key": "path", "@value": "notes.md"}
CHANGES = {"@tool": "run_command", "@Tool": "RunCommand", "@key": "command", "@value": "touch ran"}
CUT_SHORT = {"@val": "notes"}
LAST = "Done."


@dataclass(frozen=True)
class Case:
    """One reply. `calls` are all that may run, as `NAME JSON`."""

    name: str
    outcome: Outcome
    local: Outcome
    text: str
    native: tuple[tuple[str, str], ...]
    finish: Literal["stop", "length"]
    calls: tuple[str, ...]
    says: str
    notice: str
    answer: str


def cases(words: dict[str, str]) -> list[Any]:
    """The whole corpus, its placeholders filled in."""
    found = []
    for file in sorted((Path(__file__).parent / "malformed").glob("*.toml")):
        for row in tomllib.loads(file.read_text("utf-8"))["case"]:
            if row["outcome"] in {"runs", "repaired"}:
                row.setdefault("calls", ['@tool {"@key": "@value"}'])
            found.append(pytest.param(_case(_filled(row, words | CUT_SHORT)), id=f"{file.stem}: {row['name']}"))
    return found


def _filled(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, words) for key, item in value.items()}
    for word in sorted(words, key=len, reverse=True):
        value = value.replace(word, words[word])
    return value


def _case(row: dict[str, Any]) -> Case:
    outcome = row["outcome"]
    return Case(
        name=row["name"],
        outcome=outcome,
        local=row.get("local", outcome),
        text=row.get("text", ""),
        native=tuple((name, arguments) for name, arguments in row.get("native", ())),
        finish=row.get("finish", "stop"),
        calls=tuple(row.get("calls", ())),
        says=row.get("says", ""),
        notice=row.get("notice", ""),
        answer=row.get("answer", ""),
    )


def model_of(case: Case) -> Model:
    """A model that streams the reply, and then a plain answer."""
    if case.finish == "length":
        parts = [ToolCallPart(*call) for call in case.native] or [TextPart(case.text)]
        return Canned(ModelResponse(parts=parts, finish_reason="length"), ModelResponse(parts=[TextPart(LAST)]))
    return scripted(case.native or case.text, LAST)


def ran(end: TurnEnded) -> list[str]:
    return [f"{record.name} {json.dumps(record.arguments)}" for record in end.tool_calls if record.outcome == "ok"]


def told(end: TurnEnded) -> str:
    """What the model was told about its reply: results of calls, and feedback."""
    parts = [part for message in end.messages if isinstance(message, ModelRequest) for part in message.parts]
    return "\n".join(str(part.content) for part in parts if isinstance(part, ToolReturnPart | RetryFeedbackPart))


def check(case: Case, outcome: Outcome, events: list[Event], end: TurnEnded) -> None:
    notices = [event.text for event in events if isinstance(event, Notice)]
    if outcome == "text":
        assert (end.turns, end.answer, end.tool_calls) == (1, case.answer, ())
        return
    assert end.turns == 2
    assert end.answer == LAST
    may_run = [call for call in case.calls if outcome != "asked" or not call.startswith("run_command")]
    assert sorted(ran(end)) == sorted(may_run)
    assert case.says in told(end)
    if outcome == "repaired":
        assert any(notice.startswith("repaired: ") for notice in notices), notices
    elif outcome == "runs":
        assert not case.notice or any(case.notice in notice for notice in notices), notices


@pytest.mark.parametrize("case", cases(READS))
async def test_a_reply_and_a_tool_that_reads(project: Project, case: Case):
    check(case, case.outcome, *await project.turn(model=model_of(case), approve=approve_all))


@pytest.mark.parametrize("case", cases(CHANGES))
async def test_a_reply_and_a_tool_that_changes_something(project: Project, case: Case):
    """Even though everything is allowed: what was repaired is asked again, and only its reading neighbours run."""
    changes = any(call.startswith("run_command") for call in case.calls)
    events, end = await project.turn(model=model_of(case), approve=approve_all)
    check(case, "asked" if case.outcome == "repaired" and changes else case.outcome, events, end)
    assert (project.root / "ran").exists() == (case.outcome == "runs")
    if case.outcome == "repaired" and changes:
        assert "Not run: it had to be repaired" in told(end)
        assert any(isinstance(event, Notice) and event.text.startswith("asked again: ") for event in events)


@pytest.mark.parametrize("case", [case for case in cases(READS) if case.values[0].text])
async def test_a_reply_of_a_local_model_and_a_tool_that_reads(project: Project, local: Local, case: Case):
    """A model in this process writes calls in its template's dialect: that one is no repair."""
    check(case, case.local, *await local_turn(project, local, case))


@pytest.mark.parametrize("case", [case for case in cases(CHANGES) if case.values[0].text])
async def test_a_reply_of_a_local_model_and_a_tool_that_changes_something(project: Project, local: Local, case: Case):
    changes = any(call.startswith("run_command") for call in case.calls)
    events, end = await local_turn(project, local, case)
    check(case, "asked" if case.local == "repaired" and changes else case.local, events, end)
    assert (project.root / "ran").exists() == (case.local == "runs" and changes)


async def local_turn(project: Project, local: Local, case: Case) -> tuple[list[Event], TurnEnded]:
    pieces = -(-len(case.text) // 4)  # the engine says four characters at a time
    cut_off = case.finish == "length"
    model, _ = local(case.text.ljust(pieces * 4) + "more" if cut_off else case.text, LAST)
    config = AgentConfig(max_tokens=pieces if cut_off else 8192)
    return await project.turn(model=model, approve=approve_all, config=config)
