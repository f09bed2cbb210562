"""Slash commands about the chat itself: help, permissions, settings, the clipboard, the editor."""

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.text import Text

from punie.errors import UsageError
from punie.tools._programs import find_program
from punie.ui import commands
from punie.ui._clean import clean
from punie.ui.options import MODES

if TYPE_CHECKING:
    from punie.config import PermissionMode
    from punie.ui.terminal import Chat

_COPIERS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"), ("xsel", "-ib"))
_DISPLAYS = {"wl-copy": "WAYLAND_DISPLAY", "xclip": "DISPLAY", "xsel": "DISPLAY"}
_MOST_COPIED = 74_000
"""Bytes that terminals take in one sequence; longer ones are dropped without a word."""

_INIT = """\
Write {name} at the root of this project, for coding agents and people who are new to it. Look before you write: list \
the files, read the README, the build and test configuration and a few of the main modules. Say in at most 60 lines: \
what the project is, how it is laid out, the commands that build, test, lint and run it, the conventions that its code \
follows, and what is easy to get wrong. Only what you have seen in files; nothing that holds for every project.{more}"""


async def show_help(chat: "Chat", rest: str) -> None:
    """Every command and key."""
    del rest
    for line in commands.help_lines(chat.console.width):
        chat.console.print(line)


async def leave(chat: "Chat", rest: str) -> None:
    """End the chat."""
    del rest
    chat.leaving = True


async def editor(chat: "Chat", rest: str) -> None:
    """Open the next prompt in the editor."""
    chat.edit_next = True
    chat.typing.draft = rest


async def mode(chat: "Chat", rest: str) -> None:
    """Show or change the permission mode. UsageError for one that there is not."""
    if rest:
        wanted = {name.lower(): name for name in MODES}.get(rest.lower())
        if wanted is None:
            raise UsageError(f"There is no permission mode '{rest}'.", f"Choose one of {', '.join(MODES)}.")
        chat.set_mode(cast("PermissionMode", wanted))
    chat.say([f"Permission mode: {chat.setup.mode}  (Shift-Tab takes the next one)"], style="dim")


async def permissions(chat: "Chat", rest: str) -> None:
    """The mode, the sandbox and the rules, each with its source."""
    from punie.tools import sandbox_state

    del rest
    rules = chat.gate().permissions.rules
    state = await asyncio.to_thread(sandbox_state, chat.setup.settings.sandbox)
    chat.say([f"mode     {chat.setup.mode}", f"sandbox  {state.reason}"])
    for kind, found in (("deny", rules.deny), ("ask", rules.ask), ("allow", rules.allow)):
        chat.say([f"{kind:<8} {rule}" for rule in found])
    if not (rules.deny or rules.ask or rules.allow):
        chat.say(["There are no rules. `punie config edit` opens the file for them."], style="dim")


async def init(chat: "Chat", rest: str) -> None:
    """Let the model write the instruction file of the project. UsageError where the model is too small for it."""
    from punie.agent.factory import is_compact

    del rest
    loaded = await chat.loaded()
    if loaded is None:
        return
    if is_compact(loaded.model):
        raise UsageError("The embedded model is too small to write AGENTS.md.", "/model names a larger one.")
    there = chat.setup.root / "AGENTS.md"
    more = " There is one already: read it first, keep what is right, correct the rest." if there.exists() else ""
    await chat.ask_model(_INIT.format(name="AGENTS.md", more=more))


async def memory(chat: "Chat", rest: str) -> None:
    """The instruction files that the model gets, and what was left out of them."""
    from punie.ui._setup import memory_of

    del rest
    loaded = await chat.loaded()
    if loaded is None:
        return
    found = memory_of(chat.setup)
    budget = found.budget_for(loaded.model)
    if budget == 0:
        chat.say(["This model gets no AGENTS.md; agents_md_tokens = 500 in your settings would give it that much."])
        return
    written = found.read(budget_tokens=budget)
    chat.say([f"{file.name}  about {file.tokens} tokens" for file in written.files])
    chat.say(written.warnings, style="yellow")
    if not written.files:
        chat.say(["No AGENTS.md is in force. /init lets the model write one."], style="dim")


async def doctor(chat: "Chat", rest: str) -> None:
    """What `punie doctor` checks, but for the question: the model is being used already."""
    from punie.ui.doctor import findings, line_of

    del rest
    checks = findings(chat.options, asks=False)
    while (finding := await asyncio.to_thread(next, checks, None)) is not None:
        chat.say([line_of(finding)], style="" if finding.kind == "ok" else "yellow")
        chat.say([f"      -> {line}" for line in finding.cure.splitlines()])


async def config(chat: "Chat", rest: str) -> None:
    """Show settings whose name begins so, or set one in the user's own file; it holds from the next chat on."""
    from punie.config import load_settings
    from punie.ui import configure

    key, _, value = rest.partition(" ")
    if value.strip():
        configure.run("set", options=chat.options, key=key, value=value.strip())
        chat.say(["It holds from the next chat on."], style="dim")
        return
    resolved = load_settings(cwd=chat.options.cwd, env=os.environ, flags=chat.options.flags())
    rows = [row for row in resolved.rows() if row[0].startswith(key)]
    if not rows:
        raise UsageError(f"There is no setting '{key}'.", "/config shows every one.")
    for name, found, source in rows:
        chat.console.print(Text.assemble(f"{name} = {clean(str(found))}  ", (clean(source), "dim")))


async def copy(chat: "Chat", rest: str) -> None:
    """Put the last answer on the clipboard: with the system's own program, or through the terminal over ssh."""
    from punie.ui._kept import last_words

    del rest
    answer = clean(last_words(chat.history)[1])
    if not answer:
        raise UsageError("There is no answer to copy yet.")
    data = answer.encode("utf-8", "replace")
    if not await asyncio.to_thread(_copied_by_program, data):
        if len(data) > _MOST_COPIED or chat.console.is_dumb_terminal:
            raise UsageError("There is no clipboard here for so much.", "/export writes the conversation to a file.")
        sys.stdout.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
        sys.stdout.flush()
    chat.say([f"Copied: {len(answer):,} characters."], style="dim")


def _copied_by_program(data: bytes) -> bool:
    if os.environ.get("SSH_CONNECTION"):  # the clipboard is on the other machine
        return False
    for command in _COPIERS:
        display = _DISPLAYS.get(command[0])
        shown = display is None or os.environ.get(display)
        path = os.environ.get("PATH", "")
        program = find_program(command[0], path=path, workspace=Path.cwd()) if shown else None
        if program is None:
            continue
        try:
            done = subprocess.run(
                [program, *command[1:]],
                input=data,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=5,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return True
    return False
