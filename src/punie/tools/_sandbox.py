"""What commands are confined to: the best of what works on this machine, tried out before it is relied on.

A command sees its workspace writable and everything else read-only, no network, no secrets of the home directory, no
environment but a short list, and no process of it outlives the call. The kinds, and what each of them leaves open:

bubblewrap  Namespaces of Linux, and a filter of system calls. Repositories below the workspace's own keep hooks that a
            command can change. Unix sockets are denied with all others, so what needs them (the fork server of
            Python's multiprocessing) does not run.
landlock    Landlock of Linux, and the same filter. Modes, times and owners of files outside can be changed, the names
            of hidden files and the host's /tmp can be seen, /dev/shm is shared, and protected files of the workspace
            are put back when the command is over instead of being kept from it.
seatbelt    `sandbox-exec` of macOS. What hides and denies is the profile alone.
none        Nothing: every command has to be asked about.
"""

import fcntl
import itertools
import marshal
import os
import platform
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from secrets import token_hex
from types import CodeType
from typing import Any, Literal

from punie.config import SandboxOptions
from punie.errors import ConfigError
from punie.tools import _landlock, _seatbelt, _seccomp
from punie.tools._environment import child_environment
from punie.tools._programs import find_program
from punie.tools._protected import Places, Watch, masked, places, secrets
from punie.tools._venv import project_venv, with_venv

Kind = Literal["bubblewrap", "landlock", "seatbelt", "none"]

MAX_PROCESSES = 1024
MAX_FILE_BYTES = 4 << 30
MAX_OPEN_FILES = 8192
LEAST_LANDLOCK = 3  # older ones cannot keep a command from emptying files
SIGNALS_LANDLOCK = 6  # older ones cannot keep a command from ending other processes
PROBE_TIMEOUT_S = 20.0
KEPT_OUTPUT_S = 7 * 24 * 3600.0

# The interpreter itself and the supervisor's code as they were when Punie started, since a workspace may hold both.
_INTERPRETER = os.path.realpath(sys.executable)
_SUPERVISOR: CodeType = compile(Path(__file__).with_name("_supervisor.py").read_text("utf-8"), "supervisor", "exec")
_BOOT = (
    "import marshal,os,sys;n=int(sys.argv[1]);os.set_inheritable(n,False);f=open(n,'rb+');s={'__name__':'supervisor'};"
    "exec(marshal.load(f),s);p=marshal.load(f);f.truncate(0);f.seek(0);sys.exit(s['main'](p,n))"
)
_COUNT = itertools.count(1)
_PRIVATE = "punie-private-"

