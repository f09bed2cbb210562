"""Slash commands about the conversation: which one it is, where it is kept, and what it did to files."""

import asyncio
from typing import TYPE_CHECKING

from punie.errors import UsageError
from punie.ui._clean import one_line

if TYPE_CHECKING:
    from punie.ui.terminal import Chat


async def clear(chat: "Chat", rest: str) -> None:
    """Begin a new conversation; the old one stays stored."""
    del rest
    chat.kept.forget()
    chat.go_on_with(())
    chat.say(["A new conversation."], style="dim")


async def list_sessions(chat: "Chat", rest: str) -> None:
    """List the stored ones."""
    del rest
    chat.say([*chat.kept.listed(), "/resume NUMBER goes on with one of them"])


async def resume(chat: "Chat", rest: str) -> None:
    """Go on with a stored one: the last, a number of the list, or an id."""
    chat.go_on_with(chat.kept.resume(rest))


async def fork(chat: "Chat", rest: str) -> None:
    """Go on with a copy, of this one if none is named."""
    if not rest and not chat.history:
        chat.say(["There is nothing to copy yet."])
        return
    chat.go_on_with(chat.kept.fork(rest))


async def undo(chat: "Chat", rest: str) -> None:
    """Take back what the last turn did to files."""
    del rest
    chat.say(chat.kept.turned("undo"))


async def redo(chat: "Chat", rest: str) -> None:
    """Do it again."""
    del rest
    chat.say(chat.kept.turned("redo"))


async def rename(chat: "Chat", rest: str) -> None:
    """Give the conversation another title. UsageError if it has none to give, or nothing is stored yet."""
    title = one_line(rest, width=80)
    if not title:
        raise UsageError("There is no title.", "/rename what this is about")
    chat.kept.rename(title)
    chat.say([f"This conversation is now: {title}"], style="dim")


async def export(chat: "Chat", rest: str) -> None:
    """Write the conversation to a new file: Markdown, or every detail as JSON if it is named *.json or *.jsonl."""
    written = await asyncio.to_thread(chat.kept.export, rest)
    chat.say([f"Written: {written}"], style="dim")


async def diff(chat: "Chat", rest: str) -> None:
    """Show what every turn of this session did to files, as one diff against how it found them."""
    from punie.ui._draw import diff_text

    del rest
    found = await asyncio.to_thread(chat.kept.difference)
    if found.text:
        chat.console.print(diff_text(found.text), soft_wrap=True)
    else:
        chat.say(["Nothing is changed."])
    chat.say(found.notes, style="dim")
