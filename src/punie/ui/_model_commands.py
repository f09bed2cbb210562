"""Slash commands about the model: which one, its adapter, and what its context window holds."""

import asyncio
from typing import TYPE_CHECKING

from rich.text import Text

from punie.errors import UsageError
from punie.ui._activity import duration_text
from punie.ui._clean import one_line
from punie.ui._loading import Loaded
from punie.ui._screen import Screen

if TYPE_CHECKING:
    from punie.agent.compaction import Compacted
    from punie.ui.terminal import Chat

_BAR = 30
"""Cells of the bar that stands for the whole window."""


async def change_model(chat: "Chat", rest: str) -> None:
    """Show the model, or go on with another one; the conversation stays."""
    if rest:
        await chat.change_model(rest)
        return
    chat.say([f"{chat.setup.config.model}  (/model SPEC changes it, /models lists them)"])


async def list_models(chat: "Chat", rest: str) -> None:
    """The named models, and which are here."""
    from punie.ui import models

    del rest
    await asyncio.to_thread(models.run, "list", None, options=chat.options)


async def adapter(chat: "Chat", rest: str) -> None:
    """Load the model with another adapter, or none, and say what that costs. UsageError where there is none to have."""
    loop = asyncio.get_running_loop()
    spec = with_adapter(chat.setup.config.model, rest)
    began = loop.time()
    await chat.change_model(spec)
    if chat.setup.config.model != spec:
        return
    cost = f"{duration_text(loop.time() - began)} to load"
    again = f"; the next request reads all {chat.status.context:,} tokens again" if chat.status.context else ""
    chat.say([f"That took {cost}{again}."], style="dim")


def with_adapter(spec: str, wanted: str) -> str:
    """The spec of a local model with its own adapter ("on"), none ("off") or the one in a directory."""
    kind, _, rest = spec.partition(":")
    if kind not in {"local", "mlx", "gguf"}:
        raise UsageError(f"{one_line(spec, width=60)} is no local model: it has no adapters.", "/model local")
    if not wanted:
        raise UsageError("Which adapter?", "/adapter on, /adapter off, or /adapter DIRECTORY")
    name = rest.partition("+")[0]
    if wanted == "on":
        if kind != "local":
            raise UsageError("Only named models have an adapter of their own.", "/adapter DIRECTORY")
        return f"local:{name}" if name else "local"
    if wanted == "off":
        return f"local:{name}+off" if kind == "local" else f"{kind}:{name}"
    return f"{kind}:{name}+{wanted}"


async def show_context(chat: "Chat", rest: str) -> None:
    """What each part of the next request takes, and what is free."""
    from punie.agent.compaction import measured
    from punie.agent.offered import offered
    from punie.ui._setup import skills_of

    del rest
    loaded = await chat.loaded()
    if loaded is None:
        return
    config, skills = chat.setup.config, skills_of(chat.setup, loaded.model).text
    memory = _memory(chat, loaded)
    parts = await measured(chat.history, model=loaded.model, config=config, memory=memory, skills=skills)
    used = sum(tokens for _, tokens in parts)
    window = loaded.model.context_window
    rows = [*parts, ("free", max(window - used, 0))] if window else parts
    for name, tokens in rows:
        share = tokens / window if window else 0.0
        bar = "█" * round(share * _BAR)
        style = "dim" if name == "free" else "cyan"
        chat.console.print(Text.assemble(f"{name:<14}{tokens:>9,}  ", (bar, style)))
    of = f" of {window:,}" if window else "; how much fits, the server does not say"
    chat.say([f"{'together':<14}{used:>9,}{of}"])
    names = offered(config, loaded.model, skills=bool(skills))
    chat.say([f"{len(names)} tools: {', '.join(names)}"], style="dim")
    chat.say([f"{chat.status.total_in:,} tokens in, {chat.status.total_out:,} out so far"], style="dim")


def _memory(chat: "Chat", loaded: Loaded) -> str:
    """The text of the instruction files that the model gets."""
    from punie.ui._setup import memory_of

    memory = memory_of(chat.setup)
    return memory.read(budget_tokens=memory.budget_for(loaded.model)).text


async def compact(chat: "Chat", rest: str) -> None:
    """Put a summary in place of what was said so far; the stored conversation keeps all of it."""
    from punie.agent.compaction import compacted

    if not chat.history:
        chat.say(["There is nothing to sum up yet."])
        return
    loaded = await chat.loaded()
    if loaded is None:
        return

    async def work(screen: Screen) -> "Compacted":
        screen.status("Summing up")
        return await compacted(chat.history, model=loaded.model, focus=rest)

    done = await chat.watched(work)
    if done is None:
        return
    chat.history = done.messages
    session = chat.session()
    if session is not None and session.messages:
        session.sync(chat.history)
    chat.status.context = 0
    chat.say(
        [f"About {done.before:,} tokens became {done.after:,}. The stored conversation keeps all of it."], style="dim"
    )
