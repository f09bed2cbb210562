"""One turn: a prompt goes in, events come out, the last one is always `TurnEnded`.

PydanticAI drives the model and the tools; this only watches its events and says how the turn ended.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias, TypeVar

from pydantic_ai import Agent, CancellationToken, UsageLimits
from pydantic_ai.exceptions import AgentRunError, RunCancelled
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model

from punie.agent import failures
from punie.agent._recorded import Recorder
from punie.agent._redacted import Check, RedactedEvents, redactor_for
from punie.agent._turn import Stopwatch, Turn
from punie.agent.checks import showing
from punie.agent.events import CheckEnded, CheckStarted, Event, Notice, TurnEnded
from punie.agent.offered import offered
from punie.agent.session import Session
from punie.backends._notices import listening
from punie.config import AgentConfig
from punie.errors import Interrupted, PunieError, SessionError
from punie.tools import Workspace

T = TypeVar("T")
Aside: TypeAlias = Notice | Check


async def run_turn(
    agent: Agent[Workspace, str],
    prompt: str,
    *,
    workspace: Workspace,
    config: AgentConfig,
    history: Sequence[ModelMessage] = (),
    cancellation: CancellationToken | None = None,
    session: Session | None = None,
) -> AsyncGenerator[Event, None]:
    """Run one turn and yield what happens.

    Cancelling the token, or the task that iterates, ends the turn as "interrupted" with what there is of an
    answer. A cancelled task still gets `TurnEnded`; the next step of the iteration then raises CancelledError.

    With a session the turn is stored as it goes, and what it changes can be undone. A turn that cannot be stored is
    not begun, and one that can no longer be stored ends as "error". ValueError if the session is one of another
    directory. `history` is still what the model is given: `session.messages` to go on.
    """
    if session is not None and session.workspace != workspace.root:
        raise ValueError(f"the session is one of {session.workspace}, not of {workspace.root}")
    redact = redactor_for(workspace, agent.model)
    safe = RedactedEvents(redact)
    asked, prompt = prompt, redact(prompt)
    names = offered(config, agent.model, skills=True) if isinstance(agent.model, Model) else config.tools
    turn = Turn(history=tuple(history), names=names, stopwatch=(stopwatch := Stopwatch()))
    cancelled: asyncio.CancelledError | None = None
    stream = agent.run_stream_events(
        prompt,
        deps=workspace,
        message_history=list(history),
        usage_limits=UsageLimits(request_limit=None),  # ToolGuard counts requests, and can be configured above 50
        capabilities=[stopwatch, *([Recorder(session)] if session is not None else [])],
        cancellation_token=cancellation,
    )
    error: PunieError | None = None
    try:
        if prompt != asked:
            yield Notice("A secret in the prompt is kept from the model; name the variable or file that holds it.")
        if session is not None:
            session.redact = redact
            session.begin(model=config.model, title=prompt)
            workspace.journal = session
        async with stream as run:
            turn.follow(run)
            async with aclosing(_with_notices(run)) as events:
                async for event in events:
                    aside = isinstance(event, Notice | CheckStarted | CheckEnded)
                    for seen in (safe.aside(event),) if aside else safe.all(turn.see(event)):
                        yield seen
    except PunieError as raised:
        error = raised
    except RunCancelled:
        error = turn.stopped_by or Interrupted("Interrupted.")
    except AgentRunError as raised:
        error = failures.translated(raised)
    except asyncio.CancelledError as raised:
        error, cancelled = Interrupted("Interrupted."), raised
    finally:
        workspace.journal = None
    for seen in safe.all(turn.end(error)):
        yield _stored(seen, session) if isinstance(seen, TurnEnded) and session is not None else seen
    if cancelled is not None:
        raise cancelled


def _stored(ended: TurnEnded, session: Session) -> TurnEnded:
    """The end of the turn once it is on the disk; an answer that could not be stored is no success."""
    try:
        session.sync(ended.messages)
    except SessionError as error:
        return (
            ended if ended.error else replace(ended, stop_reason="error", error=str(error), exit_code=error.exit_code)
        )
    return ended


async def _with_notices(events: AsyncIterator[T]) -> AsyncGenerator[T | Aside, None]:
    """The events, and between them what backends and checks tell, also while the next event is being waited for."""
    queue: asyncio.Queue[T | Aside | None] = asyncio.Queue()
    pump = asyncio.create_task(_pump(events, queue))
    try:
        while (item := await queue.get()) is not None:
            yield item
            queue.task_done()
        await pump  # raises what ended the run
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def _pump(events: AsyncIterator[T], queue: "asyncio.Queue[T | Aside | None]") -> None:
    """Hand over event by event, each when the one before has been dealt with; the listener belongs to this task."""
    try:
        with listening(lambda text: queue.put_nowait(Notice(text))), showing(queue.put_nowait):
            async for event in events:
                queue.put_nowait(event)
                await queue.join()
    finally:
        queue.put_nowait(None)
