"""Starting llama.cpp's server in this process, and the one thing that can only be asked for over its socket."""

import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from punie.backends import _files
from punie.backends._cores import physical_cores, spins
from punie.config import EngineOptions
from punie.errors import EngineMissing, WeightsDamaged, WeightsMissing

_LONGEST_SOCKET_PATH = 100
_LARGE_FILE = 1 << 30
_MOST_AT_ONCE = 256
"""Prompt tokens between two looks at `cancelled`: about half a second for a small model, and no slower than 512."""
_LEAST_AT_ONCE = 32
_BYTES_AT_ONCE = 15_000_000_000
"""Bytes of weights times tokens that a core works off in half a second, measured with SmolLM2-135M on x86-64."""
_NGRAM, _GUESSED = 8, 8
"""Tokens that must have come before for what followed to be guessed, and how many are; never fewer, says llama.cpp.

SmolLM2-135M copies a list in half the time; with 6 it is wrong more often than right about calls, and slower.
"""
_SAVING_SECONDS = 60.0
_DIGEST_BYTES = 32


class Server(Protocol):
    """The part of `xllamacpp.Server` that is used; the package has no types of its own."""

    def handle_completions(self, request: dict[str, object], receive: Callable[[object], bool]) -> object:
        """Block until the completion is over; `receive` ends it early by returning True."""
        ...


class Slots:
    """Writes and reads llama.cpp's attention cache: by HTTP, because the binding has no function for it.

    Nobody else can: the socket has no name any more, the open handle leads to it by way of /proc, and the key was
    made for this process. Where there is no such handle (macOS) nothing is kept.
    """

    def __init__(self, path: Path, *, key: str) -> None:
        self._key = key
        self._handle = os.open(path, os.O_PATH) if hasattr(os, "O_PATH") else -1

    def write(self, path: Path) -> int:
        """Write the cache and a checksum; returns how many tokens, 0 if that was not possible."""
        try:
            with _files.replacing(path) as part:
                count = self._ask("save", part)
                with part.open("r+b") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
                    file.write(digest)
                part.chmod(0o600)
        except OSError:
            return 0
        return count

    def read(self, path: Path) -> int:
        """Take a file up; returns how many tokens. A bad one would end the process: llama.cpp only gets whole ones."""
        try:
            return self._ask("restore", path) if _is_whole(path) else 0
        except OSError:
            return 0

    def close(self) -> None:
        """Let go of the socket."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _ask(self, action: Literal["save", "restore"], path: Path) -> int:
        """Tokens written or read. Raises OSError when it could not be done."""
        connection = HTTPConnection("localhost")
        with socket.socket(socket.AF_UNIX) as connection.sock:
            connection.sock.settimeout(_SAVING_SECONDS)
            connection.sock.connect(f"/proc/self/fd/{self._handle}")
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            body = json.dumps({"filename": path.name})
            try:
                connection.request("POST", f"/slots/0?action={action}", body, headers)
                answer = json.load(connection.getresponse())
            except (HTTPException, ValueError) as error:
                raise OSError(str(error)) from error
        count = answer.get("n_saved" if action == "save" else "n_restored", 0)
        if not count:
            raise OSError(answer.get("error", {}).get("message", action))
        return count


def _is_whole(path: Path) -> bool:
    size = path.stat().st_size - _DIGEST_BYTES
    if size <= 0:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(min(1 << 20, size - file.tell())):
            digest.update(block)
        return file.read() == digest.digest()


def start(
    path: Path, *, context_window: int, threads: int | None, options: EngineOptions, kept: Path | None
) -> tuple[Server, Slots]:
    """Load the weights. `kept`: the directory of `Slots`. Raises WeightsDamaged, WeightsMissing or EngineMissing."""
    xllamacpp = _binding()
    directory, key = _private_directory(), secrets.token_hex(32)
    parameters = _parameters(path, context_window, threads=threads or physical_cores())
    parameters.hostnames, parameters.api_keys = [str(directory / "s.sock")], [key]
    parameters.slot_save_path = f"{kept}/" if kept else ""
    _apply(parameters, options)
    try:
        return xllamacpp.Server(parameters), Slots(directory / "s.sock", key=key)
    except RuntimeError as error:
        raise WeightsDamaged(f"llama.cpp cannot load {path}.", _advice(options)) from error
    finally:
        # The binding always listens somewhere: it gets a socket that only this user can reach, with a key nobody
        # knows, and whose name is gone before the first request. Requests are made by function call.
        shutil.rmtree(directory, ignore_errors=True)


def version() -> str:
    """Of the binding, and so of the llama.cpp in it. Raises EngineMissing."""
    return str(_binding().__version__)


def _advice(options: EngineOptions) -> str:
    if options.draft:
        return f"Does it fit the draft model {options.draft}? Try without `engine.draft`."
    if options.kv_bits:
        return "Some models cannot have their attention cache quantised. Try without `engine.kv_bits`."
    return "Is it a complete GGUF file that fits this machine's memory?"


def _binding() -> ModuleType:
    # Read once, when the library is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", str(spins(physical_cores())))
    try:
        return import_module("xllamacpp")
    except ImportError as error:
        cure = "Install libgomp1 (Debian: apt install libgomp1)" if "libgomp" in str(error) else "Reinstall Punie"
        raise EngineMissing(
            f"llama.cpp cannot be loaded on this machine ({error}).", f"{cure}, or choose another --model."
        ) from error


def _private_directory() -> Path:
    """A new directory with mode 0700, with a path short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="punie-"))
    if len(os.fsencode(directory)) < _LONGEST_SOCKET_PATH - len("/s.sock"):
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix="punie-", dir="/tmp"))


