"""Runs one command, confined as its plan says, and leaves none of its processes behind.

Run by an interpreter in isolated mode from compiled code that it is handed, so it imports only the standard library,
as little of it as can be, and a command that rewrites this file changes nothing. On Linux it adopts every orphan below
it, also those that left the session, which makes its own descendants exactly the processes of the command. It ends
them when the command is over, when there are too many, when it gets SIGTERM, and when the process that started it dies.
"""

import ctypes
import os
import resource
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
LANDLOCK_RULE_PATH = 1

GRACE_S = 1.0
PATIENCE_S = 5.0
LEAVING_S = 10.0
WATCH_S = 0.05
NOT_RUN = 126
TOO_MANY = b"processes"


class _Stop:
    """Whether SIGTERM came."""

    asked = False


def main(plan: dict, note: int) -> int:
    """Run the command of the plan; its exit status, or 128 plus the signal that ended it.

    The plan holds `argv`, `env`, `cwd` and, where they apply: `landlock` (the ruleset's bytes and its rules as path and
    rights), `seccomp` (a program), `seccomp_to` (True to hand it to the command as a file, for bubblewrap), `drop`
    (True to give up all capabilities), `own_init` (True if the command's processes end with it), `nofile`, `fsize`
    and `nproc` (limits), `max_processes`, `cgroup` (a directory). Why it was stopped is written to the file `note`.
    """
    _control(PR_SET_CHILD_SUBREAPER, 1)
    _control(PR_SET_PDEATHSIG, signal.SIGTERM)
    readable, writable = os.pipe()
    for end in (readable, writable):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: setattr(_Stop, "asked", True))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    before = _all_processes()
    group = _made(plan.get("cgroup"), plan["max_processes"])
    child = os.fork()
    if child == 0:
        _become(plan, group)
    status, crowded = _watch(child, readable, before=before, limit=plan["max_processes"])
    if crowded:
        os.write(note, TOO_MANY)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_all(child, group, own_init=plan.get("own_init", False), at_once=crowded)
    _unmade(group)
    return status if status >= 0 else 128 - status


def _watch(child: int, readable: int, *, before: int, limit: int) -> tuple[int, bool]:
    """Wait for the command; its status, and whether it had too many processes."""
    while not _Stop.asked:
        if select.select([readable], [], [], WATCH_S)[0]:
            os.read(readable, 4096)
        ended = _reap(child)
        if ended is not None:
            return ended, False
        # Counting all processes is cheap; only when there are many more of them does it matter whose they are.
        if _all_processes() - before > limit and len(_descendants()) > limit:
            return -signal.SIGKILL, True
    return -signal.SIGTERM, False


def _become(plan: dict, group: str) -> None:
    """Turn this forked process into the confined command; never returns. There are no threads a fork could disturb."""
    try:
        os.setsid()
        # A shell that kills its supervisor dies with it.
        _control(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _limit(plan, group)
        os.chdir(plan["cwd"])
        argv = list(plan["argv"])
        if plan.get("seccomp_to"):
            argv[1:1] = ["--seccomp", str(_file_of(plan["seccomp"]))]
        if plan.get("drop"):
            _drop_capabilities()
        if "landlock" in plan:
            _landlock(*plan["landlock"])
        if "seccomp" in plan and not plan.get("seccomp_to"):
            _seccomp(plan["seccomp"])
        os.execve(argv[0], argv, plan["env"])  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - a fork must not return, and nothing may run unconfined
        os.write(2, f"The command was not run: {error}.\n".encode())
    os._exit(NOT_RUN)


def _limit(plan: dict, group: str) -> None:
    for name in ("tasks", "cgroup.procs"):
        # The kernel does not lock all processes out for a thread that moves itself, which takes milliseconds.
        if group and os.path.exists(f"{group}/{name}"):  # noqa: PTH110 - pathlib would double the start-up time
            _write(f"{group}/{name}", "0")
            break
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("fsize", resource.RLIMIT_FSIZE)):
        hard = resource.getrlimit(kind)[1]
        value = plan[name] if hard == resource.RLIM_INFINITY else min(plan[name], hard)
        resource.setrlimit(kind, (value, value))
    if "nproc" in plan:
        _quietly(resource.setrlimit, resource.RLIMIT_NPROC, (plan["nproc"], plan["nproc"]))
    if sys.platform == "linux":
        # When memory runs out, the command goes first.
        _quietly(_write, "/proc/self/oom_score_adj", "500")


def _file_of(data: bytes) -> int:
    """An open file that holds the data and stays open in the command's own start."""
    number = os.memfd_create("filter", 0)
    os.write(number, data)
    os.lseek(number, 0, os.SEEK_SET)
    return number


def _drop_capabilities() -> None:
    _control(PR_CAP_AMBIENT, 4)
    number = 0
    while _control(PR_CAPBSET_DROP, number) == 0:
        number += 1
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        _fail("capset")


