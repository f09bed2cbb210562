"""Where Punie itself failed lately: the frames of a traceback without its message, which may quote a conversation."""

import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from punie.trust import read_own, state_directory, write_private

_KEPT = 50_000
"""Characters; the oldest go."""


def _file(env: Mapping[str, str]) -> Path:
    return state_directory(env) / "crashes.log"


def keep(error: BaseException, env: Mapping[str, str]) -> None:
    """Add one to the others. Where that cannot be, it is only shown."""
    from punie import __version__

    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    lines = [f"--- {when} UTC, punie {__version__}\n"]
    found: BaseException | None = error
    while found is not None:
        lines += [*traceback.format_tb(found.__traceback__), f"{type(found).__module__}.{type(found).__qualname__}\n"]
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    with suppress(OSError):
        write_private(_file(env), (recent(env) + "".join(lines))[-_KEPT:])


def recent(env: Mapping[str, str]) -> str:
    """What was kept; empty if there is nothing that can be read."""
    with suppress(OSError):
        return read_own(_file(env)).decode("utf-8", "replace")
    return ""
