"""Hooks: commands of the user's own before and after each call of a tool, and at the end of a turn.

A hook is a command like any other: rules that deny commands hold for it, and it runs in the sandbox. It comes after
the decision about a call and can only take away from it: what was refused never reaches a hook.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, WrapRunHandler
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.run import AgentRunResult
from pydantic_ai.toolsets import WrapperToolset
from pydantic_ai.toolsets.abstract import ToolsetTool

from punie import controls
from punie.agent import _covers
from punie.agent._effects import effects_of
from punie.agent._pins import Pins
from punie.agent.approval import Gate, Request
from punie.agent.permissions import Call, authorize
from punie.backends._notices import tell
from punie.errors import ConfigError
from punie.extensions import Hook, Hooks
from punie.rules import parse_rule
from punie.tools import Workspace
from punie.tools._process import run

BLOCKED = 2
"""The exit status by which a hook says no."""
MAX_SAID = 2_000
MAX_RESPONSE = 20_000
"""Characters of a tool's result that a hook is given."""

Point = Literal["before_tool", "after_tool", "turn_end"]


@dataclass(frozen=True)
class Ended:
    """How one hook ended: whether it said no, what went wrong instead, and what it wrote to standard error."""

    blocked: bool
    fault: str
    said: str


class HookRunner:
    """Runs the hooks of one conversation. Those of a project are asked about, once for each that is new or changed."""

    def __init__(self, own: Hooks, project: Hooks, *, pins: Pins) -> None:
        self._hooks = {"user": own, "project": project}
        self._pins = pins
        self._settled: dict[tuple[Point, Hook], bool] = {}
        self._lock = asyncio.Lock()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(self._hooks.values())

    async def before(self, ctx: RunContext[Workspace], gate: Gate, call: Call) -> None:
        """Raises ToolFailed when a hook says no, or cannot say anything: then the call is not made."""
        event = {"tool_name": call.tool, "tool_input": dict(call.arguments)}
        for hook in await self._at("before_tool", ctx.deps, gate, call):
            ended = await self._run(hook, "before_tool", ctx.deps, gate, event)
            if ended.blocked:
                raise ToolFailed(f"Not run: a hook of the user refused it: {ended.said or 'it gave no reason'}")
            if ended.fault:
                raise ToolFailed(f"Not run: the hook `{hook.command}` {ended.fault}. {ended.said}".rstrip())

    async def after(self, ctx: RunContext[Workspace], gate: Gate, call: Call, result: object) -> object:
        """The result, with what hooks that are not content say about it."""
        event = {
            "tool_name": call.tool,
            "tool_input": dict(call.arguments),
            "tool_response": str(result)[:MAX_RESPONSE],
        }
        for hook in await self._at("after_tool", ctx.deps, gate, call):
            ended = await self._run(hook, "after_tool", ctx.deps, gate, event)
            if ended.blocked:
                result = f"{result}\nA hook of the user says: {ended.said}"
            elif ended.fault:
                tell(f"The hook `{hook.command}` {ended.fault}. {ended.said}".rstrip())
        return result

    async def turn_end(self, workspace: Workspace, gate: Gate) -> None:
        """What such a hook says is told to the user; the turn is over whatever it says."""
        for hook in await self._at("turn_end", workspace, gate, None):
            ended = await self._run(hook, "turn_end", workspace, gate, {})
            if ended.blocked or ended.fault:
                tell(f"The hook `{hook.command}` {ended.fault or 'says'}: {ended.said}".rstrip(": "))

    async def _at(self, point: Point, workspace: Workspace, gate: Gate, call: Call | None) -> list[Hook]:
        """The hooks to run: the user's own first, then those of the project that the user agreed to.

        While planning only those that can stop a call: nothing is changed then, so nothing has to follow a change.
        """
        if gate.permissions.mode == "plan" and point != "before_tool":
            return []
        own, project = (getattr(self._hooks[whose], point) for whose in ("user", "project"))
        found = [hook for hook in own if _covers_call(hook, call, workspace, gate)]
        asked = [hook for hook in project if _covers_call(hook, call, workspace, gate)]
        return found + [hook for hook in asked if await self._may_run(hook, point, gate)]

    async def _may_run(self, hook: Hook, point: Point, gate: Gate) -> bool:
        """Whether the user agreed to a hook of the project, now or earlier."""
        entry = (point, hook)
        async with self._lock:
            if entry not in self._settled:
                known = self._pins.has_hook(_content(hook, point))
                self._settled[entry] = known or await self._agreed(hook, point, gate)
            return self._settled[entry]

    async def _agreed(self, hook: Hook, point: Point, gate: Gate) -> bool:
        """Ask the user about a hook of the project, and keep a yes."""
        why = "this hook of the project is new, or changed since you agreed to it"
        request = Request(f"hook {point}", {}, preview=hook.command, reason=why, every_time=True)
        asks = gate.permissions.mode != "dontAsk"
        if not asks or (await gate.approve(request)).kind in {"deny", "nobody"}:
            tell(f"The project's hook `{hook.command}` is not run: nobody agreed to it. A chat asks about it.")
            return False
        try:
            self._pins.add_hook(_content(hook, point))
        except ConfigError as error:
            tell(f"Agreed to for this conversation only: {error.cause}")
        return True

    async def _run(
        self, hook: Hook, point: Point, workspace: Workspace, gate: Gate, event: Mapping[str, object]
    ) -> Ended:
        """Run one hook with the event on its standard input; a rule that denies its command is a fault of its own."""
        permissions = replace(gate.permissions, mode="default")
        command = Call("run_command", {"command": hook.command})
        verdict = authorize(command, root=workspace.root, permissions=permissions)
        if verdict.kind == "deny":
            return Ended(blocked=False, fault="may not run", said=verdict.reason)
        told = {"hook_event_name": point, "cwd": str(workspace.root), **event}
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(told, default=str).encode())
            file.seek(0)
            outcome = await run(
                f"exec >/dev/null\n{hook.command}",  # only standard error is a reason
                sandbox=workspace.sandbox,
                timeout_s=hook.timeout_s,
                network=workspace.sandbox.options.network,
                stdin=file.fileno(),
            )
        said = controls.plain((outcome.head + outcome.tail).decode("utf-8", errors="replace")).strip()[-MAX_SAID:]
        if outcome.stopped:
            return Ended(blocked=False, fault=f"was stopped ({outcome.stopped})", said=said)
        fault = f"failed with exit status {outcome.status}" if outcome.status not in {0, BLOCKED} else ""
        return Ended(blocked=outcome.status == BLOCKED, fault=fault, said=said)


