"""The agent's side of the Agent Client Protocol: what a client may ask for, and the sessions it has."""

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acp import PROTOCOL_VERSION, PromptResponse, RequestError
from acp.helpers import update_available_commands, update_current_mode
from acp.interfaces import Client
from acp.schema import (
    AgentCapabilities,
    ClientCapabilities,
    CloseSessionResponse,
    Implementation,
    InitializeResponse,
    ListSessionsResponse,
    LoadSessionResponse,
    McpCapabilities,
    NewSessionResponse,
    PromptCapabilities,
    ResumeSessionResponse,
    SessionCapabilities,
    SessionCloseCapabilities,
    SessionInfo,
    SessionListCapabilities,
    SessionResumeCapabilities,
    SetSessionConfigOptionResponse,
    SetSessionModeResponse,
)

from punie.errors import PunieError, UsageError
from punie.ui import _acp_commands as commands
from punie.ui._acp_choices import config_update, modes_of, offered_model, options_of
from punie.ui._acp_content import Block
from punie.ui._acp_servers import ClientServer, with_servers
from punie.ui._acp_session import Conversation, Models, refusal
from punie.ui._clean import one_line
from punie.ui._kept import open_store
from punie.ui._setup import prepare
from punie.ui.options import Options, directory

_ID = re.compile(r"[0-9a-f]{32}")
_PAGE = 50
"""Sessions in one answer."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Give errors that the user can act on as answers."""
    try:
        yield
    except PunieError as error:
        raise refusal(error) from error


