"""An editor for tests: the SDK's own client on one side, `python -m punie acp` as a real process on the other."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acp import PROTOCOL_VERSION, PromptResponse, spawn_agent_process, text_block
from acp.client import ClientSideConnection
from acp.schema import (
    AgentMessageChunk,
    AllowedOutcome,
    DeniedOutcome,
    InitializeResponse,
    PermissionOption,
    RequestPermissionResponse,
    ToolCallProgress,
    ToolCallStart,
    ToolCallUpdate,
    UserMessageChunk,
)

Answer = Callable[[ToolCallUpdate, Sequence[PermissionOption]], Awaitable[str | None]]
"""The id of the option that the user takes; None for a turn that was cancelled meanwhile."""


async def allow_once(call: ToolCallUpdate, options: Sequence[PermissionOption]) -> str | None:
    del call
    return next(option.option_id for option in options if option.kind == "allow_once")


async def reject(call: ToolCallUpdate, options: Sequence[PermissionOption]) -> str | None:
    del call
    return next(option.option_id for option in options if option.kind == "reject_once")


def content_of(call: ToolCallStart | ToolCallProgress | ToolCallUpdate) -> list[Any]:
    return list(call.content or ())


def text_of(call: ToolCallStart | ToolCallProgress | ToolCallUpdate) -> str:
    """What is told of a call besides diffs."""
    return "\n".join(part.content.text for part in content_of(call) if part.type == "content")


@dataclass
class Editor:
    """Keeps what it is told, and answers questions as it is set to."""

    updates: list[tuple[str, Any]] = field(default_factory=list)
    asked: list[tuple[ToolCallUpdate, Sequence[PermissionOption]]] = field(default_factory=list)
    answer: Answer = allow_once
    agent: ClientSideConnection = field(init=False)
    process: asyncio.subprocess.Process = field(init=False)
    told: InitializeResponse = field(init=False)

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.updates.append((session_id, update))

    async def request_permission(
        self, options: list[PermissionOption], session_id: str, tool_call: ToolCallUpdate, **_: Any
    ) -> RequestPermissionResponse:
        del session_id
        self.asked.append((tool_call, options))
        chosen = await self.answer(tool_call, options)
        if chosen is None:
            return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))
        return RequestPermissionResponse(outcome=AllowedOutcome(outcome="selected", option_id=chosen))

    # --- what tests ask for ---

    async def new(self, root: Path, **more: Any) -> str:
        self.answer = allow_once
        self.asked.clear()
        return (await self.agent.new_session(cwd=str(root), mcp_servers=more.pop("mcp_servers", []), **more)).session_id

    async def prompt(self, session: str, text: str) -> PromptResponse:
        return await self.agent.prompt(session_id=session, prompt=[text_block(text)])

    def seen(self, session: str, *kinds: type) -> list[Any]:
        return [update for id_, update in self.updates if id_ == session and isinstance(update, kinds)]

    def text(self, session: str, kind: type = AgentMessageChunk) -> str:
        return "".join(update.content.text for update in self.seen(session, kind))

    def asked_by_user(self, session: str) -> str:
        return self.text(session, UserMessageChunk)

    def calls(self, session: str) -> list[Any]:
        return self.seen(session, ToolCallStart, ToolCallProgress)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that the agent is about to bring about; the test's own timeout ends it."""
        while not condition():  # noqa: ASYNC110 - it may be a file that changes
            await asyncio.sleep(0.02)


def environment(home: Path, **more: str) -> Mapping[str, str]:
    places = {"XDG_CONFIG_HOME": str(home / "config"), "XDG_STATE_HOME": str(home / "state"), "HOME": str(home)}
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **places, **more}


@asynccontextmanager
async def editing(home: Path, *arguments: str, **env: str) -> AsyncIterator[Editor]:
    """An editor with its agent, which is in nobody's project; ends both."""
    editor = Editor()
    with (home / "stderr").open("w") as log:
        async with spawn_agent_process(
            lambda _: editor,  # type: ignore[arg-type, return-value]  # it has what an agent like this asks a client for
            sys.executable,
            "-m",
            "punie",
            "acp",
            *arguments,
            env=environment(home, **env),
            cwd=home,
            transport_kwargs={"stderr": log, "shutdown_timeout": 60.0},
            use_unstable_protocol=True,
        ) as (editor.agent, editor.process):
            editor.told = await editor.agent.initialize(protocol_version=PROTOCOL_VERSION)
            yield editor
