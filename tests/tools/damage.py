"""Kills processes that replace files, and has their disk fail; run as a program.

    python -m tests.tools.damage --kills 200 --bytes 20000000

kills processes at random moments while they change a file, and one before and one after
each single step of a change. Then, where strace is installed, the kernel itself fails: fsync answers EIO, and a process
dies within renameat2. Where this is root, the file lies on a disk of 64 kB that is full. What came of it is printed,
one JSON object a line; `torn` counts files that are neither the old nor the new one, and must be 0.
"""

# ruff: noqa: T201 - it answers on its standard output

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.agent.killing import child
from tests.tools.project import Project

from punie.tools import Workspace, _replace
from punie.tools._changes import Change, apply

TEXTS = (b"the first text, ", b"another text___, ")
STEPS = ("open", "write", "fsync", "fchmod", "link", "unlink")


def contents(size: int) -> list[bytes]:
    """Two texts of about this size, each of them the same line again and again."""
    return [(text * 8 + b"\n") * (size // len(text * 8)) for text in TEXTS]


def change(workspace: Workspace, before: bytes, after: bytes) -> None:
    """The whole file, as a tool would; raises if that is refused."""
    answer = apply(workspace, Change("a.txt", before, after))
    if answer is not None:
        raise RuntimeError(answer.text)


def whole(root: Path, texts: list[bytes]) -> bool:
    """Whether the file is one of the two, and its name still there."""
    return (root / "a.txt").read_bytes() in texts


def left(root: Path) -> int:
    """How many new files the killed left behind; they are removed."""
    found = [path for path in root.iterdir() if _replace.is_temporary(path.name)]
    for path in found:
        path.unlink()
    return len(found)


def kills(root: Path, *, count: int, size: int) -> dict[str, Any]:
    """Random moments."""
    texts, project = contents(size), Project(root)
    (root / "a.txt").write_bytes(texts[0])

    def work(said: int) -> None:
        now = texts.index((root / "a.txt").read_bytes())
        while True:
            change(project.workspace, texts[now], texts[1 - now])
            now = 1 - now
            os.write(said, b".")

    torn = stray = edits = 0
    outcomes = [0, 0]
    for _ in range(count):
        pid, reading = child(work)
        steps, took = random.randint(1, 2), 0.0
        for _ in range(steps):
            started = time.monotonic()
            if not os.read(reading, 1):
                raise RuntimeError("the child died by itself")
            took = time.monotonic() - started
        time.sleep(random.uniform(0, took))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        edits += steps
        if whole(root, texts):
            outcomes[texts.index((root / "a.txt").read_bytes())] += 1
        else:
            torn += 1
            (root / "a.txt").write_bytes(texts[0])
        stray += left(root)
    return {"what": "kills", "kills": count, "bytes": size, "edits": edits, "torn": torn, "of each": outcomes} | {
        "new files left": stray
    }


def _dying(at: int) -> Callable[[], None]:
    """Something that counts how often it is asked, and the time that it says kills."""
    asked = 0

    def step() -> None:
        nonlocal asked
        asked += 1
        if asked == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def _armed(step: Callable[[], None], names: list[str]) -> None:
    """Have each step of a change asked about, before and after it."""

    def around(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            names.append(name)
            step()
            result = call(*arguments, **named)
            step()
            return result

        return wrapped

    for name in STEPS:
        setattr(os, name, around(name, getattr(os, name)))
    _replace._rename = around("rename", _replace._rename)


def steps(root: Path, *, size: int) -> dict[str, Any]:
    """Every step of one change, before and after it."""
    texts, project = contents(size), Project(root)
    killed = torn = stray = 0
    outcomes = [0, 0]
    names: set[str] = set()
    while True:
        (root / "a.txt").write_bytes(texts[0])

        def work(said: int, at: int = killed + 1) -> None:
            seen: list[str] = []
            write = os.write
            _armed(_dying(at), seen)
            change(project.workspace, texts[0], texts[1])
            write(said, " ".join(seen).encode())
            os._exit(0)

        pid, reading = child(work)
        said = os.read(reading, 4_096)
        status = os.waitpid(pid, 0)[1]
        os.close(reading)
        if not os.WIFSIGNALED(status):
            names.update(said.decode().split())
            break
        killed += 1
        torn += not whole(root, texts)
        outcomes[texts.index((root / "a.txt").read_bytes())] += 1
        stray += left(root)
    return {"what": "steps", "kills": killed, "torn": torn, "of each": outcomes, "steps": sorted(names)} | {
        "new files left": stray
    }


def edit(root: Path) -> None:
    """One edit by the tool, and one new file; what the model is told is printed."""
    project = Project(root)
    print(project.call("edit_file", "a.txt", "one", "two").partition("\n")[0])
    print(project.call("write_file", "new/b.txt", "x" * 200_000))


def injected(root: Path) -> Iterator[dict[str, Any]]:
    """The edit under strace, which has the kernel fail or kill."""
    for inject in (
        *("fsync:error=EIO", "fsync:error=EIO:when=2", "fsync:error=ENOSPC"),
        *("renameat2:signal=KILL", "renameat2:error=EINVAL", "openat2:error=ENOSYS"),
    ):
        shutil.rmtree(root)
        root.mkdir()
        (root / "a.txt").write_bytes(b"one")
        trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={inject}"]
        said = _run([*trace, sys.executable, "-m", "tests.tools.damage", "--edit", str(root)])
        yield {"what": f"strace {inject}", **_after(root, said)}


def full(root: Path) -> dict[str, Any]:
    """The edit on a disk of 64 kB, which is full."""
    script = 'mount -t tmpfs -o size=64k none "$1"; printf one > "$1/a.txt"; head -c 61440 /dev/zero > "$1/zero"; shift'
    after = 'ls -A "$0"; cat "$0/a.txt"'
    shell = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        f'{script}; "$@"; set -- ; {after}',
        str(root),
    ]
    said = _run([*shell, str(root), sys.executable, "-m", "tests.tools.damage", "--edit", str(root)])
    return {"what": "64 kB", "said": said}


def _after(root: Path, said: list[str]) -> dict[str, Any]:
    data = (root / "a.txt").read_bytes()
    there = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    return {"said": said, "torn": int(data not in {b"one", b"two"}), "a.txt": data.decode(), "there": there}


def _run(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    return [*done.stdout.splitlines(), *done.stderr.splitlines()[-2:]]


def main(count: int, size: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="punie-damage-") as place:
        root = Path(place) / "work"
        root.mkdir()
        yield kills(root, count=count, size=size)
        yield steps(root, size=min(size, 1_000_000))
        if count < 100:
            return
        if shutil.which("strace"):
            yield from injected(root)
        if os.getuid() == 0:
            yield full(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="fewer than 100: nothing but kills")
    parser.add_argument("--bytes", type=int, default=20_000_000)
    parser.add_argument("--edit", type=Path, help="make one edit there, and nothing else")
    options = parser.parse_args()
    if options.edit:
        edit(options.edit)
    else:
        for found in main(options.kills, options.bytes):
            print(json.dumps(found), flush=True)