def _content(hook: Hook, point: Point) -> list[object]:
    """What the user agrees to when agreeing to a hook."""
    return [point, hook.model_dump(mode="json")]


def _covers_call(hook: Hook, call: Call | None, workspace: Workspace, gate: Gate) -> bool:
    if hook.match is None or call is None:
        return True
    effects = effects_of(call, root=workspace.root)
    return _covers.forbids(parse_rule(hook.match), effects, root=workspace.root, home=gate.permissions.home)


@dataclass
class Hooked(WrapperToolset[Workspace]):
    """Tools whose calls hooks see. The decision about a call comes before this."""

    runner: HookRunner
    gate: Gate

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Workspace], tool: ToolsetTool[Workspace]
    ) -> Any:
        """Run the hooks, the tool, and the hooks."""
        call = Call(name, tool_args)
        await self.runner.before(ctx, self.gate, call)
        result = await super().call_tool(name, tool_args, ctx, tool)
        return await self.runner.after(ctx, self.gate, call, result)


@dataclass
class TurnEnd(AbstractCapability[Workspace]):
    """Runs the hooks for the end of a turn, also of one that failed, but not of one that was interrupted."""

    runner: HookRunner
    gate: Gate

    async def wrap_run(self, ctx: RunContext[Workspace], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Run the turn, then the hooks."""
        try:
            result = await handler()
        except Exception:
            await self.runner.turn_end(ctx.deps, self.gate)
            raise
        await self.runner.turn_end(ctx.deps, self.gate)
        return result
