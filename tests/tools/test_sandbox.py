"""Attacks on the sandbox, run as real commands against the kernel of this machine.

Each runs for both kinds of Linux and, where the tests run as root, as root and as nobody. What is missing here is
a failure: `apt-get install bubblewrap git gcc`.
"""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tools.jail import CANARY, NOBODY, SECRET, Commands, Jail

from punie.tools import _landlock
from punie.tools._sandbox import MAX_OPEN_FILES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these attacks are on what Linux has")

USERS = {"root": 0, "nobody": NOBODY} if os.getuid() == 0 else {"self": os.getuid()}
MARK = f"8{os.getpid()}"


@pytest.fixture(scope="module", params=USERS)
def uid(request: pytest.FixtureRequest) -> int:
    return USERS[request.param]


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def confined(request: pytest.FixtureRequest, uid: int) -> Iterator[Jail]:
    # Before that, one of the attacks would reach every process of this machine.
    assert _landlock.version() >= 6
    with Jail(request.param, uid) as jail:
        assert jail.told["kind"] == request.param, jail.told["reason"]
        yield jail


@pytest.fixture
def jail(confined: Jail) -> Iterator[Jail]:
    """The jail; whatever a test did in it, nothing outside changed and nothing of it still runs."""
    yield confined
    assert confined.seen_outside() == confined.before
    assert confined.left(MARK) == []
    assert sorted(path.name for path in confined.root.iterdir()) == [".git", "own"]


@pytest.fixture(scope="module")
def free(uid: int) -> Iterator[Jail]:
    """The same without a sandbox, to show that the attacks are real."""
    with Jail("none", uid) as jail:
        assert jail.told["kind"] == "none"
        yield jail


WRITES = {
    "create": "echo x > {out}/new",
    "append": "echo x >> {out}/file",
    "empty": ": > {out}/file",
    "truncate": "truncate -s 0 {out}/file",
    "rename": "mv {out}/file {out}/other",
    "move in": "mv {out}/file stolen; rm -f stolen",
    "move out": "cp own mine; mv mine {out}/mine; rm -f mine",
    "remove": "rm -rf {out}/file {out}/directory",
    "directory": "mkdir {out}/new",
    "hard link in": "ln {out}/file linked && echo x >> linked; rm -f linked",
    "hard link out": "ln own {out}/linked",
    "through a link": "ln -s {out}/file link; echo x >> link; rm link",
    "through a linked directory": "ln -s {out} link; echo x > link/new; rm link",
    "fifo": "mkfifo {out}/fifo",
    "through /proc": "echo x >> /proc/self/root{out}/file",
    "dots": "echo x >> ../outside/file",
    "home": "echo x >> ~/.bashrc",
}


def test_nothing_outside_is_written(jail: Jail):
    """The `jail` compares what is outside; the names of the attacks are for the reader."""
    attempts = "\n".join(f"({command.format(out=jail.outside)})" for command in WRITES.values())
    assert jail.run(f"{attempts}\necho tried").lines[-1] == "tried"


def test_without_a_sandbox_it_would_be(free: Jail):
    free.run(WRITES["append"].format(out=free.outside))
    assert free.seen_outside() != free.before


METADATA = "chmod 600 {out}/file; touch -d 2001-01-01 {out}/file"
ATTRIBUTES = "import os, sys; os.setxattr(sys.argv[1], 'user.evil', b'x')"


def test_modes_and_times_outside(confined: Jail):
    """Landlock has no say in them, which is why it is called weaker."""
    file = confined.outside / "file"
    before = file.stat()
    confined.run(METADATA.format(out=confined.outside))
    changed = (file.stat().st_mode, file.stat().st_mtime_ns) != (before.st_mode, before.st_mtime_ns)
    file.chmod(before.st_mode & 0o7777)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed == (confined.kind == "landlock")
    assert confined.seen_outside() == confined.before


def test_attributes_outside(jail: Jail):
    assert "Error" in jail.script(ATTRIBUTES, jail.outside / "file").output


