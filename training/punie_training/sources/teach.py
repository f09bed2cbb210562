"""Rows from a teacher: any model answers the oracle's tasks with the real agent, and the oracle says what is kept.

Every attempt is appended to a file of its own as soon as it is made, so a run that was cut off goes on where it
stopped. Rows and card are written from that file, at the end and also when a run breaks off.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic_ai import Agent

from punie.agent import TurnEnded, create_agent, run_turn
from punie.agent.approval import EDITS, Approver, Decision, Request, deny, once, refuse
from punie.config import AgentConfig
from punie.errors import PunieError
from punie.tools import Workspace
from punie.wire import Message, call
from punie_training.card import Sieve, card, page
from punie_training.corpora import scratch_copy
from punie_training.families import family
from punie_training.generate import Rejected, Studio, size, write_rows
from punie_training.sources import cost
from punie_training.sources.attempts import Attempt, append, stored
from punie_training.sources.cost import Tokens
from punie_training.sources.course import Asked, Course
from punie_training.sources.taught import TaughtRow, Unfit, row_of
from punie_training.tasks import Expect, Task
from punie_training.watched import Watched

Say = Callable[[str], None]


async def teach(course: Course, *, say: Say) -> "Summary":
    """Ask what is open and write rows and card. Raises the error of a backend that fails, after writing them.

    A server that refuses one conversation and answers another has refused a task; two in a row are its own failure.
    """
    by_project = {studio.project: studio for studio in course.opened}
    course.store.parent.mkdir(parents=True, exist_ok=True)
    waiting = course.open()
    held: _Refused | None = None
    worked = False
    try:
        for done, (asked, number) in enumerate(waiting, start=1):
            try:
                attempt = await _attempt(asked, number, course, by_project[asked.task.project])
            except _Refused as refused:
                if held:
                    raise refused.error from refused
                held = refused
                continue
            for each in (held.attempt, attempt) if held else (attempt,):
                append(course.store, each, key=course.key)
            held, worked = None, True
            if done % 10 == 0 or done == len(waiting):
                say(f"{done}/{len(waiting)} {attempt.family}: {attempt.reason or 'kept'} ({attempt.total_s:.1f} s)")
        if held and not worked:
            raise held.error
        if held:
            append(course.store, held.attempt, key=course.key)
    finally:
        summary = write(course)
        if left := course.open():
            say(f"{len(left)} attempts are left: the same command goes on with them.")
    return summary


class _Refused(Exception):  # noqa: N818 - says what happened
    """A server did not answer a conversation that it may dislike for itself."""

    def __init__(self, error: PunieError, attempt: Attempt) -> None:
        super().__init__(str(error))
        self.error = error
        self.attempt = attempt


async def _attempt(asked: Asked, number: int, course: Course, studio: Studio) -> Attempt:
    """Have one conversation. Raises the error of the backend, which says nothing about the task."""
    changes = family(asked.task.family).changes
    config = course.config.model_copy(update={"seed": number})
    watched = Watched(course.model)
    approve = planned_only(asked.task) if changes else refuse
    started = time.perf_counter()
    # Only those who work on a copy may change it: the projects themselves are what every later task is about.
    with scratch_copy(studio.root) if changes else nullcontext() as copy:
        workspace = Workspace(copy) if copy else studio.workspace
        agent = create_agent(config, model=watched, approve=approve)
        talk = await _talk(agent, asked.task, workspace=workspace, config=config)
        reason, row = _judged(asked.task, talk[-1], root=Path(workspace.root), teacher=course.teacher)
    attempt = Attempt(
        task=asked.task.id,
        plan=asked.plan,
        number=number,
        family=asked.task.family,
        reason=reason,
        said=talk[-1].answer or talk[-1].error or "",
        row=row,
        tokens=sum((_tokens(turn) for turn in talk), Tokens()),
        total_s=round(time.perf_counter() - started, 3),
    )
    if talk[-1].stop_reason == "error" and watched.failure:
        if watched.of_one_request:
            raise _Refused(watched.failure, replace(attempt, reason=f"the server refused it: status {watched.status}"))
        raise watched.failure
    return attempt


async def _talk(
    agent: Agent[Workspace, str], task: Task, *, workspace: Workspace, config: AgentConfig
) -> Sequence[TurnEnded]:
    """Ask each question of the task, up to one that is not answered."""
    ended: list[TurnEnded] = []
    for turn in task.turns:
        history = ended[-1].messages if ended else ()
        events = run_turn(agent, turn.question, workspace=workspace, config=config, history=history)
        ended += [event async for event in events if isinstance(event, TurnEnded)]
        if ended[-1].stop_reason != "done":
            break
    return ended


def _judged(task: Task, ended: TurnEnded, *, root: Path, teacher: str) -> tuple[str, Mapping[str, Any] | None]:
    """Why a conversation gives no row, or the row."""
    if ended.stop_reason != "done":
        return f"ended by {ended.stop_reason}", None
    try:
        return "", json.loads(row_of(task, ended.messages, root=root, teacher=teacher).line())
    except Unfit as reason:
        return str(reason), None


def _tokens(turn: TurnEnded) -> Tokens:
    return Tokens(turn.usage.input_tokens, turn.usage.output_tokens, turn.usage.cached_tokens)


def planned_only(task: Task) -> Approver:
    """Allow changes of files, which stay within the copy, and of commands only those that the task itself names."""
    planned = {step.arguments.get("command") for turn in task.turns for step in turn.steps}

    async def approve(request: Request) -> Decision:
        fits = request.tool in EDITS or request.arguments.get("command") in planned
        return once if fits else deny("only what the question asks for may be run")

    return approve


# --- files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a teacher's answers came to."""

    teacher: str
    tasks: int
    """Asked so far."""
    rows: int
    reasons: Mapping[str, int]
    """Why attempts gave no row, most frequent first."""
    tokens: Tokens
    dollars: Decimal | None
    out: Path

    def render(self) -> str:
        """For people."""
        lines = [f"{self.teacher}: {self.rows} rows from {self.tasks} tasks, {self.tokens}, {cost.shown(self.dollars)}"]
        lines += [f"  {count:7} rejected: {reason}" for reason, count in self.reasons.items()]
        return "\n".join(
            [*lines, f"{self.out}, its card in {self.out.with_suffix('.card.md').name}"] if self.rows else lines
        )


