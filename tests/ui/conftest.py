import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ui.pseudo import COLUMNS, ROWS, Start, Terminal
from tests.ui.scripted_server import ScriptedServer, serving


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "a.py").write_text("class Greeter:\n    pass\n")
    return root


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving() as scripted:
        yield scripted


@pytest.fixture
def start(project: Path, tmp_path: Path, server: ScriptedServer) -> Iterator[Start]:
    terminals: list[Terminal] = []

    def begin(*arguments: str, rows: int = ROWS, columns: int = COLUMNS, **env: str) -> Terminal:
        base = {name: value for name, value in os.environ.items() if not name.startswith(("PUNIE_", "XDG_", "CI"))}
        places = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}
        base.pop("NO_COLOR", None)
        given = {**base, **places, "TERM": "xterm-256color", **env}
        terminal = Terminal("--model", server.spec, *arguments, cwd=project, env=given, rows=rows, columns=columns)
        terminals.append(terminal)
        return terminal

    yield begin
    for terminal in terminals:
        terminal.kill()