SOCKETS = """
import socket, sys
port, path = int(sys.argv[1]), sys.argv[2]
def tcp(family, address, protocol=0):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as s:
        s.settimeout(3)
        s.connect(address)
def send(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.sendto(b"leak", address)
attacks = {
    "tcp": lambda: tcp(socket.AF_INET, ("127.0.0.1", port)),
    "mptcp": lambda: tcp(socket.AF_INET, ("127.0.0.1", port), 262),
    "udp": lambda: send(socket.AF_INET, ("127.0.0.1", port)),
    "tcp6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close(),
    "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close(),
    "unix": lambda: tcp(socket.AF_UNIX, path),
    "abstract": lambda: tcp(socket.AF_UNIX, "\\0" + path),
    "name": lambda: socket.getaddrinfo("localhost.example.org", 80),
}
for name, attack in attacks.items():
    try:
        attack()
        print(name, "worked")
    except OSError as error:
        print(name, type(error).__name__)
a, b = socket.socketpair()
a.send(b"pair")
print(b.recv(4).decode())
"""


@pytest.fixture
def listening(confined: Jail) -> Iterator[tuple[int, Path]]:
    """A server on loopback, and two on Unix sockets: one in a directory and one with an abstract name."""
    path = confined.outside / "socket"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        unix.bind(str(path))
        path.chmod(0o777)
        unix.listen()
        abstract.bind(f"\0{path}")
        abstract.listen()
        yield server.getsockname()[1], path
    path.unlink()
    now = confined.outside.stat()
    os.utime(confined.outside, ns=(now.st_atime_ns, confined.before[str(confined.outside)][1]))


def test_no_socket_leads_out(jail: Jail, listening: tuple[int, Path]):
    lines = jail.script(SOCKETS, *listening).lines
    assert [line for line in lines if "worked" in line] == []
    assert len(lines) == 12
    assert lines[-1] == "pair"


def test_without_a_sandbox_sockets_lead_out(free: Jail, confined: Jail, listening: tuple[int, Path]):
    worked = {line.split()[0] for line in free.script(SOCKETS, *listening).lines if "worked" in line}
    assert {"tcp", "udp", "unix", "abstract"} <= worked


def test_the_network_can_be_allowed_for_one_command(jail: Jail, listening: tuple[int, Path]):
    place = jail.root / "script.py"
    place.write_text(SOCKETS)
    lines = jail.run(f"python3 -I script.py {listening[0]} {listening[1]}", network=True).lines
    after = jail.run(f"python3 -I script.py {listening[0]} {listening[1]}").lines
    place.unlink()
    assert "tcp worked" in lines
    assert "unix worked" not in lines
    assert "abstract worked" not in lines
    assert "tcp worked" not in after


SECRETS = {
    "environment": "env; cat /proc/*/environ; cat /proc/*/task/*/environ",
    "the home directory": "cat ~/.ssh/*; cat {home}/.ssh/id_ed25519; cat /proc/self/root{home}/.ssh/*; cp -r ~/.ssh x",
    "Punie's state": "cat {state}/sessions/*; grep -r canary {state}",
    "memory of others": "cat /proc/{pid}/environ; strings /proc/{pid}/mem; cat /proc/{pid}/cwd/../home/.ssh/*",
    "the parent": "tr '\\0' '\\n' < /proc/$PPID/environ; tr '\\0' '\\n' < /proc/1/environ",
    "links": "ln -s ~/.ssh l; cat l/*; rm l; ln -s {state}/sessions/1 l; cat l; rm l; ln ~/.ssh/id_ed25519 h; cat h",
}


@pytest.mark.parametrize("command", SECRETS.values(), ids=SECRETS.keys())
def test_no_secret_is_read(jail: Jail, command: str):
    result = jail.run(command.format(home=jail.home, state=jail.state, pid=jail.pid))
    subprocess.run(["rm", "-rf", jail.root / "x", jail.root / "h"], check=True)
    assert CANARY not in result.output


def test_without_a_sandbox_secrets_are_read(free: Jail):
    for command in (SECRETS["the home directory"], SECRETS["Punie's state"]):
        result = free.run(command.format(home=free.home, state=free.state, pid=free.pid))
        assert CANARY in result.output
    assert SECRET not in free.run("env").output


