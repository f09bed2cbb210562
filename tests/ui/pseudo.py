"""The installed `punie` in a pseudo-terminal; the screen is read as a terminal shows it."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

PUNIE = Path(sys.executable).with_name("punie")
CTRL_C, CTRL_D, CTRL_J, ESCAPE = "\x03", "\x04", "\n", "\x1b"
ROWS, COLUMNS = 40, 100
TIMEOUT = 240.0
"""Seconds that a state is waited for; a busy machine is no fault of the chat."""


class Terminal:
    """A terminal with `punie` in it."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: dict[str, str],
        rows: int = ROWS,
        columns: int = COLUMNS,
        program: Path = PUNIE,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=2000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.started = time.monotonic()
        self.child = pexpect.spawn(str(program), list(arguments), cwd=str(cwd), env=env, dimensions=(rows, columns))
        self.child.delaybeforesend = None

    def type(self, text: str) -> None:
        self.child.send(text)

    def enter(self, text: str = "") -> None:
        self.child.send(text + "\r")

    @property
    def text(self) -> str:
        """Everything that is on the screen or has scrolled off it."""
        above = ["".join(line[x].data for x in range(self.screen.columns)).rstrip() for line in self.screen.history.top]
        return "\n".join([*above, *(line.rstrip() for line in self.screen.display)])

    def wait(self, *wanted: str) -> str:
        return self.until(lambda text: all(word in text for word in wanted), f"never showed {wanted}")

    def until(self, good: Callable[[str], bool], complaint: str) -> str:
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            if good(self.text):
                return self.text
            self._read()
        raise AssertionError(f"{complaint}:\n{self.text}")

    def skip_to(self, wanted: str) -> None:
        """Let a flood of text pass by; only its end gets to the screen, because drawing it takes far longer here."""
        end, seen = time.monotonic() + TIMEOUT, b""
        while wanted.encode() not in seen[-100_000:]:
            assert time.monotonic() < end, f"never showed {wanted!r}"
            try:
                seen += self.child.read_nonblocking(65536, timeout=0.05)
            except pexpect.TIMEOUT:
                continue
        self._stream.feed(b"\x1b[2J\x1b[H" + seen[seen.rindex(wanted.encode()) :])

    def settle(self, seconds: float = 0.5) -> str:
        """What is shown after a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read()
        return self.text

    def resize(self, rows: int, columns: int) -> None:
        self.child.setwinsize(rows, columns)
        self.screen.resize(rows, columns)

    def exit_code(self) -> int | None:
        end = time.monotonic() + TIMEOUT
        while self.child.isalive() and time.monotonic() < end:
            self._read()
        self.child.close()
        return self.child.exitstatus

    def kill(self) -> None:
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
            self.child.wait()
        self.child.close()

    def _read(self) -> None:
        try:
            data = self.child.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return
        except pexpect.EOF:
            time.sleep(0.02)
            return
        self.raw += data
        self._stream.feed(data)
        if b"\x1b[6n" in data:  # prompt_toolkit asks where the cursor is
            self.child.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")


Start = Callable[..., Terminal]


def ready(terminal: Terminal) -> Terminal:
    terminal.until(lambda text: any(line.startswith(">") for line in text.splitlines()), "no prompt")
    return terminal


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
