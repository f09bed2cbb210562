from collections.abc import Iterator
from pathlib import Path

import pytest
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
