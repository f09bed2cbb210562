"""Asks the user about a call that changes something: all of it is shown, nothing hidden, then once / session / no."""

import json
from collections.abc import Callable

from prompt_toolkit import PromptSession
from rich.console import Console
from rich.text import Text

from punie.agent.approval import Decision, Request, deny, once, session
from punie.ui._clean import hidden_characters, one_line, visible
from punie.ui._draw import diff_text
from punie.ui._keyboard import forget_typed

_KEYS = "y yes, once · s yes, for this session · n no (a reason may follow)"


class Question:
    """An approver that asks at the terminal."""

    def __init__(self, console: Console, *, prompt: PromptSession[str], stop: Callable[[], None]) -> None:
        self._console = console
        self._prompt = prompt
        self._stop = stop

    async def ask(self, request: Request) -> Decision:
        """Show the request and wait for an answer that can only have been typed after it was shown."""
        self._show(request)
        forget_typed()
        while True:
            try:
                answer = await self._prompt.prompt_async("Allow this? [y/s/n] ", handle_sigint=False)
            except (KeyboardInterrupt, EOFError):
                self._stop()
                return deny("the user stopped the turn")
            decision = decision_of(answer)
            if decision is not None:
                return decision
            self._console.print(Text(_KEYS, "dim"))

    def _show(self, request: Request) -> None:
        content = whole(request)
        self._console.print(Text(f"{one_line(request.tool, width=40)} asks to run:", "bold"))
        if request.tool == "run_command":
            self._console.print(Text(visible(content), "bold yellow"), soft_wrap=True)
        else:
            self._console.print(diff_text(visible(content)), soft_wrap=True)
        hidden = hidden_characters(content)
        if hidden:
            self._console.print(Text(f"Careful: {hidden} invisible or control characters are spelled out.", "bold red"))
        scope = "this very command" if request.tool == "run_command" else f"every {one_line(request.tool, width=40)}"
        self._console.print(Text(f"{_KEYS}; session means {scope}", "dim"))


def whole(request: Request) -> str:
    """Everything the call would do: its preview, or its arguments where there is no preview."""
    if request.preview is not None:
        return request.preview
    return json.dumps(dict(request.arguments), ensure_ascii=False, indent=2)


def decision_of(answer: str) -> Decision | None:
    """Read an answer; None means that it was none."""
    word, _, reason = answer.strip().partition(" ")
    match word.lower():
        case "y" | "yes":
            return once
        case "s" | "session":
            return session
        case "n" | "no":
            return deny(reason.strip())
        case _:
            return None
