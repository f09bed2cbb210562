"""One conversation that an editor leads: the chat's own parts, with a client in place of a terminal."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from acp import PromptResponse, RequestError, update_agent_message_text, update_agent_thought_text
from acp.helpers import update_current_mode
from acp.interfaces import Client
from acp.schema import StopReason, Usage

from punie.errors import ConfigError, PunieError, SessionError, UsageError
from punie.redaction import Redactor
from punie.rules import EDITS
from punie.ui._acp_choices import config_update
from punie.ui._acp_content import Block, prompt_text
from punie.ui._acp_updates import Calls, TurnUpdates, Update, replayed
from punie.ui._clean import clean, one_line
from punie.ui._complete import without_marks
from punie.ui._kept import Kept
from punie.ui._loading import Loaded, Loading, try_out
from punie.ui._progress import OnProgress
from punie.ui._setup import Setup, assemble, gate_for, load_model
from punie.ui.options import MODES

if TYPE_CHECKING:
    from pydantic_ai import Agent, CancellationToken
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.models import Model

    from punie.agent.approval import Decision, Gate, Request
    from punie.agent.events import TurnEnded
    from punie.agent.session import Session
    from punie.config import PermissionMode
    from punie.tools import Workspace
    from punie.tools._changes import Change

_SECONDS_TO_TELL = 3.0
"""How long a model loads before the user is told how far it is, and between two such lines."""
_STOPS: Mapping[str, StopReason] = {
    "done": "end_turn",
    "denied": "end_turn",
    "limit": "max_turn_requests",
    "loop": "max_turn_requests",
    "interrupted": "cancelled",
}


class Models:
    """The models in use: a local one is large, so conversations with the same settings share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, Model] = {}

    def load(self, setup: Setup, on_progress: OnProgress) -> "Model":
        """The model of a conversation; it takes the requests of several one after the other."""
        key = setup.config.model_dump_json()
        with self._lock:
            if key not in self._models:
                self._models[key] = load_model(setup, on_progress)
            return self._models[key]


def refusal(error: PunieError) -> RequestError:
    """An error that the user can act on, as the answer to a request: its cause and the next step."""
    text = " ".join(clean(Redactor(os.environ)(str(error))).split("\n"))
    return RequestError(-32602 if isinstance(error, UsageError | ConfigError) else -32603, text)


