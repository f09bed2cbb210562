"""What can be typed after a slash: one table, from which help, completion and the nearest name come."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from textwrap import wrap
from typing import TYPE_CHECKING, TypeAlias

from rich.text import Text

from punie.ui.options import MODES

if TYPE_CHECKING:
    from punie.ui.terminal import Chat

Words: TypeAlias = Callable[["Chat"], Iterable[tuple[str, str]]]
"""What may follow a command, each with what it means."""
Handler: TypeAlias = "Callable[[Chat, str], Awaitable[None]]"

TYPED = (
    ("@FILE", "names a file; Tab completes"),
    ("!COMMAND", "runs a command yourself, !!COMMAND with the network"),
    ("Enter", "sends; what you send during an answer is queued"),
    ("Ctrl-J, Alt-Enter", "a new line, like \\ before Enter"),
    ("Ctrl-X Ctrl-E", "opens your editor"),
    ("Ctrl-R", "searches what you typed before"),
    ("Ctrl-O", "unfolds the last tool call"),
    ("Shift-Tab", "the next permission mode"),
    ("Esc, Ctrl-C", "stops the answer; Ctrl-C twice, or Ctrl-D, leaves"),
)
"""What is typed besides commands, and what it does."""
_NARROW = 72
_GAP = "  "


@dataclass(frozen=True)
class Command:
    """One line of the table. The handler is `MODULE:FUNCTION` in this package, imported when it is used."""

    name: str
    hint: str
    help: str
    handler: str
    also: tuple[str, ...] = ()
    words: Words | None = None

    async def run(self, chat: "Chat", rest: str) -> None:
        """Do it. Raises PunieError for what the user can mend."""
        module, _, function = self.handler.partition(":")
        handler: Handler = getattr(import_module(f"punie.ui.{module}"), function)
        await handler(chat, rest)


def _modes(chat: "Chat") -> Iterator[tuple[str, str]]:
    for mode in MODES:
        yield mode, "now" if mode == chat.setup.mode else ""


def _go_modes(chat: "Chat") -> Iterator[tuple[str, str]]:
    del chat
    yield "default", "ask about every change"
    yield "acceptEdits", "do not ask about edits"


def _skills(chat: "Chat") -> Iterator[tuple[str, str]]:
    from punie.ui._skill_commands import folders

    yield from ((name, "skill") for name in folders(chat.setup))


def _models(chat: "Chat") -> Iterator[tuple[str, str]]:
    from punie.ui.completion import model_words

    yield from model_words(chat.setup.settings)


def _sessions(chat: "Chat") -> Sequence[tuple[str, str]]:
    return chat.kept.choices()


def _adapters(chat: "Chat") -> Iterator[tuple[str, str]]:
    del chat
    yield "on", "with the model's own adapter"
    yield "off", "the base model alone"


def _settings(chat: "Chat") -> Iterator[tuple[str, str]]:
    from punie.config import setting_keys

    del chat
    yield from ((key, "") for key in setting_keys())


TABLE: tuple[Command, ...] = (
    Command("help", "", "what can be typed here", "_about_commands:show_help"),
    Command(
        "model", "[SPEC]", "show the model, or go on with another one", "_model_commands:change_model", words=_models
    ),
    Command("models", "", "the models there are, and which are ready", "_model_commands:list_models"),
    Command(
        "adapter", "on|off|NAME", "change the adapter of a local model", "_model_commands:adapter", words=_adapters
    ),
    Command("clear", "", "forget the conversation and start a new one", "_session_commands:clear", also=("new",)),
    Command("compact", "[FOCUS]", "make room: sum up what was said so far", "_model_commands:compact"),
    Command(
        "context", "", "tokens of each part of what the model gets", "_model_commands:show_context", also=("tokens",)
    ),
    Command("diff", "", "what this session changed in files", "_session_commands:diff"),
    Command("undo", "", "take back what the last turn did to files", "_session_commands:undo"),
    Command("redo", "", "do again what was taken back", "_session_commands:redo"),
    Command("sessions", "", "the stored conversations of this directory", "_session_commands:list_sessions"),
    Command("resume", "[NUMBER|ID]", "go on with another conversation", "_session_commands:resume", words=_sessions),
    Command("fork", "[NUMBER|ID]", "go on with a copy of this one", "_session_commands:fork", words=_sessions),
    Command("rename", "TITLE", "give this conversation another title", "_session_commands:rename"),
    Command("export", "[FILE]", "write this conversation to a file", "_session_commands:export"),
    Command("permissions", "", "the mode and every rule, with its source", "_about_commands:permissions"),
    Command("mode", "[MODE]", "show or change the permission mode", "_about_commands:mode", words=_modes),
    Command("go", "[MODE]", "carry out the plan: leave plan mode and begin", "_plan_commands:go", words=_go_modes),
    Command("todos", "", "the steps that the model keeps for longer work", "_plan_commands:show_todos"),
    Command("skills", "", "the skills there are, and what they cost", "_skill_commands:list_skills"),
    Command("skill", "NAME [REQUEST]", "have the model follow a skill", "_skill_commands:use_skill", words=_skills),
    Command("init", "", "let the model write AGENTS.md", "_about_commands:init"),
    Command("memory", "", "the instruction files in force", "_about_commands:memory"),
    Command("doctor", "", "check what Punie needs on this machine", "_about_commands:doctor"),
    Command("config", "[KEY [VALUE]]", "show or change settings", "_about_commands:config", words=_settings),
    Command("copy", "", "copy the last answer", "_about_commands:copy"),
    Command("editor", "", "write the next prompt in your editor", "_about_commands:editor"),
    Command("exit", "", "leave", "_about_commands:leave", also=("quit",)),
)

_BY_NAME = {name: command for command in TABLE for name in (command.name, *command.also)}


async def run(chat: "Chat", word: str, rest: str) -> None:
    """Do what `/word rest` says, also of a skill; for an unknown word, say which one was probably meant."""
    name = word.removeprefix("/")
    command = _BY_NAME.get(name)
    if command is None and name in dict(_skills(chat)):
        command, rest = _BY_NAME["skill"], f"{name} {rest}"
    if command is not None:
        await command.run(chat, rest)
        return
    close = nearest(word)
    chat.warn(f"There is no {word}. {f'Did you mean {close}?' if close else '/help lists what there is.'}")


def nearest(word: str) -> str:
    """The command that looks most like a word, with its slash; empty where none does."""
    name = word.removeprefix("/")
    begun = [known for known in _BY_NAME if name and known.startswith(name)]
    found = begun or get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
    return f"/{found[0]}" if found else ""


def completions(chat: "Chat", text: str) -> Iterator[tuple[str, str]]:
    """What may stand in place of the last word of a line that begins with a slash."""
    name, space, typed = text.removeprefix("/").partition(" ")
    if not space:
        for command in TABLE:
            for known in (command.name, *command.also):
                if known.startswith(name):
                    yield f"/{known}", f"{command.hint}  {command.help}".strip()
        free = (skill for skill, _ in _skills(chat) if skill not in _BY_NAME and skill.startswith(name))
        yield from ((f"/{skill}", "skill") for skill in free)
        return
    command = _BY_NAME.get(name)
    if command is not None and command.words is not None and " " not in typed:
        yield from ((word, meaning) for word, meaning in command.words(chat) if word.startswith(typed))


def help_lines(columns: int) -> Iterator[Text]:
    """Every command and key with what it does, set for a screen of so many columns."""
    commands = [(f"/{command.name} {command.hint}".strip(), command) for command in TABLE]
    width = max(len(call) for call, _ in commands)
    for call, command in commands:
        also = f" (also /{', /'.join(command.also)})" if command.also else ""
        yield _entry(call, command.help + also, width=width, columns=columns)
    yield Text("\nAnything else is for the model.\n", "dim")
    for typed, meaning in TYPED:
        yield _entry(typed, meaning, width=width, columns=columns)


def _entry(name: str, meaning: str, *, width: int, columns: int) -> Text:
    """The meaning beside its name, or below where there is no room; it never goes back to the left edge."""
    narrow = columns < _NARROW
    indent = 2 if narrow else width + len(_GAP)
    lines = wrap(meaning, max(columns - indent, 16))
    before = "\n" + " " * indent
    head = Text(name, "bold") if narrow else Text(f"{name:<{width}}{_GAP}", "bold")
    return head.append((before if narrow else "") + before.join(lines), "not bold")
