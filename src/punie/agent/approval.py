"""Who may let a tool change something: requests, decisions and the gate that remembers them."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic_ai import RunContext
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDefinition, ToolDenied

from punie import tools
from punie.config import PermissionMode
from punie.errors import PermissionNeeded
from punie.tools import Workspace

EDITS = frozenset({"edit_file", "write_file"})


@dataclass(frozen=True)
class Request:
    """A call that waits for a decision. `preview` is a diff or the command, None when there is nothing to show."""

    tool: str
    arguments: Mapping[str, object]
    preview: str | None


@dataclass(frozen=True)
class Decision:
    """An answer to a request; "nobody" means there was no one to ask, which ends the turn."""

    kind: Literal["once", "session", "deny", "nobody"]
    reason: str = ""


once = Decision("once")
session = Decision("session")
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


def approver_for(mode: PermissionMode, *, allowed: Collection[str] = (), ask: Approver = refuse) -> Approver:
    """The approver of a permission mode; `ask` is how a person is asked, when one is there."""

    async def deny_the_rest(request: Request) -> Decision:
        return deny(f"{request.tool} is not allowed here")

    async def deny_all(request: Request) -> Decision:
        return deny(f"{request.tool} is off while planning")

    match mode:
        case "bypassPermissions":
            return approve_all
        case "plan":
            return deny_all
        case "dontAsk":
            return allowing(allowed, otherwise=deny_the_rest)
        case "acceptEdits" | "auto":
            return allowing({*allowed, *EDITS}, otherwise=ask)
        case "default":
            return allowing(allowed, otherwise=ask)


@dataclass
class Gate:
    """Asks about every call that is not read-only, and remembers what was granted for the session."""

    approve: Approver
    _granted: set[str] = field(default_factory=set)

    def needs_approval(self, ctx: RunContext[Workspace], tool: ToolDefinition, arguments: Mapping[str, object]) -> bool:
        """Whether the call has to be asked about; the shape `approval_required` of a toolset wants.

        Nobody is asked about a change that cannot be made: raises what the tool itself would answer.
        """
        if tool.name in tools.READ_ONLY or _grant(tool.name, arguments) in self._granted:
            return False
        tools.refuse_impossible(ctx.deps, tool.name, arguments)
        return True

    async def decide(self, ctx: RunContext[Workspace], requests: DeferredToolRequests) -> DeferredToolResults:
        """Ask about each waiting call in turn. Raises PermissionNeeded when nobody is there to answer."""
        results = DeferredToolResults()
        for call in requests.approvals:
            results.approvals[call.tool_call_id] = await self._decide(ctx.deps, call)
        return results

    async def _decide(self, workspace: Workspace, call: ToolCallPart) -> ToolApproved | ToolDenied:
        arguments = call.args_as_dict()
        if _grant(call.tool_name, arguments) in self._granted:
            return ToolApproved()
        preview = tools.preview(workspace, call.tool_name, arguments)
        decision = await self.approve(Request(call.tool_name, arguments, preview))
        if decision.kind == "nobody":
            raise PermissionNeeded(
                f"{call.tool_name} needs a permission and nobody is there to give it.",
                f"Allow it with --allowed-tools {call.tool_name}, or run without -p and answer.",
            )
        if decision.kind == "deny":
            return ToolDenied(f"The user refused this call{': ' + decision.reason if decision.reason else ''}.")
        if decision.kind == "session":
            self._granted.add(_grant(call.tool_name, arguments))
        return ToolApproved()


def _grant(name: str, arguments: Mapping[str, object]) -> str:
    """What a grant for the session covers: the tool, and for commands only the very same one."""
    return f"{name} {arguments.get('command')}" if name == "run_command" else name
