"""One turn: a prompt goes in, events come out, the last one is always `TurnEnded`.

PydanticAI drives the model and the tools; this only watches its events and says how the turn ended.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from pydantic_ai import Agent, CancellationToken, UsageLimits
from pydantic_ai.exceptions import AgentRunError, RunCancelled
from pydantic_ai.messages import ModelMessage

from punie.agent import failures
from punie.agent._turn import Stopwatch, Turn
from punie.agent.events import Event
from punie.config import AgentConfig
from punie.errors import Interrupted, PunieError
from punie.tools import Workspace


async def run_turn(
    agent: Agent[Workspace, str],
    prompt: str,
    *,
    workspace: Workspace,
    config: AgentConfig,
    history: Sequence[ModelMessage] = (),
    cancellation: CancellationToken | None = None,
) -> AsyncGenerator[Event, None]:
    """Run one turn and yield what happens.

    Cancelling the token, or the task that iterates, ends the turn as "interrupted" with what there is of an
    answer. A cancelled task still gets `TurnEnded`; the next step of the iteration then raises CancelledError.
    """
    turn = Turn(history=tuple(history), names=config.tools, stopwatch=(stopwatch := Stopwatch()))
    cancelled: asyncio.CancelledError | None = None
    stream = agent.run_stream_events(
        prompt,
        deps=workspace,
        message_history=list(history),
        usage_limits=UsageLimits(request_limit=None),  # ToolGuard counts requests, and can be configured above 50
        capabilities=[stopwatch],
        cancellation_token=cancellation,
    )
    error: PunieError | None = None
    try:
        async with stream as run:
            turn.follow(run)
            async for event in run:
                for seen in turn.see(event):
                    yield seen
    except PunieError as raised:
        error = raised
    except RunCancelled:
        error = turn.stopped_by or Interrupted("Interrupted.")
    except AgentRunError as raised:
        error = failures.translated(raised)
    except asyncio.CancelledError as raised:
        error, cancelled = Interrupted("Interrupted."), raised
    for seen in turn.end(error):
        yield seen
    if cancelled is not None:
        raise cancelled