class Conversation:
    """One session of the protocol. `place` is its directory as the client wrote it, `note` writes to the log.

    `bypasses` says whether the user started the program so that everything may run unasked.
    """

    def __init__(
        self,
        setup: Setup,
        client: Client,
        *,
        place: Path,
        models: Models,
        bypasses: bool,
        note: Callable[[str], None],
    ) -> None:
        self.setup = setup
        self.place = place
        self.bypasses = bypasses
        self.history: Sequence[ModelMessage] = ()
        self.kept = Kept(setup)
        self.id = setup.session_id
        self._client = client
        self._models = models
        self._note = note
        self._notices = list(setup.notices)
        self._calls = Calls()
        self._redact = Redactor(os.environ)
        self._gate: Gate | None = None
        self._agent: Agent[Workspace, str] | None = None
        self._loading: Loading | None = None
        self._work: asyncio.Task[PromptResponse] | None = None
        self._token: CancellationToken | None = None
        self._stopping = False
        self._stores = True

    # --- what the protocol asks for ---

    def refuse_if_busy(self) -> None:
        """RequestError while a turn goes on."""
        if self._work is not None:
            raise RequestError(-32600, "A turn goes on in this session; cancel it first.")

    def resume(self, id: str) -> None:  # noqa: A002 - the field's name
        """Go on with a stored conversation. UsageError if there is none of that id here."""
        self.history = self.kept.resume(id)
        self.id = id

    async def replay(self) -> None:
        """Send all that was said."""
        for update in replayed(self.history, self._calls, root=self.place):
            await self.send(update)

    async def prompt(self, blocks: Sequence[Block]) -> PromptResponse:
        """One turn, or one command. RequestError where there is nothing to do, and for what went wrong."""
        self.refuse_if_busy()
        try:
            text = prompt_text(blocks, roots=(self.place, self.setup.root))
            if not text.strip():
                raise UsageError("There is nothing to answer.")
        except UsageError as error:
            raise refusal(error) from error
        return await self._watched(self._answered(text))

    def stop(self) -> None:
        """End the turn, if one goes on; what there is of the answer stays."""
        if self._work is None:
            return
        self._stopping = True
        if self._token is not None:
            self._token.cancel()
        else:
            self._work.cancel()

    async def close(self) -> None:
        """End the turn, the servers and the hold on the stored session."""
        self.stop()
        if self._work is not None:
            await asyncio.wait({self._work})
        await self.setup.extensions.close()
        self.kept.close()

    def modes(self) -> "tuple[PermissionMode, ...]":
        """The permission modes that can be had here."""
        from punie.tools import sandbox_state

        found = cast("tuple[PermissionMode, ...]", MODES)
        works = {"auto": sandbox_state(self.setup.settings.sandbox).active, "bypassPermissions": self.bypasses}
        return tuple(mode for mode in found if works.get(mode, True))

    def set_mode(self, mode: str) -> None:
        """Go on in another mode, also in the middle of a turn. UsageError for one that cannot be had."""
        if mode not in self.modes():
            raise UsageError(f"There is no mode '{one_line(mode, width=40)}' here.", f"Take {', '.join(self.modes())}.")
        found = cast("PermissionMode", mode)
        self.setup = self.setup.with_mode(found)
        if self._gate is not None:
            self._gate.permissions = replace(self._gate.permissions, mode=found)

    async def tell_mode(self, mode: str) -> None:
        """Go on in another mode, and tell the client. UsageError for one that cannot be had."""
        self.set_mode(mode)
        await self.send(update_current_mode(mode))
        await self.send(config_update(self))

    async def change_model(self, spec: str) -> None:
        """Go on with another model; what was said stays. One that cannot be had changes nothing, and raises."""
        before = self.setup, self._loading, self._agent
        self.setup, self._loading, self._agent = self.setup.with_model(spec), None, None
        try:
            await try_out((await self.loaded()).model)
        except BaseException:
            self.setup, self._loading, self._agent = before
            raise

    # --- what commands use ---

    async def send(self, update: Update) -> None:
        """Tell the client; one that is gone is told nothing."""
        try:
            await self._client.session_update(session_id=self.id, update=update)
        except ConnectionError:
            self.stop()

    async def say(self, lines: Sequence[str]) -> None:
        """A few lines of text, as a message."""
        await self.send(update_agent_message_text("  \n".join(clean(self._redact(line)) for line in lines) + "\n"))

    async def loaded(self) -> Loaded:
        """The model and the workspace. PunieError where they cannot be had."""
        if self._loading is None or self._loading.failed:
            self._loading = Loading(self.setup, on_status=_nothing, load=self._models.load)
        waiting = asyncio.ensure_future(self._loading.wait())
        try:
            while not (await asyncio.wait({waiting}, timeout=_SECONDS_TO_TELL))[0]:
                await self.send(update_agent_thought_text(f"{self._loading.status} …\n"))
            return waiting.result()
        finally:
            waiting.cancel()

    def session(self) -> "Session | None":
        """Where the next turn is stored; None, said once, where nothing can be."""
        if not self._stores:
            return None
        try:
            session = self.kept.session()
        except SessionError as error:
            self._stores = False
            self._notices.append(f"This conversation is not stored, and its changes cannot be undone. {error}")
            return None
        self._notices += self.kept.notices()
        return session

    def gate(self) -> "Gate":
        """What decides about calls, with everything that was granted so far."""
        if self._gate is None:
            self._gate = gate_for(self.setup, ask=self._ask)
        return self._gate

    # --- one turn ---

    async def _watched(self, work: "Coroutine[None, None, PromptResponse]") -> PromptResponse:
        self._work = asyncio.ensure_future(work)
        try:
            return await self._work
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return PromptResponse(stop_reason="cancelled")
        except PunieError as error:
            raise refusal(error) from error
        finally:
            self._work, self._stopping = None, False

    async def _answered(self, text: str) -> PromptResponse:
        from punie.ui import _acp_commands as commands

        if command := commands.parsed(text):
            return await commands.run(self, *command) or PromptResponse(stop_reason="end_turn")
        return await self.ask_model(without_marks(text, root=self.setup.root))

    async def ask_model(self, prompt: str) -> PromptResponse:
        """One turn with this prompt. RequestError if the model failed."""
        loaded = await self.loaded()
        from pydantic_ai import CancellationToken

        from punie.agent.events import TurnEnded
        from punie.agent.loop import run_turn

        if self._agent is None:
            self._agent = assemble(self.setup, model=loaded.model, ask=self._ask, gate=self.gate())
        session = self.session()
        updates = TurnUpdates(
            self.send,
            self._calls,
            root=self.place,
            change_of=self._change_of,
            redact=lambda text: loaded.workspace.redact(text),
        )
        notices, self._notices = self._notices, []
        for notice in notices:
            await updates.note(self._redact(notice))
        ended: TurnEnded | None = None
        self._token = CancellationToken()
        try:
            async for event in run_turn(
                self._agent,
                prompt,
                workspace=loaded.workspace,
                config=self.setup.config,
                history=self.history,
                cancellation=self._token,
                session=session,
            ):
                await updates.take(event)
                if isinstance(event, TurnEnded):
                    ended, self.history = event, event.messages
        finally:
            self._token = None
        assert ended is not None  # noqa: S101 - it is the last event of every turn
        return await self._response(ended, updates)

    async def _response(self, ended: "TurnEnded", updates: TurnUpdates) -> PromptResponse:
        """What became of the turn. RequestError if the model failed."""
        if ended.stop_reason == "error":
            raise RequestError(-32603, clean(ended.error or "The turn failed.").replace("\n", " "))
        if ended.error and ended.stop_reason != "interrupted":
            await updates.note(ended.error)
        last = ended.messages[-1] if ended.messages else None
        cut = getattr(last, "finish_reason", None) == "length"
        used = ended.usage
        return PromptResponse(
            stop_reason="max_tokens" if cut and ended.error else _STOPS[ended.stop_reason],
            usage=Usage(
                total_tokens=used.input_tokens + used.output_tokens,
                input_tokens=used.input_tokens,
                output_tokens=used.output_tokens,
                cached_read_tokens=used.cached_tokens,
            ),
        )

    async def _ask(self, request: "Request") -> "Decision":
        from punie.ui._acp_ask import Question  # it takes the terminal's libraries along

        question = Question(
            self._client,
            self.id,
            self._calls,
            send=self.send,
            root=self.place,
            change_of=self._change_of,
            redact=self._redact,
            stop=self.stop,
            note=self._note,
        )
        return await question.ask(request)

    def _change_of(self, name: str, arguments: Mapping[str, object]) -> "Change | None":
        """What a call would do to a file; None for other calls, and where a rule denies it."""
        from punie.agent.permissions import Call, authorize
        from punie.tools import planned

        loaded = self._loading.loaded if self._loading is not None else None
        if loaded is None or name not in EDITS:
            return None
        root, permissions = loaded.workspace.root, self.gate().permissions
        if authorize(Call(name, arguments), root=root, permissions=permissions).kind == "deny":
            return None
        return planned(loaded.workspace, name, arguments)


def _nothing(status: str) -> None:
    """Nobody is told of each step of a load."""
    del status
