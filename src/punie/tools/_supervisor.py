"""Runs one command and leaves none of its processes behind.

Started as a script in the interpreter's isolated mode, with the command as its argument, so it imports only the
standard library. On Linux it adopts every orphan below it, also those that left the session, which makes its own
descendants exactly the processes of the command. It ends them when the command is over, when it gets SIGTERM, and when
the process that started it dies.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 1.0
PATIENCE_S = 5.0


class _Stop(Exception):  # noqa: N818 - a request, not an error
    """SIGTERM came."""


def main() -> int:
    """Run the command; its exit status, or 128 plus the signal that ended it."""
    _control(PR_SET_CHILD_SUBREAPER, 1)
    _control(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _raise_stop)
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    options = ["--noprofile", "--norc"] if shell.endswith("bash") else []
    # The space keeps a command that starts with a dash from being taken for an option.
    arguments = [shell, *options, "-c", f" {sys.argv[1]}"]
    group: int | None = None
    try:
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # A shell that kills its supervisor dies with it. There are no threads here that a fork could disturb.
            preexec_fn=lambda: _control(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        group = child.pid
        status = child.wait()
    except _Stop:
        status = -signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_all(group)
    return status if status >= 0 else 128 - status


def _raise_stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stop


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_all(group: int | None) -> None:
    """SIGTERM, a moment, then SIGKILL until nothing is left."""
    _send(group, signal.SIGTERM)
    calm = time.monotonic() + GRACE_S
    while _alive() and time.monotonic() < calm:
        time.sleep(0.01)
    end = time.monotonic() + PATIENCE_S
    while _alive() and time.monotonic() < end:
        _send(group, signal.SIGKILL)
        time.sleep(0.01)
    if sys.platform != "linux":
        _send(group, signal.SIGKILL)


def _send(group: int | None, number: signal.Signals) -> None:
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
    for process in _descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def _alive() -> bool:
    _reap()
    return bool(_descendants())


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants() -> list[int]:
    """Every process below this one, from /proc; empty where there is none."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold spaces; the parent stands second after it.
            fields = entry.read_bytes().rpartition(b")")[2].split()
            if fields[0] != b"Z":
                children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


if __name__ == "__main__":
    sys.exit(main())
