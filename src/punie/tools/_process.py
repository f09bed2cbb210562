"""Running a command with limited time, limited output and a scrubbed environment."""

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HEAD_BYTES = 32 * 1024
TAIL_BYTES = 32 * 1024
# How long the supervisor has to end the processes below it; it takes a second for its own signals.
KILL_PATIENCE_S = 8.0
# How long to wait for a pipe that a process out of reach still holds.
DRAIN_S = 2.0
SUPERVISOR = Path(__file__).with_name("_supervisor.py")

_PASSED = re.compile(r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_[A-Z]+|TZ|TMPDIR|VIRTUAL_ENV")
# No pager may wait for a key, and nothing may ask for a password.
_SET = {"TERM": "dumb", "NO_COLOR": "1", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. `head` and `tail` are its output, with `dropped` bytes between them."""

    status: int
    timed_out: bool
    seconds: float
    head: bytes
    tail: bytes
    dropped: int


def child_environment(source: Mapping[str, str]) -> dict[str, str]:
    """The variables a command gets: those on a short list without any that commonly hold a secret."""
    return {name: value for name, value in source.items() if _PASSED.fullmatch(name)} | _SET


async def run(command: str, *, cwd: Path, environment: Mapping[str, str], timeout_s: float) -> Outcome:
    """Run a shell command. Whatever way this ends, also by cancellation, no process of the command is left."""
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", str(SUPERVISOR), command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=cwd,
        env=child_environment(environment),
        start_new_session=True,
    )
    kept = _Kept()
    reading = asyncio.ensure_future(_read(process, kept))
    timed_out = False
    try:
        await asyncio.wait_for(process.wait(), timeout_s)
    except TimeoutError:
        timed_out = True
    finally:
        await asyncio.shield(_finish(process, reading))
    seconds = time.monotonic() - started
    return Outcome(process.returncode or 0, timed_out, seconds, bytes(kept.head), bytes(kept.tail), kept.dropped)


@dataclass(slots=True)
class _Kept:
    """The first and the last bytes of a stream of any length."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    dropped: int = 0

    def add(self, chunk: bytes) -> None:
        room = HEAD_BYTES - len(self.head)
        self.head += chunk[:room]
        self.tail += chunk[room:]
        over = max(len(self.tail) - TAIL_BYTES, 0)
        del self.tail[:over]
        self.dropped += over


async def _read(process: asyncio.subprocess.Process, kept: _Kept) -> None:
    if process.stdout is None:
        return
    while chunk := await process.stdout.read(1 << 16):
        kept.add(chunk)


async def _finish(process: asyncio.subprocess.Process, reading: asyncio.Future[None]) -> None:
    """End what still runs, then wait for the rest of the output as long as that can make sense."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), KILL_PATIENCE_S)
    if process.returncode is None:
        _signal(process, signal.SIGKILL)
        await process.wait()
    await asyncio.wait([reading], timeout=DRAIN_S)
    if not reading.done():
        reading.cancel()
        _close(process)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _close(process: asyncio.subprocess.Process) -> None:
    # asyncio has no public way to let go of a pipe that someone else holds open.
    transport = getattr(process, "_transport", None)
    if isinstance(transport, asyncio.SubprocessTransport):
        transport.close()
