"""A user's machine in small, and the real `punie` in it: forked, so that hundreds of runs take seconds.

Used by programs without threads of their own. Each run is a process with real signals and a real end; only its imports
were made before, and its model says what a script says.
"""

import atexit
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pydantic_ai.models
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model
from tests.tools.jail import open_place

import punie.backends
from punie.agent import SessionStore, loop
from punie.cli import main
from punie.ui import _setup, plain

__all__ = ["CANARY", "LEAK", "Ground", "Running", "open_calls"]

CANARY = "canary-8c1e55"
LEAK = "env; cat ~/.ssh/* ~/.local/state/punie/* 2>/dev/null; echo x > ~/outside/file; true"
"""A command that looks for secrets and writes outside."""
KEY = "ANTHROPIC_API_KEY"
SECONDS = 60.0
_LOADED = (loop, _setup, plain)  # imported for the runs


@dataclass
class Running:
    """A punie that was started. `told` is the pipe its hooks say things on."""

    pid: int
    told: int
    out: Path
    err: Path
    code: int | None = None
    rest: str = ""
    """What it said last."""

    def heard(self) -> str:
        """The next byte a hook has said; empty when the process has ended without another word."""
        return os.read(self.told, 1).decode()

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self, seconds: float = SECONDS) -> int:
        """Its exit code, negative for a signal. AssertionError if it hangs."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.rest = os.read(self.told, 4096).decode()
                os.close(self.told)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it hangs: {self.err.read_text()}")


@dataclass
class Ground:
    """A project, a home with a key, a directory outside, and places for what punie keeps.

    Nothing of it lies in /tmp, which commands do not see.
    """

    base: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="punie-faults-", dir=open_place())))
    count: int = 0
    seen: dict[str, object] = field(default_factory=dict)
    more: dict[str, str] = field(default_factory=dict)
    """Variables besides the usual ones."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.base)

    def __post_init__(self) -> None:
        self.project, self.home = self.base / "project", self.base / "home"
        self.state = self.home / ".local" / "state" / "punie"
        self.logs = self.base / "logs"
        outside = self.home / "outside"
        for path in (self.project, self.home / ".ssh", outside, self.logs, self.state.parent):
            path.mkdir(parents=True)
        (self.home / ".ssh" / "id_ed25519").write_text(f"{CANARY}\n")
        (outside / "file").write_text("as it was\n")
        (outside / "more").mkdir()
        (self.project / "a.txt").write_text("one\n")
        (self.project / "b.txt").write_text("bee\n")
        self.seen = self.outside()

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of a run; it holds a key."""
        usual = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TERM": "xterm", "LANG": "C.UTF-8"}
        return {**usual, KEY: CANARY, **self.more}

    def start(self, *arguments: str, model: Model | None = None, hook: Callable[[int], None] | None = None) -> Running:
        """Fork a punie; `hook` gets the pipe to say things on before it begins."""
        self.count += 1
        reading, writing = os.pipe()
        out, err = (self.logs / f"{self.count}.{kind}" for kind in ("out", "err"))
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._child(arguments, model=model, hook=hook, told=writing, out=out, err=err)
        os.close(writing)
        return Running(pid, reading, out, err)

    def _child(
        self,
        arguments: Sequence[str],
        *,
        model: Model | None,
        hook: Callable[[int], None] | None,
        told: int,
        out: Path,
        err: Path,
    ) -> None:
        code = 70
        try:
            os.setsid()
            os.chdir(self.project)
            env = dict(self.env)
            os.environ.clear()
            os.environ.update(env)
            for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, 577), (2, err, 577)):
                os.dup2(os.open(path, flags, 0o600), number)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            pydantic_ai.models.ALLOW_MODEL_REQUESTS = True
            if model is not None:
                punie.backends.build = lambda *_args, **_named: model
            if hook is not None:
                hook(told)
            code = main([*arguments])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        except KeyboardInterrupt:
            traceback.print_exc()
            code = 71
        except BaseException:  # noqa: BLE001 - it is told, and fails the test
            traceback.print_exc()
        finally:
            with suppress(BaseException):
                threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
                atexit._run_exitfuncs()
                sys.stdout.flush()
            os._exit(code)

    # --- what must hold afterwards ---

    def outside(self) -> dict[str, object]:
        """What lies outside the project and is not punie's own, with all that could be changed about it."""
        found: dict[str, object] = {}
        own = self.state.parent
        for path in sorted(self.home.rglob("*")):
            if path != own and own not in path.parents and path not in own.parents:
                status = path.lstat()
                data = path.read_bytes() if path.is_file() else b""
                found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_nlink, data)
        return found

    def faults(self) -> list[str]:
        """What is wrong on this machine now; nothing may be."""
        found = [f"changed outside: {path}" for path, was in self.outside().items() if self.seen.get(path) != was]
        found += [f"gone outside: {path}" for path in self.seen if path not in self.outside()]
        found += [f"a secret in {path}" for path in self._with_canary()]
        found += [f"still running: {line}" for line in self.left()]
        found += [f"left over: {path}" for path in self.project.rglob(".punie-*")]
        return found

    def _with_canary(self) -> Iterator[Path]:
        for top in (self.project, self.state, self.logs):
            for path in top.rglob("*"):
                if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes():
                    yield path

    def left(self) -> list[str]:
        """Command lines of processes that belong to this ground: by their directory, environment or arguments."""
        found: list[str] = []
        mark = os.fsencode(self.base)
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line, env = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                zombie = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
                here = (entry / "cwd").readlink().is_relative_to(self.base)
                if not zombie and int(entry.name) != os.getpid() and (here or mark in line or b"HOME=" + mark in env):
                    found.append(entry.name + " " + line.replace(b"\0", b" ").decode())
        return found

    @contextmanager
    def store(self) -> Iterator[SessionStore]:
        """The stored sessions, whole: nothing had to be mended."""
        with closing(SessionStore(self.state / "sessions", environment=self.env)) as store:
            assert not store.notices, store.notices
            yield store

    def conversation(self) -> Sequence[ModelMessage]:
        """The messages of the last session, valid."""
        with self.store() as store:
            session = store.resume(self.project)
            messages = session.messages
            session.close()
        assert not open_calls(messages)
        return messages


def open_calls(messages: Sequence[ModelMessage]) -> set[str]:
    """Calls without a result; a valid conversation has none."""
    called: set[str] = set()
    for message in messages:
        for part in message.parts:
            if isinstance(message, ModelResponse) and isinstance(part, ToolCallPart):
                called.add(part.tool_call_id)
            elif isinstance(message, ModelRequest) and isinstance(part, ToolReturnPart):
                called.discard(part.tool_call_id)
    return called


class SlowCommits(sqlite3.Connection):
    """A connection that says `r` at its commits, and waits before the one whose number is chosen."""

    told = -1
    chosen = 0
    seconds = 0.0
    count = 0

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if sql == "COMMIT":
            SlowCommits.count += 1
            if SlowCommits.count == SlowCommits.chosen:
                os.write(self.told, b"r")
                time.sleep(self.seconds)
        return super().execute(sql, *values)  # pyright: ignore[reportArgumentType]


def slow_commit(number: int, seconds: float) -> Callable[[int], None]:
    """A hook that stays in the middle of the N-th transaction for a while."""

    def hook(told: int) -> None:
        SlowCommits.told, SlowCommits.chosen, SlowCommits.seconds, SlowCommits.count = told, number, seconds, 0
        connect = sqlite3.connect
        sqlite3.connect = lambda *given, **named: connect(*given, factory=SlowCommits, **named)  # type: ignore[assignment]

    return hook
