"""The agent's run, written down as it happens: each message, and each call before it runs and after."""

import asyncio
from dataclasses import dataclass
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.toolsets import WrapperToolset
from pydantic_ai.toolsets.abstract import ToolsetTool

from punie import tools
from punie.agent._snapshots import Snapshot
from punie.agent.session import Session
from punie.tools import Workspace

FILE_TOOLS = frozenset({"edit_file", "write_file"})
"""Tools that tell the journal themselves what they change."""


@dataclass
class Recorder(AbstractCapability[Workspace]):
    """Stores the conversation before every request to the model."""

    session: Session

    async def before_model_request(
        self, ctx: RunContext[Workspace], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Raises SessionError when it cannot be stored; the model is not asked then."""
        self.session.sync(ctx.messages)
        return request_context


@dataclass
class Recorded(WrapperToolset[Workspace]):
    """Tools whose calls are stored where a session keeps the workspace's journal. Approval comes before this."""

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Workspace], tool: ToolsetTool[Workspace]
    ) -> Any:
        """Store the intent, run the tool, store what came of it. Raises SessionError instead of running unstored."""
        session = ctx.deps.journal
        if not isinstance(session, Session):
            return await super().call_tool(name, tool_args, ctx, tool)
        number = session.intend(ctx.messages, call=ctx.tool_call_id or "", tool=name, arguments=tool_args)
        watched = name not in tools.READ_ONLY and name not in FILE_TOOLS
        before = await asyncio.to_thread(session.journal.before_command) if watched else None
        try:
            result = await super().call_tool(name, tool_args, ctx, tool)
        except BaseException as error:
            _ended(session, number, error, before=before)
            raise
        if before is not None:
            await asyncio.to_thread(session.journal.after_command, before)
        session.finish(number, outcome="ok", output=str(result))
        return result


def _ended(session: Session, number: int, error: BaseException, *, before: Snapshot | None) -> None:
    """Without a wait in between: a task that is being cancelled may not get another chance."""
    session.journal.after_command(before)
    interrupted = isinstance(error, asyncio.CancelledError | KeyboardInterrupt)
    session.finish(number, outcome="interrupted" if interrupted else "error", output=str(error))
