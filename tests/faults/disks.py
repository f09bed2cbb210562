"""State directories that are full, fill up in the middle of a turn, or cannot be written.

    python -m tests.faults.disks [EVERY]

fills a disk before every EVERYth transaction of a turn, and more. It mounts small disks in a mount namespace of its
own, so it needs root, or a system that lets users have namespaces.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.ground import LEAK, Ground, Running
from tests.stubs import Reply, scripted

WRITE = ("write_file", {"path": "c.txt", "content": "sea\n"})
INSIDE = "PUNIE_FAULTS_INSIDE"


class Disk:
    """A small disk for what punie keeps."""

    def __init__(self, ground: Ground, *, size: int) -> None:
        self.ground, self.place = ground, ground.state
        self.place.mkdir()
        _command("mount", "-t", "tmpfs", "-o", f"size={size}k,mode=700", "tmpfs", str(self.place))

    def remount(self, option: str) -> None:
        _command("mount", "-o", f"remount,{option}", str(self.place))

    def fill(self) -> None:
        """Leave no byte."""
        with (self.place / "filler").open("ab", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def free(self) -> None:
        (self.place / "filler").unlink(missing_ok=True)

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        _command("umount", "--lazy", str(self.place))
        self.place.rmdir()


def _command(*words: str) -> None:
    subprocess.run(words, check=True)


def asked(
    ground: Ground, *flags: str, replies: tuple[Reply, ...], hook: Callable[[int], None] | None = None
) -> Running:
    """One `punie -p` to its end."""
    running = ground.start("-p", "go on", "--yolo", *flags, model=scripted(*replies), hook=hook)
    running.code = running.end()
    return running


def refused(running: Running) -> list[str]:
    """What is wrong with how a run said that it cannot store anything."""
    err = running.err.read_text()
    said = [line for line in err.splitlines() if not line.startswith("\u2022")]
    found = [] if running.code == 1 else [f"exit code {running.code}: {err}"]
    found += ["a traceback"] if "Traceback" in err else []
    found += [] if "cannot be stored in" in err and "--no-session" in err and len(said) <= 3 else [f"said {err!r}"]
    return found


def answered(running: Running, answer: str = "Well.") -> list[str]:
    """What is wrong with how a run answered."""
    out, err = running.out.read_text(), running.err.read_text()
    return [] if (running.code, out) == (0, f"{answer}\n") else [f"exit code {running.code}: {out!r} {err!r}"]


def without_session(ground: Ground) -> list[str]:
    """What is wrong with a turn with tools that stores nothing."""
    command = ("run_command", {"command": f"{LEAK}; seq 1 20000"})
    found = answered(asked(ground, "--no-session", replies=(command, WRITE, "Well.")))
    (ground.project / "c.txt").unlink()
    return [f"without a session: {each}" for each in found]


def from_the_start(ground: Ground) -> list[str]:
    """64 kB: no turn is begun; without a session everything works."""
    with Disk(ground, size=64):
        return [*refused(asked(ground, replies=("Never.",))), *without_session(ground), *ground.faults()]


def read_only(ground: Ground) -> list[str]:
    """A session that was stored before can be listed no more, but nothing breaks; then it goes on."""
    with Disk(ground, size=4_000) as disk:
        found = answered(asked(ground, replies=("Well.",)))
        disk.remount("ro")
        found += refused(asked(ground, replies=("Never.",)))
        found += refused(asked(ground, "--continue", replies=("Never.",)))
        found += without_session(ground)
        disk.remount("rw")
        found += answered(asked(ground, "--continue", replies=("Well.",)))
        messages = len(ground.conversation())
        found += [] if messages == 4 else [f"{messages} messages"]
        return [*found, *ground.faults()]


def slowly(ground: Ground) -> list[str]:
    """Turns until nothing more goes in; what was acknowledged is there, and it goes on when there is room."""
    with Disk(ground, size=200) as disk:
        found: list[str] = []
        answers = 0
        long = " ".join(map(str, range(2_000)))
        while (running := asked(ground, *(("--continue",) if answers else ()), replies=(long,))).code == 0:
            answers += 1
        found += refused(running)
        found += [] if answers else ["there was no room for one turn"]
        disk.remount("size=4000k")
        found += answered(asked(ground, "--continue", replies=("Well.",)))
        texts = sum(part.content == long for message in ground.conversation() for part in message.parts)  # type: ignore[union-attr]
        found += [] if texts in (answers, answers + 1) else [f"{texts} answers stored of {answers}"]
        return [*found, *ground.faults()]


def in_the_middle(ground: Ground, *, every: int) -> Iterator[list[str]]:
    """The disk is full from one commit of a turn on, each in turn."""
    number = 1
    while True:
        with Disk(ground, size=4_000) as disk:
            found = answered(asked(ground, replies=("Well.",)))
            running = asked(ground, "--continue", replies=(WRITE, "Well."), hook=_filled(disk, number))
            if running.code == 0:
                return
            found += refused(running)
            made = (ground.project / "c.txt").exists()
            disk.free()
            with ground.store() as store:
                session = store.resume(ground.project)
                undone = session.undo()
                session.close()
            # What a tool did is in the journal, whatever else could not be stored.
            found += [] if not made or (undone and undone.paths == ("c.txt",)) else [f"not taken back: {undone}"]
            found += answered(asked(ground, "--continue", replies=("Well.",)))
            ground.conversation()
            yield [f"commit {number}: {each}" for each in [*found, *ground.faults()]]
        number += every


def _filled(disk: Disk, number: int) -> Callable[[int], None]:
    """A hook that fills the disk before the N-th transaction."""
    count = 0

    class Filling(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:  # pyright: ignore[reportIncompatibleMethodOverride]
            nonlocal count
            if sql.startswith("BEGIN"):
                count += 1
                if count == number:
                    disk.fill()
            return super().execute(sql, *values)  # pyright: ignore[reportArgumentType]

    def hook(_: int) -> None:
        connect = sqlite3.connect
        sqlite3.connect = lambda *given, **named: connect(*given, factory=Filling, **named)  # type: ignore[assignment]

    return hook


def undoing(ground: Ground) -> list[str]:
    """An undo that has no room changes nothing, or can be finished."""
    with Disk(ground, size=4_000) as disk:
        (ground.project / "big.txt").write_text("old\n")
        command = {"command": "head -c 20000 /dev/urandom | base64 > big.txt"}
        found = answered(asked(ground, replies=(WRITE, ("run_command", command), "Well.")))
        with ground.store() as store:
            session = store.resume(ground.project)
            disk.fill()
            try:
                found.append(f"it was undone: {session.undo()}")
            except Exception as error:  # noqa: BLE001 - what it says is looked at
                found += [] if "cannot be stored in" in str(error) else [f"{error!r}"]
            disk.free()
            session.undo()
            session.close()
        found += [] if (ground.project / "big.txt").read_text() == "old\n" else ["big.txt is not as it was"]
        found += ["c.txt is there"] if (ground.project / "c.txt").exists() else []
        (ground.project / "big.txt").unlink()
        return [*found, *ground.faults()]


def main(every: int) -> dict[str, object]:
    """Every kind of disk."""
    faults: list[str] = []
    with Ground() as ground:
        for case in (from_the_start, read_only, slowly, undoing):
            faults += [f"{case.__name__}: {each}" for each in case(ground)]
        middle = [*in_the_middle(ground, every=every)]
        faults += [f"in the middle, {each}" for found in middle for each in found]
    return {"commits": len(middle), "faults": faults}


if __name__ == "__main__":
    if INSIDE in os.environ:
        sys.stdout.write(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1), indent=1) + "\n")
    else:
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        unshare = shutil.which("unshare") or "unshare"
        words = [unshare, "--mount", "--propagation", "private", *user, sys.executable, "-m", "tests.faults.disks"]
        words += sys.argv[1:]
        sys.exit(
            subprocess.run(words, env=os.environ | {INSIDE: "1"}, cwd=Path(__file__).parents[2], check=False).returncode
        )
