"""Every program in examples/ runs as a user would run it."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("[project]\n", "utf-8")
    code = "from typing import Protocol\n\n\nclass Shape(Protocol): ...\n\n\ndef main(): ...\n"
    (tmp_path / "app.py").write_text(code, "utf-8")
    return tmp_path


def run(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ask_answers_with_the_embedded_model(project: Path) -> None:
    assert "app.py:4 class Shape(Protocol)" in run("ask.py", project)


def test_own_model(project: Path) -> None:
    assert "pyproject.toml" in run("own_model.py", project)


def test_own_tool(project: Path) -> None:
    assert '"count_lines":7' in run("own_tool.py", project)


def test_events(project: Path) -> None:
    printed = run("events.py", project)
    assert "call: find_symbol" in printed
    assert printed.rstrip().endswith("ended: done")
    pieces = [line.removeprefix("text: ") for line in printed.splitlines() if line.startswith("text: ")]
    assert "".join(pieces) == "Found it."


def test_undo(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    printed = run("undo.py", project, tmp_path_factory.mktemp("state") / "sessions")
    assert printed.splitlines() == ["written: hello", "taken back: hello.txt", "stored: 4 messages"]
    assert not (project / "hello.txt").exists()


def test_every_example_has_a_test() -> None:
    here = Path(__file__).read_text("utf-8")
    assert [p.name for p in EXAMPLES.glob("*.py") if f'"{p.name}"' not in here] == []
