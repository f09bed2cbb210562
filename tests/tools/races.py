"""File tools at work on paths that another process trades for links to the outside, as fast as it can.

    python -m tests.tools.races --seconds 5

gives each tool, with each way of opening files and as root as well as an ordinary user, that long, and prints
what came of it, one JSON object a line. A tool that checks a path and then opens it is there too, to show that the
traps work: it must leak.
"""

# ruff: noqa: T201 - it answers on its standard output

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic_ai import ModelRetry
from tests.tools.jail import CANARY, NOBODY, _as_user, open_place
from tests.tools.project import Project

from punie.tools import _beneath
from punie.tools._states import Conflict, State, content_at, oid_of, put

TEXTS = ("one\n", "two\n")
PATHS = ("file.txt", "absolute.txt", "directory/file.txt", "up/outside/file.txt", "magic/file.txt", "fifo.txt")
_EXCHANGE = 2
_HERE = -100  # AT_FDCWD


class Trap:
    """A workspace full of paths, beside each what it is traded for, and the files outside that nobody may touch."""

    def __init__(self, base: Path) -> None:
        self.root, self.outside = base / "work", base / "outside"
        self.outside.mkdir()
        (self.outside / "file.txt").write_text(f"{CANARY}\none\n")
        for path in PATHS:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(TEXTS[0])
        links = {
            "file.txt": "../outside/file.txt",
            "absolute.txt": str(self.outside / "file.txt"),
            "directory": "../outside",
            "up": "..",
            "magic": f"/proc/self/root{self.outside}",
        }
        self.pairs = [(self.root / name, self.root / f"{name}.link") for name in (*links, "fifo.txt")]
        for name, target in links.items():
            (self.root / f"{name}.link").symlink_to(target)
        os.mkfifo(self.root / "fifo.txt.link")
        self.links = self._inodes()
        self.before = self.seen_outside()

    def seen_outside(self) -> Sequence[object]:
        """All that could be changed about what lies outside."""
        places = [self.outside, *self.outside.rglob("*")]
        seen = [place.lstat() for place in places]
        return [
            (str(place), s.st_ino, s.st_mode, s.st_uid, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink)
            for place, s in zip(places, seen, strict=True)
        ] + [(self.outside / "file.txt").read_bytes()]

    def lost(self) -> int:
        """How many of the links are nowhere any more."""
        return len(self.links - self._inodes())

    def _inodes(self) -> set[int]:
        return {place.lstat().st_ino for place in self.root.rglob("*") if place.is_symlink() or place.is_fifo()}

    @contextmanager
    def sprung(self) -> Iterator[None]:
        """While another process trades the places."""
        words = [str(path) for pair in self.pairs for path in pair]
        with subprocess.Popen([sys.executable, "-I", "-c", _TRADE, *words], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield
            finally:
                process.kill()


# A program of its own: it must not wait for the interpreter that runs the tools.
_TRADE = f"""
import ctypes, sys
call, words = ctypes.CDLL(None).renameat2, [word.encode() for word in sys.argv[1:]]
pairs = list(zip(words[::2], words[1::2]))
print("ready", flush=True)
while True:
    for first, second in pairs:
        call({_HERE}, first, {_HERE}, second, {_EXCHANGE})
"""


@dataclass
class Outcome:
    """What came of one tool: calls that went through, were refused or could not be done, and what must be 0."""

    tool: str
    door: str
    uid: int
    done: int = 0
    refused: int = 0
    leaks: int = 0
    changed_outside: int = 0
    lost_links: int = 0
    kept: int = 0
    """Things that stood in the way in the wrong moment and were put beside their place; nothing is lost by it."""
    samples: list[str] = field(default_factory=list)


def read(project: Project, path: str, turn: int) -> str:
    """All tools that read."""
    del turn
    found = project.call("search", CANARY[:6]) + project.call("find_symbol", "x")
    return project.call("read_file", path) + found.partition("\n")[2]


def edit(project: Project, path: str, turn: int) -> str:
    old, new = (text.strip() for text in (TEXTS if turn // len(PATHS) % 2 else TEXTS[::-1]))
    return project.call("edit_file", path, old, new)


def write(project: Project, path: str, turn: int) -> str:
    project.call("read_file", path)
    return project.call("write_file", path, TEXTS[turn // len(PATHS) % 2])


def undo(project: Project, path: str, turn: int) -> str:
    """What taking back an edit comes down to."""
    now, data = content_at(project.workspace.tree, path.encode())
    text = TEXTS[turn // len(PATHS) % 2].encode()
    wanted = State(0o100644, oid_of(text))
    if now.mode is None or not data.startswith((b"one", b"two")):
        return "refused"
    put(project.workspace.tree, path.encode(), expected=now, wanted=wanted, content=lambda: text)
    return data.decode()


def naive(project: Project, path: str, turn: int) -> str:
    """What no tool does: look where a path leads, and then open it."""
    del turn
    if not (project.root / path).resolve().is_relative_to(project.root) or not (project.root / path).is_file():
        return "refused"
    descriptor = os.open(project.root / path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor) as file:
        return file.read()


TOOLS: dict[str, Callable[[Project, str, int], str]] = {"read": read, "edit": edit, "write": write, "undo": undo}


def race(tool: str, *, door: str, seconds: float) -> Outcome:
    """One tool against the clock."""
    base = Path(tempfile.mkdtemp(prefix="punie-race-"))
    outcome = Outcome(tool, door, os.getuid())
    try:
        (base / "work").mkdir()
        trap, project = Trap(base), Project(base / "work")
        with trap.sprung():
            end, turn = time.monotonic() + seconds, 0
            while time.monotonic() < end and not (tool == "naive" and outcome.leaks):
                turn += 1
                _step(TOOLS.get(tool, naive), project, outcome, turn)
        outcome.changed_outside = int(trap.seen_outside() != trap.before)
        outcome.lost_links = trap.lost()
        outcome.kept = sum(1 for path in base.rglob("*.kept"))
    finally:
        shutil.rmtree(base)
    return outcome


def _step(tool: Callable[[Project, str, int], str], project: Project, outcome: Outcome, turn: int) -> None:
    path = PATHS[turn % len(PATHS)]
    try:
        said = tool(project, path, turn)
    except (ModelRetry, Conflict, OSError) as refusal:
        said = f"refused: {refusal}"
    outcome.leaks += CANARY in said
    went_well = said.startswith(("edited", "wrote", "one", "two", path))
    outcome.done += went_well
    outcome.refused += not went_well
    kind = said.partition("\n")[0].replace(path, "PATH")[-70:]
    if kind not in outcome.samples and len(outcome.samples) < 12:
        outcome.samples.append(kind)


def here(seconds: float) -> None:
    """Every tool and both ways to open files, as the user who runs this."""
    print(json.dumps(asdict(race("naive", door="", seconds=max(seconds, 20)))), flush=True)
    for door in ("openat2", "names"):
        if door == "names":
            _beneath.has_openat2 = lambda: False
        for tool in TOOLS:
            print(json.dumps(asdict(race(tool, door=door, seconds=seconds))), flush=True)


def outcomes(seconds: float) -> Iterator[Outcome]:
    """As the user who runs this, and as an ordinary one if this is root."""
    for uid in sorted({os.getuid(), NOBODY if os.getuid() == 0 else os.getuid()}):
        command = [*_as_user(uid), sys.executable, "-m", "tests.tools.races", "--here", "--seconds", str(seconds)]
        with _own_place(uid) as place:
            variables = os.environ | {"TMPDIR": str(place), "HOME": str(place)}
            with subprocess.Popen(
                command, cwd=Path(__file__).parents[2], env=variables, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    yield Outcome(**json.loads(line))
            if process.returncode:
                raise RuntimeError(f"the tools ended with {process.returncode}")


@contextmanager
def _own_place(uid: int) -> Iterator[Path]:
    is_root = os.getuid() == 0
    place = Path(tempfile.mkdtemp(prefix="punie-races-", dir=open_place() if is_root else None))
    try:
        if is_root:
            os.chown(place, uid, uid)
        yield place
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--here", action="store_true", help="only as the user who runs this")
    options = parser.parse_args()
    if options.here:
        here(options.seconds)
    else:
        for each in outcomes(options.seconds):
            print(json.dumps(asdict(each)), flush=True)
