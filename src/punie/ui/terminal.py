"""The interactive chat."""

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.utils import is_dumb_terminal
from rich.console import Console
from rich.text import Text

from punie.errors import PunieError, SessionError, UsageError
from punie.trust import state_directory
from punie.ui import commands
from punie.ui._clean import clean, one_line
from punie.ui._complete import ChatCompleter, without_marks
from punie.ui._folds import Folds
from punie.ui._input import history_in, input_session
from punie.ui._kept import Kept, last_words, require_state
from punie.ui._keyboard import be_quiet, quiet_keys
from punie.ui._keys import chat_keys, opens_editor
from punie.ui._loading import Loaded, Loading, try_out
from punie.ui._pastes import Pastes, WholeHistory
from punie.ui._screen import Screen
from punie.ui._setup import Setup, assemble, gate_for, mode_after, prepare
from punie.ui._status import Status, fitted
from punie.ui._typing import Typing
from punie.ui.options import Options
from punie.ui.trust import ask_at_terminal, offer

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from pydantic_ai import Agent, CancellationToken
    from pydantic_ai.messages import ModelMessage

    from punie.agent.approval import Decision, Gate, Request
    from punie.agent.events import TurnEnded
    from punie.agent.session import Session
    from punie.config import PermissionMode
    from punie.redaction import Redactor
    from punie.tools import Workspace

_SECONDS_TO_LEAVE = 2.0
_SECONDS_TO_DRAW = 0.3
"""A terminal that has not said by then where its cursor is will not say it any more."""
_NARROW = 60
_COMMAND = re.compile(r"/[a-z0-9-]*")
T = TypeVar("T")


def run(options: Options) -> int:
    """Chat until the user leaves; return the exit code."""
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise UsageError("The chat needs a terminal.", "For one answer without one: punie -p PROMPT")
    if not is_dumb_terminal():
        return _run(options)
    with create_app_session(output=PlainTextOutput(sys.stdout)):  # it gets no control sequence at all
        return _run(options)


def _run(options: Options) -> int:
    setup = prepare(options, env=os.environ)
    if offer(setup, env=os.environ, ask=ask_at_terminal):
        setup = prepare(options, env=os.environ)
    chat = Chat(setup, console=Console(highlight=False), options=options)
    chat.begin(options)
    return asyncio.run(chat.run(options.prompt))


def _is_terminal(stream: object) -> bool:
    """Whether it is one; a closed stream is None, or raises."""
    try:
        return bool(getattr(stream, "isatty", bool)())
    except ValueError:
        return False


