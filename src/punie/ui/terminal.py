"""The interactive chat."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prompt_toolkit.history import InMemoryHistory
from rich.console import Console
from rich.text import Text

from punie.errors import PunieError, UsageError
from punie.ui._clean import clean, one_line
from punie.ui._complete import ChatCompleter, without_marks
from punie.ui._input import history_in, input_session, state_dir
from punie.ui._kept import Kept, last_words
from punie.ui._keyboard import quiet_keys
from punie.ui._loading import Loaded, Loading
from punie.ui._screen import Screen
from punie.ui._setup import Setup, assemble, prepare
from punie.ui.options import Options
from punie.ui.trust import ask_at_terminal, offer

if TYPE_CHECKING:
    from pydantic_ai import Agent, CancellationToken
    from pydantic_ai.messages import ModelMessage

    from punie.agent.approval import Decision, Request
    from punie.agent.events import TurnEnded
    from punie.tools import Workspace

COMMANDS: Mapping[str, str] = {
    "/help": "what can be typed here",
    "/model": "show the model, or go on with another: /model SPEC",
    "/clear": "forget the conversation and start a new one",
    "/sessions": "list the stored conversations of this directory",
    "/resume": "go on with another one: /resume NUMBER or ID",
    "/fork": "go on with a copy of this conversation",
    "/undo": "take back what the last turn did to files",
    "/redo": "do again what was taken back",
    "/tokens": "tokens used so far",
    "/exit": "leave",
}

_HELP = """\
Ask about the code, or say what to change. Files can be named with @ (Tab completes).

Enter sends · Ctrl-J, Alt-Enter or a \\ before Enter start a new line · Ctrl-R searches the history
Ctrl-C stops the answer, twice leaves · Ctrl-D leaves
"""

_SECONDS_TO_LEAVE = 2.0
T = TypeVar("T")


def run(options: Options) -> int:
    """Chat until the user leaves; return the exit code."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("The chat needs a terminal.", "For one answer without one: punie -p PROMPT")
    setup = prepare(options, env=os.environ)
    if offer(setup, env=os.environ, ask=ask_at_terminal):
        setup = prepare(options, env=os.environ)
    chat = Chat(setup, console=Console(highlight=False), verbose=options.verbose)
    chat.begin(options)
    return asyncio.run(chat.run(options.prompt))