_NAMESPACES = (
    *("--die-with-parent", "--new-session", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
    *("--unshare-cgroup-try", "--cap-drop", "ALL"),
)
_READ_ONLY = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc")
# Of a fresh /proc, root could write to these without any capability; `core_pattern` names a program the kernel runs.
_KERNEL = ("acpi", "asound", "bus", "driver", "fs", "irq", "mtrr", "pressure", "scsi", "sys", "sysrq-trigger", "tty")
_EMPTY = ("/run", "/var/run")
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - a directory of the command's own is put there


@dataclass(frozen=True, slots=True)
class SandboxState:
    """What commands run in here, and why."""

    kind: Kind
    reason: str
    """One line for the user: what is at work, or why nothing is."""

    @property
    def active(self) -> bool:
        """Whether commands are confined at all."""
        return self.kind != "none"

    @property
    def weaker(self) -> bool:
        """Whether commands are confined less than they could be."""
        return self.kind == "landlock"


def sandbox_state(options: SandboxOptions | None = None) -> SandboxState:
    """What commands run in on this machine with these options; tried out once in a process, in about 0.1 s."""
    options = options or SandboxOptions()
    if options.mode == "off":
        return SandboxState("none", "the sandbox is off: sandbox.mode is 'off' in your configuration")
    state = _probed(os.environ.get("PATH", ""))
    if not state.active:
        return state
    return replace(state, reason=f"{state.reason}; {'with' if options.network else 'without'} network")


@cache
def _probed(search_path: str) -> SandboxState:
    reasons: list[str] = []
    for kind in _kinds(search_path, reasons):
        fault = fault_of(kind, search_path)
        if fault is None:
            return SandboxState(kind, _description(kind, reasons))
        reasons.append(f"{kind} does not work ({fault})")
    return SandboxState("none", "; ".join(reasons))


def _kinds(search_path: str, reasons: list[str]) -> Iterator[Kind]:
    if sys.platform == "darwin":
        yield "seatbelt"
    elif sys.platform != "linux":
        reasons.append(f"there is no sandbox for {sys.platform}")
    elif platform.machine() not in _seccomp.MACHINES:
        reasons.append(f"there is no filter of system calls for {platform.machine()}")
    else:
        if find_program("bwrap", path=search_path):
            yield "bubblewrap"
        else:
            reasons.append("bubblewrap is not installed")
        if _landlock.version() >= LEAST_LANDLOCK:
            yield "landlock"
        else:
            reasons.append("this kernel has no Landlock that suffices")


def _description(kind: Kind, reasons: Sequence[str]) -> str:
    if kind != "landlock":
        name = "bubblewrap" if kind == "bubblewrap" else "sandbox-exec"
        return f"{name}: commands write to the workspace only"
    also = "" if _landlock.version() >= SIGNALS_LANDLOCK else ", and your other processes can be ended"
    return f"Landlock, which is weaker ({'; '.join(reasons)}): modes and times of other files can be changed{also}"


@dataclass
class Run:
    """One command that is about to run. `restored` is filled when it is over."""

    plan: dict[str, Any]
    restored: list[Path] = field(default_factory=list)


class Sandbox:
    """Runs the commands of one workspace confined. Raises ConfigError if a sandbox is required and none works here.

    `environment` is where the variables of commands come from. `state` is what Punie keeps for itself, which commands
    do not see. `project` is the root of a project that is trusted: its Python environment is put first. Commands share
    a private /tmp, which goes with this object.
    """

    def __init__(
        self,
        root: Path,
        options: SandboxOptions | None = None,
        *,
        environment: Mapping[str, str],
        state_dir: Path | None = None,
        state: SandboxState | None = None,
        project: Path | None = None,
    ) -> None:
        self.root = root
        self.project = project
        self.options = options or SandboxOptions()
        self.environment = environment
        self.state_dir = state_dir
        self.read_only = False
        """Whether commands cannot write into the workspace either, but only into their own /tmp."""
        self._given = state
        self._search_path = os.environ.get("PATH", "")
        self._allowed: set[str] = set()
        if self.options.mode == "required" and not self.state.active:
            raise ConfigError(f"No sandbox works here: {self.state.reason}.", _advice())

    @cached_property
    def state(self) -> SandboxState:
        """What the commands of this workspace run in; it never changes between an approval and the command."""
        if self._given is not None:
            return self._given
        state = sandbox_state(self.options)
        if state.active and self.root == Path(self.root.anchor):
            return SandboxState("none", "the workspace is the whole disk")
        if state.kind == "landlock" and any(self.root in path.parents for path in self._secrets):
            return SandboxState("none", "Landlock cannot hide the keys that lie in this workspace")
        return state

    def allow_network(self, command: str) -> None:
        """Let the next run of exactly this command use the network."""
        self._allowed.add(command)

    def network_for(self, command: str) -> bool:
        """Whether the command may use the network now; a permission for one run is used up by asking."""
        if self.options.network:
            return True
        allowed = command in self._allowed
        self._allowed.discard(command)
        return allowed

    def new_output(self) -> Path:
        """The path of a new file for output, which commands can read. Files of a week ago are taken away."""
        for directory in (self._outputs.parents[1], self._outputs.parent, self._outputs):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # the mode is for the last one alone
        return self._outputs / f"{next(_COUNT)}.txt"

    @cached_property
    def _outputs(self) -> Path:
        above = (self.state_dir or self._private) / "outputs"
        old = time.time() - KEPT_OUTPUT_S
        for entry in above.iterdir() if above.is_dir() else ():
            if entry.is_dir() and not entry.is_symlink() and entry.stat().st_mtime < old:
                shutil.rmtree(entry, ignore_errors=True)
        return above / f"{os.getpid()}-{token_hex(4)}"

    @contextmanager
    def run(self, command: str, *, network: bool = False) -> Iterator[Run]:
        """What the supervisor needs to run a command of bash confined, for as long as the command runs."""
        kind = self.state.kind
        own = places(self.root, home=self._home)
        with ExitStack() as stack:
            fixed = [path for path in own.fixed if not path.is_symlink()]
            links = [path for path in own.fixed if path.is_symlink()]
            if kind == "bubblewrap":
                fixed = [] if self.read_only else stack.enter_context(masked(fixed))
                run = Run(self._bubblewrap(command, own, fixed, network=network))
                watch = Watch([*own.watched, *links], (), self._aside)
            elif kind == "landlock":
                run = Run(self._landlock(command, own, network=network))
                watch = Watch([*own.watched, *own.fixed], own.pinned, self._aside)
            elif kind == "seatbelt":
                run = Run(self._seatbelt(command, own, network=network))
                watch = Watch([*own.watched, *links], (), self._aside)
            else:
                run, watch = Run(self._bare(command)), None
            if watch is not None:
                stack.callback(lambda: run.restored.extend(watch.restore()))
            yield run

    def _bare(self, command: str) -> dict[str, Any]:
        """A plan without confinement but with limits."""
        plan: dict[str, Any] = {
            "argv": _shell(command),
            "env": self._variables(),
            "cwd": str(self.root),
            "nofile": MAX_OPEN_FILES,
            "fsize": MAX_FILE_BYTES,
            "max_processes": MAX_PROCESSES,
            "cgroup": _own_cgroup(),
        }
        if sys.platform == "linux" and os.getuid() != 0:
            # The kernel counts all tasks of the user, so what there is already has to be added.
            plan["nproc"] = _tasks() + MAX_PROCESSES
        return plan

    def _variables(self) -> dict[str, str]:
        variables = child_environment(self.environment, more=self.options.environment)
        venv = self.venv
        return variables | with_venv(variables, venv, private=lambda: self._private) if venv else variables

    @property
    def venv(self) -> Path | None:
        """The Python environment that commands find first; None where there is none, or nobody trusts the project."""
        return project_venv(self.root, self.project) if self.project else None

    def _bubblewrap(self, command: str, own: Places, fixed: Sequence[Path], *, network: bool) -> dict[str, Any]:
        plan = self._bare(command)
        program = find_program("bwrap", path=self._search_path, workspace=self.root)
        if program is None:
            raise FileNotFoundError("bwrap")
        arguments = [*_NAMESPACES, *self._namespaces(program, network=network), *_READ_ONLY]
        for name in _KERNEL:
            arguments += ["--ro-bind", f"/proc/{name}", f"/proc/{name}"] if Path("/proc", name).exists() else []
        for path in _EMPTY:
            arguments += ["--tmpfs", path] if Path(path).is_dir() and not Path(path).is_symlink() else []
        for path in _TEMPORARY:
            arguments += ["--bind", str(self._temporary), path] if Path(path).is_dir() else []
        for path in (*self._needed, *self._private.glob("kept-*"), *(_name_servers() if network else ())):
            arguments += ["--ro-bind-try", str(path), str(path)]
        for path in (self.root, *own.outside, *own.pinned):
            arguments += ["--ro-bind" if self.read_only else "--bind", str(path), str(path)]
        for path in (*fixed, *self._own_program):
            arguments += ["--ro-bind", str(path), str(path)]
        for path in self._secrets:
            arguments += ["--tmpfs", str(path)] if path.is_dir() else ["--ro-bind", "/dev/null", str(path)]
        if self._outputs.is_dir():
            arguments += ["--ro-bind", str(self._outputs), str(self._outputs)]
        if os.getuid() != 0:
            del plan["nproc"]
            plan["argv"] = [*_limited_shell(), *plan["argv"]]
        return plan | {
            "argv": [program, *arguments, "--chdir", str(self.root), "--", *plan["argv"]],
            "env": plan["env"] | {"TMPDIR": "/tmp"},  # noqa: S108
            "cwd": "/",
            "seccomp": _seccomp.program(platform.machine(), network=network),
            "seccomp_to": True,
            "own_init": True,
        }

    def _namespaces(self, program: str, *, network: bool) -> list[str]:
        nested = ["--disable-userns"] if _knows(program, "--disable-userns") else []
        return nested if network else ["--unshare-net", *nested]

    def _landlock(self, command: str, own: Places, *, network: bool) -> dict[str, Any]:
        abi = _landlock.version()
        plan = self._bare(command)
        return plan | {
            "env": plan["env"] | {"TMPDIR": str(self._temporary)},
            "landlock": (
                _landlock.ruleset(abi, network=network),
                _landlock.rules(abi, writable=self._writable(own), readable=[self._outputs], hidden=self._secrets),
            ),
            "seccomp": _seccomp.program(platform.machine(), network=network, attributes=False),
            "drop": os.getuid() == 0,
        }

    def _writable(self, own: Places) -> list[Path]:
        return [self._temporary] if self.read_only else [self.root, self._temporary, *own.outside]

    def _seatbelt(self, command: str, own: Places, *, network: bool) -> dict[str, Any]:
        plan = self._bare(command)
        made = _seatbelt.profile(
            writable=self._writable(own),
            fixed=[*own.fixed, *own.watched, *self._own_program],
            hidden=self._secrets,
            network=network,
        )
        return plan | {
            "argv": [*made.arguments(), *plan["argv"]],
            "env": plan["env"] | {"TMPDIR": str(self._temporary)},
        }

    @cached_property
    def _private(self) -> Path:
        path, lock = _private_directory()
        weakref.finalize(self, _discard, path, lock)
        return path

    @cached_property
    def _temporary(self) -> Path:
        path = self._private / "tmp"
        path.mkdir()
        return path

    @cached_property
    def _aside(self) -> Path:
        path = self._private / "aside"
        path.mkdir()
        return path

    @cached_property
    def _home(self) -> Path | None:
        home = self.environment.get("HOME", "")
        return Path(os.path.realpath(home)) if Path(home).is_absolute() else None

    @property
    def _secrets(self) -> list[Path]:
        homes = [home for home in (self._home, _home_of_user()) if home is not None]
        own = [self.state_dir] if self.state_dir else []
        settings = Path(self.environment.get("XDG_CONFIG_HOME", ""), "punie")
        own += [settings] if settings.is_absolute() else []
        found = set(secrets(homes, root=self.root, more=own))
        # What lies in a hidden directory is hidden with it.
        return sorted(path for path in found if not found.intersection(path.parents))

    @property
    def _needed(self) -> list[Path]:
        """Python environments that lie where a private directory is put."""
        places_of = [Path(os.path.realpath(sys.prefix)), Path(self.environment.get("VIRTUAL_ENV", ""))]
        places_of += [venv] if (venv := self.venv) else []
        hiding = [Path(os.path.realpath(path)) for path in (*_EMPTY, *_TEMPORARY)]
        return [path for path in places_of if any(each in path.parents for each in hiding)]

    @cached_property
    def _own_program(self) -> list[Path]:
        """The environment that Punie itself runs from, if a command could rewrite it."""
        prefix = Path(os.path.realpath(sys.prefix))
        return [prefix] if self.root in prefix.parents and sys.prefix != sys.base_prefix else []


def _private_directory() -> tuple[Path, int]:
    """A new directory that only this user can look into, and an open file whose lock says that it is in use.

    Those of processes that were killed are taken away.
    """
    above = Path(os.path.realpath(tempfile.gettempdir()))
    for entry in above.glob(f"{_PRIVATE}*"):
        with suppress(OSError):
            status = entry.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > 60 and not entry.is_symlink():
                lock = _locked(entry, fcntl.LOCK_EX)
                _discard(entry, lock)
    path = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=above))
    return path, _locked(path, fcntl.LOCK_SH)


