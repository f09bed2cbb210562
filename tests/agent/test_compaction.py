"""Long conversations in small windows: every request fits, nothing stored is lost, this turn's words stay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import ModelSettings
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.profiles import ModelProfile

from punie.agent import SessionStore, TurnEnded, create_agent, run_turn
from punie.agent.compaction import COMPACTED, compacted, counted, measured, sent, tokens_of
from punie.agent.events import Event, Notice
from punie.agent.memory import Memory
from punie.config import AgentConfig, Limits
from punie.errors import ContextTooLong
from punie.tools import Workspace


class Scripted(FunctionModel):
    """Reads a file in every turn, then answers; sums up when it is asked to; refuses what does not fit its window.

    Tokens are counted as a real one would: more characters each than the estimate says.
    """

    def __init__(self, window: int | None, *, refuses_above: int | None = None, compact: bool = False) -> None:
        super().__init__(self._answer, stream_function=self._stream, profile=ModelProfile(context_window=window))
        self.compact = compact
        self.limit = refuses_above or window or 0
        self.largest = 0
        self.summaries = 0
        self.prompts: list[str] = []

    def _seen(self, messages: list[ModelMessage]) -> str:
        shown = "\n".join(str(part) for m in messages for part in _contents(m))
        self.largest = max(self.largest, len(shown) // 4)
        self.prompts.append(shown)
        if len(shown) // 4 > self.limit:
            raise ContextTooLong("It does not fit.")
        return shown

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        del info
        if "Sum up this conversation" in self._seen(messages):
            self.summaries += 1
            return ModelResponse([TextPart("The user likes blue doors. file 1 was read.")])
        return ModelResponse([TextPart("fine")])

    async def _stream(self, messages: list[ModelMessage], info: AgentInfo):
        del info
        self._seen(messages)
        last = messages[-1]
        if any(isinstance(part, ToolReturnPart) for part in last.parts):
            yield "It is a file of numbers, and its answer is the one you think of."
        else:
            number = len(self.prompts) % 5
            yield {0: DeltaToolCall("read_file", f'{{"path": "f{number}.txt"}}', tool_call_id=f"c{len(self.prompts)}")}


def _contents(message: ModelMessage) -> list[Any]:
    return [
        part.args_as_json_str() if isinstance(part, ToolCallPart) else getattr(part, "content", "")
        for part in message.parts
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    where = tmp_path / "project"
    where.mkdir()
    for number in range(5):
        (where / f"f{number}.txt").write_text("".join(f"{number} {line} some words\n" for line in range(150)))
    return where


async def turn(model: Scripted, prompt: str, root: Path, history: Sequence[ModelMessage] = (), **given: Any):
    config = AgentConfig(limits=Limits(max_turns=4), **given)
    events: list[Event] = [
        event
        async for event in run_turn(
            create_agent(config, model=model), prompt, workspace=Workspace(root), config=config, history=history
        )
    ]
    ended = events[-1]
    assert isinstance(ended, TurnEnded)
    return ended, [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize(("window", "compact"), [(4096, False), (8192, False), (8192, True)])
async def test_thirty_turns_fit_and_keep_everything(root: Path, *, window: int, compact: bool) -> None:
    model = Scripted(window, compact=compact)
    history: Sequence[ModelMessage] = ()
    notices: list[str] = []
    for number in range(30):
        ended, told = await turn(model, f"question {number}: what is in the file?", root, history)
        assert ended.stop_reason == "done", ended.error
        history = ended.messages
        notices += told
    assert model.largest <= window
    assert any("left out" in notice for notice in notices)
    assert any("summed up" in notice for notice in notices)
    assert bool(model.summaries) is not compact
    assert "question 29" in model.prompts[-1]
    everything = str(ModelMessagesTypeAdapter.dump_json(list(history)))
    assert all(f"question {number}:" in everything for number in range(30))
    results = [p for m in history for p in m.parts if isinstance(p, ToolReturnPart)]
    assert len(results) == 30
    assert all("some words" in str(part.content) for part in results)


async def test_the_rules_of_a_project_stay_and_fit_whatever_is_left_out(root: Path) -> None:
    rule = "Never touch the blue door."
    (root / "AGENTS.md").write_text(f"# Rules\n\n{rule}\n\n" + "Keep lines short.\n" * 100)
    model, config = Scripted(8192), AgentConfig(limits=Limits(max_turns=4))
    agent = create_agent(config, model=model, memory=Memory(root, project=root))
    history: Sequence[ModelMessage] = ()
    for number in range(30):
        given = {"workspace": Workspace(root), "config": config, "history": history}
        events = [event async for event in run_turn(agent, f"question {number}: the file?", **given)]
        ended = events[-1]
        assert isinstance(ended, TurnEnded)
        assert ended.stop_reason == "done", ended.error
        history = ended.messages
    requests = [message for message in history if isinstance(message, ModelRequest)]
    assert model.summaries
    assert all(rule in (message.instructions or "") for message in requests)
    rules = max(len(message.instructions or "") for message in requests) // 4
    assert model.largest + rules <= 8192


async def test_a_stored_conversation_goes_on_with_the_same_prompt(root: Path, tmp_path: Path) -> None:
    model = Scripted(8192)
    history: Sequence[ModelMessage] = ()
    with SessionStore(tmp_path / "sessions") as store:
        session = store.create(root)
        session.begin(model="m", title="t")
        for number in range(12):
            history = (await turn(model, f"question {number}", root, history))[0].messages
        session.sync(history)
        session.close()
        again = store.resume(root).messages
    assert _shown(sent(again)) == _shown(sent(history))
    assert len(_shown(sent(again))) < len(_shown(history))


def _shown(messages: Sequence[ModelMessage]) -> str:
    return "\n".join(str(content) for message in messages for content in _contents(message))


async def test_what_the_user_says_in_this_turn_is_never_summed_up(root: Path) -> None:
    model = Scripted(4096)
    history: Sequence[ModelMessage] = ()
    for number in range(6):
        history = (await turn(model, f"question {number}", root, history))[0].messages
    words = "my own words " * 300
    ended, _ = await turn(model, words, root, history)
    assert ended.stop_reason == "done"
    assert words in model.prompts[-1]
    assert model.largest <= 4096


async def test_one_result_larger_than_the_window_is_cut(root: Path) -> None:
    (root / "f1.txt").write_text("".join(f"{line} {'wide ' * 20}\n" for line in range(199)))
    model = Scripted(2048)
    model.prompts.append("so that f1 comes first")
    for number in range(5):
        (root / f"f{number}.txt").write_text((root / "f1.txt").read_text())
    ended, notices = await turn(model, "read it", root)
    assert ended.stop_reason == "done", ended.error
    assert model.largest <= 2048
    assert any("only its beginning" in notice for notice in notices)
    assert "ask for a smaller part" in model.prompts[-1]


async def test_a_window_nobody_told_is_learnt_from_the_refusal(root: Path) -> None:
    model = Scripted(None, refuses_above=1500)
    long = "words and more words, " * 100
    history = [
        message
        for number in range(8)
        for message in (
            ModelRequest([UserPromptPart(f"{number} {long}")]),
            ModelResponse([TextPart(f"answer {number} {long}")]),
        )
    ]
    ended, notices = await turn(model, "and now?", root, history)
    assert ended.stop_reason == "done", ended.error
    assert sum("summed up" in notice for notice in notices) == 2
    assert "7 words and more" in model.prompts[-1]
    assert "and now?" in model.prompts[-1]


async def test_a_summary_by_hand_says_what_it_gained_and_keeps_the_rest(root: Path) -> None:
    model = Scripted(8192)
    history = (await turn(model, "question", root))[0].messages
    done = await compacted(history, model=model, focus="the blue door")
    assert "the blue door" in model.prompts[-1]
    assert done.after < done.before
    assert len(done.messages) == len(history)
    shown = _shown(sent(done.messages))
    assert "blue doors" in shown
    assert "some words" not in shown
    following, _ = await turn(model, "next question", root, done.messages)
    assert "blue doors" in model.prompts[-1]
    assert "next question" in model.prompts[-1]
    assert len(following.messages) == len(history) + 4


async def test_a_summary_that_fails_is_an_extract(root: Path) -> None:
    model = Scripted(8192)
    history = (await turn(model, "where is the blue door?", root))[0].messages
    model.limit = 1
    done = await compacted(history, model=model)
    assert done.messages[-1].metadata is not None
    assert done.messages[-1].metadata[COMPACTED] == {
        "pairs": [["where is the blue door?", "It is a file of numbers, and its answer is the one you think of."]]
    }


async def test_the_parts_of_a_request_add_up(root: Path) -> None:
    model = Scripted(8192)
    history = (await turn(model, "question", root))[0].messages
    parts = dict(await measured(history, model=model, config=AgentConfig(), memory="Be kind. " * 10))
    assert list(parts) == ["system", "tools", "instructions", "conversation", "tool results"]
    assert all(parts.values())
    assert parts["tool results"] > parts["conversation"]
    whole = await counted(list(history), model=model, settings=ModelSettings(), parameters=_nothing())
    assert whole == tokens_of(history) == parts["conversation"] + parts["tool results"]


def _nothing():
    from pydantic_ai.models import ModelRequestParameters

    return ModelRequestParameters()
