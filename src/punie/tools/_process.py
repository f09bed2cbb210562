"""Running a command with limited time, limited output and a scrubbed environment."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
    """Run a shell command. Whatever way this ends, also by cancellation, its processes are ended."""
    started = time.monotonic()
    output = await _Output.open()
    try:
        process = await _start(command, cwd=cwd, environment=environment, stdout=output.write_end)
    except BaseException:
        output.close()
        raise
    finally:
        os.close(output.write_end)
    timed_out = False
    try:
        await asyncio.wait_for(process.wait(), timeout_s)
    except TimeoutError:
        timed_out = True
    finally:
        await asyncio.shield(_finish(process, output))
    seconds = time.monotonic() - started
    return Outcome(process.returncode or 0, timed_out, seconds, bytes(output.head), bytes(output.tail), output.dropped)


async def _start(command: str, *, cwd: Path, environment: Mapping[str, str], stdout: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", str(SUPERVISOR), command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.STDOUT,
        cwd=cwd,
        env=child_environment(environment),
        start_new_session=True,
    )


class _Output(asyncio.Protocol):
    """A pipe, of which the first and the last bytes are kept.

    It is a pipe of our own because asyncio counts a process as running while anyone holds one of its pipes open.
    """

    def __init__(self, write_end: int) -> None:
        self.write_end = write_end
        self.head = bytearray()
        self.tail = bytearray()
        self.dropped = 0
        self.ended = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def open(cls) -> "_Output":
        read_end, write_end = os.pipe()
        _, output = await asyncio.get_running_loop().connect_read_pipe(
            lambda: cls(write_end), os.fdopen(read_end, "rb", buffering=0)
        )
        return output

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        room = HEAD_BYTES - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        over = max(len(self.tail) - TAIL_BYTES, 0)
        del self.tail[:over]
        self.dropped += over

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _finish(process: asyncio.subprocess.Process, output: _Output) -> None:
    """End what still runs, then wait for the rest of the output as long as that can make sense."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), KILL_PATIENCE_S)
    if process.returncode is None:
        _signal(process, signal.SIGKILL)
        await process.wait()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(output.ended.wait(), DRAIN_S)
    output.close()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