def write(course: Course) -> Summary:
    """Write the rows of all attempts so far, the shortest of each task, and their card; nothing while there is none."""
    kept = stored(course.store, key=course.key).values()
    wanted = [a for a in kept if a.number < course.plan.attempts]
    made = {asked.plan: [a for a in wanted if a.plan == asked.plan] for asked in course.asked}
    best: list[TaughtRow] = []
    rejected: list[Rejected] = []
    for asked in course.asked:
        rows = [_row(a.row) for a in made[asked.plan] if a.row]
        if rows:
            best.append(min(rows, key=lambda row: size(row.messages)))
        elif made[asked.plan]:
            rejected.append(Rejected(asked.task, made[asked.plan][-1].reason))
    summary = _summary(course, [a for tries in made.values() for a in tries], rows=len(best))
    sieve = Sieve()
    rows = list(sieve.sifted(best))
    if rows:
        write_rows(rows, course.out)
        counted = card(rows, rejected, skipped=course.skipped, dropped=sieve.dropped)
        _write_card(counted, summary, course)
    return replace(summary, rows=len(rows))


def _summary(course: Course, made: Sequence[Attempt], *, rows: int) -> Summary:
    tokens = sum((a.tokens for a in made), Tokens())
    return Summary(
        teacher=course.teacher,
        tasks=len({a.plan for a in made}),
        rows=rows,
        reasons=dict(Counter(a.reason for a in made if a.reason).most_common()),
        tokens=tokens,
        dollars=cost.price(tokens, spec=course.spec, model=course.model),
        out=course.out,
    )


def _write_card(counted: dict[str, Any], summary: Summary, course: Course) -> None:
    """As the generator's, with the teacher: who, how it was asked, what it took, why attempts gave no row."""
    teacher = {
        "model": summary.teacher,
        "attempts": course.plan.attempts,
        "temperature": course.config.temperature if "temperature" in course.config.model_fields_set else None,
        "tasks": summary.tasks,
        "rows": counted["rows"],
        "input_tokens": summary.tokens.read,
        "output_tokens": summary.tokens.written,
        "dollars": None if summary.dollars is None else float(round(summary.dollars, 4)),
        "rejected_attempts": dict(summary.reasons),
    }
    text = f"Asked by `punie train data teach`.\n\n{summary.render()}\n"
    course.out.with_suffix(".card.json").write_text(
        json.dumps({**counted, "teacher": teacher}, indent=2) + "\n", "utf-8"
    )
    course.out.with_suffix(".card.md").write_text(f"{page(counted)}\n## Teacher\n\n{text}", "utf-8")


def _row(record: Mapping[str, Any]) -> TaughtRow:
    """A row as it was kept."""
    messages = tuple(
        Message(m["role"], m["content"], tuple(call(c["name"], c["arguments"]) for c in m["calls"]))
        for m in record["messages"]
    )
    expect = Expect(**{**record["expect"], "values": tuple(record["expect"]["values"])})
    return TaughtRow(**{**record, "messages": messages, "expect": replace(expect, says=tuple(expect.says))})
