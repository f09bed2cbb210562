"""What `punie doctor` looks at on this machine without asking a model: each thing is used, not only looked for."""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from punie.backends import _files
from punie.backends import _weights as weights
from punie.backends.catalogue import EMBEDDED, entry
from punie.config import user_config_file
from punie.errors import PunieError
from punie.tools import sandbox_state
from punie.tools._programs import find_program
from punie.trust import state_directory
from punie.ui._setup import Setup
from punie.ui.models import cache_dir, memory_bytes, named, path_of, state

_ENGINE_SECONDS = 60
_NARROW = 40
_LITTLE_BYTES, _NO_BYTES = 500_000_000, 20_000_000
"""Free on a disk: below the first there is something to say, below the second nothing can be relied on."""

_MLX_CURE = "On Linux it needs a BLAS (Debian, Ubuntu: apt install libopenblas0); elsewhere reinstall mlx."
_MLX_PROBE = """
import punie.backends.mlx
import mlx.core as mx
print(mx.__version__, "on", mx.default_device().type.name, float((mx.ones((8, 8)) @ mx.ones((8, 8))).sum()) == 512)
"""
_DIRECTORY_CURES = {
    "cache": "Choose another with PUNIE_CACHE_DIR.",
    "config": "Give yourself the right to write there, or choose another with XDG_CONFIG_HOME.",
    "state": "Give yourself the right to write there, choose another with XDG_STATE_HOME, or use --no-session.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. Only a problem keeps the default from running."""

    kind: Literal["ok", "note", "problem"]
    subject: str
    said: str
    cure: str = ""


def of_machine(env: Mapping[str, str]) -> Iterator[Finding]:
    """Interpreter, engines and programs."""
    yield Finding("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")
    yield _engine()
    yield from _mlx()
    yield _git(env)
    yield _editor(env)
    yield from _terminal(env)


def of_setup(setup: Setup, env: Mapping[str, str]) -> Iterator[Finding]:
    """What the settings ask for: a sandbox, directories that can be written, and room in them."""
    yield _sandbox(setup)
    directories = {
        "cache": cache_dir(setup.settings),
        "config": user_config_file(env).parent,
        "state": state_directory(env),
    }
    needed = {"cache"} | ({"state"} if setup.settings.save_sessions else set())
    for name, path in directories.items():
        yield _writable(name, path, needed=name in needed)
    yield _room(directories)


def of_local(setup: Setup, spec: str) -> Iterator[Finding]:
    """Whether the weights of a local model are here, before anything tries to load them."""
    if spec in ("local", f"local:{EMBEDDED}"):
        yield from of_embedded(setup)
        return
    try:
        model = named(spec, setup.settings)
    except PunieError as error:
        yield Finding("problem", "weights", error.cause, error.next_step)
        return
    found = state(model, setup.settings)
    if found == "ready":
        yield Finding("ok", "weights", str(path_of(model, cache_dir(setup.settings))))
        return
    cure = "See what it needs: punie models info " + model.name
    yield Finding("problem", "weights", f"{spec}: {found}", cure)


def of_embedded(setup: Setup) -> Iterator[Finding]:
    """Memory, adapter and weights of the model that comes with Punie."""
    yield _memory()
    yield _adapter()
    yield _weights_file(setup)


# --- interpreter, engines, programs ----------------------------------------------------------------------------------


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


def _git(env: Mapping[str, str]) -> Finding:
    path = find_program("git", path=env.get("PATH", ""), workspace=Path.cwd())
    if path:
        return Finding("ok", "git", path)
    return Finding("note", "git", "is not installed", "Install git: without it changes cannot be compared and undone.")


def _editor(env: Mapping[str, str]) -> Finding:
    name = next((variable for variable in ("VISUAL", "EDITOR") if env.get(variable)), None)
    if name is None:
        said = "none is chosen; Ctrl-X Ctrl-E and `punie config edit` open one"
        return Finding("note", "editor", said, "export EDITOR=nano")
    try:
        program = shlex.split(env[name])[0]
    except (ValueError, IndexError):
        program = env[name]
    if shutil.which(program, path=env.get("PATH", "")):
        return Finding("ok", "editor", f"{name} is {env[name]}")
    return Finding("note", "editor", f"{name} is {env[name]}, which is no program here", f"export {name}=nano")


def _terminal(env: Mapping[str, str]) -> Iterator[Finding]:
    """What the chat would draw on; how it is there matters only if it is a terminal."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding not in {"utf8", "utf8sig"}:
        said = f"its encoding is {sys.stdout.encoding}: other letters are shown as \\u2026"
        yield Finding("note", "terminal", said, "export LC_ALL=C.UTF-8")
    if not sys.stdout.isatty():
        yield Finding("ok", "terminal", "none here: the output goes elsewhere, and a chat needs one")
        return
    kind, width = env.get("TERM", ""), shutil.get_terminal_size().columns
    if kind in {"", "dumb", "unknown"}:
        said = f"TERM is {kind or 'not set'}: lines in order, nothing is redrawn"
        yield Finding("note", "terminal", said, "export TERM=xterm-256color, if the terminal is like that")
    elif width < _NARROW:
        yield Finding("note", "terminal", f"{kind}, {width} columns", f"Make it at least {_NARROW} columns wide.")
    else:
        yield Finding("ok", "terminal", f"{kind}, {width} columns, {sys.stdout.encoding}")


# --- what the settings ask for ---------------------------------------------------------------------------------------


def _sandbox(setup: Setup) -> Finding:
    """Tried out: a program that wants to break out is run in it."""
    options = setup.settings.sandbox
    state = sandbox_state(options)
    if state.active and not state.weaker:
        return Finding("ok", "sandbox", state.reason)
    cure = "Install bubblewrap (Debian, Ubuntu: apt install bubblewrap)." if sys.platform == "linux" else ""
    if options.mode == "required" and not state.active:
        return Finding("problem", "sandbox", f"required, and none works: {state.reason}", cure or 'Use mode = "auto".')
    return Finding("note", "sandbox", state.reason, "" if options.mode == "off" else cure)


def _writable(name: str, directory: Path, *, needed: bool) -> Finding:
    existing = _existing(directory)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding("problem" if needed else "note", name, f"{existing}: {error.strerror}", _DIRECTORY_CURES[name])
    return Finding("ok", name, str(directory))


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.exists())


def _room(directories: Mapping[str, Path]) -> Finding:
    """Of the fullest disk that something is written to."""
    name = min(directories, key=lambda each: shutil.disk_usage(_existing(directories[each])).free)
    where = _existing(directories[name])
    free = shutil.disk_usage(where).free
    said = f"{free / 1e9:,.1f} GB free at {where}"
    if free > _LITTLE_BYTES:
        return Finding("ok", "disk", said)
    cure = "Make room. `punie sessions prune` deletes old conversations."
    return Finding("note" if free > _NO_BYTES else "problem", "disk", said, cure)


# --- the model that comes with Punie ---------------------------------------------------------------------------------


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