IOCTL = """
import ctypes, errno, os
system = ctypes.CDLL(None, use_errno=True).syscall
ioctl = {"x86_64": 16, "aarch64": 29}[os.uname().machine]
def told(request):
    number = os.open("/dev/null", os.O_RDWR)
    result = system(ioctl, number, ctypes.c_ulong(request), b"x")
    return errno.errorcode[ctypes.get_errno()] if result else "done"
print(told(0x5412), told(0x541C), told(0x5412 | 1 << 32), told(0x5401))
"""


def test_no_key_is_typed_into_a_terminal(jail: Jail):
    assert jail.script(IOCTL).lines == ["EPERM EPERM EPERM ENOTTY"]
    assert jail.run("tty; echo x > /dev/tty").lines[0] == "not a tty"


GIT = {
    "move": "mv .git .git2; mkdir -p .git/hooks; echo evil > .git/hooks/pre-commit",
    "hook": "echo evil > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit",
    "hooks moved": "mv .git/hooks .git/h; mkdir .git/hooks; echo evil > .git/hooks/pre-commit; rm -rf .git/h",
    "hooks removed": "rm -rf .git/hooks",
    "hooks linked": "rm -rf .git/hooks; ln -s .. .git/hooks",
    "configuration": "git config core.fsmonitor evil; git config core.hooksPath ..",
    "configuration written": "echo '[core] pager = evil' >> .git/config",
    "configuration replaced": "cp own .git/c; mv -f .git/c .git/config; rm -f .git/c",
    "another directory": "mkdir e; cp -r .git/. e; echo ../e > .git/commondir; rm -rf e",
}


def _protected(jail: Jail) -> dict[str, bytes]:
    git = jail.root / ".git"
    files = [git / "config", *(git / "hooks").rglob("*"), git / "commondir", git / "config.worktree"]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("command", GIT.values(), ids=GIT.keys())
def test_git_runs_nothing_of_a_commands_making(jail: Jail, command: str):
    before = _protected(jail)
    head = (jail.root / ".git" / "HEAD").read_text()
    result = jail.run(command)
    assert _protected(jail) == before
    assert (jail.root / ".git" / "HEAD").read_text() == head
    assert not (jail.root / ".git" / "commondir").exists()
    assert (jail.root / ".git" / "hooks").is_dir()
    assert not (jail.root / ".git" / "hooks").is_symlink()
    # What cannot be prevented is put back, and told.
    assert bool(result.restored) == (jail.kind == "landlock" or "commondir" in command)


def test_git_cannot_be_removed(confined: Jail):
    if confined.kind == "landlock":
        return _removed_with_landlock(confined)
    before = _protected(confined)
    confined.run("cp -r .git /tmp/kept; rm -rf .git; cp -r /tmp/kept/. .git; rm -rf /tmp/kept")
    assert _protected(confined) == before
    assert confined.run("git log --format=%s").lines == ["first"]
    return None


def _removed_with_landlock(jail: Jail) -> None:
    """What was in it is lost, as with any other file of the workspace; what would be run is not another's."""
    before = _protected(jail)
    result = jail.run("cp -r .git $TMPDIR/kept; rm -rf .git")
    assert result.restored
    assert _protected(jail) == before
    assert jail.run("cp -rn $TMPDIR/kept/. .git; rm -rf $TMPDIR/kept; git log --format=%s").lines == ["first"]


CREATED = [".punie", ".mcp.json", ".vscode", ".idea", ".claude", ".cursor", ".codex", ".envrc"]


def test_configuration_that_was_not_there_is_not_made(jail: Jail):
    attempts = "echo evil > $n; rm -rf $n; mkdir $n; echo evil > $n/config.toml; ln -s own $n; cp own $n/"
    jail.run(f"for n in {' '.join(CREATED)}; do {attempts}; done")
    for name in CREATED:
        assert not os.path.lexists(jail.root / name)
    assert (jail.root / "own").read_text() == "own\n"


def test_configuration_that_is_there_stays(jail: Jail):
    place = jail.root / ".punie"
    place.mkdir()
    (place / "config.toml").write_text("mine")
    if os.getuid() == 0:
        for path in (place, place / "config.toml"):
            os.chown(path, jail.uid, jail.uid)
    result = jail.run("cat .punie/config.toml; echo evil > .punie/config.toml; rm -rf .punie; mkdir -p .punie/x")
    assert result.output.startswith("mine")
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("config.toml", "mine")]
    subprocess.run(["rm", "-r", place], check=True)


