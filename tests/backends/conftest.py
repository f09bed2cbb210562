"""Small weights that tests make themselves."""

from pathlib import Path

import pytest
from tests.backends import tiny


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return tiny.write_gguf(tmp_path / "tiny.gguf")
