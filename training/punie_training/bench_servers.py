"""Servers on the embedded model for the benchmark, each in a process of its own, asked as a user would ask them."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic_ai.models import Model

from punie.backends import openai
from punie.backends._cores import physical_cores
from punie.backends._mlx_files import embedded_files as mlx_files
from punie.backends._weights import embedded_files, shipped_adapter
from punie.config import AgentConfig
from punie.errors import PunieError
from punie.wire import END_OF_TURN

START_SECONDS = 120.0
CONTEXT = 8192

# xllamacpp has no command line: its server lives as long as this script's standard input is open.
_LLAMA = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.n_ctx, p.chat_template = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[5]
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[4])
p.model_alias, p.n_parallel, p.verbosity = "embedded", 1, -1
p.warmup = p.fit_params = p.ui = False
p.use_jinja = True
server = xllamacpp.Server(p)
sys.stdin.read()
"""


@contextmanager
def llama(cache: Path) -> Iterator[Model]:
    """llama.cpp's server with the adapter merged in."""
    found, port = embedded_files(cache, adapter=shipped_adapter()), _free_port()
    numbers = [str(number) for number in (port, CONTEXT, physical_cores())]
    command = [sys.executable, "-c", _LLAMA, str(found.weights), *numbers, found.template]
    with _running(command, f"http://127.0.0.1:{port}/health"):
        yield _compact("embedded", port)


@contextmanager
def mlx_lm(cache: Path) -> Iterator[Model]:
    """`mlx_lm.server` with the adapter beside the weights, and beside them what transformers wants to read."""
    found, adapter, port = mlx_files(cache), shipped_adapter(), _free_port()
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as made:
        directory = Path(made)
        for file in found.weights.iterdir():
            (directory / file.name).symlink_to(file)
        described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TURN}
        template = found.template_with(adapter)
        (directory / "tokenizer_config.json").write_text(json.dumps({**described, "chat_template": template}))
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", made, "--port", str(port)]
        command += ["--adapter-path", str(adapter)] if adapter else []
        with _running(command, f"http://127.0.0.1:{port}/v1/models"):
            yield _compact("default_model", port)


def _compact(name: str, port: int) -> Model:
    """The served model, asked as the embedded one is: with its own system text."""
    model = openai.build(f"{name}@http://127.0.0.1:{port}/v1", AgentConfig())
    model.compact = True  # type: ignore[attr-defined]
    return model


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _running(command: Sequence[str], url: str) -> Iterator[None]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, env=environment) as process:
        try:
            _wait(process, url)
            yield
        finally:
            process.terminate()


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), opener.open(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise PunieError("A server for the benchmark did not start.", "Start it by hand to see why.")
