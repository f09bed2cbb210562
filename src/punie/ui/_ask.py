"""Asks the user about a call: what it would do, nothing hidden, and what would be lost; then one letter answers."""

import json
import re
from collections.abc import Callable, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from rich.console import Console
from rich.text import Text

from punie.agent.approval import Decision, Request, always, deny, network, once, session
from punie.controls import MARKS
from punie.ui._clean import hidden_characters, one_line, visible
from punie.ui._draw import diff_text
from punie.ui._keyboard import PASTE_OFF, PASTE_ON, forget_typed, next_presses, nothing_typed_for

_ROOM = 12
"""Lines of the screen that a question leaves to what it asks about at least."""
_AROUND = 10
"""Lines that a question takes besides: its head, warnings and the letters that answer."""
_MOST = 400
"""Lines shown before the middle is left out, however high the screen is."""
_SPACES = re.compile(r"(?<=\S)[ \t]+(?=\n|\Z)| {20,}")
"""Spaces that are overseen: at the end of a line, and so many that they push something off the screen."""
_STANDS_OUT = rf"{MARKS.pattern}|<\d+ spaces>"


QUIET_S = 0.3
"""Seconds without a key before a question takes one: what is being typed when it comes up is not meant for it."""


class Question:
    """An approver that asks at the terminal."""

    def __init__(
        self, console: Console, *, prompt: PromptSession[str], stop: Callable[[], None], quiet_s: float = QUIET_S
    ) -> None:
        self._console = console
        self._prompt = prompt
        self._stop = stop
        self._quiet_s = quiet_s

    async def ask(self, request: Request) -> Decision:
        """Show the request and wait for an answer that can only have been typed after it was shown."""
        is_cut = self._show(request)
        while True:
            try:
                key = await self._key(f"Allow this? [{'/'.join(letters(request, is_cut=is_cut))}] ")
                if key == "d":
                    return deny((await self._prompt.prompt_async("Why not? ", handle_sigint=False)).strip())
            except (KeyboardInterrupt, EOFError):
                self._stop()
                return deny("the user stopped the turn")
            if key == "v" and is_cut:
                self._print(spelled(request), request)
            decision = decision_of(key, request)
            if decision is not None:
                return decision

    async def _key(self, question: str) -> str:
        """One letter, pressed alone after the question was shown; "n" for Return and Escape. A paste is no answer.

        Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D and where the terminal is gone.
        """
        await nothing_typed_for(self._quiet_s)
        self._write(question, PASTE_ON)
        pressed = ""
        try:
            while not pressed:
                pressed = key_of(await next_presses())
                if not pressed:
                    await nothing_typed_for(self._quiet_s)
        finally:
            self._write(f"{pressed}\n", PASTE_OFF)
        forget_typed()
        return pressed

    def _write(self, text: str, sequence: str) -> None:
        self._console.print(Text(text), end="", soft_wrap=True)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._console.file.write(sequence)
        self._console.file.flush()

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
        ("d", "no, and say why"),
        ("n", "no, like Enter and Esc"),
    ]
    return "\n".join(f"  {key} {meaning}" for key, meaning in offered)


def letters(request: Request, *, is_cut: bool) -> list[str]:
    """The keys that answer; the one in capitals is what Return means."""
    return [*(key for key, _ in choices(request)), *("v" * is_cut), "d", "N"]


def key_of(presses: Sequence[KeyPress]) -> str:
    """The letter that was pressed, alone or with a Return after it; empty where it was no letter, or more than one.

    Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D and where nothing can be pressed any more.
    """
    pressed = [press.key for press in presses]
    if not pressed or Keys.ControlD in pressed:
        raise EOFError
    if Keys.ControlC in pressed:
        raise KeyboardInterrupt
    while len(pressed) > 1 and pressed[-1] == Keys.ControlM:
        pressed.pop()
    if pressed in ([Keys.ControlM], [Keys.Escape]):
        return "n"
    alone = pressed[0] if len(pressed) == 1 else Keys.Any
    return alone.lower() if not isinstance(alone, Keys) and alone.isprintable() else ""


def decision_of(key: str, request: Request) -> Decision | None:
    """What a letter means for a request; None where it does not answer it."""
    meanings = {"y": once, "s": session, "w": network, "a": always}
    if key == "n":
        return deny()
    return meanings[key] if key in {offered for offered, _ in choices(request)} else None
