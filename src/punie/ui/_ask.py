"""Asks the user about a call: what it would do, nothing hidden, and what would be lost; then one letter answers."""

import json
import re
from collections.abc import Callable

from prompt_toolkit import PromptSession
from rich.console import Console
from rich.text import Text

from punie.agent.approval import Decision, Request, always, deny, network, once, session
from punie.controls import MARKS
from punie.ui._clean import hidden_characters, one_line, visible
from punie.ui._draw import diff_text
from punie.ui._keyboard import forget_typed

_ROOM = 12
"""Lines of the screen that a question leaves to what it asks about at least."""
_AROUND = 10
"""Lines that a question takes besides: its head, warnings and the letters that answer."""
_MOST = 400
"""Lines shown before the middle is left out, however high the screen is."""
_SPACES = re.compile(r"(?<=\S)[ \t]+(?=\n|\Z)| {20,}")
"""Spaces that are overseen: at the end of a line, and so many that they push something off the screen."""
_STANDS_OUT = rf"{MARKS.pattern}|<\d+ spaces>"


class Question:
    """An approver that asks at the terminal."""

    def __init__(self, console: Console, *, prompt: PromptSession[str], stop: Callable[[], None]) -> None:
        self._console = console
        self._prompt = prompt
        self._stop = stop

    async def ask(self, request: Request) -> Decision:
        """Show the request and wait for an answer that can only have been typed after it was shown."""
        is_cut = self._show(request)
        letters = "/".join([*(key for key, _ in choices(request)), *("v" * is_cut), "n"])
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
            if is_cut and answer.strip().lower() == "v":
                self._print(spelled(request), request)
            self._say(keys(request, is_cut=is_cut), "dim")

    def _show(self, request: Request) -> bool:
        """Show all there is to know; whether the middle of what it would do is left out."""
        self._say(f"{one_line(request.tool, width=40)} asks to run:", "bold")
        text = spelled(request)
        room = max(min(self._console.height - _AROUND, _MOST), _ROOM)
        start, middle, end = ends(text, rows=room, width=self._console.width)
        self._print(start, request)
        if middle:
            lines = middle.count("\n") + 1
            amount = f"{lines} line{'s' * (lines > 1)}, {len(middle)} characters"
            self._say(f"Careful: {amount} between this and the end are not shown. v shows all of it.", "bold red")
            self._print(end, request)
        hidden = hidden_characters(whole(request))
        if hidden:
            self._say(f"Careful: {hidden} invisible or control characters are spelled out.", "bold red")
        for line in request.resolved:
            self._say(f"  runs: {visible(line)}", "yellow")
        if request.warning:
            self._say(f"Careful: {visible(request.warning)}", "bold red")
        if request.reason:
            self._say(f"Asked because: {visible(request.reason)}", "dim")
        self._say(keys(request, is_cut=bool(middle)), "dim")
        return bool(middle)

    def _print(self, text: str, request: Request) -> None:
        drawn = Text(text, "bold yellow") if request.tool == "run_command" else diff_text(text)
        drawn.highlight_regex(_STANDS_OUT, "bold reverse red")
        self._console.print(drawn, soft_wrap=True)

    def _say(self, text: str, style: str) -> None:
        self._console.print(Text(text, style), soft_wrap=True)


def whole(request: Request) -> str:
    """Everything the call would do: its preview, or its arguments where there is no preview."""
    if request.preview is not None:
        return request.preview
    return json.dumps(dict(request.arguments), ensure_ascii=False, indent=2)


def spelled(request: Request) -> str:
    """The same with nothing hidden: also spaces that are easily overseen are spelled out, as `␠` or `<57 spaces>`."""
    return _SPACES.sub(lambda match: _spelled_spaces(match[0]), visible(whole(request)))


def _spelled_spaces(spaces: str) -> str:
    if "\t" in spaces:
        return spaces.replace(" ", "␠").replace("\t", "␉")
    return "␠" * len(spaces) if len(spaces) <= 3 else f"<{len(spaces)} spaces>"


def ends(text: str, *, rows: int, width: int) -> tuple[str, str, str]:
    """The start, the middle and the end of a text that takes more than so many rows of a screen.

    All of it is the start where it fits.
    """
    places = [0]  # where each row begins
    for line in text.removesuffix("\n").split("\n"):
        places += range(places[-1] + width, places[-1] + len(line), width)
        places.append(text.find("\n", places[-1]) + 1 or len(text))
    if len(places) - 1 <= rows:
        return text, "", ""
    half = (rows - 1) // 2
    first, last = places[half], places[len(places) - 1 - half]
    return text[:first].removesuffix("\n"), text[first:last].removesuffix("\n"), text[last:]


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


def keys(request: Request, *, is_cut: bool = False) -> str:
    """What can be answered, one letter a line: a rule may be long, and none of it may be out of sight."""
    offered = [
        *choices(request),
        *([("v", "show all of it first")] if is_cut else []),
        ("n", "no (a reason may follow)"),
    ]
    return "\n".join(f"  {key} {meaning}" for key, meaning in offered)


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
