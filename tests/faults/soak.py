"""Thousands of turns in one process: memory and open files stay, the database grows as much as was said.

    python -m tests.faults.soak [TURNS [TURNS_OF_A_SESSION]]

As a chat does, one agent and one workspace serve session after session. Each turn reads a file and edits it, every
tenth runs a command, every seventh is taken back. Slopes are least squares over all samples but the first quarter,
taken at the ends of sessions.
"""

import asyncio
import gc
import json
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from statistics import linear_regression

from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from tests.faults.ground import Ground
from tests.stubs import ToolCall

from punie.agent import SessionStore, TurnEnded, create_agent, run_turn
from punie.agent.approval import approve_all
from punie.config import AgentConfig
from punie.tools import Workspace

_QUARTER = 4


class Script:
    """The replies of one turn after the other."""

    def __init__(self) -> None:
        self.turn = 0
        self.rest: Iterator[ToolCall | str] = iter(())
        self.model = FunctionModel(stream_function=self._stream)

    def begin(self, now: str) -> None:
        """The next turn, in which the file holds this."""
        self.turn += 1
        new = f"turn {self.turn} " + "word " * (self.turn % 50)
        calls: list[ToolCall | str] = [("read_file", {"path": "a.txt"})]
        calls += [("edit_file", {"path": "a.txt", "old": now.rstrip("\n"), "new": new})]
        calls += [("run_command", {"command": f"seq 50; echo {self.turn} >> log.txt"})] if self.turn % 10 == 0 else []
        self.rest = iter([*calls, f"That was turn {self.turn}."])

    async def _stream(self, _: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        reply = next(self.rest)
        if isinstance(reply, str):
            yield reply
        else:
            yield {0: DeltaToolCall(reply[0], json.dumps(reply[1]))}


def now() -> dict[str, int]:
    """Memory in kB, open files and threads of this process."""
    gc.collect()
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - nothing else is opened meanwhile
    return {"kb": int(found[1]) if found else 0, "files": files, "threads": threading.active_count()}


async def soak(ground: Ground, *, turns: int, each: int) -> dict[str, object]:
    """The turns, and what they cost."""
    config, script, samples = AgentConfig(), Script(), list[dict[str, int]]()
    agent = create_agent(config, model=script.model, approve=approve_all)
    workspace = Workspace(ground.project, state_dir=ground.state)
    target = ground.project / "a.txt"
    faults: list[str] = []
    started = time.monotonic()
    database = ground.state / "sessions" / "sessions.db"
    with closing(SessionStore(ground.state / "sessions", environment=ground.env)) as store:
        while script.turn < turns:
            with closing(store.create(ground.project)) as session:
                for _ in range(each):
                    script.begin(target.read_text())
                    stream = run_turn(
                        agent, "Go on.", workspace=workspace, config=config, history=session.messages, session=session
                    )
                    ends = [event async for event in stream if isinstance(event, TurnEnded)]
                    faults += [f"turn {script.turn}: {end.error}" for end in ends if end.error]
                    if script.turn % 7 == 0 and session.undo() is None:
                        faults.append(f"turn {script.turn} could not be taken back")
            samples.append({"turns": script.turn, **now()})
        size = database.stat().st_size
        blobs = sum(path.stat().st_size for path in (ground.state / "sessions" / "blobs").glob("??/*"))
        store.prune(keep_days=0, keep=1)
        store.compact()
        left = database.stat().st_size
    seconds = time.monotonic() - started
    late = samples[len(samples) // _QUARTER :]
    slopes = {
        f"{name} per 1000 turns": round(
            1000 * linear_regression([s["turns"] for s in late], [s[name] for s in late]).slope, 2
        )
        for name in ("kb", "files", "threads")
    }
    return {
        "turns": script.turn,
        "sessions": len(samples),
        "seconds": round(seconds, 1),
        "first": samples[0],
        "middle": samples[len(samples) // 2],
        "last": samples[-1],
        **slopes,
        "database in bytes": size,
        "bytes a turn": size // script.turn,
        "contents for undo in bytes": blobs,
        "database with one session left": left,
        "faults": [*faults, *ground.faults()],
    }


def main(turns: int, each: int) -> dict[str, object]:
    """One soak on a ground of its own."""
    with Ground() as ground:
        return asyncio.run(soak(ground, turns=turns, each=each))


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    found = main(numbers[0] if numbers else 2_000, numbers[1] if numbers[1:] else 50)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
