"""The real weights, for the few tests that need them: from the cache, or fetched once as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.backends import tiny

from punie.backends._weights import default_cache_dir

FETCH = """
import sys, pathlib
from punie.backends._weights import ensure_base
ensure_base(pathlib.Path(sys.argv[1]))
"""


@pytest.fixture(scope="session")
def weights_cache() -> Path:
    """The cache directory with the embedded weights in it."""
    cache = Path(os.environ.get("PUNIE_CACHE_DIR") or default_cache_dir())
    # In another process: this one is not allowed to reach another machine.
    subprocess.run([sys.executable, "-c", FETCH, str(cache)], check=True, timeout=280)
    return cache


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return tiny.write_gguf(tmp_path / "tiny.gguf")