class Server:
    """Serves one client.

    `stores` says whether sessions are stored, `http` whether MCP servers over HTTP can be had, `note` writes a line
    to the log. `_meta` of any request arrives nowhere.
    """

    def __init__(
        self, options: Options, *, version: str, stores: bool, http: bool, note: Callable[[str], None]
    ) -> None:
        self._options = options
        self._version = version
        self._stores = stores
        self._http = http
        self._note = note
        self._client: Client | None = None
        self._models = Models()
        self._conversations: dict[str, Conversation] = {}
        self._later: set[asyncio.Task[None]] = set()
        self._stopped = False

    def on_connect(self, conn: Client) -> None:
        """The other side."""
        self._client = conn

    def stop(self) -> None:
        """End all turns, also those that have not begun."""
        self._stopped = True
        for conversation in self._conversations.values():
            conversation.stop()

    async def close(self) -> None:
        """End everything that sessions have started."""
        for conversation in self._conversations.values():
            await conversation.close()

    # --- what a client asks for ---

    async def initialize(
        self,
        protocol_version: int,
        client_capabilities: ClientCapabilities | None = None,
        client_info: Implementation | None = None,
    ) -> InitializeResponse:
        """What this agent can do. There is one version of the protocol that it speaks, whatever the client asks for."""
        del protocol_version, client_capabilities, client_info
        can = SessionCapabilities(close=SessionCloseCapabilities())
        if self._stores:
            can = SessionCapabilities(
                close=SessionCloseCapabilities(), list=SessionListCapabilities(), resume=SessionResumeCapabilities()
            )
        return InitializeResponse(
            protocol_version=PROTOCOL_VERSION,
            agent_info=Implementation(name="punie", title="Punie", version=self._version),
            agent_capabilities=AgentCapabilities(
                load_session=self._stores,
                prompt_capabilities=PromptCapabilities(image=False, audio=False, embedded_context=True),
                mcp_capabilities=McpCapabilities(http=self._http, sse=False),
                session_capabilities=can,
            ),
            auth_methods=[],
        )

    async def new_session(
        self,
        cwd: str,
        additional_directories: list[str] | None = None,
        mcp_servers: list[ClientServer] | None = None,
    ) -> NewSessionResponse:
        """Begin a conversation in a directory."""
        with _refusing():
            conversation = self._conversation(cwd, additional_directories, mcp_servers)
        self._conversations[conversation.id] = conversation
        self._tell_commands(conversation)
        return NewSessionResponse(
            session_id=conversation.id, modes=modes_of(conversation), config_options=options_of(conversation)
        )

    async def load_session(
        self,
        cwd: str,
        session_id: str,
        mcp_servers: list[ClientServer] | None = None,
        additional_directories: list[str] | None = None,
    ) -> LoadSessionResponse:
        """Go on with a stored conversation, and show all of it."""
        conversation = await self._resumed(cwd, session_id, additional_directories, mcp_servers)
        await conversation.replay()
        self._tell_commands(conversation)
        return LoadSessionResponse(modes=modes_of(conversation), config_options=options_of(conversation))

    async def resume_session(
        self,
        session_id: str,
        cwd: str,
        additional_directories: list[str] | None = None,
        mcp_servers: list[ClientServer] | None = None,
    ) -> ResumeSessionResponse:
        """Go on with a stored conversation that the client has on its screen already."""
        conversation = await self._resumed(cwd, session_id, additional_directories, mcp_servers)
        self._tell_commands(conversation)
        return ResumeSessionResponse(modes=modes_of(conversation), config_options=options_of(conversation))

    async def list_sessions(self, cwd: str | None = None, cursor: str | None = None) -> ListSessionsResponse:
        """The stored conversations, of one directory or of all, the one that changed last first."""
        if not self._stores:
            return ListSessionsResponse(sessions=[])
        if cursor is not None and not re.fullmatch(r"[0-9]{1,9}", cursor):
            raise RequestError(-32602, "That is no cursor of this agent.")
        begin = int(cursor or 0)
        with _refusing(), open_store(os.environ) as store:
            found = store.list(directory(str(_absolute(cwd))) if cwd is not None else None)
        sessions = [
            SessionInfo(
                session_id=info.id,
                cwd=str(info.workspace),
                title=one_line(info.title, width=80),
                updated_at=datetime.fromtimestamp(info.changed, tz=UTC).isoformat(),
            )
            for info in found[begin : begin + _PAGE]
        ]
        more = str(begin + _PAGE) if len(found) > begin + _PAGE else None
        return ListSessionsResponse(sessions=sessions, next_cursor=more)

    async def close_session(self, session_id: str) -> CloseSessionResponse:
        """End a session; what is stored of it stays."""
        conversation = self._known(session_id)
        del self._conversations[session_id]
        await conversation.close()
        return CloseSessionResponse()

    async def set_session_mode(self, mode_id: str, session_id: str) -> SetSessionModeResponse:
        """Go on in another permission mode."""
        conversation = self._known(session_id)
        with _refusing():
            conversation.set_mode(mode_id)
        self._soon(conversation.send(config_update(conversation)))
        return SetSessionModeResponse()

    async def set_config_option(
        self, config_id: str, session_id: str, value: str | bool
    ) -> SetSessionConfigOptionResponse:
        """Go on in another permission mode, or with another model."""
        conversation = self._known(session_id)
        if config_id not in {"mode", "model"} or not isinstance(value, str):
            raise RequestError(-32602, "There are the options 'mode' and 'model', each with one of its values.")
        with _refusing():
            if config_id == "mode":
                conversation.set_mode(value)
                self._soon(conversation.send(update_current_mode(value)))
            else:
                conversation.refuse_if_busy()
                await conversation.change_model(offered_model(conversation.setup, value))
        return SetSessionConfigOptionResponse(config_options=options_of(conversation))

    async def prompt(self, session_id: str, prompt: list[Block]) -> PromptResponse:
        """One turn."""
        conversation = self._known(session_id)
        if self._stopped:
            return PromptResponse(stop_reason="cancelled")
        return await conversation.prompt(prompt)

    async def cancel(self, session_id: str) -> None:
        """End the turn of a session; one that is not known has none."""
        if session_id in self._conversations:
            self._conversations[session_id].stop()

    # --- sessions ---

    def _known(self, session_id: str) -> Conversation:
        if session_id not in self._conversations:
            raise RequestError(-32602, "There is no such session; session/new begins one, session/load goes on.")
        return self._conversations[session_id]

    def _conversation(
        self, cwd: str, directories: Sequence[str] | None, servers: Sequence[ClientServer] | None
    ) -> Conversation:
        """A session that is not among the others yet. PunieError for what is wrong with the request."""
        place = _absolute(cwd)
        if directories:
            raise UsageError("A session has one directory here.", "Leave additionalDirectories out.")
        assert self._client is not None  # noqa: S101 - it is there before any request is
        setup = prepare(self._options._replace(cwd=directory(str(place))), env=os.environ)
        bypasses = self._options.permission_mode == "bypassPermissions"
        if setup.mode == "bypassPermissions" and not bypasses:
            told = "permission_mode is bypassPermissions in your settings; in an editor it takes `punie acp --yolo`."
            setup = replace(setup.with_mode("default"), notices=(*setup.notices, told))
        return Conversation(
            with_servers(setup, servers or ()),
            self._client,
            place=place,
            models=self._models,
            bypasses=bypasses,
            note=self._note,
        )

    async def _resumed(
        self,
        cwd: str,
        session_id: str,
        directories: Sequence[str] | None,
        servers: Sequence[ClientServer] | None,
    ) -> Conversation:
        """A stored session, taken over from this process itself if it has it already."""
        if not _ID.fullmatch(session_id):
            raise RequestError(-32602, "There is no such session; session/list names the stored ones.")
        with _refusing():
            conversation = self._conversation(cwd, directories, servers)
            if earlier := self._conversations.get(session_id):
                earlier.refuse_if_busy()
                del self._conversations[session_id]
                await earlier.close()
            try:
                conversation.resume(session_id)
            except PunieError:
                await conversation.close()
                raise
        self._conversations[session_id] = conversation
        return conversation

    def _tell_commands(self, conversation: Conversation) -> None:
        self._soon(conversation.send(update_available_commands(commands.available())))

    def _soon(self, work: Any) -> None:
        """Send something after the answer to the request that is being dealt with."""
        task = asyncio.ensure_future(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)


def _absolute(given: str) -> Path:
    """A directory as the client writes it. UsageError if it is no absolute path."""
    if not Path(given).is_absolute():
        raise UsageError(f"cwd is no absolute path: {one_line(given, width=200)}", "The editor has to name it whole.")
    return Path(given)
