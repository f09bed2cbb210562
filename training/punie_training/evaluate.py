"""Runs the suite on the real agent with a real model, case by case, and keeps every outcome in a JSONL file.

A run that was interrupted goes on where it stopped, as long as suite, model and settings are the same.
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model

from punie.agent import TurnEnded, create_agent, run_turn
from punie.agent.approval import approve_all, refuse
from punie.config import AgentConfig
from punie.tools import Workspace
from punie.wire import conversation
from punie_training import jsonl
from punie_training.corpora import scratch_copy
from punie_training.generate import Studio
from punie_training.score import mark, paths, places
from punie_training.suite import Case
from punie_training.tasks import Step
from punie_training.watched import Watched

_LINES = re.compile(r":\d+(?:-\d+)?$")
CHANGING = frozenset({"edit", "write", "command", "sequence"})
Progress = Callable[[int, int, "Outcome"], None]


@dataclass(frozen=True)
class Outcome:
    """What a model did with one case; all figures are about the last question of the conversation."""

    id: str
    family: str
    project: str
    template: str
    seen_wording: bool
    question: str
    needs_tool: bool
    answer: str
    said: str
    """What the model itself wrote last, before result lines were put in."""
    calls: tuple[tuple[str, str], ...]
    """Tool and arguments as sorted JSON, in order."""
    valid_calls: bool
    first_call_right: bool
    precision: float
    recall: float
    f1: float
    right: bool
    looped: bool
    invented_paths: int
    turns: int
    stop_reason: str
    total_s: float
    prefill_s: float
    decode_s: float
    tools_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cited: int = 0
    """`path:line`s in the answer to a question about places, or about what is not there."""
    cited_right: int = 0
    """Those of them that the oracle knows as right."""

    @property
    def answered(self) -> bool:
        """Whether the turn came to its end with an answer."""
        return self.stop_reason == "done" and bool(self.answer.strip())

    @property
    def used_tool(self) -> bool:
        """Whether any tool was called."""
        return bool(self.calls)


async def evaluate(
    cases: Sequence[Case],
    *,
    model: Model,
    config: AgentConfig,
    opened: Sequence[Studio],
    store: Path,
    key: str,
    on_progress: Progress = lambda done, total, outcome: None,
) -> tuple[Outcome, ...]:
    """Run what is not in the store yet; `key` names suite, model and settings.

    Raises the error of a backend that does not answer at all: a wrong key makes no wrong answers.
    """
    done = stored(store, key=key)
    by_project = {studio.project: studio for studio in opened}
    outcomes: list[Outcome] = []
    store.parent.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases, start=1):
        outcome = done.get(case.id)
        if outcome is None:
            outcome = await run_case(case, model=model, config=config, studio=by_project[case.task.project])
            jsonl.append(store, {"key": key, **asdict(outcome)})
        outcomes.append(outcome)
        on_progress(number, len(cases), outcome)
    return tuple(outcomes)


def key(identity: Mapping[str, str]) -> str:
    """What marks the outcomes of one suite, model and settings in a store."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:16]


def stored(store: Path, *, key: str) -> Mapping[str, Outcome]:
    """Read the outcomes of an earlier run with the same key; a torn last line is ignored."""
    found: dict[str, Outcome] = {}
    for record in jsonl.whole(store):
        if record.pop("key", None) == key:
            record["calls"] = tuple((name, arguments) for name, arguments in record["calls"])
            found[record["id"]] = Outcome(**record)
    return found


async def run_case(case: Case, *, model: Model, config: AgentConfig, studio: Studio) -> Outcome:
    """Ask every question of the case in turn and mark the last answer."""
    async with _workspace(case, studio) as workspace:
        # Only those who work on a copy may change it: the projects themselves are what every later case is asked about.
        approve = approve_all if case.task.family in CHANGING else refuse
        watched = Watched(model)
        agent = create_agent(config, model=watched, approve=approve)
        history: Sequence[ModelMessage] = ()
        ended: TurnEnded | None = None
        for turn in case.task.turns:
            async for event in run_turn(agent, turn.question, workspace=workspace, config=config, history=history):
                if isinstance(event, TurnEnded):
                    ended, history = event, event.messages
        if ended is None:
            raise ValueError(f"case {case.id} asks nothing")
        if ended.stop_reason == "error" and watched.failure and not watched.of_one_request:
            raise watched.failure
        return _outcome(case, ended, studio=studio, root=Path(workspace.root))


