"""What the sandbox is made of, piece by piece; `test_sandbox.py` attacks the whole."""

import asyncio
import errno
import fcntl
import gc
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from pydantic_ai import RunContext
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RunUsage

from punie import redaction
from punie.config import SandboxOptions, load_settings
from punie.errors import ConfigError
from punie.tools import Sandbox, SandboxState, Workspace, _process, _sandbox, _seatbelt, _seccomp, sandbox_state
from punie.tools import _landlock as landlock
from punie.tools._environment import child_environment
from punie.tools._process import run
from punie.tools._protected import NAMES, Watch, masked, places, secrets
from punie.tools.run_command import run_command

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="what is tested is there on Linux only")


def context(workspace: Workspace) -> RunContext[Workspace]:
    return RunContext(deps=workspace, model=TestModel(), usage=RunUsage())


class TestEnvironment:
    def test_only_a_short_list_is_passed(self):
        source = {"PATH": "/bin", "LC_CTYPE": "C", "EDITOR": "vi", "LD_PRELOAD": "x.so", "BASH_FUNC_ls%%": "() { :; }"}
        assert child_environment(source).keys() & source.keys() == {"PATH", "LC_CTYPE"}

    def test_more_can_be_passed_by_name_or_pattern(self):
        source = {"CARGO_HOME": "/c", "CARGO_REGISTRY_TOKEN": "t", "DEBUG": "1", "MY_KEY": "k"}
        assert child_environment(source, more=["CARGO_*", "DEBUG"]).keys() >= {"CARGO_HOME", "DEBUG"}
        assert "CARGO_REGISTRY_TOKEN" not in child_environment(source, more=["CARGO_*", "*"])
        assert child_environment(source, more=["MY_KEY"])["MY_KEY"] == "k"

    @pytest.mark.parametrize(
        "value",
        [
            "-----BEGIN RSA PRIVATE KEY-----\nx",
            "https://user:hunter2@example.org/simple",
            "ghp_0123456789abcdef0123456789abcdef0123",
            "github_pat_0123456789abcdef0123456789",
            "sk-ant-0123456789abcdef01234567",
            "AKIAIOSFODNN7EXAMPLE",
            "AIzaSyA0123456789abcdef0123456789abcde",
            "xoxb-0123456789-0123456789",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.sig",
        ],
    )
    def test_a_value_that_looks_like_a_secret_is_not_passed(self, value: str):
        assert "LANG" not in child_environment({"LANG": value})
        assert "PIP_INDEX_URL" not in child_environment({"PIP_INDEX_URL": value}, more=["PIP_*"])


class Kernel:
    """Runs a filter as the kernel does: `linux/seccomp.h`, `linux/filter.h`."""

    def __init__(self, program: bytes) -> None:
        self.code = list(struct.iter_unpack("<HBBI", program))

    def answer(self, architecture: int, number: int, *arguments: int) -> int:
        data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
        at = value = 0
        for _ in range(len(self.code)):
            code, yes, no, operand = self.code[at]
            match code:
                case 0x20:
                    value = struct.unpack_from("<I", data, operand)[0]
                    at += 1
                case 0x06:
                    return operand
                case 0x15 | 0x35 | 0x45:
                    holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
                    at += 1 + (yes if holds else no)
                case _:
                    raise AssertionError(f"instruction {code:#x}")
        raise AssertionError("the program does not end")


X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, KILL, DENY = 0x7FFF0000, 0x80000000, 0x00050000


