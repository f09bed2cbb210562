"""Real servers on the loopback address, each in a process of its own that ends with the block that started it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 10.0

# xllamacpp has no command line: its server lives as long as this script's standard input is open.
XLLAMACPP = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.model_alias = "tiny"
parameters.n_ctx, parameters.n_parallel, parameters.verbosity = int(sys.argv[3]), 1, -1
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(sys.argv[4])
parameters.warmup = parameters.fit_params = parameters.ui = False
parameters.use_jinja = True
parameters.api_keys = [key for key in sys.argv[5:6] if key]
parameters.chat_template = "".join(sys.argv[6:])
server = xllamacpp.Server(parameters)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    base_url: str
    """Ends in /v1."""
    model: str
    """The name to ask for."""


@contextmanager
def mlx_lm_server(directory: Path, *, adapter: Path | None = None) -> Iterator[Served]:
    """`mlx_lm.server` on a model directory; it is always asked for the model it was started with."""
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(directory), "--port", str(port)]
    command += ["--adapter-path", str(adapter)] if adapter else []
    with _running(command, port=port, ready="/v1/models") as url:
        yield Served(url, "default_model")


@contextmanager
def xllamacpp_server(
    gguf: Path, *, context: int = 512, threads: int = 1, key: str = "", template: str = ""
) -> Iterator[Served]:
    """llama.cpp's server as the xllamacpp wheel has it; `template` takes the place of the file's own."""
    port = free_port()
    command = [sys.executable, "-c", XLLAMACPP, str(gguf), str(port), str(context), str(threads), key, template]
    with _running(command, port=port, ready="/health") as url:
        yield Served(url, "tiny")


def llama_server_binary() -> str | None:
    """The `llama-server` program, if there is one on this machine."""
    return os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")


@contextmanager
def llama_server(gguf: Path, *, context: int = 512, threads: int = 1) -> Iterator[Served]:
    """llama.cpp's own program; ask `llama_server_binary` first."""
    port, program = free_port(), llama_server_binary() or "llama-server"
    command = [program, "-m", str(gguf), "--port", str(port), "-c", str(context), "-t", str(threads), "-a", "tiny"]
    with _running([*command, "--jinja", "--no-webui", "--parallel", "1"], port=port, ready="/health") as url:
        yield Served(url, "tiny")


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _running(command: Sequence[str], *, port: int, ready: str) -> Iterator[str]:
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **quiet},
        text=True,
    )
    try:
        _wait(process, f"http://127.0.0.1:{port}{ready}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(process)


def _wait(process: "subprocess.Popen[str]", url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended: {process.communicate()[1][-2000:]}")
        with suppress(OSError), opener.open(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"{url} did not answer within {START_SECONDS:.0f} seconds")


def _stop(process: "subprocess.Popen[str]") -> None:
    """Ask it to end, then end it; nothing of it is left behind."""
    process.terminate()
    try:
        process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
