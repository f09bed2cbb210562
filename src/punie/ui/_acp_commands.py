"""What can be written after a slash in an editor: the commands of the chat that need no terminal."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acp import PromptResponse
from acp.schema import AvailableCommand, AvailableCommandInput, UnstructuredCommandInput

from punie.errors import UsageError
from punie.ui._acp_choices import config_update
from punie.ui._clean import clean
from punie.ui.sessions import fenced

if TYPE_CHECKING:
    from punie.ui._acp_session import Conversation

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


async def compact(chat: "Conversation", rest: str) -> None:
    """Put a summary in place of what was said so far; the stored conversation keeps all of it."""
    from punie.agent.compaction import compacted

    if not chat.history:
        await chat.say(["There is nothing to sum up yet."])
        return
    loaded = await chat.loaded()
    done = await compacted(chat.history, model=loaded.model, focus=rest)
    chat.history = done.messages
    session = chat.session()
    if session is not None and session.messages:
        session.sync(chat.history)
    await chat.say([f"About {done.before:,} tokens became {done.after:,}. The stored conversation keeps all of it."])


async def context(chat: "Conversation", rest: str) -> None:
    """What each part of the next request takes, and what is free."""
    from punie.agent.compaction import measured
    from punie.ui._setup import memory_of, skills_of

    del rest
    loaded = await chat.loaded()
    config, memory, skills = chat.setup.config, memory_of(chat.setup), skills_of(chat.setup, loaded.model).text
    written = memory.read(budget_tokens=memory.budget_for(loaded.model)).text
    parts = await measured(chat.history, model=loaded.model, config=config, memory=written, skills=skills)
    used, window = sum(tokens for _, tokens in parts), loaded.model.context_window
    rows = [*parts, ("together", used), *([("free", max(window - used, 0))] if window else [])]
    await chat.say([fenced("\n".join(f"{name:<14}{tokens:>9,}" for name, tokens in rows))])


async def diff(chat: "Conversation", rest: str) -> None:
    """Show what every turn of this session did to files, as one diff against how it found them."""
    del rest
    found = await asyncio.to_thread(chat.kept.difference)
    text = clean(found.text)
    shown = fenced(text).replace("```\n", "```diff\n", 1) if text else "Nothing is changed."
    await chat.say(["\n".join([shown, *found.notes])])


async def undo(chat: "Conversation", rest: str) -> None:
    """Take back what the last turn did to files."""
    del rest
    await chat.say(chat.kept.turned("undo"))


async def redo(chat: "Conversation", rest: str) -> None:
    """Do it again."""
    del rest
    await chat.say(chat.kept.turned("redo"))


async def model(chat: "Conversation", rest: str) -> None:
    """Show the model, or go on with another one; the conversation stays."""
    if rest:
        await chat.change_model(rest)
        await chat.send(config_update(chat))
    await chat.say([f"Model: {chat.setup.config.model}"])


async def go(chat: "Conversation", rest: str) -> PromptResponse:
    """Leave plan mode and have the model carry the plan out."""
    from punie.ui._plan_commands import AGREED, mode_to_go

    await chat.tell_mode(mode_to_go(chat.setup.mode, chat.history, rest))
    return await chat.ask_model(AGREED)


async def skill(chat: "Conversation", rest: str) -> PromptResponse:
    """Send the instructions of a skill with what is asked for. UsageError if there is no such skill."""
    from punie.ui._setup import skills_of
    from punie.ui._skill_commands import prompt_of

    loaded = await chat.loaded()
    return await chat.ask_model(prompt_of(skills_of(chat.setup, loaded.model), rest))


@dataclass(frozen=True)
class Command:
    """One command; it gives the answer to the prompt if the model was asked."""

    help: str
    run: "Callable[[Conversation, str], Awaitable[PromptResponse | None]]"
    hint: str = ""


TABLE: Mapping[str, Command] = {
    "compact": Command("Make room: sum up what was said so far", compact, "what the summary must not miss"),
    "context": Command("Tokens of each part of what the model gets", context),
    "diff": Command("What this session changed in files", diff),
    "undo": Command("Take back what the last turn did to files", undo),
    "redo": Command("Do again what was taken back", redo),
    "go": Command("Leave plan mode and carry the plan out", go, "acceptEdits, or nothing to be asked about edits"),
    "skill": Command("Follow a skill", skill, "its name, and what to do"),
    "model": Command("Show the model, or go on with another one", model, "local, claude, openai:MODEL@URL"),
}


def parsed(text: str) -> tuple[str, str] | None:
    """The command and what follows it; None for what is no command, such as `/usr/lib`."""
    found = _COMMAND.fullmatch(text)
    return (found[1], (found[2] or "").strip()) if found else None


async def run(chat: "Conversation", name: str, rest: str) -> PromptResponse | None:
    """Do what `/name rest` says. UsageError for an unknown one, PunieError for what the user can mend."""
    command = TABLE.get(name)
    if command is None:
        raise UsageError(f"There is no /{name} here.", f"There are {', '.join(f'/{known}' for known in TABLE)}.")
    return await command.run(chat, rest)


def available() -> list[AvailableCommand]:
    """All of them, as the protocol tells a client."""
    return [
        AvailableCommand(
            name=name,
            description=command.help,
            input=AvailableCommandInput(UnstructuredCommandInput(hint=command.hint)) if command.hint else None,
        )
        for name, command in TABLE.items()
    ]
