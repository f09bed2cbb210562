"""No test reaches a model service, or any address outside this machine; Ctrl-C works in what tests start."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pydantic_ai.models
import pytest

from punie.backends._weights import default_cache_dir

pydantic_ai.models.ALLOW_MODEL_REQUESTS = False
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job, and all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
_LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def _only_loopback() -> Iterator[None]:
    """Refuse connections to other machines; files and pipes of this one stay open."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        yield


def _guarded(connect):
    def guarded(sock: socket.socket, address: object) -> object:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and not str(host).startswith(_LOOPBACK):
            raise RuntimeError(f"a test tried to reach {host}")
        return connect(sock, address)

    return guarded


FETCH = """
import sys, pathlib
from punie.backends._weights import ensure_base
ensure_base(pathlib.Path(sys.argv[1]))
"""


@pytest.fixture(scope="session")
def weights_cache() -> Path:
    """The cache directory with the embedded weights in it: what is there, or fetched once as a user would."""
    cache = Path(os.environ.get("PUNIE_CACHE_DIR") or default_cache_dir())
    # In another process: this one is not allowed to reach another machine.
    subprocess.run([sys.executable, "-c", FETCH, str(cache)], check=True, timeout=280)
    return cache
