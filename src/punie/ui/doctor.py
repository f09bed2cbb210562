"""`punie doctor`: what Punie needs on this machine, checked by using it, each problem with its cure."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from punie.backends import _files, _keys
from punie.backends import _weights as weights
from punie.backends.catalogue import EMBEDDED, entry
from punie.config import user_config_file
from punie.errors import PunieError
from punie.tools import sandbox_state
from punie.tools._programs import find_program
from punie.ui._activity import duration_text
from punie.ui._canary import ask_canary
from punie.ui._clean import clean
from punie.ui._input import state_dir
from punie.ui._setup import Setup, prepare
from punie.ui.models import cache_dir, memory_bytes, path_of
from punie.ui.options import Options

_ENGINE_SECONDS = 60
_MARKS = {"ok": "ok  ", "note": "note", "problem": "FAIL"}

_MLX_CURE = "On Linux it needs a BLAS (Debian, Ubuntu: apt install libopenblas0); elsewhere reinstall mlx."
_MLX_PROBE = """
import punie.backends.mlx
import mlx.core as mx
print(mx.__version__, "on", mx.default_device().type.name, float((mx.ones((8, 8)) @ mx.ones((8, 8))).sum()) == 512)
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. Only a problem keeps the default from running."""

    kind: Literal["ok", "note", "problem"]
    subject: str
    said: str
    cure: str = ""


def run(options: Options) -> int:
    """Check everything, print it, and return 1 if the configured model cannot run."""
    problems = 0
    for finding in findings(options):
        problems += finding.kind == "problem"
        _print(finding)
    return 1 if problems else 0


def _print(finding: Finding) -> None:
    sys.stdout.write(clean(line_of(finding)) + "\n")
    for line in finding.cure.splitlines():
        sys.stdout.write(clean(f"      -> {line}") + "\n")
    sys.stdout.flush()


def line_of(finding: Finding) -> str:
    """What was found, without its cure."""
    return f"{_MARKS[finding.kind]}  {finding.subject:<10} {finding.said}"


def findings(options: Options, *, asks: bool = True) -> Iterator[Finding]:
    """Check one thing after the other; what builds on something broken is left out. `asks`: the model a question."""
    yield Finding("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")
    yield _engine()
    yield from _mlx()
    yield _git()
    yield _key("ANTHROPIC_API_KEY", "claude")
    try:
        setup = prepare(options, env=os.environ)
    except PunieError as error:
        yield Finding("problem", "settings", error.cause, error.next_step)
        return
    yield Finding("ok", "settings", f"{user_config_file(os.environ)}, model {setup.config.model}")
    yield from (Finding("note", "settings", notice) for notice in setup.notices)
    yield _sandbox(setup)
    directories = {
        "cache": cache_dir(setup.settings),
        "config": user_config_file(os.environ).parent,
        "state": state_dir(os.environ),
    }
    yield from (_writable(name, path) for name, path in directories.items())
    local = setup.config.model in ("local", f"local:{EMBEDDED}")
    if local:
        yield _memory()
        yield _adapter()
        found = _weights_file(setup)
        yield found
        if found.kind != "ok":
            return
    if asks:
        yield _canary(setup)


def _engine() -> Finding:
    """In a process of its own: on a processor that lacks an instruction the import kills the process."""
    code, said = _probe("import xllamacpp; print(xllamacpp.__version__)")
    if code == 0:
        return Finding("ok", "llama.cpp", f"xllamacpp {said}")
    return Finding("problem", "llama.cpp", f"cannot be loaded: {said}", "pip install --force-reinstall xllamacpp")


def _mlx() -> Iterator[Finding]:
    if importlib.util.find_spec("mlx") is None:
        return
    code, said = _probe(_MLX_PROBE)
    if code == 0 and said.endswith("True"):
        yield Finding("ok", "mlx", said.removesuffix(" True"))
        return
    yield Finding("note", "mlx", f"installed, but does not work: {said}", _MLX_CURE)


def _probe(code: str) -> tuple[int, str]:
    """Run Python code in another process; return its exit code and its last line."""
    command = [sys.executable, "-P", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ENGINE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {_ENGINE_SECONDS} s"
    if done.returncode < 0:
        return done.returncode, f"killed by signal {-done.returncode}"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode, lines[-1] if lines else ""


def _git() -> Finding:
    path = find_program("git", path=os.environ.get("PATH", ""), workspace=Path.cwd())
    if path:
        return Finding("ok", "git", path)
    return Finding("note", "git", "is not installed", "Install git: without it changes cannot be compared and undone.")


def _sandbox(setup: Setup) -> Finding:
    """Tried out: a program that wants to break out is run in it."""
    state = sandbox_state(setup.settings.sandbox)
    if state.active and not state.weaker:
        return Finding("ok", "sandbox", state.reason)
    cure = "Install bubblewrap (Debian, Ubuntu: apt install bubblewrap)." if sys.platform == "linux" else ""
    return Finding("note", "sandbox", state.reason, "" if setup.settings.sandbox.mode == "off" else cure)


def _key(variable: str, service: str) -> Finding:
    if _keys.find(variable, os.environ):
        return Finding("ok", service, f"{variable} is set")
    return Finding("note", service, f"{variable} is not set; only needed for --model {service}")


def _writable(name: str, directory: Path) -> Finding:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        cure = "Choose another with PUNIE_CACHE_DIR." if name == "cache" else "Give yourself the right to write there."
        return Finding("problem" if name == "cache" else "note", name, f"{existing}: {error.strerror}", cure)
    return Finding("ok", name, str(directory))


def _memory() -> Finding:
    needed, there = entry(EMBEDDED).memory_bytes, memory_bytes()
    said = f"{there / 1e9:.1f} GB, the model needs {needed / 1e9:.1f} GB"
    if there > needed:
        return Finding("ok", "memory", said)
    return Finding("problem", "memory", said, "Use a model on another machine: --model claude.")


def _adapter() -> Finding:
    """The shipped adapter and its manifest; without it the base model runs alone, much weaker."""
    directory = weights.shipped_adapter()
    if directory is None:
        return Finding("note", "adapter", "none is installed; the base model runs without it", "Reinstall Punie.")
    try:
        manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        return Finding("note", "adapter", f"{directory}: its manifest cannot be read: {error}", "Reinstall Punie.")
    name = manifest.get("name", directory.name) if isinstance(manifest, dict) else directory.name
    return Finding("ok", "adapter", f"{name} at {directory}")


def _weights_file(setup: Setup) -> Finding:
    model = entry(EMBEDDED)
    path = path_of(model, cache_dir(setup.settings))
    if not path.is_file():
        return Finding("problem", "weights", f"{path} is not there yet", "Fetch it: punie models pull")
    wanted = model.file.sha256 if model.file else ""
    if wanted and _files.sha256(path) != wanted:
        return Finding("problem", "weights", f"{path} is damaged (wrong SHA-256)", "Delete it, then: punie models pull")
    return Finding("ok", "weights", f"{path} (SHA-256 correct)")


def _canary(setup: Setup) -> Finding:
    try:
        canary = ask_canary(setup, _silent)
    except PunieError as error:
        return Finding("problem", "question", error.cause, error.next_step)
    seconds = duration_text(canary.ended.timing.total_s)
    if canary.right:
        return Finding("ok", "question", f"{setup.config.model} called a tool and answered right in {seconds}")
    if canary.answered:
        said = f"{setup.config.model} runs, but answered wrong in {seconds}: {canary.ended.answer.strip()[:200]!r}"
        return Finding("note", "question", said, "`punie models test` shows the whole of it.")
    return Finding("problem", "question", canary.ended.error or canary.ended.stop_reason, "`punie models test`")


_silent: Callable[[str, int, int], None] = weights.silent