class Chat:
    """One conversation, until it is cleared, and what is on the screen around it."""

    def __init__(self, setup: Setup, *, console: Console, verbose: bool = False) -> None:
        self._setup = setup
        self._verbose = verbose
        self._console = console
        self._history: Sequence[ModelMessage] = ()
        self._kept = Kept(setup)
        self._listing = False
        self._loading: Loading | None = None
        self._agent: Agent[Workspace, str] | None = None
        self._screen: Screen | None = None
        self._cancellation: CancellationToken | None = None
        self._tokens = (0, 0)
        self._interrupted_at = -_SECONDS_TO_LEAVE
        self._stopping = False
        self._restore_keys: Callable[[], None] = _nothing
        history = history_in(state_dir(os.environ)) if setup.settings.save_sessions else InMemoryHistory()
        completer = ChatCompleter(commands=COMMANDS, files=self._files, models=self._models)
        self._input = input_session(history=history, completer=completer, toolbar=self._toolbar)

    def begin(self, options: Options) -> None:
        """Go on with the session the flags name. UsageError if there is none, SessionError if it cannot be stored."""
        self._listing = options.resume == "" and not options.fork
        if not self._listing:
            self._history = self._kept.start(options)

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
                self._kept.close()

    async def _converse(self, first: str | None) -> int:
        self._greet()
        if first and first.strip():
            self._console.print(Text(f"> {clean(first)}", "bold"))
            await self._turn(first)
        while True:
            try:
                typed = await self._input.prompt_async("> ", pre_run=self._prefetch)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if self._leaves():
                    return 130
                continue
            if typed.strip() and not await self._understood(typed.strip()):
                return 0

    def _leaves(self) -> bool:
        now = time.monotonic()
        if now - self._interrupted_at < _SECONDS_TO_LEAVE:
            return True
        self._interrupted_at = now
        self._console.print(Text("Ctrl-C again, or Ctrl-D, to leave", "dim"))
        return False

    def _greet(self) -> None:
        self._console.print(Text.assemble(("punie", "bold"), (f"  {self._place()}  ·  /help", "dim")))
        for notice in self._setup.notices:
            self._console.print(Text(clean(notice), "yellow"))
        for line in self._setup.about:
            self._console.print(Text(clean(line), "dim"))
        if self._history:
            self._show_history()
        if self._listing:
            self._session_command("/sessions", "")

    # --- commands ---

    async def _understood(self, typed: str) -> bool:
        """Do what was typed; False means leave."""
        word, _, rest = typed.partition(" ")
        if not re.fullmatch(r"/[a-z]*", word):
            await self._turn(typed)
        elif word in ("/exit", "/quit"):
            return False
        elif word == "/model":
            await self._change_model(rest.strip())
        elif word in ("/sessions", "/resume", "/fork", "/undo", "/redo"):
            self._session_command(word, rest.strip())
        elif word == "/clear":
            self._history, self._tokens = (), (0, 0)
            self._kept.forget()
            self._console.print(Text("A new conversation.", "dim"))
        elif word == "/tokens":
            self._console.print(f"{self._tokens[0]} tokens in, {self._tokens[1]} out")
        else:
            self._help(word)
        return True

    def _help(self, word: str) -> None:
        if word != "/help":
            self._console.print(Text(f"There is no {word}.", "yellow"))
        for name, summary in COMMANDS.items():
            self._console.print(Text.assemble((f"{name:<9}", "bold"), summary))
        self._console.print(Text("\n" + _HELP, "dim"))

    def _session_command(self, word: str, rest: str) -> None:
        try:
            match word:
                case "/sessions":
                    self._say([*self._kept.listed(), "/resume NUMBER goes on with one of them"])
                case "/fork" if not rest and not self._history:
                    self._say(["There is nothing to copy yet."])
                case "/resume" | "/fork":
                    self._history = self._kept.resume(rest) if word == "/resume" else self._kept.fork(rest)
                    self._tokens = (0, 0)
                    self._show_history()
                case _:
                    self._say(self._kept.turned(word[1:]))
        except PunieError as error:
            self._console.print(Text(clean(str(error)), "red"))

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._console.print(Text(clean(line)))

    def _show_history(self) -> None:
        """Where the conversation stands: how long it is, and what was said last."""
        asked, answered = last_words(self._history)
        self._console.print(Text(f"Going on after {len(self._history)} messages.", "dim"))
        self._console.print(Text.assemble((f"> {clean(asked)}\n", "bold"), clean(answered)))

    async def _change_model(self, spec: str) -> None:
        if not spec:
            self._console.print(Text(f"{self._setup.config.model}  (others: {', '.join(self._models())})"))
            return
        before = self._setup, self._loading, self._agent
        self._setup, self._agent = self._setup.with_model(spec), None
        self._loading = Loading(self._setup, on_status=self._show_status)
        loaded = await self._watched(self._ready)
        if loaded is None:
            self._setup, self._loading, self._agent = before
        self._console.print(Text(f"Model: {one_line(self._setup.config.model, width=200)}", "dim"))

    # --- one turn ---

    async def _turn(self, prompt: str) -> None:
        plain = without_marks(prompt, root=self._setup.root)
        await self._watched(lambda screen: self._answer(plain, screen))
        self._console.print()

    async def _watched(self, work: Callable[[Screen], Awaitable[T]]) -> T | None:
        """Do something that Ctrl-C may stop; None when it was stopped, or failed in a way the user can act on."""
        with Screen(self._console) as screen:
            task = asyncio.ensure_future(work(screen))
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, lambda: self._stop(task, screen))
            try:
                return await task
            except asyncio.CancelledError:
                if not self._stopping:
                    raise
            except PunieError as error:
                self._console.print(Text(clean(str(error)), "red"))
            finally:
                loop.remove_signal_handler(signal.SIGINT)
                self._stopping = False
        return None

    def _stop(self, task: "asyncio.Future[T]", screen: Screen) -> None:
        if self._stopping:  # Asked twice: whatever holds the turn up is not worth waiting for.
            screen.pause()
            self._restore_keys()
            os._exit(130)
        self._stopping = True
        self._interrupted_at = time.monotonic()
        screen.status("Stopping")
        if self._cancellation is not None:
            self._cancellation.cancel()
        else:
            task.cancel()

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
            self._agent = assemble(self._setup, model=loaded.model, ask=self._ask)
        drawing = TurnDrawing(screen, verbose=self._verbose)
        session = self._kept.session()
        for notice in self._kept.notices():
            self._console.print(Text(clean(notice), "yellow"))
        self._screen, self._cancellation = screen, CancellationToken()
        try:
            async for event in run_turn(
                self._agent,
                prompt,
                workspace=loaded.workspace,
                config=self._setup.config,
                history=self._history,
                cancellation=self._cancellation,
                session=session,
            ):
                drawing.take(event)
                if isinstance(event, TurnEnded):
                    self._keep(event)
        finally:
            self._screen = self._cancellation = None

    def _keep(self, ended: "TurnEnded") -> None:
        self._history = ended.messages
        self._tokens = (self._tokens[0] + ended.usage.input_tokens, self._tokens[1] + ended.usage.output_tokens)

    async def _ask(self, request: "Request") -> "Decision":
        """Ask the user about one call, on a screen that nothing else draws on."""
        from prompt_toolkit import PromptSession

        from punie.ui._ask import Question

        question = Question(self._console, prompt=PromptSession(history=InMemoryHistory()), stop=self._stop_turn)
        screen = self._screen
        if screen is None:
            return await question.ask(request)
        screen.pause()
        try:
            return await question.ask(request)
        finally:
            screen.resume()

    def _stop_turn(self) -> None:
        self._interrupted_at = time.monotonic()
        if self._cancellation is not None:
            self._cancellation.cancel()

    # --- what the input line knows ---

    def _prefetch(self) -> None:
        self._start_loading()

    def _start_loading(self) -> Loading:
        if self._loading is None or self._loading.failed:
            self._loading = Loading(self._setup, on_status=self._show_status)
        return self._loading

    def _show_status(self, status: str) -> None:
        if self._screen is not None:
            self._screen.status(status)

    def _files(self) -> Sequence[str]:
        loaded = self._loading.loaded if self._loading else None
        return [entry.path for entry in loaded.workspace.files()] if loaded else ()

    def _models(self) -> Sequence[str]:
        from punie.backends.catalogue import known

        settings = self._setup.settings
        return ("local", *(f"local:{name}" for name in known(settings.models)), "claude", *settings.aliases)

    def _place(self) -> str:
        home = str(Path.home())
        root = str(self._setup.root)
        return one_line("~" + root.removeprefix(home) if root.startswith(home + "/") else root, width=60)

    def _toolbar(self) -> str:
        parts = [one_line(self._setup.config.model, width=40)]
        if self._setup.mode != "default":
            parts.append(self._setup.mode)
        if any(self._tokens):
            parts.append(f"{self._tokens[0]:,} tokens in, {self._tokens[1]:,} out")
        if self._loading is not None and self._loading.loaded is None:
            parts.append("failed to load" if self._loading.failed else self._loading.status)
        return " · ".join([*parts, self._place()])


def _nothing() -> None:
    """Nothing to restore yet."""
