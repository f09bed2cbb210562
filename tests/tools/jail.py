"""Commands run in a sandbox as another user would run them: a process of its own that takes them one by one.

    python -m tests.tools.jail ROOT STATE KIND

reads requests from its standard input and writes answers to its standard output, one JSON object a line.
"""

# ruff: noqa: T201 - it answers on its standard output

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from punie.config import SandboxOptions
from punie.tools import Workspace
from punie.tools._process import Spill, run

NOBODY = 65534
CANARY = "canary-5f1d7c"
SECRET = "SOME_API_KEY"


def serve(root: str, state: str, kind: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], SECRET: CANARY}
    if kind == "landlock":
        os.environ["PATH"] = "/nowhere"  # bubblewrap is looked for there
    mode = "off" if kind == "none" else "required"
    workspace = Workspace(
        root, environment=environment, sandbox=SandboxOptions(mode=mode), state_dir=Path(state), command_timeout_s=60
    )
    print(json.dumps({"kind": workspace.sandbox.state.kind, "reason": workspace.sandbox.state.reason}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        outcome = asyncio.run(
            run(
                request["command"],
                sandbox=workspace.sandbox,
                timeout_s=request["timeout_s"],
                network=request["network"],
                save_to=Spill(workspace.sandbox.new_output, workspace.redact),
            )
        )
        answer = {
            "status": outcome.status,
            "stopped": outcome.stopped,
            "seconds": outcome.seconds,
            "output": (outcome.head + outcome.tail).decode("utf-8", "replace"),
            "dropped": outcome.dropped,
            "saved": str(saved.path) if outcome.dropped and (saved := outcome.save()) else "",
            "restored": [str(path) for path in outcome.restored],
            "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        print(json.dumps(answer), flush=True)


@dataclass
class Result:
    status: int
    stopped: str
    seconds: float
    output: str
    dropped: int
    saved: str
    restored: list[str]
    peak_kb: int

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


class Commands:
    """A process that runs commands in a workspace, as a user and with a kind of sandbox ("none": without one)."""

    def __init__(self, root: Path, *, state: Path, home: Path, kind: str, uid: int) -> None:
        self.root, self.state, self.home, self.kind, self.uid = root, state, home, kind, uid
        self._process = subprocess.Popen(
            [*_as_user(uid), sys.executable, "-m", "tests.tools.jail", str(root), str(state), kind],
            env=os.environ | {"HOME": str(home), SECRET: CANARY},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, command: str, *, timeout_s: float = 30, network: bool = False) -> Result:
        assert self._process.stdin is not None
        request = {"command": command, "timeout_s": timeout_s, "network": network}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Result(**self._answer())

    def script(self, source: str, *arguments: object) -> Result:
        """Run a Python program, which is not in the workspace any more afterwards."""
        place = self.root / "script.py"
        place.write_text(source)
        try:
            return self.run(" ".join(["python3 -I script.py", *map(str, arguments)]))
        finally:
            place.unlink(missing_ok=True)

    def left(self, mark: str) -> list[str]:
        """Command lines of processes that still run: in the workspace, or with a mark in their line."""
        found: list[str] = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                here = (entry / "cwd").readlink().is_relative_to(self.root)
                if not zombie and (here or mark in line):
                    found.append(line)
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            raise AssertionError(f"the process ended with {self._process.returncode}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


class Jail(Commands):
    """A workspace that is a git repository, a directory outside of it, and a home with a key.

    Nothing of it lies in /tmp, which commands do not see.
    """

    def __init__(self, kind: str, uid: int) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="punie-jail-", dir=open_place()))
        root, self.outside, home, state = (self.base / name for name in ("work", "outside", "home", "state"))
        for path in (root, self.outside, home / ".ssh", state / "sessions"):
            path.mkdir(parents=True)
        (home / ".ssh" / "id_ed25519").write_text(f"{CANARY}\n")
        (state / "sessions" / "1").write_text(f"{CANARY}\n")
        (self.outside / "file").write_text("as it was\n")
        (self.outside / "directory").mkdir()
        (root / "own").write_text("own\n")
        git = ["git", "-c", "init.defaultBranch=main", "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([*git, "init", "-q", "."], cwd=root, check=True)
        subprocess.run([*git, "add", "own"], cwd=root, check=True)
        subprocess.run([*git, "commit", "-q", "-m", "first"], cwd=root, check=True)
        self.base.chmod(0o755)
        if os.getuid() == 0:
            for path in (self.base, *self.base.rglob("*")):
                os.chown(path, uid, uid, follow_symlinks=False)
        try:
            super().__init__(root, state=state, home=home, kind=kind, uid=uid)
        except BaseException:
            shutil.rmtree(self.base)
            raise
        self.before = self.seen_outside()

    def seen_outside(self) -> dict[str, Any]:
        """What is outside the workspace, with all that could be changed about it."""
        seen: dict[str, Any] = {}
        for top in (self.outside, self.home, self.state / "sessions"):
            for path in (top, *top.rglob("*")):
                status = path.lstat()
                attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
                data = path.read_bytes() if path.is_file() else b""
                seen[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_nlink, data, attributes)
        return seen

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        shutil.rmtree(self.base)


def _as_user(uid: int) -> list[str]:
    """What stands before a command line that another user shall run."""
    if uid == os.getuid():
        return []
    user = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    python = Path(sys.base_prefix)
    closed = [path for path in (python, *python.parents) if not path.stat().st_mode & 0o001]
    if not closed:
        return user
    # The interpreter lies in a closed home: show it, and nothing else of that home, in a mount namespace.
    show = (
        'mount --bind "$1" /mnt; mount -t tmpfs -o mode=755 none "$2"; mkdir -p "$1"; '
        'mount --move /mnt "$1"; shift 2; exec "$@"'
    )
    shell = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", show, "sh"]
    return [*shell, str(python), str(closed[-1]), *user]


def open_place() -> Path:
    """A directory outside /tmp that everybody can look into and this process can write to."""
    candidates = [Path("/opt"), Path("/srv"), Path("/var/lib"), Path(__file__).parents[2], Path.home()]
    for path in candidates:
        everybody = all(each.stat().st_mode & 0o001 for each in (path, *path.parents)) or os.getuid() != 0
        if everybody and os.access(path, os.W_OK) and not path.is_relative_to("/tmp"):
            return path
    raise AssertionError("no place for the tests of the sandbox")


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3])
