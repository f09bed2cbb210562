"""Asks the user about a call: all of it is shown, nothing hidden, and what would be lost; then one letter answers."""

import json
from collections.abc import Callable

from prompt_toolkit import PromptSession
from rich.console import Console
from rich.text import Text

from punie.agent.approval import Decision, Request, always, deny, network, once, session
from punie.ui._clean import hidden_characters, one_line, visible
from punie.ui._draw import diff_text
from punie.ui._keyboard import forget_typed


class Question:
    """An approver that asks at the terminal."""

    def __init__(self, console: Console, *, prompt: PromptSession[str], stop: Callable[[], None]) -> None:
        self._console = console
        self._prompt = prompt
        self._stop = stop

    async def ask(self, request: Request) -> Decision:
        """Show the request and wait for an answer that can only have been typed after it was shown."""
        self._show(request)
        letters = "/".join([*(key for key, _ in choices(request)), "n"])
        forget_typed()
        while True:
            try:
                answer = await self._prompt.prompt_async(f"Allow this? [{letters}] ", handle_sigint=False)
            except (KeyboardInterrupt, EOFError):
                self._stop()
                return deny("the user stopped the turn")
            decision = decision_of(answer, request)
            if decision is not None:
                return decision
            self._console.print(Text(keys(request), "dim"), soft_wrap=True)

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
        for line in request.resolved:
            self._console.print(Text(f"  runs: {visible(line)}", "yellow"), soft_wrap=True)
        if request.warning:
            self._console.print(Text(f"Careful: {visible(request.warning)}", "bold red"), soft_wrap=True)
        if request.reason:
            self._console.print(Text(f"Asked because: {visible(request.reason)}", "dim"), soft_wrap=True)
        self._console.print(Text(keys(request), "dim"), soft_wrap=True)


def whole(request: Request) -> str:
    """Everything the call would do: its preview, or its arguments where there is no preview."""
    if request.preview is not None:
        return request.preview
    return json.dumps(dict(request.arguments), ensure_ascii=False, indent=2)


def choices(request: Request) -> list[tuple[str, str]]:
    """The letters that allow the call, and what each of them allows."""
    scope = "this very command" if request.tool == "run_command" else f"every {one_line(request.tool, width=40)}"
    found = [("y", "yes, once")]
    if not request.every_time:
        found.append(("s", f"yes, {scope} for this session"))
    if request.without_network:
        found.append(("w", "yes, once, with the network"))
    if request.rules:
        found.append(("a", f"always {visible(' and '.join(request.rules))}"))
    return found


def keys(request: Request) -> str:
    """What can be answered, one letter a line: a rule may be long, and none of it may be out of sight."""
    return "\n".join([*(f"  {key} {meaning}" for key, meaning in choices(request)), "  n no (a reason may follow)"])


def decision_of(answer: str, request: Request) -> Decision | None:
    """Read an answer; an empty one is a no, and None means that it was no answer."""
    word, _, reason = answer.strip().partition(" ")
    offered = {key for key, _ in choices(request)}
    match word.lower():
        case "y" | "yes":
            return once
        case "s" | "session" if "s" in offered:
            return session
        case "a" | "always" if "a" in offered:
            return always
        case "w" if "w" in offered:
            return network
        case "n" | "no":
            return deny(reason.strip())
        case "":
            return deny()
        case _:
            return None
