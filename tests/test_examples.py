"""Every program in examples/ runs as a user would run it."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.stubs import Answer, serving

EXAMPLES = Path(__file__).parent.parent / "examples"
HERE = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").write_text("[project]\n", "utf-8")
    code = "from typing import Protocol\n\n\nclass Shape(Protocol): ...\n\n\ndef main(): ...\n"
    (root / "app.py").write_text(code, "utf-8")
    return root


def run(name: str, *arguments: str | Path, typed: str = "") -> str:
    program = "sh" if name.endswith(".sh") else sys.executable
    command = [program, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=HERE, input=typed)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ask_answers_with_the_embedded_model(project: Path, weights_cache: Path) -> None:
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


async def test_swap_backends_goes_on_with_the_same_conversation(project: Path, weights_cache: Path) -> None:
    message = {"role": "assistant", "content": "As I said, in app.py."}
    reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub"}
    reply["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    async with serving(Answer(json.dumps(reply).encode(), content_type="application/json")) as server:
        printed = await asyncio.to_thread(run, "swap_backends.py", project, "local", f"openai:stub@{server.url}/v1")
    first, *_, last = printed.splitlines()
    assert first == "local: Shape is defined here:"
    assert last == "openai:stub: As I said, in app.py."
    asked = server.requests[-1][2]["messages"]
    assert "app.py:4 class Shape(Protocol)" in str(asked)


@pytest.mark.parametrize(("typed", "end"), [("y", "hello\n"), ("not now", None)])
def test_approve_does_what_was_typed(project: Path, typed: str, end: str | None) -> None:
    printed = run("approve.py", project, typed=typed + "\n")
    assert "+hello" in printed
    assert ("ok:" in printed) == (end is not None)
    assert ("not now" in printed) == (end is None)
    file = project / "hello.txt"
    assert (file.read_text("utf-8") if file.exists() else None) == end


def test_train_adapter_learns_what_it_is_taught(tmp_path: Path) -> None:
    from tests.backends import families  # MLX has to come after the BLAS that is loaded for it

    from punie.agent.instructions import prompt

    answer = "A coding agent that runs on your own machine."
    qwen2 = families.FAMILIES[0]
    texts = [qwen2.template, prompt("system"), "What is Punie?", answer] * 3
    base = families.write_model(tmp_path / "base", qwen2, texts=texts)
    first, *_, said = run("train_adapter.py", base, tmp_path).splitlines()
    assert first.startswith("update 1 of 80: loss ")
    assert said == answer


def test_a_script_reads_the_json(project: Path, weights_cache: Path) -> None:
    assert run("script.sh", project).splitlines() == ["app.py:4 class Shape(Protocol)"]


def test_every_example_has_a_test() -> None:
    here = Path(__file__).read_text("utf-8")
    assert [p.name for p in EXAMPLES.iterdir() if p.is_file() and f'"{p.name}"' not in here] == []
