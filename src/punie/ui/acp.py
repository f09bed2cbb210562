"""`punie acp`: the Agent Client Protocol on standard input and output, so that editors lead conversations.

Standard output belongs to the protocol alone: whatever else would be printed there goes to standard error.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from punie import __version__
from punie.errors import UsageError
from punie.redaction import Redactor
from punie.ui._clean import visible
from punie.ui._setup import Setup, prepare
from punie.ui.options import Options

if TYPE_CHECKING:
    from acp.interfaces import Agent

SECONDS_TO_END = 10.0
"""How long turns may take to end when the client is gone, before they are dropped."""
SECONDS_AT_MOST = 60.0
"""How long the process stays then at most, whatever holds it up."""


def run(options: Options) -> int:
    """Serve one client until it closes its end; return the exit code."""
    if sys.stdin is None or sys.stdin.isatty():
        cause = "`punie acp` is started by an editor and speaks with it on standard input."
        raise UsageError(cause, "docs/editors.md says how; `punie` alone chats in the terminal.")
    if find_spec("acp") is None:
        raise UsageError("Editors need a package that is not here.", 'Install it with `pip install "punie[acp]"`.')
    setup = prepare(options, env=os.environ)  # a mistake in the user's own settings is told before anything is served
    source, sink = _taken_streams()
    _log_to_standard_error(verbose=options.verbose)
    return asyncio.run(_serve(setup, options, source=source, sink=sink))


def _taken_streams() -> tuple[int, int]:
    """Standard input and output under other numbers; nobody else reads from the one or writes to the other."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing if sys.stderr is None else 2, 1)
    os.close(nothing)
    return source, sink


class _Safe(logging.Formatter):
    """Lines for a log: without secrets and control sequences."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, its traceback included."""
        return visible(Redactor(os.environ)(f"punie: {super().format(record)}"))


def _log_to_standard_error(*, verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Safe())
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING, force=True)


async def _serve(setup: Setup, options: Options, *, source: int, sink: int) -> int:
    from acp.core import AgentSideConnection

    from punie.ui._acp_lines import Lines
    from punie.ui._acp_server import Server

    ended: list[int] = []
    note = logging.getLogger("punie").warning
    lines = Lines(source, sink, note=note)

    def end(number: int) -> None:
        ended.append(number)
        lines.end()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    mcp_over_http = find_spec("fastmcp") is not None
    server = Server(options, version=__version__, stores=setup.settings.save_sessions, http=mcp_over_http, note=note)
    # The methods that a client is told of are there; the SDK looks for the others and finds that they are not.
    connection = AgentSideConnection(cast("Agent", server), lines, listening=False, use_unstable_protocol=True)
    await connection.listen()
    _end_at_the_latest(SECONDS_AT_MOST)
    server.stop()
    await lines.answered(SECONDS_TO_END)
    await connection.close()
    await server.close()
    return 128 + ended[0] if ended else 0


def _end_at_the_latest(seconds: float) -> None:
    """The editor is gone: whatever still holds the process up is not worth waiting for."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
