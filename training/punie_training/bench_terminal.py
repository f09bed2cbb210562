"""`just bench terminal`: how the chat feels, in a pseudo-terminal, with a model that says at once what it is told to.

The model is a server on loopback, so that what is measured is Punie's own share: how soon the prompt is there, how soon
a key shows while an answer of 20,000 lines streams by, how soon the first words of an answer show, and how much memory
a chat of 200 turns has taken.
"""

import argparse
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fcntl import ioctl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from punie_training.bench import Figure, machine, say

LINES = 20_000
TURNS = 200
_PATIENCE_S = 300.0
_PROMPT = "· default ·"
"""In the line below the prompt, which is drawn with it."""
_CURSOR_ASKED, _CURSOR = b"\x1b[6n", b"\x1b[1;1R"
_SEQUENCE = re.compile(rb"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07)")


class Chat:
    """One `punie` in a pseudo-terminal of 24 rows and 80 columns."""

    def __init__(self, spec: str, *, root: Path) -> None:
        state = {
            "XDG_STATE_HOME": str(root / "state"),
            "XDG_CONFIG_HOME": str(root / "config"),
            "TERM": "xterm-256color",
        }
        command = [str(Path(sys.executable).with_name("punie")), "--model", spec]
        self.started = time.perf_counter()
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._process = subprocess.Popen(
            command,
            cwd=root / "project",
            env={**os.environ, **state},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._terminal = master
        self._shown = b""
        self.ended = False
        """Whether the end of an answer was shown since this was last set to False."""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._terminal, text.encode())

    def until(self, wanted: str) -> float:
        """Read until this is shown, and forget everything up to it; the seconds since the start of the chat."""
        end, needle = time.perf_counter() + _PATIENCE_S, wanted.encode()
        while time.perf_counter() < end:
            place = self._shown.find(needle)
            if place >= 0:
                self._shown = self._shown[place + len(needle) :]
                return time.perf_counter() - self.started
            self._read()
        raise SystemExit(f"The chat never showed {wanted!r}; the last of it: {self._shown[-500:]!r}")

    def echoed(self, key: str) -> float:
        """Seconds from a key to the screen that shows it at the end of the line being typed."""
        self._shown = b""
        started = time.perf_counter()
        self.type(key)
        needle = f"{key}▏".encode()
        while needle not in self._shown and not self.ended:
            self._read()
        return time.perf_counter() - started

    def memory_mb(self) -> float:
        """Resident memory of the process, in millions of bytes."""
        status = Path(f"/proc/{self._process.pid}/statm")
        if status.exists():
            return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        asked = ["/bin/ps", "-o", "rss=", "-p", str(self._process.pid)]
        return int(subprocess.run(asked, capture_output=True, check=True).stdout) * 1024 / 1e6

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        os.close(self._terminal)
        self._process.wait()

    def _read(self) -> None:
        if not select.select([self._terminal], [], [], 0.05)[0]:
            return
        data = os.read(self._terminal, 1 << 16)
        for _ in range(data.count(_CURSOR_ASKED)):
            os.write(self._terminal, _CURSOR)
        self.ended |= b"The end." in data
        self._shown = (self._shown + _SEQUENCE.sub(b"", data))[-(1 << 20) :]


@contextmanager
def answering(reply: Callable[[str], Iterator[str]]) -> Iterator[str]:
    """A server that answers the last words of a prompt with these pieces; gives the spec of its model."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                for piece in reply(str(body["messages"][-1]["content"])):
                    self._say({"delta": {"role": "assistant", "content": piece}, "finish_reason": None})
                self._say({"delta": {}, "finish_reason": "stop"})
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:  # the chat was closed
                return

        def _say(self, choice: Mapping[str, object]) -> None:
            event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
            line = json.dumps({**event, "choices": [{"index": 0, **choice}]})
            self.wfile.write(f"data: {line}\n\n".encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"openai:bench@http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(prog="just bench terminal", description="Measure how the chat feels.")
    parser.add_argument("--runs", type=int, default=10, help="starts of the chat")
    parser.add_argument("--lines", type=int, default=LINES, help="lines of the long answer")
    parser.add_argument("--turns", type=int, default=TURNS, help="turns of the long chat")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args(argv)
    say(f"{machine()}\nload average {os.getloadavg()[0]:.1f} at the start\n")
    figures: dict[str, Figure] = {}
    for name, figure in _figures(given.runs, lines=given.lines, turns=given.turns):
        figures[name] = figure
        say(f"{name:<58}{figure}")
    if given.out:
        record = {"machine": machine(), "figures": {name: asdict(figure) for name, figure in figures.items()}}
        given.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return 0


def _figures(runs: int, *, lines: int, turns: int) -> Iterator[tuple[str, Figure]]:
    with tempfile.TemporaryDirectory(prefix="punie-") as directory:
        root = Path(directory).resolve()
        (root / "project").mkdir()

        def reply(asked: str) -> Iterator[str]:
            if "long" in asked:
                for number in range(lines):
                    yield f"Line {number} of an answer that goes on and on.\n" + "\n" * (number % 20 == 0)
            yield f"Said {asked.split()[-1]} at once. "
            yield "The end."

        with answering(reply) as spec:
            yield "s to the prompt", Figure.of(_starts(spec, root=root, runs=runs))
            chat = Chat(spec, root=root)
            chat.until(_PROMPT)
            first = Figure.of(_first_words(chat, runs=runs))
            yield "s from Return to the first words", first
            chat.ended = False
            chat.type("a long one\r")
            chat.until("Line 100 ")
            echoes = sorted(_echoes(chat))
            yield f"s from key to echo, {lines:,} lines streaming", Figure.of(echoes)
            yield "  of which the 95th percentile", Figure.of([echoes[int(len(echoes) * 0.95)]])
            chat.close()
            chat = Chat(spec, root=root)
            chat.until(_PROMPT)
            before = chat.memory_mb()
            for number in range(turns):
                chat.type(f"say {number}\r")
                chat.until(f"Said {number} at once. The end.")
            yield f"MB of memory after {turns} turns", Figure.of([chat.memory_mb()])
            yield "  of which before the first", Figure.of([before])
            chat.close()


def _starts(spec: str, *, root: Path, runs: int) -> Iterator[float]:
    for _ in range(runs):
        chat = Chat(spec, root=root)
        yield chat.until(_PROMPT)
        chat.close()


def _first_words(chat: Chat, *, runs: int) -> Iterator[float]:
    """Of turns after the first, which imports what every turn needs."""
    for number in range(runs + 1):
        started = time.perf_counter()
        chat.type(f"say {number}\r")
        chat.until(f"Said {number} at")
        if number:
            yield time.perf_counter() - started
        chat.until("The end.")
        time.sleep(0.5)  # until the prompt is there again


def _echoes(chat: Chat) -> Iterator[float]:
    """One key after the other, none of which is in the answer, until the answer has ended."""
    number = 0
    while not chat.ended:
        yield chat.echoed("ÄÖÜßéèêàáâ"[number % 10])
        number += 1
        time.sleep(0.05)


if __name__ == "__main__":
    raise SystemExit(main())
