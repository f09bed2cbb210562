"""`!command`: the user runs a command in the chat, in the same sandbox as the model's; `!!command` with the network.

What is denied to the model is denied here as well. What would be lost, or cannot be seen, is asked about; the rest has
been answered by typing it.
"""

import asyncio
from typing import TYPE_CHECKING

from pydantic_ai import RunContext
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import ToolDenied
from pydantic_ai.usage import RunUsage
from rich.text import Text

from punie.errors import UsageError
from punie.tools import Workspace, run_command
from punie.ui._clean import clean
from punie.ui._loading import Loaded
from punie.ui._screen import Screen

if TYPE_CHECKING:
    from punie.agent.session import Session
    from punie.ui.terminal import Chat


async def run_by_hand(chat: "Chat", command: str) -> None:
    """Run it and show what it gave; the model is told with the next prompt. UsageError if there is no command.

    `command` is what stands after the first `!`.
    """
    networked = command.startswith("!")
    command = command.removeprefix("!").strip()
    if not command:
        raise UsageError("There is no command after the !.", "!git status")
    loaded = await chat.loaded()
    if loaded is None:
        return
    # Asked about before the screen is taken: a question needs it.
    part = ToolCallPart("run_command", {"command": command})
    is_seen = clean(command) == command  # what was pasted may hold more than the screen shows
    decision = await chat.gate().judge(loaded.workspace, part, by_hand=is_seen)
    if isinstance(decision, ToolDenied):
        chat.warn(decision.message)
        return
    if networked:
        loaded.workspace.sandbox.allow_network(command)
    session = chat.session()

    async def work(screen: Screen) -> str:
        screen.status(f"! {command.splitlines()[0]}")
        return await _run(loaded, command, session=session, model=chat.setup.config.model)

    output = await chat.watched(work)
    if output is None:
        chat.warn("Stopped. The model is not told of it.")
        return
    chat.console.print(Text(clean(output).rstrip("\n")), soft_wrap=True)
    chat.folds.add(f"!{command}", output)
    chat.asides.append(f"I ran this command myself:\n$ {command}\n{output.strip()}")


async def _run(loaded: Loaded, command: str, *, session: "Session | None", model: str) -> str:
    """Run it as a turn of its own, so that it can be undone."""
    context = RunContext[Workspace](deps=loaded.workspace, model=loaded.model, usage=RunUsage())
    if session is None:
        return await run_command(context, command)
    session.begin(model=model, title=f"!{command}")
    before = await asyncio.to_thread(session.journal.before_command)
    try:
        return await run_command(context, command)
    finally:
        session.journal.after_command(before)
