"""Checks after a turn, as `punie -p` and the chat run and show them: who switched them on, and in what project."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.ui.pseudo import ESCAPE, PUNIE, Start, ready
from tests.ui.scripted_server import Call, ScriptedServer
from tests.ui.test_draw import drawn, ended

from punie.agent.events import CheckEnded, CheckStarted, Text

FAILING = '[[checks]]\ncommand = "touch ran && grep -n class a.py && exit 1"\n'
PASSING = '[[checks]]\ncommand = "touch ran"\n'
WRITE = Call("write_file", {"path": "new.py", "content": "x = 1\n"})


@dataclass
class Setting:
    project: Path
    home: Path
    server: ScriptedServer

    @property
    def env(self) -> dict[str, str]:
        places = {"XDG_CONFIG_HOME": str(self.home / "config"), "XDG_STATE_HOME": str(self.home / "state")}
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8", **places}

    def own(self, text: str) -> None:
        (self.home / "config" / "punie").mkdir(parents=True, exist_ok=True)
        (self.home / "config" / "punie" / "config.toml").write_text(text)

    def of_project(self, text: str) -> None:
        (self.project / ".punie").mkdir(exist_ok=True)
        (self.project / ".punie" / "config.toml").write_text(text)

    def trust(self) -> None:
        subprocess.run([PUNIE, "trust"], cwd=self.project, env=self.env, check=True, capture_output=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [PUNIE, "-p", "Do it.", "-m", self.server.spec, "--permission-mode", "acceptEdits", *arguments]
        (self.project / "ran").unlink(missing_ok=True)
        (self.project / "new.py").unlink(missing_ok=True)
        self.server.requests.clear()
        done = subprocess.run(
            command, cwd=self.project, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done

    @property
    def ran(self) -> bool:
        return (self.project / "ran").exists()


@pytest.fixture
def setting(project: Path, tmp_path: Path, server: ScriptedServer) -> Setting:
    return Setting(project, tmp_path, server)


def test_in_a_project_that_nobody_trusts_no_check_runs(setting: Setting):
    setting.server.script = [[WRITE], ["Done."]]
    setting.own(PASSING)
    done = setting.run()
    assert f"Checks are not run: {setting.project} is not trusted." in done.stderr
    assert not setting.ran


def test_what_a_trusted_project_wrote_down_needs_the_permission_that_a_command_needs(setting: Setting):
    setting.server.script = [[WRITE], ["Done."]]
    setting.of_project(PASSING)
    setting.trust()
    done = setting.run()
    assert "check not run: touch ran → run_command needs a permission" in done.stderr
    assert (done.stdout, setting.ran) == ("Done.\n", False)
    done = setting.run("--allowed-tools", "Bash(touch ran)")
    assert "check passed: touch ran → exit 0" in done.stderr
    assert setting.ran


def test_what_the_user_wrote_down_runs_in_the_sandbox_and_is_told_in_the_stream(setting: Setting):
    setting.server.script = [[WRITE], ["Done."], ["That was so before."]]
    setting.own(FAILING)
    setting.trust()
    done = setting.run("--output-format", "stream-json")
    assert setting.ran
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds.index("tool_result") < kinds.index("check_started") < kinds.index("check_ended") < kinds.index("done")
    check = next(event for event in events if event["type"] == "check_ended")
    assert (check["outcome"], check["returned"]) == ("failed", True)
    assert "1:class Greeter:" in check["output"]
    assert events[-1]["answer"] == "That was so before."
    assert "1:class Greeter:" in json.dumps(setting.server.requests[-1])


def test_the_chat_shows_checks_in_a_line_and_escape_stops_them(setting: Setting, start: Start):
    slow = '[[checks]]\ncommand = "touch started; sleep 50"\n'
    setting.server.script = [[WRITE], ["Done."], ["That was so before."], ["Still here."]]
    setting.own(FAILING + slow)
    setting.trust()
    terminal = ready(start("--permission-mode", "acceptEdits", HOME=str(setting.home)))
    terminal.enter("Do it.")
    terminal.wait("• check failed: touch ran", "→ the model is told", "1:class Greeter", "Checking: touch st")
    terminal.type(ESCAPE)
    terminal.wait("Stopped.")
    terminal.enter("Go on.")
    terminal.wait("That was so before.")


def test_the_answer_before_a_check_is_not_taken_back() -> None:
    check = CheckEnded("ruff", "ruff check a.py", "failed", "exit 1 in 0.1 s\na.py:1:8: F401\n", 0.1, returned=True)
    text = drawn(Text("I wrote it."), CheckStarted("ruff", "ruff check a.py"), check, Text("Mended."), ended())
    lines = text.splitlines()
    assert lines[0] == "I wrote it."
    assert lines[1] == "• check failed: ruff → the model is told; exit 1 in 0.1 s (100 ms)"
    assert lines[2:] == ["  a.py:1:8: F401", "Mended."]