def _locked(directory: Path, kind: int) -> int:
    """An open file of the directory with a lock on it. Raises OSError if somebody else has it."""
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        raise
    return number


def _discard(directory: Path, lock: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _advice() -> str:
    if sys.platform == "linux":
        return "Install bubblewrap (apt-get install bubblewrap), or set sandbox.mode to 'auto' to be asked instead."
    return "Set sandbox.mode to 'auto' to be asked about every command instead."


def _shell(command: str) -> list[str]:
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    options = ["--noprofile", "--norc"] if shell.endswith("bash") else []
    # The space keeps a command that starts with a dash from being taken for an option.
    return [shell, *options, "-c", f" {command}"]


def _limited_shell() -> list[str]:
    """A shell that limits processes from inside the user namespace, where only those of the command count."""
    shell, flag = ("/bin/bash", "u") if Path("/bin/bash").exists() else ("/bin/sh", "p")
    return [shell, "-c", f'ulimit -{flag} {MAX_PROCESSES} 2>/dev/null; exec "$@"', shell]


@cache
def _knows(program: str, option: str) -> bool:
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return option in told.stdout + told.stderr


def _home_of_user() -> Path | None:
    try:
        return Path(os.path.realpath(pwd.getpwuid(os.getuid()).pw_dir))
    except KeyError:
        return None


def _name_servers() -> list[Path]:
    """Where the list of name servers really lies, if that is a directory that is hidden."""
    real = Path(os.path.realpath("/etc/resolv.conf"))
    return [real] if Path("/run") in real.parents else []


def _tasks() -> int:
    """Threads on the whole machine."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])


def _own_cgroup() -> str | None:
    """A directory of a new control group that limits the number of tasks; None where it cannot be made."""
    parent = _cgroup_parent()
    return f"{parent}/punie-{os.getpid()}-{next(_COUNT)}" if parent else None


@cache
def _cgroup_parent() -> str | None:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "pids":
            place = Path(f"/sys/fs/cgroup/pids{path}")
        elif not controllers and _hands_on_pids(Path(f"/sys/fs/cgroup{path}")):
            place = Path(f"/sys/fs/cgroup{path}")
        else:
            continue
        if os.access(place, os.W_OK):
            _remove_left_over(place)
            return str(place).rstrip("/")
    return None


def _remove_left_over(place: Path) -> None:
    """Remove the empty groups of processes that were killed."""
    for group in place.glob("punie-*-*"):
        if not Path("/proc", group.name.split("-")[1]).exists():
            with suppress(OSError):
                group.rmdir()


def _hands_on_pids(place: Path) -> bool:
    try:
        return "pids" in (place / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


@contextmanager
def supervised(plan: Mapping[str, Any]) -> Iterator[tuple[list[str], int]]:
    """The command line that runs a plan, and the open file it has to inherit.

    When the supervisor is done, the file holds why it stopped the command, if it did.
    """
    number = _unnamed_file()
    try:
        with os.fdopen(os.dup(number), "wb") as file:
            marshal.dump(_SUPERVISOR, file)
            marshal.dump(dict(plan), file)
        os.lseek(number, 0, os.SEEK_SET)
        yield [_INTERPRETER, "-I", "-S", "-c", _BOOT, str(number)], number
    finally:
        os.close(number)


def _unnamed_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("plan")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_ATTACK = """
import os, socket, sys
outside, port, read_only = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "bubblewrap"
def works(action):
    try:
        action()
        return True
    except OSError:
        return False
faults = [
    text for text, action in {
        "files outside can be written": lambda: open(outside + "/new", "w"),
        "files outside can be emptied": lambda: os.truncate(outside + "/canary", 0),
        "the network can be reached": lambda: socket.create_connection(("127.0.0.1", port), 2),
    }.items() if works(action)
]
if read_only and not os.statvfs("/").f_flag & os.ST_RDONLY:
    faults.append("the disk can be written")
if not works(lambda: open("inside", "w").close()):
    faults.append("the workspace cannot be written")
print("; ".join(faults) or "confined")
"""


def fault_of(kind: Kind, search_path: str) -> str | None:
    """Try a kind of sandbox out with a program that tries to break out; what is wrong with it, None if nothing.

    `search_path` is where bubblewrap is looked for, as a PATH.
    """
    with tempfile.TemporaryDirectory(prefix="punie-probe-") as name, socket.create_server(("127.0.0.1", 0)) as server:
        root, outside = Path(os.path.realpath(name)) / "workspace", Path(os.path.realpath(name)) / "outside"
        root.mkdir()
        outside.mkdir()
        (outside / "canary").write_text("canary")
        sandbox = Sandbox(root, environment={"PATH": search_path}, state=SandboxState(kind, ""))
        command = shlex.join(
            [_INTERPRETER, "-I", "-S", "-c", _ATTACK, str(outside), str(server.getsockname()[1]), kind]
        )
        try:
            with sandbox.run(command) as run, supervised(run.plan) as (arguments, number):
                done = subprocess.run(
                    arguments,
                    pass_fds=(number,),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=PROBE_TIMEOUT_S,
                    check=False,
                    env=run.plan["env"],
                )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        said = (done.stdout.strip() or done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
        unchanged = (outside / "canary").read_text() == "canary" and len(list(outside.iterdir())) == 1
        if said == "confined" and unchanged and (root / "inside").exists():
            return None
        return said if said != "confined" else "files outside were changed"
