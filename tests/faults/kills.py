"""Kills punie with SIGKILL at every one of its operations on files, and looks at what is left.

    python -m tests.faults.kills [UNDO REDO TURN]

kills a process at each operation of /undo, of /redo, and of a turn with tools; the numbers are distances between those
that are tried, 1 tries every one. An
operation is what Python reports to its audit hooks: opening, renaming and removing files, making directories, starting
programs; and each commit of the session. Afterwards every file is as it was before or as it should be after, the job
can be done again to its end, and `punie --continue` answers.
"""

import json
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from tests.backends.tiny import wait_until
from tests.faults.ground import LEAK, Ground, SlowCommits
from tests.faults.interrupts import goes_on
from tests.stubs import Reply, scripted

from punie.agent.session import Session

OPERATIONS = ("open", "os.", "shutil.", "subprocess.", "tempfile.", "sqlite3.")
LEFT: dict[str, int] = {}
"""Temporary files found right after the kills; none may be left by the end of the next session."""
Tree = Mapping[str, tuple[int, bytes]]
FIRST: tuple[Reply, ...] = (
    ("read_file", {"path": "a.txt"}),
    ("edit_file", {"path": "a.txt", "old": "one", "new": "two"}),
    ("write_file", {"path": "new/deep/c.txt", "content": "sea\n"}),
    ("run_command", {"command": f"{LEAK}; rm -r tree; echo flat > tree; rm flat; mkdir flat; echo in > flat/in.txt"}),
    ("run_command", {"command": "rm b.txt; ln -s a.txt b.txt; chmod 750 run.sh; mkdir empty"}),
    "Done.",
)


def tree(root: Path) -> Tree:
    """Every path with its mode and what it holds; directories hold nothing."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
        )
        for path in root.rglob("*")
    }


def prepare(ground: Ground) -> None:
    """A project with all that a turn may change."""
    shutil.rmtree(ground.project)
    (ground.project / "tree" / "deep").mkdir(parents=True)
    (ground.project / "a.txt").write_text("one\n")
    (ground.project / "b.txt").write_text("bee\n")
    (ground.project / "flat").write_text("a file\n")
    (ground.project / "tree" / "leaf.txt").write_text("leaf\n")
    (ground.project / "tree" / "deep" / "leaf.txt").write_text("deep\n")
    (ground.project / "run.sh").write_text("#!/bin/sh\n")


def killing(at: int) -> Callable[[int], None]:
    """A hook that ends the process at its N-th operation."""

    def hook(_: int) -> None:
        count = 0

        def operation(event: str, _: tuple[object, ...]) -> None:
            nonlocal count
            if event.startswith(OPERATIONS):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        connect = sqlite3.connect
        Counted.counts = lambda _: operation("os.commit", ())  # type: ignore[method-assign]
        sqlite3.connect = lambda *given, **named: connect(*given, factory=Counted, **named)  # type: ignore[assignment]
        sys.addaudithook(operation)

    return hook


def killed(work: Callable[[], None], *, at: int) -> bool:
    """Whether a forked process was killed at its N-th operation; False if it came to its end before that."""
    pid = os.fork()
    if pid == 0:
        try:
            killing(at)(-1)
            work()
        except BaseException:  # noqa: BLE001 - it is told, and fails the test
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the process ended with {status}"
    return status != 0


class Counted(SlowCommits):
    """A connection whose commits count as operations, before and after."""

    def counts(self) -> None:
        """Told of each commit, before and after."""

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if sql != "COMMIT":
            return super().execute(sql, *values)
        self.counts()
        done = super().execute(sql, *values)
        self.counts()
        return done


def torn(ground: Ground, before: Tree, after: Tree) -> list[str]:
    """Paths that are neither as before nor as after nor empty. Temporary files do not count: the next session of this
    directory takes them away, and those that are there then are faults of the ground.
    """
    found = {path: was for path, was in tree(ground.project).items() if not Path(path).name.startswith(".punie-")}
    return [path for path in sorted(found) if found[path] not in (before.get(path), after.get(path))]


def temporary(ground: Ground) -> int:
    """How many files are there that stood, or were to stand, in another one's place."""
    return len([*ground.project.rglob(".punie-*")])


def differing(found: Tree, wanted: Tree, *, only: Collection[str] = ()) -> list[str]:
    """Paths at which two trees differ."""
    paths = only or found.keys() | wanted.keys()
    return [path for path in sorted(paths) if found.get(path) != wanted.get(path)]


