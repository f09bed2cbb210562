"""What it costs to store a conversation as it goes and to keep what a turn changes: measures of `just bench safety`."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart

from punie.agent import Session, SessionStore
from punie.agent._snapshots import ShadowGit

WRITE_MS = 5.0
"""What storing one event may take, in the median."""

Measure = Callable[[int], Iterator[float]]
"""Gives the milliseconds of each of so many rounds."""
_FILES = 1_000
_SAID = "def main() -> int:\n    return 0\n" * 60


def _said(turns: int) -> list[ModelMessage]:
    """A conversation of about 4 kB a turn."""
    pair: tuple[ModelMessage, ModelMessage] = (ModelRequest.user_text_prompt(_SAID), ModelResponse([TextPart(_SAID)]))
    return [message for _ in range(turns) for message in pair]


@contextmanager
def _session(turns: int) -> Iterator[tuple[Session, list[ModelMessage], Path]]:
    with tempfile.TemporaryDirectory(prefix="punie-", dir=Path.home()) as directory:  # /tmp may be no disk at all
        root = Path(directory).resolve()
        with SessionStore(root / "state" / "sessions") as store:
            session = store.create(root)
            session.begin(model="bench", title="bench")
            messages = _said(turns)
            session.sync(messages)
            yield session, messages, root


def _intent(count: int) -> Iterator[float]:
    """A call with the message it stands in, on the disk before it runs, late in a conversation of 100 turns."""
    with _session(100) as (session, messages, _):
        for number in range(count):
            messages.append(ModelResponse([ToolCallPart("read_file", {"path": "a.py"}, f"call {number}")]))
            started = time.perf_counter()
            session.intend(messages, call=f"call {number}", tool="read_file", arguments={"path": "a.py"})
            yield (time.perf_counter() - started) * 1000


def _result(count: int) -> Iterator[float]:
    """What a call gave, on the disk."""
    with _session(1) as (session, messages, _):
        for number in range(count):
            intent = session.intend(messages, call=f"call {number}", tool="read_file", arguments={"path": "a.py"})
            started = time.perf_counter()
            session.finish(intent, outcome="ok", output=_SAID)
            yield (time.perf_counter() - started) * 1000


def _whole(count: int) -> Iterator[float]:
    """A conversation of 100 turns, looked through for what changed, as at the beginning of each request."""
    with _session(100) as (session, messages, _):
        for _ in range(count):
            started = time.perf_counter()
            session.sync(messages)
            yield (time.perf_counter() - started) * 1000


def _kept(count: int) -> Iterator[float]:
    """A file of 20 kB, kept before it is replaced."""
    with _session(1) as (session, _, _):
        for number in range(count):
            before = f"{number}\n".encode() + b"x" * 20_000
            started = time.perf_counter()
            session.changing("a.txt", before=before, after=b"", mode=0o100644)
            yield (time.perf_counter() - started) * 1000


def _snapshot(count: int) -> Iterator[float]:
    """A directory of a thousand files, looked through before and after a command that changed one."""
    with tempfile.TemporaryDirectory(prefix="punie-", dir=Path.home()) as directory:
        root = Path(directory).resolve() / "project"
        for number in range(_FILES):
            file = root / f"package{number % 20}" / f"module{number}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"# {number}\n{_SAID}", "utf-8")
        shadow = ShadowGit(root.parent / "state" / "shadow" / "bench", root, os.environ)
        shadow.take()
        for number in range(count):
            started = time.perf_counter()
            shadow.take()
            spent = time.perf_counter() - started
            (root / "package1" / "module1.py").write_text(f"# changed {number}\n", "utf-8")
            started = time.perf_counter()
            shadow.take()
            yield (spent + time.perf_counter() - started) * 1000


MEASURES: Mapping[str, Measure] = {
    "session: a call before it runs": _intent,
    "session: its result": _result,
    "session: 100 turns looked through": _whole,
    "undo: a file of 20 kB is kept": _kept,
    "undo: around a command, 1000 files": _snapshot,
}
