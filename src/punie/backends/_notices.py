"""Lines for the user while a request is under way: a countdown, a limit of the server, a model nobody asked for.

A backend `tell`s; whoever draws is `listening`. The listener is found by context: a task that a request starts
speaks to the listener of that request, and without a listener nobody is told.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def tell(text: str) -> None:
    """Hand one line to the listener of this context. Call it on the event loop's thread."""
    listener = _listener.get()
    if listener is not None:
        listener(text)


@contextmanager
def listening(callback: Callable[[str], None]) -> Iterator[None]:
    """Hear what is told in this context, and in the tasks that are started in it."""
    token = _listener.set(callback)
    try:
        yield
    finally:
        _listener.reset(token)
