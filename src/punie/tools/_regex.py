"""Matching lines: plain text here, regular expressions in a process of their own that has limited time."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# From the bytes of a file, with plain newlines, to the numbers of its matching lines.
Matcher = Callable[[bytes], list[int]]
WORKER = Path(__file__).with_name("_search_worker.py")


class OutOfTimeError(Exception):
    """The search took longer than its limit."""


class InvalidRegexError(ValueError):
    """The pattern is not a regular expression."""


@contextmanager
def literal_matcher(text: str) -> Iterator[Matcher]:
    """Lines that hold `text`."""
    wanted = text.encode("utf-8", "surrogatepass")

    def matches(data: bytes) -> list[int]:
        if wanted not in data:
            return []
        return [number for number, line in enumerate(data.split(b"\n"), 1) if wanted in line]

    yield matches


@contextmanager
def regex_matcher(pattern: str, *, time_limit_s: float) -> Iterator[Matcher]:
    """Lines the expression is found in. A matcher raises OutOfTimeError when all its files together take too long."""
    command = [sys.executable, "-I", "-S", str(WORKER)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as worker:
        watchdog = threading.Timer(time_limit_s, worker.kill)
        watchdog.start()
        try:
            if _ask(worker, pattern.encode("utf-8", "surrogatepass")) == b"bad\n":
                raise InvalidRegexError(pattern)
            yield lambda data: [int(number) for number in _ask(worker, data).split()]
        finally:
            watchdog.cancel()
            worker.kill()


def _ask(worker: subprocess.Popen[bytes], data: bytes) -> bytes:
    stream = _open(worker.stdin)
    try:
        stream.write(b"%d\n" % len(data))
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        raise OutOfTimeError from None
    answer = _open(worker.stdout).readline()
    if not answer.endswith(b"\n"):
        raise OutOfTimeError
    return answer


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise RuntimeError("the search worker was started without pipes")
    return stream
