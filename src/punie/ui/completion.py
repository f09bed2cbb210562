"""`punie completion SHELL`: a script that makes Tab complete commands, flags, models, sessions and modes.

The scripts are a few lines: they hand the line up to the cursor back to `punie completion`, which answers from the
parsers of the command line itself, so that nothing can go stale. shtab writes static scripts from one parser with
subparsers, which the command line is not, and knows nothing of fish; what is here takes less than to fit it in.
"""

import argparse
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from punie.errors import PunieError

if TYPE_CHECKING:
    from punie.config import Resolved, Settings

MOST_SESSIONS = 50
_MEANING = 60
"""Characters that are shown of what a word means."""

_SCRIPTS: Mapping[str, str] = {
    "bash": """\
# Completion of punie for bash. In ~/.bashrc: eval "$(punie completion bash)"
_punie() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("$1" completion bash --line "${COMP_LINE:0:COMP_POINT}" --breaks "$COMP_WORDBREAKS" 2>/dev/null)
}
complete -o bashdefault -o default -F _punie punie
""",
    "zsh": """\
#compdef punie
# Completion of punie for zsh. In ~/.zshrc, after compinit: eval "$(punie completion zsh)"
_punie() {
    local -a found
    local word
    while IFS= read -r word; do
        found+=("$word")
    done < <("${words[1]}" completion zsh --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)
    if (( ${#found} )); then
        _describe -V punie found
    else
        _files
    fi
}
compdef _punie punie
""",
    "fish": """\
# Completion of punie for fish. Into ~/.config/fish/completions/punie.fish
function __punie_finds
    set -g __punie_found (punie completion fish --line (commandline -cp | string collect) 2>/dev/null)
    test (count $__punie_found) -gt 0
end
complete -c punie -n __punie_finds -f -k -a '$__punie_found'
""",
}

Words = Iterator[tuple[str, str]]
"""Words that may stand at the cursor, each with what it means."""


@dataclass(frozen=True)
class Commands:
    """What can be completed: the parser of a chat, and the parser of each command when it is needed."""

    root: argparse.ArgumentParser
    summaries: Mapping[str, str]
    parser_of: Callable[[str], argparse.ArgumentParser | None]
    position: Callable[[Sequence[str]], int | None]
    """Where in the words the command stands."""


def run(shell: str, *, line: str | None, breaks: str, commands: Commands) -> int:
    """Print the script of a shell, or with a line the words that may end it, as that shell takes them."""
    if line is None:
        sys.stdout.write(_SCRIPTS[shell])
        return 0
    typed = _typed(line)
    if typed is not None:
        for word, meaning in _found(typed, commands):
            sys.stdout.write(_written(shell, word, meaning, typed=typed[-1], breaks=breaks) + "\n")
    return 0


def _typed(line: str) -> list[str] | None:
    """The words after the program, the last one up to the cursor; None where a quote is open."""
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    if not words or line[-1:].isspace():
        words.append("")
    return words[1:] if len(words) > 1 else None


def _written(shell: str, word: str, meaning: str, *, typed: str, breaks: str) -> str:
    """One word as a shell reads it back. bash replaces only what follows the last character that breaks words."""
    from punie.ui._clean import one_line

    told = one_line(meaning, width=_MEANING)
    if shell == "bash":
        cut = max((place + 1 for place, letter in enumerate(typed) if letter in breaks), default=0)
        return shlex.quote(word[cut:])
    if shell == "zsh":
        return word.replace("\\", "\\\\").replace(":", "\\:") + (f":{told}" if told else "")
    return f"{word}\t{told}" if told else word


def _found(typed: Sequence[str], commands: Commands) -> Words:
    """What may stand in the place of the last word."""
    *before, current = typed
    position = commands.position(before)
    name = "" if position is None else before[position]
    parser = commands.parser_of(name) if name else commands.root
    if parser is None or "--" in before:
        return
    given = [word for place, word in enumerate(before) if place != position]
    place = _Place(name, parser, given)
    words = place.values_of_flag(current) if place.awaits_value(current) else place.others(current, commands.summaries)
    yield from (pair for pair in words if pair[0].startswith(current))


