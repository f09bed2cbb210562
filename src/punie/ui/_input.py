"""The chat's input line: history, keys, completion and the toolbar below it."""

import os
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import Completer, ThreadedCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.styles import Style

from punie.ui._complete import completes

_STYLE = Style.from_dict({"bottom-toolbar": "noreverse", "bottom-toolbar.text": "fg:ansibrightblack"})


class _TypedHistory(FileHistory):
    """What was typed, kept without secrets; in this conversation it comes back as it was."""

    def __init__(self, file: Path, redact: Callable[[str], str]) -> None:
        super().__init__(str(file))
        self._redact = redact

    def store_string(self, string: str) -> None:
        super().store_string(self._redact(string))


def history_in(directory: Path, *, redact: Callable[[str], str]) -> History:
    """What was typed before, in a file that only the user may read; kept in memory where none can be written."""
    file = directory / "history"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        if not file.is_file():  # a pipe would be waited for
            return InMemoryHistory()
        file.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _TypedHistory(file, redact)


def input_session(
    *, history: History, completer: Completer, toolbar: Callable[[], str], keys: KeyBindings
) -> PromptSession[str]:
    """The session that reads prompts; `keys` are bound besides those for new lines."""
    return PromptSession(
        history=history,
        completer=ThreadedCompleter(completer),
        complete_while_typing=Condition(lambda: completes(get_app().current_buffer.document.text_before_cursor)),
        multiline=True,
        prompt_continuation="  ",
        key_bindings=merge_key_bindings([_keys(), keys]),
        bottom_toolbar=toolbar,
        refresh_interval=0.5,
        enable_open_in_editor=True,
        enable_suspend=True,
        style=_STYLE,
    )


def _keys() -> KeyBindings:
    """Enter sends; Ctrl-J, Alt-Enter and a backslash before Enter start a new line."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("c-j")
    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys
