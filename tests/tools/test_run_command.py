import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic_ai import ModelRetry
from tests.tools.project import Project

from punie.config import SandboxOptions
from punie.tools import Workspace
from punie.tools.run_command import run_command

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")


async def run(project: Project, command: str, timeout_s: float | None = None) -> list[str]:
    return (await run_command(project.context, command, timeout_s)).split("\n")


def alive(mark: str) -> bool:
    listed = subprocess.run(["ps", "ax", "-o", "stat=,args="], capture_output=True, text=True, check=True).stdout
    return any(mark in line and not line.startswith("Z") for line in listed.splitlines())


async def until(condition: Callable[[], bool]) -> bool:
    for _ in range(1_500):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.fixture
def mark() -> str:
    """An argument of `sleep` that names the processes of one test."""
    return f"7{os.getpid()}{time.monotonic_ns() % 1_000_000}"


async def test_status_and_output_of_both_streams(project: Project):
    header, *lines = await run(project, "echo out; echo err >&2; exit 3")
    assert header.startswith("exit 3 in ")
    assert lines == ["out", "err"]
    assert len(await run(project, "true")) == 1


async def test_it_runs_in_the_root_without_input(project: Project):
    assert (await run(project, "pwd; cat; read x || echo closed"))[1:] == [str(project.root), "closed"]


async def test_a_signal_is_told_as_shells_do(project: Project):
    assert (await run(project, "kill -9 $$"))[0].startswith("exit 137 ")


async def test_the_environment_is_short(project: Project):
    source = {
        "PATH": os.environ["PATH"],
        "HOME": "/h",
        "LC_ALL": "C",
        "OPENAI_API_KEY": "s",
        "DB_PASS": "s",
        "BASH_ENV": "x",
    }
    project.workspace = Workspace(project.root, environment=source)
    names = {line.partition("=")[0] for line in (await run(project, "env"))[1:]}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        *("PATH", "HOME", "LC_ALL", "TERM", "NO_COLOR", "PAGER", "GIT_PAGER", "GIT_TERMINAL_PROMPT", "TMPDIR"),
    }


async def test_control_sequences_are_taken_out(project: Project):
    text = (
        r"\033[31mred\033[0m\n50%%\r100%%\n\033]0;title\007x\033]52;c;aGk=\033\\y\033Pq\033\\z\b\n\033]8;;unended\nlast"
    )
    assert (await run(project, f"printf '{text}'"))[1:] == ["red", "50%", "100%", "xyz", "", "last"]


async def test_odd_bytes(project: Project):
    assert (await run(project, r"printf 'caf\xe9 \xff\n'"))[1:] == [
        "caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}"
    ]


async def test_long_output_keeps_start_and_end(project: Project):
    lines = (await run(project, "seq 1000"))[1:]
    assert lines[:99] == [str(number) for number in range(1, 100)]
    assert lines[99] == "... 802 lines left out here; narrow with | grep, | head or | tail"
    assert lines[100:] == [str(number) for number in range(902, 1001)]


async def test_endless_output_is_bounded(project: Project):
    result = "\n".join(await run(project, "head -c 50000000 /dev/zero | tr '\\0' x; echo; echo end"))
    assert len(result) < 25_000
    assert result.endswith("\nend")
    assert "bytes left out here" in result


async def test_the_timeout_keeps_partial_output(project: Project):
    started = time.monotonic()
    result = await run(project, "echo first; sleep 60", timeout_s=3)
    assert result == ["timed out after 3 s (partial output kept)", "first"]
    assert time.monotonic() - started < 30


async def test_the_workspace_limits_the_timeout(project: Project):
    project.workspace.command_timeout_s = 0.3
    assert (await run(project, "sleep 60", timeout_s=1_000))[0].startswith("timed out after 0.3 s")
    assert (await run(project, "sleep 60"))[0].startswith("timed out after 0.3 s")


async def test_a_background_process_does_not_hold_the_result(project: Project, mark: str):
    started = time.monotonic()
    assert (await run(project, f"sleep {mark} & echo hi"))[1:] == ["hi"]
    assert time.monotonic() - started < 30
    assert not alive(f"sleep {mark}")


@on_linux
async def test_processes_that_left_the_session_are_ended(project: Project, mark: str):
    script = f"(setsid env -i sleep {mark} >/dev/null 2>&1 &); setsid sleep {mark} & echo started; sleep {mark}"
    assert "started" in await run(project, script, timeout_s=3)
    assert not alive(f"sleep {mark}")


@on_linux
async def test_a_daemon_is_ended_with_the_command(project: Project, mark: str):
    await run(project, f"(setsid nohup sleep {mark} >/dev/null 2>&1 &)")
    assert not alive(f"sleep {mark}")


async def test_processes_that_ignore_sigterm_are_ended(project: Project, mark: str):
    await run(project, f"trap '' TERM; sleep {mark}; sleep {mark}", timeout_s=0.3)
    assert not alive(f"sleep {mark}")


async def test_cancelling_ends_the_processes(project: Project, mark: str):
    task = asyncio.create_task(run(project, f"sleep {mark}"))
    assert await until(lambda: alive(f"sleep {mark}"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(f"sleep {mark}")


@on_linux
async def test_nothing_outlives_a_killed_agent(project: Project, mark: str, tmp_path: Path):
    script = tmp_path / "agent.py"
    script.write_text(
        "import asyncio, sys\nfrom punie.tools import Workspace\nfrom punie.tools._process import run\n"
        f"asyncio.run(run('sleep {mark}', sandbox=Workspace(sys.argv[1]).sandbox, timeout_s=60))\n"
    )
    agent = await asyncio.create_subprocess_exec(sys.executable, str(script), str(tmp_path))
    assert await until(lambda: alive(f"sleep {mark}"))
    agent.send_signal(signal.SIGKILL)
    await agent.wait()
    assert await until(lambda: not alive(f"sleep {mark}"))


@on_linux
async def test_a_shell_that_kills_its_supervisor_dies_with_it(project: Project):
    project.workspace = Workspace(project.root, sandbox=SandboxOptions(mode="off"))
    started = time.monotonic()
    result = await run(project, "kill -9 $PPID; sleep 40; echo survived")
    assert "survived" not in result
    assert time.monotonic() - started < 30


async def test_several_at_once(project: Project):
    results = await asyncio.gather(*(run(project, f"echo {number}; sleep 0.2") for number in range(4)))
    assert [result[1] for result in results] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("command", ["", "  ", "echo \0", "echo \ud800"])
async def test_commands_that_cannot_be_run_are_refused(project: Project, command: str):
    with pytest.raises(ModelRetry):
        await run(project, command)


async def test_quotes_and_leading_dashes_reach_the_shell(project: Project):
    assert (await run(project, "printf '%s\\n' \"a 'b'\""))[1:] == ["a 'b'"]
    assert (await run(project, "--version"))[0].startswith("exit 127 ")
