"""Running a command confined, with limited time, limited output and a scrubbed environment."""

import asyncio
import codecs
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from punie.redaction import FAILED, PATIENCE_S, Redactor
from punie.tools._sandbox import Run, Sandbox, supervised

HEAD_BYTES = 32 * 1024
TAIL_BYTES = 32 * 1024
SAVED_BYTES = 64 << 20
MAX_OUTPUT_BYTES = 1 << 30
# How long the supervisor has to end the processes below it. Mostly that is a moment, but it gives hundreds of them on a
# busy machine 16 s, and one that is killed before it is done leaves them.
KILL_PATIENCE_S = 20.0
# How long to wait for a pipe that a process out of reach still holds.
DRAIN_S = 2.0

Stop = Literal["", "timeout", "output", "processes"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. `head` and `tail` are its output, with `dropped` bytes between them.

    `stopped` says what it had too much of, if it was stopped. `restored` are protected paths it had changed, which
    are as they were. `save` keeps the output in a file, without secrets and at most the first 64 MB of it.
    """

    status: int
    stopped: Stop
    seconds: float
    head: bytes
    tail: bytes
    dropped: int
    restored: tuple[Path, ...] = ()
    save: "Callable[[], Saved | None]" = field(default=lambda: None, repr=False)


class Saved(NamedTuple):
    """A file with output, and whether all of it is in there."""

    path: Path
    whole: bool


@dataclass(frozen=True, slots=True)
class Spill:
    """Where output goes that is too long to be kept in memory: `place` names a new file, `redact` sees to it."""

    place: Callable[[], Path]
    redact: Redactor


async def run(
    command: str,
    *,
    sandbox: Sandbox,
    timeout_s: float,
    network: bool = False,
    save_to: Spill | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
) -> Outcome:
    """Run a shell command. Whatever way this ends, also by cancellation, its processes are ended.

    `save_to` says what becomes of output that is too long to be kept in memory; `stdin` is an open file to read from.
    """
    await asyncio.to_thread(lambda: sandbox.state)  # the first time, this tries the sandbox out
    with sandbox.run(command, network=network) as prepared, supervised(prepared.plan) as (arguments, note):
        started = time.monotonic()
        output = await _Output.open(save_to)
        try:
            process = await _start(arguments, prepared, note=note, stdin=stdin, stdout=output.write_end)
        except BaseException:
            output.close()
            raise
        finally:
            os.close(output.write_end)
        stopped: Stop = ""
        try:
            stopped = await _ended(process, output, timeout_s)
        finally:
            await asyncio.shield(_finish(process, output))
        seconds = time.monotonic() - started
        if not stopped and os.pread(note, 32, 0) == b"processes":
            stopped = "processes"
    return Outcome(
        process.returncode or 0,
        stopped,
        seconds,
        bytes(output.head),
        bytes(output.tail),
        output.dropped,
        tuple(prepared.restored),
        output.save,
    )


async def _start(
    arguments: list[str], prepared: Run, *, note: int, stdin: int, stdout: int
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *arguments,
        pass_fds=(note,),
        stdin=stdin,
        stdout=stdout,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/",
        env=prepared.plan["env"],
        start_new_session=True,
    )


async def _ended(process: asyncio.subprocess.Process, output: "_Output", timeout_s: float) -> Stop:
    """Wait until the command is over or has had too much of something."""
    waits = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(output.flooded.wait())]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
    if not done:
        return "timeout"
    return "" if waits[0] in done else "output"


class _Output(asyncio.Protocol):
    """A pipe, of which the first and the last bytes are kept.

    It is a pipe of our own because asyncio counts a process as running while anyone holds one of its pipes open.
    """

    def __init__(self, write_end: int, save_to: Spill | None) -> None:
        self.write_end = write_end
        self.head = bytearray()
        self.tail = bytearray()
        self.dropped = 0
        self.ended = asyncio.Event()
        self.flooded = asyncio.Event()
        self._save_to = save_to
        self._saved: _File | None = None
        self._total = 0
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def open(cls, save_to: Spill | None) -> "_Output":
        read_end, write_end = os.pipe()
        _, output = await asyncio.get_running_loop().connect_read_pipe(
            lambda: cls(write_end, save_to), os.fdopen(read_end, "rb", buffering=0)
        )
        return output

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.flooded.is_set():
            return
        self._total += len(data)
        if self._total > HEAD_BYTES + TAIL_BYTES:
            self.save()
            if self._saved is not None:
                self._saved.write(data)
        room = HEAD_BYTES - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        over = max(len(self.tail) - TAIL_BYTES, 0)
        del self.tail[:over]
        self.dropped += over
        if self._total > MAX_OUTPUT_BYTES:
            self.flooded.set()

    def save(self) -> Saved | None:
        """Begin the file with what has come so far; None if there is no place for one."""
        if self._save_to is not None and self._saved is None:
            try:
                self._saved = _File(self._save_to)
            except OSError:
                self._save_to = None
                return None
            self._saved.write(bytes(self.head + self.tail))
            if self.ended.is_set():
                self._saved.close()
        return Saved(self._saved.path, self._saved.whole) if self._saved is not None else None

    def _close_file(self) -> None:
        if self._saved is not None:
            self._saved.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self._close_file()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._close_file()  # nothing more comes, and what has come is to be found in the file


class _File:
    """A file that gets output as it comes, without secrets. OSError if it cannot be made; a full disk ends it.

    A text that only pretends to hold secrets can take long to look through, so there is an end to that as well.
    """

    def __init__(self, spill: Spill) -> None:
        self.path = spill.place()
        self.whole = True
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: BinaryIO | None = os.fdopen(os.open(self.path, flags, 0o600), "wb")
        self._stream = spill.redact.stream()
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._patience = PATIENCE_S

    def write(self, data: bytes) -> None:
        """Take the next bytes; what may be the beginning of a secret is held back."""
        self._take(data, is_last=False)

    def close(self) -> None:
        """Write what was held back."""
        self._take(b"", is_last=True)
        self._end()

    def _take(self, data: bytes, *, is_last: bool) -> None:
        if self._file is None:
            self.whole = self.whole and not data
            return
        started = time.thread_time()
        text = self._stream.feed(self._decoder.decode(data, final=is_last))
        text += self._stream.close() if is_last else ""
        self._patience -= time.thread_time() - started
        made = text.encode("utf-8", "surrogateescape")
        try:
            room = SAVED_BYTES - self._file.tell()
            self._file.write(made[:room])
        except OSError:
            room = -1  # the disk is full; the command goes on
        if room < len(made) or self._patience < 0 or text.endswith(FAILED):
            self.whole = False
            self._end()

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                self.whole = False


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
    output.ended.set()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