class TestSeccomp:
    @pytest.mark.parametrize(
        ("machine", "architecture", "socket", "socketpair", "clone", "ioctl", "unshare", "setxattr"),
        [("x86_64", X86, 41, 53, 56, 16, 272, 188), ("aarch64", ARM, 198, 199, 220, 29, 97, 5)],
    )
    def test_answers(
        self,
        machine: str,
        architecture: int,
        socket: int,
        socketpair: int,
        clone: int,
        ioctl: int,
        unshare: int,
        setxattr: int,
    ):
        kernel = Kernel(_seccomp.program(machine, network=False))
        for family in range(50):
            assert kernel.answer(architecture, socket, family) == DENY | errno.EPERM
        assert kernel.answer(architecture, socketpair, 1) == ALLOW
        assert kernel.answer(architecture, clone, 0x01200011) == ALLOW
        for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            assert kernel.answer(architecture, clone, flag | 0x11) == DENY | errno.EPERM
        assert kernel.answer(architecture, 435) == DENY | errno.ENOSYS
        assert kernel.answer(architecture, ioctl, 0, 0x5412) == DENY | errno.EPERM
        assert kernel.answer(architecture, ioctl, 0, 0x5412 | 7 << 32) == DENY | errno.EPERM
        assert kernel.answer(architecture, ioctl, 0, 0x541C) == DENY | errno.EPERM
        assert kernel.answer(architecture, ioctl, 0, 0x5413) == ALLOW
        assert kernel.answer(architecture, unshare, 0) == DENY | errno.EPERM
        assert kernel.answer(architecture, setxattr) == ALLOW
        strict = Kernel(_seccomp.program(machine, network=False, attributes=False))
        assert strict.answer(architecture, setxattr) == DENY | errno.EOPNOTSUPP

    @pytest.mark.parametrize(("machine", "architecture", "socket"), [("x86_64", X86, 41), ("aarch64", ARM, 198)])
    def test_the_network_is_only_the_internet(self, machine: str, architecture: int, socket: int):
        kernel = Kernel(_seccomp.program(machine, network=True))
        allowed = {family for family in range(50) if kernel.answer(architecture, socket, family) == ALLOW}
        assert allowed == {2, 10, 16}

    def test_other_architectures_are_killed_and_x32_is_denied(self):
        assert Kernel(_seccomp.program("x86_64", network=True)).answer(0x40000003, 1) == KILL
        assert Kernel(_seccomp.program("aarch64", network=True)).answer(X86, 1) == KILL
        assert Kernel(_seccomp.program("x86_64", network=True)).answer(X86, 0x40000000 + 41) == DENY | errno.EPERM

    def test_ordinary_calls_are_allowed(self):
        kernel = Kernel(_seccomp.program("x86_64", network=False, attributes=False))
        for number in (0, 1, 2, 3, 9, 57, 59, 60, 61, 62, 202, 231, 257, 262, 318, 332, 334, 424, 434, 439):
            assert kernel.answer(X86, number) == ALLOW


@on_linux
class TestLandlock:
    def test_attributes_grow_with_the_version(self):
        assert [len(landlock.ruleset(abi, network=False)) for abi in (1, 3, 4, 5, 6, 7)] == [8, 8, 16, 16, 24, 24]
        assert struct.unpack("<3Q", landlock.ruleset(7, network=False)) == (0xFFFF, 3, 3)
        assert struct.unpack("<3Q", landlock.ruleset(7, network=True)) == (0xFFFF, 0, 3)
        assert struct.unpack("<Q", landlock.ruleset(3, network=False)) == (0x7FFF,)

    def test_what_is_hidden_is_beside_what_is_allowed(self, tmp_path: Path):
        for name in ("home/.ssh", "home/.config/gh", "home/.config/other", "home/code"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "home" / "link").symlink_to(tmp_path / "home" / ".ssh")
        hidden = [tmp_path / "home" / ".ssh", tmp_path / "home" / ".config" / "gh"]
        allowed = {Path(path) for path, rights, _ in landlock.rules(7, writable=[], readable=[], hidden=hidden)}
        inside = {str(path.relative_to(tmp_path)) for path in allowed if path.is_relative_to(tmp_path)}
        assert inside == {"home/.config/other", "home/code"}
        assert tmp_path not in allowed
        assert tmp_path / "home" not in allowed

    def test_nothing_can_be_written_but_what_is_writable(self, tmp_path: Path):
        writing = 1 << 1 | 0b1111111110000 | 1 << 14
        rules = landlock.rules(7, writable=[tmp_path], readable=[], hidden=[])
        can = {path for path, rights, _ in rules if rights & writing}
        devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "shm")}
        assert can == {str(tmp_path), *devices}


