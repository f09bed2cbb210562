"""The terminal while nobody is being asked anything: keys are neither echoed nor lost, and Ctrl-C is a signal."""

import asyncio
import contextlib
import os
import select
import sys
import termios
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.key_binding.key_processor import KeyPress

PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
"""Asks a terminal to say where a paste begins and ends, and no longer."""

SECONDS_TO_ESCAPE = 0.1
"""An escape that nothing follows for so long is the key; arrows and Alt begin with the same byte."""

_INPUT_FLAGS, _LOCAL_FLAGS = 0, 3
_found: list[list[int | list[bytes | int]]] = []
"""How the terminal was when somebody first asked for quiet, and each time since."""


@contextlib.contextmanager
def quiet_keys() -> Iterator[Callable[[], None]]:
    """Stop the terminal from echoing what is typed while an answer is drawn; the next prompt gets it.

    Return stays a return: a newline would be taken for Ctrl-J, which starts a new line instead of sending.
    Yields what sets the terminal back to how the shell had it, for a program that ends or stops on the spot.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (AttributeError, OSError, ValueError, termios.error):  # closed, or no terminal
        yield lambda: None
        return
    _found.append(before)
    be_quiet()
    try:
        yield lambda: termios.tcsetattr(descriptor, termios.TCSANOW, _found[0])
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, _found.pop())


def be_quiet() -> None:
    """The same from now on, where somebody else has set the terminal meanwhile, as a shell does."""
    with contextlib.suppress(AttributeError, OSError, ValueError, termios.error):
        quiet = termios.tcgetattr(sys.stdin.fileno())
        quiet[_INPUT_FLAGS] &= ~termios.ICRNL
        quiet[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, quiet)


def forget_typed() -> None:
    """Throw away what was typed before a question: it cannot be meant as its answer."""
    from prompt_toolkit.application.current import get_app_session
    from prompt_toolkit.input.typeahead import clear_typeahead

    clear_typeahead(get_app_session().input)
    with contextlib.suppress(OSError, ValueError, termios.error):
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def typed_so_far() -> bytes:
    """Everything that was typed and that nobody has taken yet; nothing where there is no terminal."""
    data = b""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or nothing that can be waited for
        descriptor = sys.stdin.fileno()
        while select.select([descriptor], [], [], 0)[0] and (chunk := os.read(descriptor, 65_536)):
            data += chunk
    return data


async def nothing_typed_for(seconds: float) -> None:
    """Throw away what is typed until nothing is for so long: who is typing a sentence answers no question.

    Raises KeyboardInterrupt for Ctrl-C, which counts at any time.
    """
    from prompt_toolkit.application.current import get_app_session

    with get_app_session().input.raw_mode():
        forget_typed()
        typed = bool(seconds)
        while typed:
            await asyncio.sleep(seconds)
            data = typed_so_far()
            if b"\x03" in data:
                raise KeyboardInterrupt
            typed = bool(data)


async def next_presses() -> "list[KeyPress]":
    """The keys that come in next, all that come at once; none where the terminal is gone."""
    from prompt_toolkit.application.current import get_app_session
    from prompt_toolkit.keys import Keys

    source, loop = get_app_session().input, asyncio.get_running_loop()
    got: asyncio.Future[list[KeyPress]] = loop.create_future()
    flush: asyncio.TimerHandle | None = None

    def take(presses: "list[KeyPress]") -> None:
        known = [press for press in presses if press.key != Keys.CPRResponse]
        if (known or source.closed) and not got.done():
            got.set_result(known)

    def read() -> None:
        nonlocal flush
        take(source.read_keys())
        if flush is not None:
            flush.cancel()
        flush = loop.call_later(SECONDS_TO_ESCAPE, lambda: take(source.flush_keys()))

    with source.raw_mode(), source.attach(read):
        try:
            return await got
        finally:
            if flush is not None:
                flush.cancel()