class Scene:
    """A ground as it was before the job, to be put back before each kill."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.saved = ground.base / "saved"

    def save(self) -> None:
        for name in ("project", "state"):
            shutil.copytree(self.place(name), self.saved / name, symlinks=True)

    def restore(self) -> None:
        for name in ("project", "state"):
            shutil.rmtree(self.place(name), ignore_errors=True)
            shutil.copytree(self.saved / name, self.place(name), symlinks=True)

    def place(self, name: str) -> Path:
        return self.ground.project if name == "project" else self.ground.state

    def session(self, do: Callable[[Session], object]) -> None:
        """Do something with the last session, as a process of its own would."""
        with self.ground.store() as store, closing(store.resume(self.ground.project)) as session:
            do(session)


def _undone(session: Session) -> None:
    result = session.undo()
    assert result is None or not result.conflicts, result


def _redone(session: Session) -> None:
    result = session.redo()
    assert result is None or not result.conflicts, result


def turns_back(ground: Ground, direction: str, *, every: int) -> Iterator[list[str]]:
    """Kill in the middle of /undo, or of /redo; then finish it, and turn it round."""
    scene = Scene(ground)
    prepare(ground)
    before = tree(ground.project)
    ground.state.mkdir(exist_ok=True)
    _first_turn(ground)
    after = tree(ground.project)
    assert after != before
    there, back = (_undone, _redone) if direction == "undo" else (_redone, _undone)
    if direction == "redo":
        scene.session(_undone)
        before, after = after, before
    assert tree(ground.project) == after
    scene.save()
    at = 1
    while True:
        scene.restore()
        if not killed(lambda: scene.session(there), at=at):
            return
        found = [f"neither old nor new: {path}" for path in torn(ground, before, after)]
        LEFT[direction] = LEFT.get(direction, 0) + temporary(ground)
        # One time it is finished, the other time it is taken back from where it stopped.
        steps = [(there, before), (back, after)] if at // every % 2 else [(back, after), (there, before)]
        for do, wanted in steps:
            try:
                scene.session(do)
            except AssertionError as error:
                found.append(f"{do.__name__}: {error}")
            found += [f"wrong after {do.__name__}: {path}" for path in differing(tree(ground.project), wanted)]
        yield [f"{direction}, operation {at}: {each}" for each in [*found, *ground.faults()]]
        at += every


def turn(ground: Ground, *, every: int) -> Iterator[list[str]]:
    """Kill in the middle of a turn with tools; then go on, and take back what its file tools did."""
    scene = Scene(ground)
    prepare(ground)
    before = tree(ground.project)
    _first_turn(ground)
    after = tree(ground.project)
    prepare(ground)
    scene.save()
    at = 1
    while True:
        scene.restore()
        running = ground.start("-p", "change it", "--yolo", model=scripted(*FIRST), hook=killing(at))
        code = running.end()
        if code != -signal.SIGKILL:
            assert code == 0, running.err.read_text()
            return
        ended = wait_until(lambda: not ground.left(), seconds=20)
        found = [] if ended else ["it left processes running"]
        LEFT["turn"] = LEFT.get("turn", 0) + temporary(ground)
        with ground.store() as store:
            begun = len(store.list()) > 1
        found += goes_on(ground, begun=begun)  # its command takes away what hid names from the killed one
        found += [f"neither old nor new: {path}" for path in torn(ground, before, after)]
        if begun:
            scene.session(_all_undone)
            mine = {path: was for path, was in before.items() if path in ("a.txt", "new", "new/deep/c.txt")}
            found += [f"not taken back: {path}" for path in differing(tree(ground.project), mine, only=mine)]
        yield [f"turn, operation {at}: {each}" for each in [*found, *ground.faults()]]
        at += every


def _all_undone(session: Session) -> None:
    while session.undo() is not None:
        pass


def _first_turn(ground: Ground) -> None:
    running = ground.start("-p", "change it", "--yolo", model=scripted(*FIRST))
    assert running.end() == 0, running.err.read_text()


def main(every: Mapping[str, int]) -> dict[str, object]:
    """Kill in the middle of each job."""
    faults: list[str] = []
    kills: dict[str, int] = {}
    for job, distance in every.items():
        with Ground() as ground:
            found = turn(ground, every=distance) if job == "turn" else turns_back(ground, job, every=distance)
            results = [*found]
        kills[job] = len(results)
        faults += [each for result in results for each in result]
    return {"kills": kills, "temporary files left by them": LEFT, "faults": faults}


if __name__ == "__main__":
    distances = [int(word) for word in sys.argv[1:]] or [1, 1, 1]
    found = main(dict(zip(("undo", "redo", "turn"), distances, strict=True)))
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