class TestPlaces:
    def test_a_git_file_that_leads_elsewhere_opens_nothing(self, tmp_path: Path):
        other, root = tmp_path / "other", tmp_path / "root"
        root.mkdir()
        subprocess.run(["git", "init", "-q", other], check=True)
        for text in (f"gitdir: {other}/.git\n", "gitdir: ../other/.git", "gitdir: /", "gitdir: .", "", "gitdir: "):
            (root / ".git").write_text(text)
            assert places(root).outside == ()
            assert root / ".git" in places(root).fixed

    def test_a_submodule_is_its_own_and_those_below_are_fixed(self, tmp_path: Path):
        run_git = ["git", "-c", "protocol.file.allow=always", "-c", "user.name=a", "-c", "user.email=a@b"]
        part, whole = tmp_path / "part", tmp_path / "whole"
        for path in (part, whole):
            subprocess.run([*run_git, "init", "-q", path], check=True)
            subprocess.run([*run_git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=path, check=True)
        subprocess.run([*run_git, "submodule", "--quiet", "add", part, "lib"], cwd=whole, check=True)
        inside = whole / ".git" / "modules" / "lib"
        assert {inside / "config", inside / "hooks"} <= set(places(whole).fixed)
        assert places(whole / "lib").outside == (inside,)
        assert inside / "config" in places(whole / "lib").fixed

    def test_a_linked_git_directory_is_not_followed(self, tmp_path: Path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / ".git").symlink_to(tmp_path / "elsewhere")
        assert places(tmp_path / "root").pinned == ()

    def test_a_home_in_the_workspace_keeps_its_shell_files(self, tmp_path: Path):
        (tmp_path / ".bashrc").write_text("")
        assert tmp_path / ".bashrc" in places(tmp_path, home=tmp_path).fixed
        assert tmp_path / ".bashrc" not in places(tmp_path, home=tmp_path.parent).fixed

    def test_secrets_are_real_paths_and_never_the_workspace(self, tmp_path: Path):
        for name in (".aws", "real", ".config/gh/work"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / ".ssh").symlink_to("real")
        (tmp_path / ".netrc").write_text("x")
        found = secrets([tmp_path], root=tmp_path / ".config" / "gh" / "work")
        assert [path.name for path in found] == [".aws", ".netrc", "real"]


class TestMasks:
    def test_they_are_there_only_meanwhile(self, tmp_path: Path):
        paths = [tmp_path / name for name in NAMES]
        paths[1].write_text("mine")
        with masked(paths) as there:
            assert there == paths
            assert all(path.is_dir() for path in paths if path != paths[1])
        assert list(tmp_path.iterdir()) == [paths[1]]

    def test_the_last_one_takes_them_away(self, tmp_path: Path):
        place = tmp_path / ".punie"
        with masked([place]):
            with masked([place]):
                pass
            assert place.is_dir()
            other = os.open(place, os.O_RDONLY)
            fcntl.flock(other, fcntl.LOCK_SH)
        assert place.is_dir()
        os.close(other)
        with masked([place]):
            pass
        assert not place.exists()

    def test_an_empty_directory_of_the_user_stays(self, tmp_path: Path):
        (tmp_path / ".punie").mkdir(mode=0o755)
        with masked([tmp_path / ".punie"]) as there:
            assert there == [tmp_path / ".punie"]
        assert (tmp_path / ".punie").is_dir()

    def test_where_none_can_be_made_there_is_none(self, tmp_path: Path):
        with masked([tmp_path / "missing" / ".punie"]) as there:
            assert there == []


class TestWatch:
    def test_trees_come_back_as_they_were(self, tmp_path: Path):
        choose = random.Random(3)
        for number in range(20):
            place, aside = tmp_path / str(number) / "work", tmp_path / str(number) / "aside"
            aside.mkdir(parents=True)
            tree = place / "tree"
            for index in range(choose.randrange(1, 8)):
                path = tree.joinpath(*(choose.choice("abc") for _ in range(choose.randrange(3))), f"f{index}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(choose.randbytes(choose.randrange(50)))
                path.chmod(choose.choice([0o600, 0o644, 0o755]))
            tree.mkdir(parents=True, exist_ok=True)
            (tree / "link").symlink_to("a")
            before = self._listing(tree)
            watch = Watch([tree, place / "missing"], (), aside)
            assert watch.restore() == []
            for path in sorted(tree.rglob("*"), reverse=True):
                match choose.randrange(4):
                    case 0 if path.is_file() and not path.is_symlink():
                        path.write_bytes(b"evil")
                    case 1 if path.is_file() or path.is_symlink():
                        path.unlink()
                    case 2 if path.parent.is_dir():
                        (path.parent / f"new{choose.random()}").write_text("evil")
            (place / "missing").write_text("evil")
            assert place / "missing" in watch.restore()
            assert self._listing(tree) == before
            assert not (place / "missing").exists()
            assert any(aside.iterdir())

    def test_a_directory_moved_away_comes_back(self, tmp_path: Path):
        place, aside = tmp_path / "work" / ".git", tmp_path / "aside"
        (place / "hooks").mkdir(parents=True)
        aside.mkdir()
        watch = Watch([place / "hooks"], [place], aside)
        place.rename(tmp_path / "work" / "other")
        (place / "hooks").mkdir(parents=True)
        (place / "hooks" / "pre-commit").write_text("evil")
        assert watch.restore() == [place]
        assert [path.name for path in place.iterdir()] == ["hooks"]
        assert list((place / "hooks").iterdir()) == []

    def test_nothing_is_written_through_a_link(self, tmp_path: Path):
        place, aside, elsewhere = tmp_path / "work", tmp_path / "aside", tmp_path / "elsewhere"
        for path in (place / ".git", aside, elsewhere):
            path.mkdir(parents=True)
        (place / ".git" / "config").write_text("mine")
        (elsewhere / "config").write_text("theirs")
        watch = Watch([place / ".git" / "config"], [place / ".git"], aside)
        (place / ".git" / "config").unlink()
        (place / ".git").rmdir()
        (place / ".git").symlink_to(elsewhere)
        watch.restore()
        assert (elsewhere / "config").read_text() == "theirs"

    def test_what_is_too_large_is_left_where_it_is(self, tmp_path: Path):
        (tmp_path / "aside").mkdir()
        (tmp_path / "large").write_bytes(b"x" * 2_000_000)
        watch = Watch([tmp_path / "large"], (), tmp_path / "aside")
        (tmp_path / "large").write_bytes(b"y" * 2_000_000)
        assert watch.restore() == [tmp_path / "large"]
        assert (tmp_path / "large").read_bytes()[:1] == b"y"

    @staticmethod
    def _listing(tree: Path) -> dict[str, tuple[int, str | bytes]]:
        return {
            str(path.relative_to(tree)): (
                path.lstat().st_mode,
                str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
            )
            for path in tree.rglob("*")
        }


class TestSeatbelt:
    """On Linux only the text of a profile can be looked at; that macOS accepts it is not shown here."""

    def test_a_profile(self, tmp_path: Path):
        root = tmp_path / "work"
        made = _seatbelt.profile(
            writable=[root], fixed=[root / ".git" / "hooks"], hidden=[tmp_path / ".ssh"], network=False
        )
        values = dict(made.parameters)
        lines = [
            re.sub(r'\(param "(P\d+)"\)', lambda m: Path(values[m[1]]).name, line) for line in made.text.split("\n")
        ]
        assert lines[0:2] == ["(version 1)", "(deny default)"]
        assert lines[lines.index("(allow file-write* (subpath work))") :] == [
            "(allow file-write* (subpath work))",
            "(deny file-write* (subpath hooks))",
            "(deny file-write-unlink (literal .git))",
            "(deny file-write-unlink (literal work))",
            "(deny file-read* (subpath .ssh))",
            "(deny file-write* (subpath .ssh))",
            "(deny network*)",
            "",
        ]
        assert made.arguments()[:3] == [_seatbelt.PROGRAM, "-p", made.text]
        assert made.arguments()[-1] == "--"

    def test_no_path_gets_into_the_text(self, tmp_path: Path):
        choose = random.Random(5)
        odd = ['"', ")", "(allow default)", "\\", "\n", " ", "'", "$(x)", "ü", ";", "#", "..", "P0"]
        for _ in range(200):
            names = ["".join(choose.choices(odd, k=choose.randrange(1, 5))) for _ in range(4)]
            root, *others = (tmp_path / name for name in names)
            made = _seatbelt.profile(writable=[root], fixed=[others[0]], hidden=[others[1]], network=False)
            own = made.text.removeprefix(_seatbelt._BASE).splitlines()
            shape = r"\((allow|deny) file-(write\*|read\*|write-unlink) \((subpath|literal) \(param \"P\d+\"\)\)\)"
            assert all(re.fullmatch(shape, line) for line in own[:-1])
            assert made.text.count("(") == made.text.count(")")
            given = made.arguments()
            assert given.count("-D") == len(made.parameters)
            assert all(Path(value).is_absolute() for _, value in made.parameters)

    def test_the_network_is_denied_unless_asked_for(self, tmp_path: Path):
        off, on = (
            _seatbelt.profile(writable=[tmp_path], fixed=[], hidden=[], network=network).text
            for network in (False, True)
        )
        assert off.endswith("(deny network*)\n")
        assert "(allow network" not in off
        assert "(allow network-outbound)" in on
        assert on.endswith("(deny network* (remote unix-socket))\n")


class TestState:
    def test_this_machine_has_a_sandbox(self):
        state = sandbox_state()
        assert state.active
        assert state.kind in {"bubblewrap", "seatbelt"}
        assert state.reason.endswith("without network")
        assert sandbox_state(SandboxOptions(network=True)).reason.endswith("with network")

    def test_off_is_only_off_when_it_is_said(self, tmp_path: Path):
        assert sandbox_state(SandboxOptions(mode="off")).kind == "none"
        assert Workspace(tmp_path, sandbox=SandboxOptions(mode="off")).sandbox.state.kind == "none"
        assert Workspace(tmp_path).sandbox.state.active

    @on_linux
    def test_without_bubblewrap_it_is_landlock_and_weaker(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        state = sandbox_state()
        assert (state.kind, state.weaker) == ("landlock", True)
        assert "bubblewrap is not installed" in state.reason

    @on_linux
    def test_a_bubblewrap_that_confines_nothing_is_found_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        program = tmp_path / "bwrap"
        program.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; cd "$OLDPWD"; exec "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        state = sandbox_state()
        assert state.kind == "landlock"
        assert "bubblewrap does not work" in state.reason

    @on_linux
    def test_nothing_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        monkeypatch.setattr(landlock, "version", lambda: 0)
        state = sandbox_state()
        assert state.kind == "none"
        assert "bubblewrap is not installed" in state.reason
        with pytest.raises(ConfigError, match="No sandbox works here") as raised:
            Workspace(tmp_path, sandbox=SandboxOptions(mode="required"))
        assert len(str(raised.value).splitlines()) <= 3

    def test_the_whole_disk_is_no_workspace(self):
        assert Sandbox(Path("/"), environment={}).state == SandboxState("none", "the workspace is the whole disk")

    @on_linux
    def test_keys_in_the_workspace_are_more_than_landlock_can_hide(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        home = {"HOME": str(tmp_path)}
        before = Workspace(tmp_path, environment=home)
        assert before.sandbox.state.kind == "landlock"
        (tmp_path / ".ssh").mkdir()
        assert Workspace(tmp_path, environment=home).sandbox.state.kind == "none"
        # A command must not talk Punie out of a sandbox that somebody has relied on.
        assert before.sandbox.state.kind == "landlock"
        assert Workspace(tmp_path / ".ssh", environment=home).sandbox.state.kind == "landlock"

    @on_linux
    async def test_a_bubblewrap_of_the_workspace_is_not_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        program = tmp_path / "bwrap"
        program.write_text("#!/bin/sh\necho mine\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f":.:{tmp_path}:{os.environ['PATH']}")
        sandbox = Sandbox(tmp_path, environment=os.environ, state=SandboxState("bubblewrap", ""))
        assert (await run("echo theirs", sandbox=sandbox, timeout_s=60)).head == b"theirs\n"

    def test_the_settings_are_the_users_alone(self, tmp_path: Path):
        config = tmp_path / "config" / "punie"
        config.mkdir(parents=True)
        work = tmp_path / "work"
        (work / ".punie").mkdir(parents=True)
        (config / "config.toml").write_text(
            f'trusted_projects = ["{work}"]\n[sandbox]\nmode = "required"\nnetwork = true\nenvironment = ["CARGO_*"]\n'
        )
        env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": "/h"}
        options = load_settings(cwd=work, env=env, flags={}).settings.sandbox
        assert options == SandboxOptions(mode="required", network=True, environment=("CARGO_*",))
        (work / ".punie" / "config.toml").write_text('[sandbox]\nmode = "off"\n')
        with pytest.raises(ConfigError, match=r"a project cannot set 'sandbox\.mode'"):
            load_settings(cwd=work, env=env, flags={})


def bytes_of(file: Path) -> bytes:
    """For tests that run in an event loop, which nobody waits for here."""
    return file.read_bytes()


class TestRunning:
    async def test_a_permission_for_the_network_is_for_one_run_of_one_command(self, tmp_path: Path):
        sandbox = Workspace(tmp_path).sandbox
        sandbox.allow_network("curl a")
        assert not sandbox.network_for("curl b")
        assert sandbox.network_for("curl a")
        assert not sandbox.network_for("curl a")
        assert Workspace(tmp_path, sandbox=SandboxOptions(network=True)).sandbox.network_for("curl a")

    async def test_long_output_is_kept_whole_and_can_be_read_back(self, tmp_path: Path):
        (tmp_path / "work").mkdir()
        workspace = Workspace(tmp_path / "work", state_dir=tmp_path / "state")
        result = await run_command(context(workspace), "seq 1000")
        cut = re.search(r"802 lines left out here; narrow with .*; all of it: (\S+)", result)
        assert cut is not None
        numbers = "".join(f"{number}\n" for number in range(1, 1001))
        assert self._saved(result) == numbers
        assert (await run_command(context(workspace), f"sed -n 500p {cut[1]}")).endswith("\n500")
        assert workspace.sandbox._outputs.stat().st_mode & 0o077 == 0
        result = await run_command(context(workspace), "seq 100000 | tr -d '\\n'")
        assert len(self._saved(result)) == 488_895

    async def test_of_output_that_is_not_kept_whole_that_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(_process, "SAVED_BYTES", 100_000)
        (tmp_path / "work").mkdir()
        workspace = Workspace(tmp_path / "work", state_dir=tmp_path / "state")
        result = await run_command(context(workspace), "seq 100000")
        cut = re.search(r"; the first 100000 bytes of it: (\S+)", result)
        assert cut is not None
        numbers = "".join(f"{number}\n" for number in range(1, 100_000))[:100_000]
        assert (await asyncio.to_thread(Path(cut[1]).read_text)) == numbers
        assert result.endswith("\n100000")

    async def test_no_secret_lies_in_the_file_with_the_rest_of_an_output(self, tmp_path: Path):
        (tmp_path / "work").mkdir()
        key = "ghp_a7QJBd0Kh8oOOL8dKLzdocJ2isAjIhKtJ0Rl12"
        secret = {"ACME_API_KEY": "plain-Words-77", "PATH": os.environ["PATH"]}
        workspace = Workspace(tmp_path / "work", state_dir=tmp_path / "state", environment=secret)
        told = f"echo {key[:20]}'{key[20:]}' plain-'Words'-77"
        for command in (
            f"seq 300; {told}",
            f"seq 9000; {told}; seq 9000; printf 'odd \\377 byte\n'",
            f"{told}; seq 9000",
        ):
            result = await run_command(context(workspace), command)
            file = Path(re.findall(r"; all of it: (\S+)", result)[0])
            saved = bytes_of(file)
            assert b"[redacted:github-token] [redacted:ACME_API_KEY]\n" in saved
            assert saved.count(b"\n") == sum(map(int, re.findall(r"seq (\d+)", command))) + 1 + command.count("odd")
            assert (b"odd \xff byte\n" in saved) == ("odd" in command)
            assert not any(each in saved for each in (key.encode(), b"plain-Words-77"))

    async def test_output_that_cannot_be_looked_through_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "work").mkdir()
        monkeypatch.setattr(redaction, "PATIENCE_S", 0.0)
        workspace = Workspace(tmp_path / "work", state_dir=tmp_path / "state")
        result = await run_command(context(workspace), "echo key; seq 9000; seq 9000")
        file = re.findall(r"; the first \d+ bytes of it: (\S+)", result)[0]
        assert bytes_of(Path(file)) == redaction.FAILED.encode()
        assert "\n1\n" not in result

    @staticmethod
    def _saved(result: str) -> str:
        return Path(re.findall(r"; all of it: (\S+)", result)[0]).read_text()

    async def test_short_output_leaves_no_file(self, tmp_path: Path):
        (tmp_path / "work").mkdir()
        workspace = Workspace(tmp_path / "work", state_dir=tmp_path / "state")
        await run_command(context(workspace), "seq 100")
        assert not (tmp_path / "state").exists()

    async def test_old_output_is_taken_away(self, tmp_path: Path):
        (tmp_path / "work").mkdir()
        for name, age_d in (("old", 8), ("new", 1)):
            place = tmp_path / "state" / "outputs" / name
            place.mkdir(parents=True)
            (place / "1.txt").write_text("x")
            then = time.time() - age_d * 86_400
            os.utime(place, (then, then))
        await run_command(context(Workspace(tmp_path / "work", state_dir=tmp_path / "state")), "seq 1000")
        names = {path.name for path in (tmp_path / "state" / "outputs").iterdir()}
        assert "new" in names
        assert "old" not in names

    async def test_what_was_put_back_is_told(self, tmp_path: Path):
        (tmp_path / ".git").mkdir()
        workspace = Workspace(tmp_path)
        result = await run_command(context(workspace), "echo .. > .git/commondir")
        assert result.endswith(f"\nput back as it was: {tmp_path}/.git/commondir")
        assert not (tmp_path / ".git" / "commondir").exists()

    @on_linux
    async def test_processes_are_counted_where_there_is_no_control_group(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(_sandbox, "_own_cgroup", lambda: None)
        monkeypatch.setattr(_sandbox, "_limited_shell", list)
        monkeypatch.setattr(_sandbox, "_tasks", lambda: 1_000_000)
        monkeypatch.setattr(_sandbox, "MAX_PROCESSES", 60)
        for kind in ("bubblewrap", "landlock"):
            sandbox = Sandbox(tmp_path, environment=os.environ, state=SandboxState(kind, ""))
            crowd = "for i in $(seq 90); do sleep 77 & done 2>/dev/null; sleep 20"
            outcome = await run(crowd, sandbox=sandbox, timeout_s=60)
            assert outcome.stopped == "processes"
            assert outcome.seconds < 19

    @on_linux
    async def test_a_filter_the_kernel_refuses_runs_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(_seccomp, "program", lambda *_, **__: b"\0" * 8)
        for kind in ("bubblewrap", "landlock"):
            sandbox = Sandbox(tmp_path, environment=os.environ, state=SandboxState(kind, ""))
            outcome = await run("echo ran > ran", sandbox=sandbox, timeout_s=60)
            assert outcome.status != 0
            assert not (tmp_path / "ran").exists()

    def test_a_supervisor_that_is_rewritten_changes_nothing(self, tmp_path: Path):
        """Somebody who works on Punie with Punie has its code in the workspace."""
        package = Path(_sandbox.__file__).parents[1]
        shutil.copytree(package, tmp_path / "punie", ignore=shutil.ignore_patterns("adapters", "__pycache__"))
        evil = f"open({str(tmp_path / 'evil')!r}, 'w')"
        program = (
            "import asyncio, pathlib, punie.tools._sandbox as s\n"
            "from punie.tools import Workspace\nfrom punie.tools._process import run\n"
            "place = pathlib.Path(s.__file__).with_name('_supervisor.py')\n"
            f"assert str(place).startswith({str(tmp_path)!r})\n"
            f"place.write_text({evil!r})\n"
            f"print(asyncio.run(run('true', sandbox=Workspace({str(tmp_path)!r}).sandbox, timeout_s=60)).status)\n"
        )
        env = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert done.stdout == "0\n"
        assert not (tmp_path / "evil").exists()

    async def test_private_files_go_with_the_workspace(self, tmp_path: Path):
        workspace = Workspace(tmp_path)
        await run_command(context(workspace), "echo x > $TMPDIR/x")
        private = workspace.sandbox._private
        assert (private / "tmp" / "x").exists()
        assert private.stat().st_mode & 0o077 == 0
        del workspace
        gc.collect()
        assert not private.exists()

    async def test_private_files_of_a_killed_agent_go_later(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        old, used, foreign = (tmp_path / f"{_sandbox._PRIVATE}{name}" for name in ("old", "used", "link"))
        for path in (old / "tmp", used / "tmp"):
            path.mkdir(parents=True)
        foreign.symlink_to(tmp_path / "elsewhere")
        os.utime(old, (1, 1))
        os.utime(used, (1, 1))
        lock = os.open(used, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_SH)
        path, own = _sandbox._private_directory()
        assert path.parent == tmp_path
        assert (old.exists(), used.exists(), foreign.is_symlink()) == (False, True, True)
        os.close(lock)
        os.close(own)
