"""Local mode needs no network and asks for none: not for an answer, an update, or a word about itself to anybody."""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from punie.tools import _seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces and system call filters are Linux's")

PUNIE = Path(sys.executable).with_name("punie")
QUESTION = "Where is Greeter defined?"
ANSWER = "class Greeter"

# The kernel kills a process at once that makes a socket of the internet, also one that only looks a name up and also
# from within a library in C; Python's own attempts are told besides, those of a library that asks a resolver too.
FILTERED = """
import ctypes, sys
program = bytes.fromhex(sys.argv.pop(1))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
filter = Program(len(program) // 8, program)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert libc.prctl(22, 2, ctypes.byref(filter), 0, 0) == 0  # seccomp, by a filter
def watch(event, given):
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"} and isinstance(given[1], tuple):
        print("ATTEMPT", event, given[1], file=sys.stderr)
    elif event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}:
        print("ATTEMPT", event, given, file=sys.stderr)
sys.addaudithook(watch)
from punie.cli import main
sys.exit(main(sys.argv[1:]))
"""


def no_internet(killing: int) -> bytes:
    """A filter for who makes a socket of IPv4 or IPv6, and what is done to them."""
    machine = os.uname().machine
    code = [
        (_seccomp._LOAD, 0, 0, _seccomp._NUMBER),
        (_seccomp._EQUAL, 0, 4, _seccomp._SOCKET[list(_seccomp._ARCHITECTURES).index(machine)]),
        _seccomp._argument(0),
        (_seccomp._EQUAL, 1, 0, 2),
        (_seccomp._EQUAL, 0, 1, 10),
        _seccomp._return(killing),
        _seccomp._return(_seccomp._ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def environment(root: Path, cache: Path) -> dict[str, str]:
    places = {f"XDG_{kind}_HOME": str(root / kind.lower()) for kind in ("CONFIG", "STATE")}
    return {"PATH": os.environ["PATH"], "HOME": str(root), **places, "PUNIE_CACHE_DIR": str(cache)}


def filtered(
    root: Path, cache: Path, *arguments: str, killing: int = _seccomp._KILL
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FILTERED, no_internet(killing).hex(), *arguments]
    return ran(command, root, cache)


def ran(command: list[str], root: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    project = root / "project"
    project.mkdir(exist_ok=True)
    (project / "a.py").write_text("class Greeter:\n    pass\n")
    env = environment(root, cache)
    nothing = subprocess.DEVNULL
    return subprocess.run(command, cwd=project, env=env, stdin=nothing, capture_output=True, text=True, timeout=250)


def test_the_embedded_model_answers_where_there_is_no_network(tmp_path: Path, weights_cache: Path) -> None:
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    done = ran([*alone, str(PUNIE), "-p", QUESTION], tmp_path, weights_cache)
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout


def test_an_answer_of_the_embedded_model_tries_no_connection(tmp_path: Path, weights_cache: Path) -> None:
    done = filtered(tmp_path, weights_cache, "-p", QUESTION)
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout
    assert "ATTEMPT" not in done.stderr


@pytest.mark.parametrize("arguments", [("--version",), ("models",), ("config", "show"), ("sessions", "list")])
def test_no_command_asks_for_updates_or_tells_anybody(
    tmp_path: Path, weights_cache: Path, arguments: tuple[str, ...]
) -> None:
    done = filtered(tmp_path, weights_cache, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ATTEMPT" not in done.stderr


def test_doctor_tells_nobody(tmp_path: Path, weights_cache: Path) -> None:
    """It listens on this machine's own address, for a jailed program to try and reach; it connects to nothing."""
    done = filtered(tmp_path, weights_cache, "doctor", "--quick", killing=_seccomp._ALLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ATTEMPT" not in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_attempt_would_have_been_seen(tmp_path: Path, weights_cache: Path, host: str) -> None:
    """What the tests above rest on: the same program with a model on a server is killed, or asks for its name."""
    done = filtered(tmp_path, weights_cache, "-p", QUESTION, "-m", f"openai:x@http://{host}:9/v1")
    assert done.returncode == -signal.SIGSYS or "ATTEMPT socket.getaddrinfo" in done.stderr
