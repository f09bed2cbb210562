"""Completion in the chat: slash commands at the start of a line, files after `@`."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from punie.ui._clean import hidden_characters

_MENTION = re.compile(r"(?:^|\s)@(\S*)$")
_MENTIONED = re.compile(r"(?<!\S)@(\S+)")
_MAX_SUGGESTIONS = 50
_SECONDS_KNOWN = 5.0
"""For how long a list of files is good enough for the next key."""


class ChatCompleter(Completer):
    """Completes what the chat understands besides plain words."""

    def __init__(
        self, *, commands: Mapping[str, str], files: Callable[[], Sequence[str]], models: Callable[[], Sequence[str]]
    ) -> None:
        self._commands = commands
        self._files = files
        self._models = models
        self._known: Sequence[str] = ()
        self._known_at = -_SECONDS_KNOWN

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what may follow the cursor's left side."""
        del complete_event
        text = document.text_before_cursor
        if mention := _MENTION.search(text):
            yield from self._mentions(mention[1])
        elif text.startswith("/model "):
            yield from _starting(text.removeprefix("/model "), self._models())
        elif text.startswith("/") and " " not in text and "\n" not in text:
            for name, summary in self._commands.items():
                if name.startswith(text):
                    yield Completion(name, start_position=-len(text), display_meta=summary)

    def _mentions(self, typed: str) -> Iterator[Completion]:
        if time.monotonic() - self._known_at > _SECONDS_KNOWN:
            self._known, self._known_at = self._files(), time.monotonic()
        found = matching(typed, self._known)
        for path in found[:_MAX_SUGGESTIONS]:
            yield Completion(path, start_position=-len(typed))


def _starting(typed: str, names: Sequence[str]) -> Iterator[Completion]:
    for name in names:
        if name.startswith(typed):
            yield Completion(name, start_position=-len(typed))


def matching(typed: str, paths: Sequence[str]) -> list[str]:
    """Return the paths that contain what was typed, those whose file name starts with it first."""
    wanted = typed.lower()
    found = [path for path in paths if wanted in path.lower() and " " not in path and not hidden_characters(path)]
    return sorted(found, key=lambda path: (not path.rpartition("/")[2].lower().startswith(wanted), len(path), path))


def without_marks(prompt: str, *, root: Path) -> str:
    """Return the prompt with `@src/a.py` as `src/a.py` where that is a file: the tools take plain paths."""

    def plain(match: re.Match[str]) -> str:
        return match[1] if _exists(root / match[1]) else match[0]

    return _MENTIONED.sub(plain, prompt)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
