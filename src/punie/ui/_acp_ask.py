"""Asks the user of an editor about a call: all that it would do, what would be lost, and the answers that there are."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from acp import RequestError, text_block, tool_content, update_tool_call
from acp.interfaces import Client
from acp.schema import AllowedOutcome, PermissionOption, PermissionOptionKind, ToolCallUpdate
from pydantic import ValidationError

from punie.agent.approval import Decision, Request, deny
from punie.ui._acp_updates import Calls, ChangeOf, Content, Send, diff_of, kind_of, locations_of, shown, title_of
from punie.ui._ask import choices, decision_of, spelled, whole
from punie.ui._clean import hidden_characters, visible
from punie.ui.sessions import fenced

if TYPE_CHECKING:
    from collections.abc import Mapping

_KINDS: "Mapping[str, PermissionOptionKind]" = {
    "y": "allow_once",
    "w": "allow_once",
    "s": "allow_always",
    "a": "allow_always",
    "n": "reject_once",
}
_NAMES = {"y": "Allow once", "w": "Allow once, with the network", "n": "Reject"}


class Question:
    """An approver that asks through the client. `stop` ends the turn, `note` gets what goes wrong."""

    def __init__(
        self,
        client: Client,
        session_id: str,
        calls: Calls,
        *,
        send: Send,
        root: Path,
        change_of: ChangeOf,
        redact: Callable[[str], str],
        stop: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self._client = client
        self._session_id = session_id
        self._calls = calls
        self._send = send
        self._root = root
        self._change_of = change_of
        self._redact = redact
        self._stop = stop
        self._note = note

    async def ask(self, request: Request) -> Decision:
        """Show the request and wait for an answer; what is no answer is a no."""
        call = self._call(request)
        try:
            response = await self._client.request_permission(
                session_id=self._session_id, tool_call=call, options=options_of(request)
            )
        except ConnectionError:
            self._stop()
            return deny("the editor is gone")
        except (RequestError, ValidationError) as error:
            self._note(f"the editor did not answer a question about {request.tool}: {type(error).__name__}")
            return deny("the editor could not ask the user")
        if not isinstance(response.outcome, AllowedOutcome):
            self._stop()
            return deny("the user stopped the turn")
        chosen = response.outcome.option_id
        offered = {option.option_id for option in options_of(request)}
        decision = decision_of(chosen, request) if chosen in offered else None
        if decision is None:
            self._note(f"the editor chose what was not offered about {request.tool}")
            return deny()
        if decision.kind != "deny":
            await self._send(update_tool_call(call.tool_call_id, status="in_progress"))
        return decision

    def _call(self, request: Request) -> ToolCallUpdate:
        known = self._calls.id(request.id) if request.id else None
        return ToolCallUpdate(
            tool_call_id=known or self._calls.begin(request.id or f"asked {request.tool}"),
            title=title_of(request.tool, request.arguments),
            kind=kind_of(request.tool),
            status="pending",
            content=[*self._does(request), *self._warnings(request)],
            locations=locations_of(request.arguments, root=self._root),
            raw_input=shown(request.arguments),
        )

    def _does(self, request: Request) -> Sequence[Content]:
        """What the call would do, as it is: a diff where it changes a file, else its own text."""
        change = self._change_of(request.tool, request.arguments)
        diff = diff_of(change, root=self._root) if change is not None else None
        if diff is not None:
            return [diff]
        # The variables and headers of a server are shown too, and their values are nothing to decide on.
        text = spelled(request) if request.id else self._redact(spelled(request))
        return [tool_content(text_block(fenced(text.rstrip("\n"))))]

    def _warnings(self, request: Request) -> Sequence[Content]:
        lines = [f"runs: {visible(line)}" for line in request.resolved]
        if hidden := hidden_characters(whole(request)):
            lines.append(f"Careful: {hidden} invisible or control characters are spelled out.")
        if request.warning:
            lines.append(f"Careful: {visible(request.warning)}")
        if request.reason:
            lines.append(f"Asked because: {visible(request.reason)}")
        return [tool_content(text_block("\n".join(lines)))] if lines else []


def options_of(request: Request) -> list[PermissionOption]:
    """The answers to a request, under the letters that the chat takes for them."""
    offered = [*choices(request), ("n", "no")]
    return [
        PermissionOption(option_id=key, name=_NAMES.get(key) or _sentence(meaning), kind=_KINDS[key])
        for key, meaning in offered
    ]


def _sentence(meaning: str) -> str:
    """`yes, every edit_file for this session` as the name of a button."""
    text = meaning.removeprefix("yes, ").replace("always ", "", 1)
    return f"Always allow {text}" if meaning.startswith("always ") else f"Allow {text}"
