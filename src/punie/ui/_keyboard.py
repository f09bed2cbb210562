"""The terminal while nobody is being asked anything: keys are neither echoed nor lost, and Ctrl-C is a signal."""

import contextlib
import sys
import termios
from collections.abc import Callable, Iterator

_INPUT_FLAGS, _LOCAL_FLAGS = 0, 3


@contextlib.contextmanager
def quiet_keys() -> Iterator[Callable[[], None]]:
    """Stop the terminal from echoing what is typed while an answer is drawn; the next prompt gets it.

    Return stays a return: a newline would be taken for Ctrl-J, which starts a new line instead of sending.
    Yields what restores the terminal early, for a program that ends on the spot.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (AttributeError, OSError, ValueError, termios.error):  # closed, or no terminal
        yield lambda: None
        return
    quiet = termios.tcgetattr(descriptor)
    quiet[_INPUT_FLAGS] &= ~termios.ICRNL
    quiet[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)

    def restore() -> None:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)

    try:
        yield restore
    finally:
        restore()


def forget_typed() -> None:
    """Throw away what was typed before a question: it cannot be meant as its answer."""
    from prompt_toolkit.application.current import get_app_session
    from prompt_toolkit.input.typeahead import clear_typeahead

    clear_typeahead(get_app_session().input)
    with contextlib.suppress(OSError, ValueError, termios.error):
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