def test_masks_of_a_killed_agent_are_taken_away(jail: Jail):
    place = jail.root / ".punie"
    place.mkdir()
    if os.getuid() == 0:
        os.chown(place, jail.uid, jail.uid)
    place.chmod(0o555)
    jail.run("true")
    if jail.kind == "landlock":
        place.rmdir()
    assert not place.exists()


SURVIVORS = {
    "background": f"sleep {MARK} &",
    "session": f"setsid sleep {MARK} >/dev/null 2>&1 &",
    "daemon": f"(setsid nohup env -i sleep {MARK} >/dev/null 2>&1 &) & sleep 0.2",
    "holds the output": f"(sleep {MARK}) & disown; echo done",
    "ignores SIGTERM": f"(trap '' TERM HUP INT; setsid sleep {MARK}; sleep {MARK}) & sleep 0.2",
    "shell killed": f"setsid sleep {MARK} & kill -9 $$",
    "group killed": f"setsid sleep {MARK} & sleep 0.1; kill -9 0",
    "everything killed": f"setsid sleep {MARK} & sleep 0.1; kill -9 -1",
}


@pytest.mark.parametrize("command", SURVIVORS.values(), ids=SURVIVORS.keys())
def test_nothing_survives_the_call(jail: Jail, command: str):
    started = time.monotonic()
    assert jail.run(command).stopped == ""
    assert time.monotonic() - started < 20


def test_nothing_survives_a_timeout(jail: Jail):
    command = (
        f"trap '' TERM; (setsid sh -c \"trap '' TERM; sleep {MARK}; sleep {MARK}\" &) ; sleep {MARK}; sleep {MARK}"
    )
    result = jail.run(command, timeout_s=1)
    assert result.stopped == "timeout"
    assert result.seconds < 15


def test_processes_outside_are_left_alone(jail: Jail):
    demote = {"user": jail.uid, "group": jail.uid, "extra_groups": []} if os.getuid() == 0 else {}
    with subprocess.Popen(["sleep", "1000"], **demote) as outsider:
        jail.run(f"kill -9 {outsider.pid}; kill -9 {jail.pid}; kill -TERM $PPID; kill -9 -1")
        assert outsider.poll() is None
        outsider.kill()
    assert jail.run("echo alive").lines == ["alive"]


def test_a_fork_bomb_is_stopped(jail: Jail):
    result = jail.run("bomb() { bomb | bomb & }; bomb; sleep 5; echo over", timeout_s=15)
    assert result.seconds < 30
    assert len(list(Path("/proc").iterdir())) < 2_000
    assert jail.run("echo well").lines == ["well"]


def test_a_gigabyte_of_output_costs_neither_memory_nor_disk(jail: Jail):
    before = jail.run("true").peak_kb
    result = jail.run("yes 0123456789abcdef0123456789abcdef | head -c 1200000000; sleep 200", timeout_s=200)
    assert result.stopped == "output"
    assert result.peak_kb - before < 50_000
    assert Path(result.saved).stat().st_size == 64 << 20
    assert jail.run(f"head -c 17 {result.saved}; echo x > {result.saved}").output.startswith("0123456789abcdef0")


PRIVILEGES = """
import ctypes, os, subprocess
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print(*(status[name].strip() for name in ("CapEff", "CapPrm", "CapAmb", "NoNewPrivs", "Seccomp")))
print(*sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1])
system = ctypes.CDLL(None, use_errno=True)
print(system.unshare(0x10000000), system.mount(b"", b"/mnt", b"tmpfs", 0, 0), system.ptrace(16, os.getppid(), 0, 0))
print(system.syscall(425, 1, 0), system.syscall(435, 0, 0))
places = [path for path in ("/dev/mem", "/dev/kmsg", "/sys/kernel/uevent_helper") if os.path.exists(path)]
for name in os.listdir("/proc"):
    if not name.isdecimal() and name not in ("self", "thread-self"):
        places.append("/proc/" + name)
        places += [os.path.join(top, file) for top, _, files in os.walk("/proc/" + name) for file in files]
for path in places:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        print(path, "opened")
    except OSError:
        pass
print(len(places) > 100)
for name in os.listdir("/sys/block"):
    try:
        os.open("/dev/" + name, os.O_RDONLY)
        print(name, "opened")
    except OSError:
        pass
"""