class Chat:
    """One conversation, until it is cleared, and what is on the screen around it."""

    def __init__(self, setup: Setup, *, console: Console, options: Options) -> None:
        self.setup = setup
        self.options = options
        self.console = console
        self.history: Sequence[ModelMessage] = ()
        self.kept = Kept(setup)
        self.status = Status()
        self.folds = Folds()
        self.leaving = False
        self.asides: list[str] = []
        """What the user ran by hand and the model has not been told yet."""
        self.edit_next = False
        """Whether the next prompt opens in the editor."""
        self.pastes = Pastes()
        self.typing = Typing(self.pastes)
        self.typing.keys = {
            Keys.Escape: self._stop_turn,
            Keys.ControlO: self.unfold,
            Keys.BackTab: self.next_mode,
        }
        self._gate: Gate | None = None
        self._stores = True
        self._listing = False
        self._loading: Loading | None = None
        self._agent: Agent[Workspace, str] | None = None
        self._screen: Screen | None = None
        self._cancellation: CancellationToken | None = None
        self._interrupted_at = -_SECONDS_TO_LEAVE
        self._stopping = False
        self._restore_keys: Callable[[], None] = _nothing
        history = (
            history_in(state_directory(os.environ), redact=self._redact)
            if setup.settings.save_sessions
            else InMemoryHistory()
        )
        self._typed_before = WholeHistory(history, self.pastes)
        self._input = input_session(
            history=self._typed_before,
            completer=ChatCompleter(files=self._files, words=lambda text: commands.completions(self, text)),
            toolbar=self._toolbar,
            keys=chat_keys(self.pastes, unfold=self.unfold, next_mode=self.next_mode),
        )
        self._input.app.after_render += self._drawn

    def begin(self, options: Options) -> None:
        """Go on with the session the flags name. UsageError if there is none, SessionError if it cannot be stored."""
        if self.kept.on:
            require_state(os.environ)
        self._listing = options.resume == "" and not options.fork
        if not self._listing:
            self.history = self.kept.start(options)

    @cached_property
    def _redactor(self) -> "Redactor":
        from punie.redaction import Redactor  # its patterns take long to compile: nothing may ever be said

        return Redactor(os.environ)

    def _redact(self, text: str) -> str:
        return self._redactor(text)

    async def run(self, first: str | None) -> int:
        """Take prompts until the user leaves, or a signal ends it the orderly way: the terminal is restored."""
        ended: list[int] = []
        conversation = asyncio.ensure_future(self._converse(first))

        def end(number: int) -> None:
            ended.append(number)
            conversation.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        with quiet_keys() as self._restore_keys:
            try:
                return await conversation
            except asyncio.CancelledError:
                if not ended:
                    raise
                return 128 + ended[0]
            finally:
                await self.setup.extensions.close()
                self.kept.close()

    async def _converse(self, first: str | None) -> int:
        self._greet()
        if first and first.strip():
            self.typing.queued.append(first)
        self.typing.take_early()
        while not self.leaving:
            if self.typing.queued:
                typed = self.typing.queued.pop(0)
                self.console.print(Text(f"> {clean(typed)}", "bold"))
            else:
                try:
                    typed = await self._typed()
                except EOFError:
                    return 0
                except KeyboardInterrupt:
                    if self._leaves():
                        return 130
                    continue
            whole = self.pastes.expanded(typed).strip()
            if whole:
                await self._understood(whole)
        return 0

    async def _typed(self) -> str:
        editing, self.edit_next = self.edit_next, False

        def begin() -> None:
            if self._loading is None:
                asyncio.get_running_loop().call_later(_SECONDS_TO_DRAW, self._load_first)
            else:
                self._start_loading()
            if editing:
                opens_editor(self.pastes)

        return await self._input.prompt_async("> ", pre_run=begin, default=self.typing.take_draft())

    def _leaves(self) -> bool:
        now = time.monotonic()
        if now - self._interrupted_at < _SECONDS_TO_LEAVE:
            return True
        self._interrupted_at = now
        thrown = self._input.default_buffer.text
        if thrown.strip():
            self._typed_before.bring_back(thrown)
        back = " · Up brings the line back" if thrown.strip() else ""
        self.console.print(Text(f"Ctrl-C again, or Ctrl-D, to leave{back}", "dim"))
        return False

    def _greet(self) -> None:
        self.console.print(Text.assemble(("punie", "bold"), (f"  {self._place()}  ·  /help", "dim")))
        self.say((*self.setup.about, *(self.setup.sources if self.options.verbose else ())), style="dim")
        for notice in self.setup.notices:
            self.warn(notice)
        if self.setup.settings.save_sessions and not self._typed_before.is_kept:
            self.warn(f"{state_directory(os.environ) / 'history'} cannot be written: what you type is not kept.")
        if self.history:
            self.show_history()
        if self._listing:
            self.say([*self.kept.listed(), "/resume NUMBER goes on with one of them"])

    # --- what commands use ---

    def say(self, lines: Sequence[str], *, style: str = "") -> None:
        """Print lines, safe for a terminal."""
        for line in lines:
            self.console.print(Text(clean(self._redact(line)), style))

    def warn(self, text: str) -> None:
        """Print something the user should know."""
        self.say([text], style="yellow")

    def go_on_with(self, messages: "Sequence[ModelMessage]") -> None:
        """Take up another conversation, or with no messages begin one."""
        self.history = messages
        self.asides.clear()
        self.status.forget()
        if messages:
            self.show_history()

    def show_history(self) -> None:
        """Where the conversation stands: how long it is, and what was said last."""
        asked, answered = last_words(self.history)
        self.say([f"Going on after {len(self.history)} messages."], style="dim")
        self.console.print(Text.assemble((f"> {clean(asked)}\n", "bold"), clean(answered)))

    async def change_model(self, spec: str) -> None:
        """Go on with another model; what was said stays. One that cannot be loaded changes nothing."""
        before = self.setup, self._loading, self._agent
        self.setup, self._agent = self.setup.with_model(spec), None
        self._loading = Loading(self.setup, on_status=self._show_status)

        async def tried(screen: Screen) -> bool:
            await try_out((await self._ready(screen)).model)
            return True

        if await self.watched(tried) is None:
            self.setup, self._loading, self._agent = before
        self.say([f"Model: {one_line(self.setup.config.model, width=200)}"], style="dim")

    async def loaded(self) -> Loaded | None:
        """The model and the workspace; None where the user stopped waiting, or they cannot be had and that was said."""
        return await self.watched(self._ready)

    def session(self) -> "Session | None":
        """Where the next turn is stored; None, said once, where nothing can be."""
        if not self._stores:
            return None
        try:
            return self.kept.session()
        except SessionError as error:
            self._stores = False
            self.warn(f"This conversation is not stored, and its changes cannot be undone. {error}")
            return None

    def set_mode(self, mode: "PermissionMode") -> None:
        """Go on in another permission mode, also in the middle of a turn. ConfigError where it cannot be had."""
        self.setup = self.setup.with_mode(mode)
        if self._gate is not None:
            self._gate.permissions = replace(self._gate.permissions, mode=mode)

    def next_mode(self) -> None:
        """Go on in the mode after this one."""
        self.set_mode(mode_after(self.setup))

    def unfold(self) -> None:
        """Print the whole output of the last tool call; the next time, of the one before."""
        self.folds.unfold(self.console)

    def gate(self) -> "Gate":
        """What decides about calls, with everything that was granted so far."""
        if self._gate is None:
            self._gate = gate_for(self.setup, ask=self._ask)
        return self._gate

    async def ask_model(self, prompt: str) -> None:
        """One turn with this prompt."""
        plain = without_marks(prompt, root=self.setup.root)
        whole = "\n\n".join([*self.asides, plain])
        self.asides.clear()
        await self.watched(lambda screen: self._answer(whole, screen))
        if self.console.is_dumb_terminal:
            self.say([self._toolbar()])
        self.console.print()

    # --- one turn ---

    async def _understood(self, typed: str) -> None:
        word, _, rest = typed.partition(" ")
        try:
            if _COMMAND.fullmatch(word):
                await commands.run(self, word, rest.strip())
            elif typed.startswith("!"):
                from punie.ui._by_hand import run_by_hand

                await run_by_hand(self, typed[1:].strip())
            else:
                await self.ask_model(typed)
        except PunieError as error:
            self.say([str(error)], style="red")

    async def watched(self, work: Callable[[Screen], Awaitable[T]]) -> T | None:
        """Do something that Ctrl-C may stop; None when it was stopped, or failed in a way the user can act on."""
        with Screen(self.console, typing=self.typing, folds=self.folds, footer=self._toolbar) as screen:
            self._screen = screen
            task = asyncio.ensure_future(work(screen))
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, lambda: self._stop(task, screen))
            loop.add_signal_handler(signal.SIGTSTP, lambda: self._suspend(screen))
            self.typing.keys = {**self.typing.keys, Keys.Escape: lambda: self._stop(task, screen, leaves=False)}
            try:
                return await task
            except asyncio.CancelledError:
                if not self._stopping:
                    raise
            except PunieError as error:
                self.say([str(error)], style="red")
            finally:
                loop.remove_signal_handler(signal.SIGINT)
                loop.remove_signal_handler(signal.SIGTSTP)
                if self._stopping:
                    self.typing.take_back()
                self._stopping = False
                self._screen = None
        return None

    def _stop(self, task: "asyncio.Future[T]", screen: Screen, *, leaves: bool = True) -> None:
        if self._stopping and leaves:  # Asked twice: whatever holds the turn up is not worth waiting for.
            screen.pause()
            self._restore_keys()
            os._exit(130)
        self._stopping = True
        if leaves:
            self._interrupted_at = time.monotonic()
        screen.status("Stopping")
        if self._cancellation is not None:
            self._cancellation.cancel()
        else:
            task.cancel()

    def _suspend(self, screen: Screen) -> None:
        """Stop until the shell says go on, and leave it a terminal as it was; also in the middle of an answer."""
        shown, loop = screen.shows, asyncio.get_running_loop()
        screen.pause()
        self._restore_keys()
        loop.remove_signal_handler(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGTSTP)  # it returns when the shell has said so
        loop.add_signal_handler(signal.SIGTSTP, lambda: self._suspend(screen))
        be_quiet()
        if shown:
            screen.resume()

    async def _ready(self, screen: Screen) -> Loaded:
        """The loaded model; shows how far the load is."""
        loading = self._start_loading()
        waiting = asyncio.ensure_future(loading.wait())
        while not waiting.done():
            screen.status(loading.status)
            await asyncio.wait({waiting}, timeout=0.2)
        return waiting.result()

    async def _answer(self, prompt: str, screen: Screen) -> None:
        loaded = await self._ready(screen)
        from pydantic_ai import CancellationToken

        from punie.agent.events import TurnEnded
        from punie.agent.loop import run_turn
        from punie.ui._draw import TurnDrawing

        if self._agent is None:
            self._agent = assemble(self.setup, model=loaded.model, ask=self._ask, gate=self.gate())
        drawing = TurnDrawing(screen, verbose=self.options.verbose)
        session = self.session()
        for notice in self.kept.notices():
            self.warn(notice)
        self._cancellation = CancellationToken()
        try:
            async for event in run_turn(
                self._agent,
                prompt,
                workspace=loaded.workspace,
                config=self.setup.config,
                history=self.history,
                cancellation=self._cancellation,
                session=session,
            ):
                drawing.take(event)
                if isinstance(event, TurnEnded):
                    self._keep(event, loaded)
        finally:
            self._cancellation = None

    def _keep(self, ended: "TurnEnded", loaded: Loaded) -> None:
        self.status.window = loaded.model.context_window
        if self.setup.mode == "plan" and ended.stop_reason == "done" and not getattr(loaded.model, "compact", False):
            self.say(["/go carries the plan out, /go acceptEdits without asking about edits"], style="dim")
        self.status.take(ended, new=ended.messages[len(self.history) :])
        self.history = ended.messages

    async def _ask(self, request: "Request") -> "Decision":
        """Ask the user about one call, on a screen that nothing else draws on."""
        from prompt_toolkit import PromptSession

        from punie.ui._ask import QUIET_S, Question

        # Whoever is in the middle of a sentence looks up later.
        quiet_s = 3 * QUIET_S if self.typing.draft else QUIET_S
        prompt = PromptSession[str](history=InMemoryHistory())
        question = Question(self.console, prompt=prompt, stop=self._stop_turn, quiet_s=quiet_s)
        screen = self._screen
        if screen is None:
            return await question.ask(request)
        screen.pause()
        try:
            return await question.ask(request)
        finally:
            self.typing.answered()
            screen.resume()

    def _stop_turn(self) -> None:
        self._interrupted_at = time.monotonic()
        if self._cancellation is not None:
            self._cancellation.cancel()

    # --- what the input line knows ---

    def _start_loading(self) -> Loading:
        if self._loading is None or self._loading.failed:
            self._loading = Loading(self.setup, on_status=self._show_status)
        return self._loading

    def _drawn(self, app: "Application[str]") -> None:
        """The prompt is drawn: with the line below it, once the terminal has said where the cursor is."""
        if app.renderer.height_is_known:
            self._load_first()

    def _load_first(self) -> None:
        """Begin to load, not before: a thread that imports would take half of the machine from the first prompt."""
        if self._loading is None:
            self._start_loading()

    def _show_status(self, status: str) -> None:
        if self._screen is not None:
            self._screen.status(status)

    def _files(self) -> Sequence[str]:
        """Of the workspace that tools use once there is one: it knows what is hidden from them."""
        loaded = self._loading.loaded if self._loading else None
        if loaded is not None:
            return [entry.path for entry in loaded.workspace.files()]
        from punie.tools._walk import walk_files

        return [entry.path for entry in walk_files(self.setup.root)]

    def _place(self) -> str:
        home = str(Path.home())
        root = str(self.setup.root)
        return one_line("~" + root.removeprefix(home) if root.startswith(home + "/") else root, width=60)

    def _toolbar(self) -> str:
        width = shutil.get_terminal_size().columns
        parts = [one_line(self.setup.config.model, width=max(width // 3, 10)), self.setup.mode]
        if self._loading is None:
            parts.append("Loading")
        elif self._loading.loaded is None:
            parts.append("failed to load" if self._loading.failed else self._loading.status)
        return fitted([*parts, *self.status.parts(short=width < _NARROW), self._place()], width=width)


def _nothing() -> None:
    """Nothing to restore yet."""