@dataclass(frozen=True)
class _Place:
    """Where the cursor stands: after these words of a command, which is empty for the chat."""

    command: str
    parser: argparse.ArgumentParser
    given: Sequence[str]

    @property
    def flags(self) -> Mapping[str, argparse.Action]:
        """Every flag in every spelling."""
        return self.parser._option_string_actions  # noqa: SLF001 - argparse has no other list of them

    def said(self) -> list[str]:
        """The words that are no flags and no values of flags."""
        pairs = zip(["", *self.given], self.given, strict=False)
        return [word for before, word in pairs if not word.startswith("-") and not self._takes_value(before)]

    def _takes_value(self, word: str) -> bool:
        action = self.flags.get(word)
        return action is not None and action.nargs is None

    def awaits_value(self, current: str) -> bool:
        """Whether a value of a flag stands here: it has to, it may, or it has begun after an equals sign."""
        flag, equals, _ = current.partition("=")
        if equals and flag in self.flags:
            return True
        last = self.flags.get(self.given[-1]) if self.given else None
        return last is not None and last.nargs in (None, "?") and not current.startswith("-")

    def values_of_flag(self, current: str) -> Words:
        """The values, with the flag before them where both are one word."""
        flag, equals, _ = current.partition("=")
        prefix, action = (f"{flag}=", self.flags[flag]) if equals else ("", self.flags[self.given[-1]])
        yield from ((f"{prefix}{word}", meaning) for word, meaning in self._values(action))

    def others(self, current: str, summaries: Mapping[str, str]) -> Words:
        """Flags where one has begun, else what the next operand may be, or the commands where nothing was said yet."""
        if current.startswith("-"):
            shown = ((text, action) for text, action in self.flags.items() if action.help != argparse.SUPPRESS)
            yield from ((text, (action.help or "").replace("%%", "%")) for text, action in shown)
            return
        said = self.said()
        if not self.command:
            printed = any(self.flags[word].dest == "print_only" for word in self.given if word in self.flags)
            yield from () if said or printed else summaries.items()
            return
        operands = [action for action in self.parser._actions if not action.option_strings]  # noqa: SLF001
        if operands:
            yield from self._values(operands[min(len(said), len(operands) - 1)])

    def _values(self, action: argparse.Action) -> Words:
        """The words that a flag or an operand may be."""
        if action.choices is not None:
            yield from ((str(choice), "") for choice in action.choices)
            return
        kind = _KINDS.get(f"{self.command} {action.dest}") or _KINDS.get(action.dest)
        if kind is not None:
            # Who completes a word is not told what is wrong elsewhere.
            with suppress(PunieError, OSError, sqlite3.Error):
                yield from kind(self.said())


def _resolved() -> "Resolved":
    from punie.config import load_settings

    return load_settings(cwd=Path.cwd(), env=os.environ, flags={})


def model_words(settings: "Settings") -> Words:
    """What can be given as a model: those in this process, the services, and the user's own names."""
    from punie.backends.catalogue import known

    yield "local", "the embedded model"
    yield from ((f"local:{name}", model.title) for name, model in known(settings.models).items())
    yield "claude", "Anthropic"
    yield from settings.aliases.items()


def _models(said: Sequence[str]) -> Words:
    del said
    yield from model_words(_resolved().settings)


def _names_of_models(said: Sequence[str]) -> Words:
    """`punie models pull` and its kin take a name of the catalogue alone, too."""
    for word, meaning in _models(said):
        yield word.removeprefix("local:"), meaning


def _settings(said: Sequence[str]) -> Words:
    from punie.config import setting_keys

    if said == ["set"]:
        yield from ((key, "") for key in setting_keys())


def _sessions(said: Sequence[str]) -> Words:
    """The beginnings of the ids of sessions of this directory, the last one first.

    The store itself takes a second to be imported, so the file is only looked into.
    """
    from punie.trust import state_directory

    if said[:1] == ["import"]:
        return
    file = state_directory(os.environ) / "sessions" / "sessions.db"
    here = os.fsencode(Path.cwd())
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        query = (
            "SELECT s.id, s.title FROM sessions s JOIN messages m ON m.session = s.id WHERE s.workspace = ?"
            " GROUP BY s.id ORDER BY max(m.id) DESC LIMIT ?"
        )
        for id_, title in connection.execute(query, (here, MOST_SESSIONS)):
            yield str(id_)[:8], str(title)


def _tools(said: Sequence[str]) -> Words:
    from punie.config import TOOL_NAMES

    del said
    yield from ((name, "") for name in TOOL_NAMES)


_KINDS: Mapping[str, Callable[[Sequence[str]], Words]] = {
    "model": _models,
    "models name": _names_of_models,
    "config key": _settings,
    "resume": _sessions,
    "session": _sessions,
    "sessions names": _sessions,
    "allowed_tools": _tools,
    "disallowed_tools": _tools,
}
"""Flags and operands by their name, some of one command alone."""
