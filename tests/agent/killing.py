"""Kills processes that store sessions, at random moments, and looks at what they leave; run as a program.

A program of its own, because it forks: its children are killed with SIGKILL in the middle of what they do.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from tests.stubs import Reply, scripted

from punie.agent import SessionStore, create_agent, run_turn
from punie.agent.approval import approve_all
from punie.agent.session import Session
from punie.config import AgentConfig
from punie.tools import Workspace

BIG = 100_000


def child(work: Callable[[int], None]) -> tuple[int, int]:
    """A forked process that does this, with the end of a pipe that it writes to."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            work(writing)
        finally:
            os._exit(1)
    os.close(writing)
    return pid, reading


def killed(work: Callable[[int], None], *, steps: int) -> bytes:
    """Let a child take some steps, kill it at a random moment of the next one, and return what it said.

    It says 32 characters first, and one more for each step.
    """
    pid, reading = child(work)
    said = b""
    took = 0.0
    while len(said) < 32 + steps:
        started = time.monotonic()
        more = os.read(reading, 1)
        if not more:
            raise RuntimeError("the child died by itself")
        said += more
        took = time.monotonic() - started
    time.sleep(random.uniform(0, took))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(reading, 1 << 16):
        said += more
    os.close(reading)
    return said


async def turn(session: Session, root: Path, *replies: Reply) -> None:
    """One turn of a scripted model in which everything is allowed."""
    config = AgentConfig()
    agent = create_agent(config, model=scripted(*replies), approve=approve_all)
    stream = run_turn(
        agent, "Go on.", workspace=Workspace(root), config=config, history=session.messages, session=session
    )
    async for _ in stream:
        pass


def open_calls(messages: Sequence[ModelMessage]) -> set[str]:
    """Calls without a result; a valid conversation has none."""
    called: set[str] = set()
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                called.add(part.tool_call_id)
            elif isinstance(part, ToolReturnPart):
                called.discard(part.tool_call_id)
    return called


def appending(state: Path, root: Path, kills: int) -> dict[str, int]:
    """Kill processes that append large messages; every message they had stored must be there."""

    def work(said: int) -> None:
        store = SessionStore(state)
        session = store.create(root)
        session.begin(model="m", title="t")
        os.write(said, session.id.encode())
        messages: list[ModelMessage] = []
        while True:
            messages += [ModelRequest.user_text_prompt("x" * BIG), ModelResponse([TextPart("y")])]
            session.sync(messages)
            os.write(said, b".")

    lost = acknowledged = 0
    for _ in range(kills):
        said = killed(work, steps=random.randint(1, 6))
        id_, dots = said[:32].decode(), said.count(b".")
        acknowledged += dots
        with closing(SessionStore(state)) as store:
            assert not store.notices, store.notices
            lost += max(0, 2 * dots - len(store.messages(id_)))
    return {"kills": kills, "acknowledged": acknowledged, "lost": lost}


def writing(state: Path, root: Path, kills: int) -> dict[str, int]:
    """Kill processes in the middle of turns that replace a file; it is whole, and can be undone."""
    target = root / "big.txt"
    target.write_text("start\n")

    def work(said: int) -> None:
        store = SessionStore(state)
        session = store.create(root)
        os.write(said, session.id.encode())
        number = 0
        while True:
            number += 1
            read = ("read_file", {"path": "big.txt"})
            write = ("write_file", {"path": "big.txt", "content": f"{os.getpid()} {number}\n" * 9_000})
            asyncio.run(turn(session, root, read, write, "Done."))
            os.write(said, b".")

    torn = broken = undone = 0
    for _ in range(kills):
        before = target.read_bytes()
        id_ = killed(work, steps=random.randint(1, 2))[:32].decode()
        after = target.read_text().splitlines()
        torn += len(set(after)) != 1
        with closing(SessionStore(state)) as store:
            session = store.resume(root, id_)
            broken += bool(open_calls(session.messages))
            while (result := session.undo()) is not None:
                broken += bool(result.conflicts)
            undone += target.read_bytes() == before
            session.close()
    left = [path.name for path in root.iterdir() if path != target]
    return {"kills": kills, "torn": torn, "broken": broken, "undone": undone, "left": len(left)}


def sharing(state: Path, root: Path, count: int) -> dict[str, int]:
    """Several processes that store turns at once, and fight for one session."""
    with closing(SessionStore(state)) as store:
        session = store.create(root)
        session.begin(model="m", title="wanted by all")
        session.sync([ModelRequest.user_text_prompt("hello")])
        wanted = session.id
        session.close()

    def work(said: int) -> None:
        store = SessionStore(state)
        session = store.create(root)
        for number in range(20):
            session.begin(model="m", title="one of many")
            session.sync(
                [*session.messages, ModelRequest.user_text_prompt(str(number)), ModelResponse([TextPart("y")])]
            )
        os.write(said, b"d")
        try:
            store.resume(root, wanted)
        except Exception as error:  # noqa: BLE001 - told to the one who reads
            os.write(said, b"r" if "in use by process" in str(error) else b"?")
        else:
            os.write(said, b"t")
        time.sleep(60)

    children = [child(work) for _ in range(count)]
    said = b"".join(os.read(reading, 1) + os.read(reading, 1) for _, reading in children)
    for pid, _ in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with closing(SessionStore(state)) as store:
        lengths = [info.messages for info in store.list(root) if info.title == "one of many"]
        taken_over = store.resume(root, wanted).id == wanted
    return {
        "whole": lengths.count(40),
        "took": said.count(b"t"),
        "refused": said.count(b"r"),
        "taken_over": int(taken_over),
    }


if __name__ == "__main__":
    work = {"appending": appending, "writing": writing, "sharing": sharing}[sys.argv[1]]
    sys.stdout.write(json.dumps(work(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