@asynccontextmanager
async def _workspace(case: Case, studio: Studio) -> AsyncIterator[Workspace]:
    if case.task.family not in CHANGING:
        yield studio.workspace
        return
    with scratch_copy(studio.root) as root:
        yield Workspace(root)


def _outcome(case: Case, ended: TurnEnded, *, studio: Studio, root: Path) -> Outcome:
    turn = case.task.turns[-1]
    marked = mark(ended.answer, turn.expect, root=root)
    calls = tuple((r.name, json.dumps(dict(r.arguments), sort_keys=True)) for r in ended.tool_calls)
    messages = conversation(ended.messages)
    said = next((m.content for m in reversed(messages) if m.role == "assistant"), "")
    answered = ended.stop_reason == "done"
    cited = places(ended.answer) if turn.expect.kind in {"places", "nothing"} else set[str]()
    return Outcome(
        id=case.id,
        family=case.task.family,
        project=case.task.project,
        template=turn.template,
        seen_wording=case.task.seen_wording,
        question=turn.question,
        needs_tool=bool(turn.steps),
        answer=ended.answer,
        said=said,
        calls=calls,
        valid_calls=bool(calls) and is_valid(ended),
        first_call_right=first_call_right(ended, turn.steps),
        precision=marked.precision if answered else 0.0,
        recall=marked.recall if answered else 0.0,
        f1=marked.f1 if answered else 0.0,
        right=marked.right and answered,
        looped=ended.stop_reason in {"loop", "limit"},
        invented_paths=invented(said, studio, written=_written(ended)) if turn.steps else 0,
        turns=ended.turns,
        stop_reason=ended.stop_reason,
        total_s=ended.timing.total_s,
        prefill_s=ended.timing.prefill_s,
        decode_s=ended.timing.decode_s,
        tools_s=ended.timing.tools_s,
        input_tokens=ended.usage.input_tokens,
        output_tokens=ended.usage.output_tokens,
        cached_tokens=ended.usage.cached_tokens,
        cited=len(cited),
        cited_right=len(cited.intersection(turn.expect.values)),
    )


def is_valid(ended: TurnEnded) -> bool:
    """Whether every call named a tool and had arguments that fit it; a tool that found nothing is fine."""
    refused = ("Call it as ", "Unknown tool")
    return not any(r.outcome == "error" and any(text in r.output for text in refused) for r in ended.tool_calls)


def first_call_right(ended: TurnEnded, steps: Sequence[Step]) -> bool:
    """Whether the first call is the planned one, or no call was made where none was planned."""
    if not steps or not ended.tool_calls:
        return not steps and not ended.tool_calls
    first = ended.tool_calls[0]
    return first.name == steps[0].tool and normal(first.arguments) == normal(steps[0].arguments)


def normal(arguments: Mapping[str, object]) -> Mapping[str, object]:
    """Arguments without what means nothing: a null, and a `start` at the first line."""
    return {k: v for k, v in arguments.items() if v is not None and not (k == "start" and v == 1)}


def _written(ended: TurnEnded) -> frozenset[str]:
    """The files that this turn's own calls have made."""
    made = (r.arguments.get("path") for r in ended.tool_calls if r.name == "write_file" and r.outcome == "ok")
    return frozenset(path for path in made if isinstance(path, str))


def invented(said: str, studio: Studio, *, written: Collection[str] = ()) -> int:
    """Count the paths the model wrote itself that the project does not have and no call has made."""
    cited = {_LINES.sub("", path) for path in places(said) | paths(said)}
    known = {*studio.oracle.files, *written}
    return sum(not any(f == path or f.endswith(f"/{path}") for f in known) for path in cited if "/" in path)
