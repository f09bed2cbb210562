"""`punie models`, `punie doctor` and one-shot runs of the installed program, against a scripted server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ui.scripted_server import Call, ScriptedServer

from punie.backends.catalogue import EMBEDDED, entries
from punie.ui._canary import EXPECTED

PUNIE = Path(sys.executable).with_name("punie")
WRITE = Call("write_file", {"path": "b.py", "content": "x = 1\n"})
Punie = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def punie(project: Path, tmp_path: Path) -> Punie:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("PUNIE_", "XDG_", "ANTHROPIC"))}
    places = {f"XDG_{kind.upper()}_HOME": str(tmp_path / kind) for kind in ("config", "state", "cache")}

    def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(PUNIE), *arguments]
        return subprocess.run(
            command,
            cwd=project,
            env={**base, **places, **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=250,
        )

    return run


# --- one answer ---


def test_question_and_standard_input_reach_the_model(punie: Punie, server: ScriptedServer) -> None:
    server.script = [["A review."]]
    done = punie("-p", "review this", "-m", server.spec, stdin="+ x = 1\n")
    assert (done.returncode, done.stdout) == (0, "A review.\n")
    assert "review this\\n\\n<stdin>\\n+ x = 1\\n</stdin>" in json.dumps(server.requests[0]["messages"])


@pytest.mark.parametrize(
    ("flags", "code", "written"),
    [
        ((), 3, False),
        (("--permission-mode", "dontAsk"), 0, False),
        (("--permission-mode", "acceptEdits"), 0, True),
        (("--allowed-tools", "write_file"), 0, True),
        (("--yolo",), 0, True),
    ],
)
def test_who_may_write(
    punie: Punie, server: ScriptedServer, project: Path, *, flags: tuple[str, ...], code: int, written: bool
) -> None:
    server.script = [[WRITE], ["Over."]]
    done = punie("-p", "write", "-m", server.spec, *flags, "--output-format", "json")
    assert done.returncode == code, done.stderr
    assert (project / "b.py").exists() is written
    outcomes = [call["outcome"] for call in json.loads(done.stdout)["tool_calls"]]
    assert outcomes == ["ok" if written else "denied"]


def test_a_tool_the_model_does_not_get_cannot_be_called(punie: Punie, server: ScriptedServer, project: Path) -> None:
    server.script = [[WRITE], ["Over."]]
    punie("-p", "write", "-m", server.spec, "--disallowed-tools", "write_file,run_command")
    assert not (project / "b.py").exists()
    tools = server.requests[0]["tools"]
    assert isinstance(tools, list)
    names = {tool["function"]["name"] for tool in tools}
    assert "read_file" in names
    assert not names & {"write_file", "run_command"}


def test_every_mode_offers_the_same_tools(punie: Punie, server: ScriptedServer, project: Path) -> None:
    for mode in ("default", "plan"):
        server.script = [["Over."]]
        punie("-p", "hi", "-m", server.spec, "--permission-mode", mode)
    assert server.requests[0]["tools"] == server.requests[1]["tools"], "a mode switch must keep the prompt's beginning"


def test_a_failure_before_the_first_turn_is_json_too(punie: Punie) -> None:
    done = punie("-p", "hi", "-m", "claude", "--output-format", "json")
    assert done.returncode == 2
    result = json.loads(done.stdout)
    assert (result["stop_reason"], result["answer"]) == ("error", "")
    assert "ANTHROPIC_API_KEY" in result["error"]
    assert done.stderr.startswith("punie: ")


def test_a_server_that_is_not_there(punie: Punie) -> None:
    done = punie("-p", "hi", "-m", "openai:x@http://127.0.0.1:9/v1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("punie: ")
    assert len(done.stderr.splitlines()) <= 3


# --- models ---


def test_models_lists_every_entry_with_its_licence(punie: Punie) -> None:
    done = punie("models")
    assert done.returncode == 0
    for name, model in entries().items():
        (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"local:{name} ")]
        assert model.licence in row


def test_models_info_says_where_the_weights_would_be(punie: Punie, tmp_path: Path) -> None:
    done = punie("models", "info", EMBEDDED, PUNIE_CACHE_DIR=str(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in done.stdout
    assert entries()[EMBEDDED].title in done.stdout


def test_models_test_passes_a_model_that_uses_the_tool(punie: Punie, server: ScriptedServer) -> None:
    server.script = [[Call("find_subclasses", {"name": "Shape"})], [f"shapes.py:5 class {EXPECTED}(Shape)"]]
    done = punie("models", "test", server.spec)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_models_test_fails_a_model_that_guesses(punie: Punie, server: ScriptedServer) -> None:
    server.script = [[f"Surely {EXPECTED}."]]
    done = punie("models", "test", server.spec)
    assert done.returncode == 1
    assert "failed" in done.stdout


# --- doctor ---


def test_doctor_is_content_with_a_model_that_answers(punie: Punie, server: ScriptedServer) -> None:
    server.script = [[Call("find_subclasses", {"name": "Shape"})], [f"shapes.py:5 class {EXPECTED}(Shape)"]]
    done = punie("doctor", "-m", server.spec)
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout


def test_doctor_names_the_cure_for_weights_that_are_not_there(punie: Punie) -> None:
    done = punie("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("FAIL  weights")]
    assert "punie models pull" in lines[at + 1]


def test_doctor_finds_damaged_weights(punie: Punie, tmp_path: Path) -> None:
    model = entries()[EMBEDDED]
    assert model.file is not None
    path = tmp_path / "weights" / "models" / EMBEDDED / model.file.name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF and nothing else")
    done = punie("doctor", PUNIE_CACHE_DIR=str(tmp_path / "weights"))
    assert done.returncode == 1
    assert "damaged" in done.stdout


def test_doctor_reports_settings_that_cannot_be_read(punie: Punie, tmp_path: Path) -> None:
    file = tmp_path / "config" / "punie" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("max_tokens = 'many'\n")
    done = punie("doctor")
    assert done.returncode == 1
    assert f"{file}:1" in done.stdout


def test_doctor_never_shows_a_key(punie: Punie) -> None:
    done = punie("doctor", ANTHROPIC_API_KEY="sk-secret-value")
    assert "ANTHROPIC_API_KEY is set" in done.stdout
    assert "sk-secret-value" not in done.stdout + done.stderr