def test_there_are_no_privileges_to_use(jail: Jail):
    none = "0000000000000000"
    assert jail.script(PRIVILEGES).lines == [f"{none} {none} {none} 1 2", "0 1 2", "-1 -1 -1", "-1 -1", "True"]
    assert (
        jail.run("unshare -Ur true || bwrap --ro-bind / / true || su -c true </dev/null || echo none").lines[-1]
        == "none"
    )


def test_limits_are_set(jail: Jail):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    assert jail.run("ulimit -c; ulimit -n; ulimit -f").lines == ["0", str(files), str((4 << 30) // 1024)]


def test_git_works_inside(jail: Jail):
    command = """
        git -c user.name=a -c user.email=a@b commit -q --allow-empty -m second && git checkout -q -b topic
        git log --format=%s; git status --short; git checkout -q main 2>/dev/null || git checkout -q master
        git branch -q -D topic; git reset -q --hard HEAD~0; git stash list; git gc -q && git fsck
    """
    assert jail.run(command).lines[:2] == ["second", "first"]
    result = jail.run("git reset -q --hard HEAD; git log --format=%s | tail -1; git init -q new && rm -rf new")
    assert result.lines == ["first"]


def test_pytest_and_pip_work_inside(jail: Jail):
    (jail.root / "test_it.py").write_text(
        "from concurrent.futures import ProcessPoolExecutor\nimport asyncio\n"
        "def test_files(tmp_path):\n    (tmp_path / 'x').write_text('x')\n"
        "def test_loop():\n    asyncio.run(asyncio.sleep(0))\n"
        "def test_pool():\n    with ProcessPoolExecutor(2) as pool:\n        assert list(pool.map(abs, [-1])) == [1]\n"
    )
    (jail.root / "test_it.py").chmod(0o644)
    python = sys.executable
    result = jail.run(f"{python} -m pytest -q -p no:cacheprovider test_it.py; {python} -m pip --version", timeout_s=60)
    subprocess.run(["rm", "-rf", jail.root / "test_it.py", jail.root / "__pycache__"], check=True)
    assert "3 passed" in result.output
    assert result.lines[-1].startswith("pip ")


def test_a_compiler_works_inside(jail: Jail):
    source = "printf '#include <stdio.h>\\nint main(void) { puts(\"built\"); }\\n' > a.c"
    assert jail.run(f"{source}; gcc -o a a.c && ./a; rm -f a a.c").lines == ["built"]


def test_temporary_files_last_from_command_to_command(jail: Jail):
    assert jail.run("echo kept > ${TMPDIR}/it; mktemp").status == 0
    devices = "echo $(seq 3) | tee /dev/stderr > /dev/null; cat <<< here"
    assert jail.run(f"cat ${{TMPDIR}}/it; rm ${{TMPDIR}}/it; {devices}").lines == ["kept", "1 2 3", "here"]


def test_a_worktree_can_be_committed_in(uid: int):
    """Its `.git` is a file that leads to a repository outside; one that leads to somebody else's is not followed."""
    with Jail("none", uid) as other:
        made = other.run("git worktree add -q ../tree && cd ../tree && git status --short")
        assert made.status == 0, made.output
        tree = other.base / "tree"
        config, hook = other.root / ".git" / "config", other.root / ".git" / "hooks" / "pre-commit"
        with Commands(tree, state=other.state, home=other.home, kind="bubblewrap", uid=uid) as inside:
            committed = inside.run(
                "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m two; git log --format=%s"
            )
            assert committed.lines == ["two", "first"]
            inside.run(f"echo evil > {hook}; echo evil >> {config}; rm .git; echo gitdir: evil > .git")
        assert not hook.exists()
        assert "evil" not in config.read_text()
        assert (tree / ".git").read_text().startswith("gitdir: /")
        (tree / ".git").write_text(f"gitdir: {other.root}/.git\n")
        with Commands(tree, state=other.state, home=other.home, kind="bubblewrap", uid=uid) as inside:
            assert inside.run(f"echo x > {other.root}/.git/x").status == 1
