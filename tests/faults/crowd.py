"""Many processes on one state database: nothing that was acknowledged is lost, and nobody is told of locks.

    python -m tests.faults.crowd [SECONDS [PROCESSES]]

Each process begins sessions, stores turns and calls, lists, exports, deletes, opens the database again, and takes
changes back, as fast as it can, and writes down what was acknowledged. Every fifth one is killed and begun anew.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart
from tests.faults.ground import Ground

from punie.agent import SessionStore
from punie.errors import PunieError

_RESTARTS_S = 0.7


def work(ground: Ground, until: float, log: Path) -> None:
    """Use the database in every way until then. One line for each thing that was acknowledged."""
    root = ground.base / f"root-{os.getpid()}"
    root.mkdir()
    with log.open("a") as file:

        def note(*words: object) -> None:
            file.write(" ".join(map(str, words)) + "\n")
            file.flush()

        while time.time() < until:
            try:
                with SessionStore(ground.state / "sessions", environment=ground.env) as store:
                    _use(store, root, until, note)
            except PunieError as error:
                note("error", str(error).replace("\n", " "))
            except Exception:  # noqa: BLE001 - counted, and told
                note("error", traceback.format_exc().replace("\n", " | "))


def _use(store: SessionStore, root: Path, until: float, note) -> None:  # type: ignore[no-untyped-def]
    session = store.create(root)
    messages: list[ModelMessage] = []
    for number in range(random.randint(1, 12)):
        if time.time() > until:
            break
        started = time.monotonic()
        session.begin(model="m", title=f"by {os.getpid()}")
        messages += [ModelRequest.user_text_prompt(f"{number} " + "x" * random.randint(10, 4_000))]
        session.sync(messages)
        call = session.intend(messages, call=f"c{number}", tool="write_file", arguments={"path": "a.txt"})
        target = root / "a.txt"
        before = target.read_bytes() if target.exists() else None
        session.changing("a.txt", before=before, after=b"%d" % number, mode=0o100644 if before is not None else None)
        target.write_bytes(b"%d" % number)
        session.finish(call, outcome="ok", output="wrote")
        messages += [ModelResponse([TextPart(f"answer {number}")])]
        session.sync(messages)
        note("stored", session.id, len(messages), round(time.monotonic() - started, 3))
    store.list(root)
    if messages:
        list(store.export(session.id))
    if random.random() < 0.3 and session.undo() is not None:
        note("undone", session.id)
    session.close()
    if messages and random.random() < 0.2:
        store.remove(session.id)
        note("removed", session.id)
    elif messages and random.random() < 0.3:
        again = store.resume(root, session.id)
        assert len(again.messages) == len(messages)
        again.close()


def _begin(ground: Ground, until: float, log: Path) -> int:
    pid = os.fork()
    if pid == 0:
        random.seed()
        work(ground, until, log)
        os._exit(0)
    return pid


def main(seconds: float, processes: int) -> dict[str, object]:
    """Let them work, then compare what they were promised with what is there."""
    with Ground() as ground:
        until = time.time() + seconds
        logs = [ground.logs / str(number) for number in range(processes)]
        pids = [_begin(ground, until, log) for log in logs]
        kills = 0
        while time.time() < until - _RESTARTS_S:
            time.sleep(_RESTARTS_S)
            place = kills % processes
            os.kill(pids[place], signal.SIGKILL)
            os.waitpid(pids[place], 0)
            pids[place] = _begin(ground, until, logs[place])
            kills += 1
        for pid in pids:
            os.waitpid(pid, 0)
        return {"processes": processes, "seconds": seconds, "kills": kills, **_compared(ground, logs)}


def _compared(ground: Ground, logs: list[Path]) -> dict[str, object]:
    stored: dict[str, int] = {}
    removed: set[str] = set()
    errors: Counter[str] = Counter()
    slowest, turns, undone = 0.0, 0, 0
    for line in (line for log in logs for line in log.read_text().splitlines()):
        kind, _, rest = line.partition(" ")
        words = rest.split(" ")
        if kind == "stored":
            turns += 1
            stored[words[0]] = max(stored.get(words[0], 0), int(words[1]))
            slowest = max(slowest, float(words[2]))
        elif kind == "removed":
            removed.add(words[0])
        elif kind == "error":
            errors[rest] += 1
        undone += kind == "undone"
    with ground.store() as store:
        there = {info.id: info.messages for info in store.list()}
        lost = [id_ for id_, count in stored.items() if id_ not in removed and there.get(id_, 0) < count]
        # One that was being deleted when its process was killed may be gone as well.
        gone = sum(id_ not in there for id_ in lost)
        size = (ground.state / "sessions" / "sessions.db").stat().st_size
    return {
        "turns": turns,
        "sessions": len(there),
        "removed": len(removed),
        "undone": undone,
        "lost": len(lost) - gone,
        "gone": gone,
        "errors": dict(errors),
        "slowest turn in s": slowest,
        "database in bytes": size,
        "faults": ground.faults(),
    }


if __name__ == "__main__":
    arguments = [float(word) for word in sys.argv[1:]]
    found = main(arguments[0] if arguments else 60, int(arguments[1]) if arguments[1:] else 8)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