def _landlock(attributes: bytes, rules: list[tuple[str, int, bool]]) -> None:
    system = ctypes.CDLL(None, use_errno=True).syscall
    ruleset = system(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        _fail("landlock_create_ruleset")
    for path, rights, needed in rules:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if needed else os.O_NOFOLLOW))
        except OSError:
            if needed:
                raise
            continue
        rule = rights.to_bytes(8, "little") + place.to_bytes(4, "little", signed=True)
        if system(LANDLOCK_ADD, ruleset, LANDLOCK_RULE_PATH, rule, 0) and needed:
            _fail("landlock_add_rule")
        os.close(place)
    if _control(PR_SET_NO_NEW_PRIVS, 1) or system(LANDLOCK_RESTRICT, ruleset, 0):
        _fail("landlock_restrict_self")
    os.close(ruleset)


def _seccomp(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    program_at = ctypes.byref(Program(len(program) // 8, ctypes.addressof(code)))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program_at, 0, 0):
        _fail("seccomp")


def _fail(what: str) -> None:
    raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _control(option: int, value: int) -> int:
    return ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) if sys.platform == "linux" else 0


def _made(group: str | None, limit: int) -> str:
    """The cgroup, made and limited; empty where that cannot be."""
    if not group:
        return ""
    try:
        os.mkdir(group)  # noqa: PTH102 - pathlib would double the start-up time
        _write(f"{group}/pids.max", str(limit))
    except OSError:
        _quietly(os.rmdir, group)
        return ""
    return group


def _unmade(group: str) -> None:
    """Remove the cgroup; its processes take a moment to leave it, hundreds of them on a busy machine a second."""
    end = time.monotonic() + LEAVING_S
    while time.monotonic() < end:
        if not group or not os.path.exists(group):  # noqa: PTH110
            return
        try:
            os.rmdir(group)  # noqa: PTH106
        except OSError:
            # What was born while /proc was read stands here.
            for process in _members(group):
                _quietly(os.kill, process, signal.SIGKILL)
            _reap(0)
            time.sleep(0.002)


def _members(group: str) -> list[int]:
    """The processes of the cgroup; empty where there is none."""
    try:
        with open(f"{group}/cgroup.procs", "rb") as procs:  # noqa: PTH123
            # One of another namespace would be 0, which a signal takes for this process's own group.
            return [process for line in procs if (process := int(line)) > 0]
    except OSError:
        return []


def _write(path: str, text: str) -> None:
    place = os.open(path, os.O_WRONLY)
    try:
        os.write(place, text.encode())
    finally:
        os.close(place)


def _quietly(action: object, *arguments: object) -> None:
    try:  # noqa: SIM105 - contextlib would add to the start-up time
        action(*arguments)  # pyright: ignore[reportCallIssue]
    except (OSError, ValueError):
        pass


def _end_all(child: int, group: str, *, own_init: bool, at_once: bool) -> None:
    """SIGTERM, a moment, then SIGKILL until nothing is left. A process that ends all others of its own comes last."""
    calm = time.monotonic() + (0 if at_once else GRACE_S)
    if not at_once:
        _send(child, signal.SIGTERM, spare=child if own_init else 0)
    while time.monotonic() < calm and _alive():
        time.sleep(0.005)
    _quietly(os.setpriority, os.PRIO_PROCESS, 0, -20)  # for a race against processes that multiply
    if group:
        _quietly(_write, f"{group}/pids.max", "0")  # which ends that
    end = time.monotonic() + PATIENCE_S
    while _alive() and time.monotonic() < end:
        _send(child, signal.SIGKILL)
        time.sleep(0.005)
    if sys.platform != "linux":
        _send(child, signal.SIGKILL)


def _send(group: int, number: int, *, spare: int = 0) -> None:
    if not spare:
        _quietly(os.killpg, group, number)
    for process in _descendants():
        if process != spare:
            _quietly(os.kill, process, number)


def _alive() -> bool:
    _reap(0)
    return bool(_descendants())


def _reap(child: int) -> int | None:
    """Collect what ended; the status of the child if it was among them."""
    status = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                status = os.waitstatus_to_exitcode(ended[1])
    except ChildProcessError:
        pass
    return status


def _all_processes() -> int:
    """How many entries /proc has; 0 where there is none."""
    try:
        return len(os.listdir("/proc"))  # noqa: PTH208 - pathlib would double the start-up time
    except OSError:
        return 0


def _descendants() -> list[int]:
    """Every process below this one, from /proc; empty where there is none."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")  # noqa: PTH208
    except OSError:
        return []
    for name in names:
        if not name.isdecimal():
            continue
        try:
            place = os.open(f"/proc/{name}/stat", os.O_RDONLY)
            try:
                data = os.read(place, 1024)
            finally:
                os.close(place)
        except OSError:
            continue
        # The name in parentheses may hold spaces; the parent stands second after it.
        fields = data.rpartition(b")")[2].split()
        if fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found
