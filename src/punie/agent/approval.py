"""Who may let a tool change something: requests, decisions and the gate that remembers them."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic_ai import RunContext
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDefinition, ToolDenied

from punie import tools
from punie.agent._dangers import losses
from punie.agent.permissions import Call, Permissions, Verdict, authorize, grant, hides
from punie.backends._notices import tell
from punie.errors import ConfigError, PermissionNeeded
from punie.rules import COMMANDS, EDITS
from punie.tools import Workspace

__all__ = [
    "EDITS",
    "Approver",
    "Decision",
    "Gate",
    "Request",
    "allowing",
    "always",
    "approve_all",
    "deny",
    "network",
    "nobody",
    "once",
    "refuse",
    "session",
]


@dataclass(frozen=True)
class Request:
    """A call that waits for a decision. `preview` is a diff or the command, None when there is nothing to show."""

    tool: str
    arguments: Mapping[str, object]
    preview: str | None
    resolved: tuple[str, ...] = ()
    """The commands in it as programs would get them, where they are written in another way."""
    reason: str = ""
    """Why it is asked about although a rule or the mode might have let it through."""
    warning: str = ""
    """What would be lost."""
    rules: tuple[str, ...] = ()
    """What `always` would allow from now on; empty where that is not offered."""
    every_time: bool = False
    """Whether it is asked about every time, so that a grant for the session would not hold."""
    without_network: bool = False
    """Whether it is a command that the sandbox would keep from the network."""
    id: str = ""
    """The call it is about, by the id that events give it; empty where there is no call."""


@dataclass(frozen=True)
class Decision:
    """An answer to a request; "nobody" means there was no one to ask, which ends the turn."""

    kind: Literal["once", "network", "session", "always", "deny", "nobody"]
    reason: str = ""


once = Decision("once")
network = Decision("network")
"""Once, and with the network."""
session = Decision("session")
always = Decision("always")
nobody = Decision("nobody")


def deny(reason: str = "") -> Decision:
    """Refuse this call; the model is told and goes on."""
    return Decision("deny", reason)


Approver = Callable[[Request], Awaitable[Decision]]


async def refuse(request: Request) -> Decision:
    """Nobody is there to ask."""
    del request
    return nobody


async def approve_all(request: Request) -> Decision:
    """Everything is allowed."""
    del request
    return once


def allowing(names: Collection[str], *, otherwise: Approver = refuse) -> Approver:
    """Allow the named tools, and ask `otherwise` about the rest."""

    async def approve(request: Request) -> Decision:
        return once if request.tool in names else await otherwise(request)

    return approve


def _forget(rules: Sequence[str]) -> None:
    """Keep nothing beyond this session."""
    del rules


@dataclass
class Gate:
    """Every call comes by here: what is not free is asked about, and what was granted is remembered."""

    approve: Approver
    permissions: Permissions = field(default_factory=Permissions)
    remember: Callable[[Sequence[str]], None] = _forget
    """Keeps the rules that the user allows for good; they take effect at once, whatever becomes of this."""
    _granted: set[str] = field(default_factory=set)

    def authorize(self, workspace: Workspace, call: Call) -> Verdict:
        """Judge a call with what was granted so far, and have the tools hold to the place that was judged.

        While planning the sandbox lets no command write into the workspace, whatever its words look like.
        """
        workspace.sandbox.read_only = self.permissions.mode == "plan"
        verdict = authorize(
            call,
            root=workspace.root,
            permissions=self.permissions,
            # To try a sandbox out takes a moment, which only commands need to wait for.
            sandbox_works=self.permissions.uses_sandbox and call.tool in COMMANDS and workspace.sandbox.state.active,
            granted=self._granted,
        )
        if verdict.real:
            workspace.judged[str(call.arguments.get("path"))] = verdict.real
        return verdict

    def needs_approval(self, ctx: RunContext[Workspace], tool: ToolDefinition, arguments: Mapping[str, object]) -> bool:
        """Whether the call has to be decided on; the shape `approval_required` of a toolset wants.

        Nobody is asked about a change that cannot be made: raises what the tool itself would answer.
        """
        ctx.deps.hidden = hides(ctx.deps.root, self.permissions)
        verdict = self.authorize(ctx.deps, Call(tool.name, arguments))
        if verdict.kind == "ask" and not verdict.unseen:
            tools.refuse_impossible(ctx.deps, tool.name, arguments)
        return verdict.kind != "allow"

    async def decide(self, ctx: RunContext[Workspace], requests: DeferredToolRequests) -> DeferredToolResults:
        """Decide on each waiting call in turn. Raises PermissionNeeded when nobody is there to answer."""
        results = DeferredToolResults()
        for call in requests.approvals:
            results.approvals[call.tool_call_id] = await self.judge(ctx.deps, call)
        return results

    async def judge(
        self, workspace: Workspace, part: ToolCallPart, *, by_hand: bool = False
    ) -> ToolApproved | ToolDenied:
        """Decide on one call, whoever makes it. Raises PermissionNeeded when nobody is there to answer.

        Who typed a command `by_hand` has answered already, but for what it would lose.
        """
        call = Call(part.tool_name, part.args_as_dict())
        verdict = self.authorize(workspace, call)
        loses = verdict.every_time or verdict.dangers
        if verdict.kind == "allow" or (by_hand and verdict.kind == "ask" and not loses):
            return ToolApproved()
        if verdict.kind == "deny":
            return ToolDenied(verdict.reason)
        request = await _request(workspace, call, verdict, trusted=self.permissions.trusted)
        request = replace(request, id=part.tool_call_id)
        decision = await self.approve(request)
        if decision.kind == "nobody":
            raise _nobody_there(request)
        if decision.kind == "deny":
            return ToolDenied(f"The user refused this call{': ' + decision.reason if decision.reason else ''}.")
        if decision.kind == "network":
            workspace.sandbox.allow_network(str(call.arguments.get("command")))
        self._keep(decision, call, verdict)
        return ToolApproved()

    def _keep(self, decision: Decision, call: Call, verdict: Verdict) -> None:
        """Remember what was granted beyond this one call; what is asked about every time stays so."""
        if verdict.every_time or decision.kind in {"once", "network"}:
            return
        if decision.kind == "always" and verdict.rules:
            self.permissions = self.permissions.with_allowed(verdict.rules)
            try:
                self.remember(verdict.rules)
            except ConfigError as error:  # the user agreed: the work goes on, and next time the question comes again
                tell(f"Allowed for this session only: {error.cause}")
        else:
            self._granted.add(grant(call))


async def _request(workspace: Workspace, call: Call, verdict: Verdict, *, trusted: bool) -> Request:
    """Everything a person needs for an answer."""
    warning = ""
    if verdict.dangers:  # to count files may take a moment, in which the screen must stay alive
        warning = await asyncio.to_thread(losses, verdict.dangers, root=workspace.root, trusted=trusted)
    return Request(
        tool=call.tool,
        arguments=call.arguments,
        preview=tools.preview(workspace, call.tool, call.arguments),
        resolved=verdict.resolved,
        reason=verdict.reason,
        warning=warning,
        rules=verdict.rules,
        every_time=verdict.every_time,
        without_network=call.tool in COMMANDS and _keeps_from_network(workspace),
    )


def _keeps_from_network(workspace: Workspace) -> bool:
    return workspace.sandbox.state.active and not workspace.sandbox.options.network


def _nobody_there(request: Request) -> PermissionNeeded:
    why = request.reason or request.warning.partition("\n")[0].rstrip(".")
    rules = " ".join(f"--allowed-tools '{rule}'" for rule in request.rules)
    step = f"Allow it with {rules}, or run without -p and answer." if rules else "Run without -p and answer."
    said = f"{request.tool} needs a permission and nobody is there to give it{': ' + why if why else ''}."
    return PermissionNeeded(said, step)