def _parameters(path: Path, context_window: int, *, threads: int) -> Any:
    p = _binding().CommonParams()
    size = path.stat().st_size
    p.model.path = str(path)
    p.n_ctx = context_window
    p.n_parallel = 1
    p.n_batch = p.n_ubatch = at_once(size, threads)
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
    p.warmup = False
    # Fitting a model to the memory of the machine takes 0.15 s: too long for one that always fits.
    p.fit_params = size > _LARGE_FILE
    p.cache_ram_mib = 0  # by default up to 8 GiB of earlier conversations are kept
    p.verbosity = -1
    p.offline = True
    p.ui = False
    p.endpoint_slots = False
    p.n_threads_http = 1
    return p


def at_once(size: int, threads: int) -> int:
    """Tokens of a prompt to read before looking whether it is still wanted; a large model reads fewer in a second."""
    tokens = _BYTES_AT_ONCE * threads // max(size, 1)
    return min(_MOST_AT_ONCE, max(_LEAST_AT_ONCE, tokens // _LEAST_AT_ONCE * _LEAST_AT_ONCE))


def _apply(parameters: Any, options: EngineOptions) -> None:
    xllamacpp = _binding()
    if options.kv_bits and parameters.n_ctx > options.kv_quantize_after:
        # All of the cache or nothing of it.
        kind = {4: xllamacpp.ggml_type.GGML_TYPE_Q4_0, 8: xllamacpp.ggml_type.GGML_TYPE_Q8_0}[options.kv_bits]
        parameters.cache_type_k = parameters.cache_type_v = kind
    kinds, guesses = xllamacpp.common_speculative_type, []
    if options.speculation:
        guesses.append(kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE)
        parameters.speculative.ngram_simple.size_n = _NGRAM
        parameters.speculative.ngram_simple.size_m = _GUESSED
    if options.draft:
        guesses.append(kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE)
        draft = parameters.speculative.draft
        draft.mparams.path = str(_draft(options.draft))
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = parameters.cpuparams.n_threads
    if guesses:
        parameters.speculative.types = guesses


def _draft(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise WeightsMissing(f"There is no draft model {path}.", "Set `engine.draft` to a GGUF file.")
    return path
