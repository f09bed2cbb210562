"""Keys of the chat's input line besides those of any line: modes, unfolding, long pastes, the editor."""

from collections.abc import Callable

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix
from prompt_toolkit.document import Document
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from punie.ui._pastes import Pastes


def chat_keys(pastes: Pastes, *, unfold: Callable[[], None], next_mode: Callable[[], None]) -> KeyBindings:
    """Shift-Tab takes the next permission mode, Ctrl-O unfolds tool calls, Ctrl-X Ctrl-E opens the editor."""
    keys = KeyBindings()

    @keys.add(Keys.BackTab)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.complete_state:  # there it goes back among the completions
            event.current_buffer.complete_previous()
        else:
            next_mode()

    @keys.add(Keys.ControlI)
    def _(event: KeyPressEvent) -> None:
        _complete(event.current_buffer)

    @keys.add(Keys.ControlO)
    def _(event: KeyPressEvent) -> None:
        _print_above(event.app, unfold)

    @keys.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(pastes.collapsed(event.data))

    @keys.add(Keys.ControlX, Keys.ControlE)
    def _(event: KeyPressEvent) -> None:
        _open(event.current_buffer, pastes)

    return keys


def _print_above(app: Application[object], show: Callable[[], None]) -> None:
    """Print above the prompt. The terminal stays as it is: set back meanwhile, it would make newlines of Returns."""
    app.renderer.erase()
    show()
    app.renderer.reset()
    app.renderer.request_absolute_cursor_position()
    app.invalidate()


def _complete(buffer: Buffer) -> None:
    """Take what is meant, at once: the menu that opens while one types may still be on its way."""
    if buffer.complete_state:
        buffer.complete_next()
        return
    asked = CompleteEvent(completion_requested=True)
    found = list(buffer.completer.get_completions(buffer.document, asked))
    if len(found) == 1:
        buffer.apply_completion(found[0])
    elif found:
        buffer.insert_text(get_common_complete_suffix(buffer.document, found))
        buffer.start_completion()


def opens_editor(pastes: Pastes) -> None:
    """Open the editor on the line of the prompt that is being shown."""
    _open(get_app().current_buffer, pastes)


def _open(buffer: Buffer, pastes: Pastes) -> None:
    """In the editor there is room for all of a paste."""
    buffer.document = Document(pastes.expanded(buffer.text))
    buffer.open_in_editor()
