"""Matching lines: plain text here, regular expressions in a process of their own that has limited time."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# From the bytes of a file to the numbers of its matching lines.
Matcher = Callable[[bytes], list[int]]
WORKER = Path(__file__).with_name("_search_worker.py")


class OutOfTimeError(Exception):
    """The search took longer than its limit."""


@contextmanager
def literal_matcher(text: str) -> Iterator[Matcher]:
    """Lines that hold `text`."""
    wanted = text.encode("utf-8", "surrogateescape")

    def matches(data: bytes) -> list[int]:
        if wanted not in data:
            return []
        return [number for number, line in enumerate(data.split(b"\n"), 1) if wanted in line]

    yield matches


@contextmanager
def regex_matcher(pattern: str, *, time_limit_s: float) -> Iterator[Matcher]:
    """Lines the expression is found in. A matcher raises OutOfTimeError when all its files together take too long."""
    command = [sys.executable, "-I", "-S", str(WORKER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:  # noqa: S603 - our own
        watchdog = threading.Timer(time_limit_s, worker.kill)
        watchdog.start()
        try:
            _send(worker, pattern.encode("utf-8", "surrogateescape"))
            yield lambda data: _ask(worker, data)
        finally:
            watchdog.cancel()
            worker.kill()


def _ask(worker: subprocess.Popen[bytes], data: bytes) -> list[int]:
    _send(worker, data)
    answer = _open(worker.stdout).readline()
    if not answer.endswith(b"\n"):
        raise OutOfTimeError
    return [int(number) for number in answer.split()]


def _send(worker: subprocess.Popen[bytes], data: bytes) -> None:
    stream = _open(worker.stdin)
    try:
        stream.write(b"%d\n" % len(data))
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        raise OutOfTimeError from None


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise RuntimeError("the search worker was started without pipes")
    return stream
