"""Completion in the chat: slash commands and what follows them at the start of a line, files after `@`."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Completes what the chat understands besides plain words.

    `words` gives what may stand in place of the last word of a slash command, each with what it means.
    """

    def __init__(
        self, *, files: Callable[[], Sequence[str]], words: Callable[[str], Iterable[tuple[str, str]]]
    ) -> None:
        self._files = files
        self._words = words
        self._known: Sequence[str] = ()
        self._known_at = -_SECONDS_KNOWN

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what may follow the cursor's left side."""
        del complete_event
        text = document.text_before_cursor
        if mention := _MENTION.search(text):
            yield from self._mentions(mention[1])
        elif completes(text):
            typed = text.rpartition(" ")[2]
            for word, meaning in self._words(text):
                yield Completion(word, start_position=-len(typed), display_meta=meaning)

    def _mentions(self, typed: str) -> Iterator[Completion]:
        if time.monotonic() - self._known_at > _SECONDS_KNOWN:
            self._known, self._known_at = self._files(), time.monotonic()
        found = matching(typed, self._known)
        for path in found[:_MAX_SUGGESTIONS]:
            yield Completion(path, start_position=-len(typed))


def completes(text: str) -> bool:
    """Whether something may be completed at the end of this text: only then a menu needs room on the screen."""
    return (text.startswith("/") and "\n" not in text) or _MENTION.search(text) is not None


def matching(typed: str, paths: Sequence[str]) -> list[str]:
    """Return the paths that hold what was typed, at least letter by letter in this order; the closest ones first."""
    wanted = typed.lower()
    scattered = re.compile(".*?".join(map(re.escape, wanted)))
    ranked: list[tuple[int, int, str]] = []
    for path in paths:
        rank = _rank(wanted, path.lower(), scattered)
        if rank is not None and " " not in path and not hidden_characters(path):
            ranked.append((rank, len(path), path))
    return [path for _, _, path in sorted(ranked)]


def _rank(wanted: str, path: str, scattered: "re.Pattern[str]") -> int | None:
    """How far a path is from what was typed; None if it does not hold it at all."""
    name = path.rpartition("/")[2]
    if name.startswith(wanted):
        return 0
    if wanted in name:
        return 1
    if wanted in path:
        return 2
    if scattered.search(name):
        return 3
    return 4 if scattered.search(path) else None


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
