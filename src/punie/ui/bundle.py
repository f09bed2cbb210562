"""`punie doctor --bundle FILE`: what somebody who helps needs to know, in one file that is the user's to send or not.

Everything in it passes `_Safe`: no value of a secret variable, no key of a keyring or a collector, no value of a header
or variable of an MCP server, and nothing that looks like a secret to `punie.redaction`. Values that mean nothing to
anybody who helps are not taken in at all.
"""

import errno
import io
import json
import os
import platform
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from punie.backends import _keys
from punie.config import load_settings
from punie.errors import PunieError, UsageError
from punie.redaction import Redactor
from punie.trust import state_directory
from punie.ui import _crashes
from punie.ui._clean import clean
from punie.ui._extensions import find_servers
from punie.ui._kept import open_store
from punie.ui.options import Options

if TYPE_CHECKING:
    from punie.ui.doctor import Result

_README = """\
This is what `punie doctor --bundle` put together on {system}.

Nothing of it was sent anywhere. Look through every file before you give it to anybody: secrets that look like secrets
were taken out, and no program can know what else you want to keep to yourself (names of files and servers, say).

{listing}
"""
_PACKAGES = (
    *("punie", "pydantic-ai-slim", "pydantic", "anthropic", "openai", "httpx2", "xllamacpp", "mlx", "mlx-lm"),
    *("gguf", "tokenizers", "prompt-toolkit", "rich", "tree-sitter", "mcp", "keyring", "opentelemetry-sdk"),
)
_SHOWN = frozenset({"TERM", "COLORTERM", "LANG", "LC_ALL", "LC_CTYPE", "NO_COLOR", "TERM_PROGRAM"})
"""Variables whose values say something about the terminal and nothing about anybody."""
_NAMED = (
    *("PUNIE_", "OTEL_", "ANTHROPIC_", "OPENAI_", "HF_", "XDG_", "SSL_", "LC_", "OLLAMA_"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "EDITOR", "VISUAL", "TMUX", "SSH_CONNECTION", "CI"),
)
"""Beginnings of the names of variables that change what Punie does; their values stay out."""
_PLAIN = re.compile(r"[A-Za-z_-]+|[\d.:]+|\$\{.*\}|https?://[^@]*")
"""What stands in a server's headers and variables and is no secret: words, numbers, references, addresses."""
_IN_ADDRESS = re.compile(r"://[^/@\s:]*:([^/@\s]+)@")
_FREE = ("instructions", "hooks.", "stop_sequences", "checks")
"""Settings in whose texts anything may stand."""


def refuse_early(file: Path, *, session: str) -> None:
    """Raises UsageError, before anything else takes long, for a file that is there and a session that is not."""
    if os.path.lexists(file):
        raise UsageError(f"{file} is there already.", "Name a new file.")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"There is no directory {file.absolute().parent}.", "Name a file in one that there is.")
    if session:
        with open_store(os.environ) as store:
            store.find(session)


def write(file: Path, *, options: Options, result: "Result", session: str = "") -> None:
    """Write the bundle to a new file for the user alone, and say what is in it. UsageError if that cannot be."""
    safe = _Safe(options, os.environ)
    parts = {name: safe(text) for name, text in _parts(options, result, session)}
    listing = "\n".join(f"{name:<16} {_ABOUT[name]}" for name in parts)
    parts = {"README.txt": safe(_README.format(system=platform.platform(), listing=listing)), **parts}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            entry = zipfile.ZipInfo(f"punie-bundle/{name}")
            entry.external_attr = 0o600 << 16
            archive.writestr(entry, text.encode("utf-8", "backslashreplace"), zipfile.ZIP_DEFLATED)
    _write_private(file, data.getvalue())
    told = [f"Written: {file} ({len(data.getvalue()) / 1000:.0f} kB), which only you may read.", *listing.splitlines()]
    told.append(f"Nothing was sent. Look through it before you send it to anybody: unzip -p {file} | less")
    sys.stderr.write("".join(f"punie: {clean(line)}\n" for line in told))


def _write_private(file: Path, data: bytes) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        why = "it is there already" if error.errno == errno.EEXIST else error.strerror
        raise UsageError(f"Cannot write {file}: {why}.", "Name a new file.") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise UsageError(f"Cannot write {file}: {error.strerror}.", "Name a file on another disk.") from error


# --- what is in it ---------------------------------------------------------------------------------------------------

_ABOUT = {
    "versions.json": "versions of Punie and its libraries, the system, the processor",
    "environment.txt": "which variables are set that change what Punie does, without their values",
    "config.txt": "every setting with its source, MCP servers by name",
    "doctor.json": "what `punie doctor` found",
    "crashes.log": "where Punie itself failed lately, without messages",
    "state.txt": "files of Punie's own, by name and size",
    "session.md": "the conversation that you named, to read",
    "session.jsonl": "the same with every detail: instructions, messages, tool calls and their outputs",
}


def _parts(options: Options, result: "Result", session: str) -> Iterator[tuple[str, str]]:
    yield "versions.json", json.dumps(_versions(), indent=2)
    yield "environment.txt", "".join(f"{line}\n" for line in _environment(os.environ))
    yield "config.txt", "".join(f"{line}\n" for line in _config(options))
    yield "doctor.json", json.dumps(result.table(), indent=2)
    yield "crashes.log", _crashes.recent(os.environ) or "none\n"
    yield "state.txt", "".join(f"{line}\n" for line in _state(state_directory(os.environ)))
    if session:
        from punie.ui.sessions import as_markdown

        with open_store(os.environ) as store:
            yield "session.md", as_markdown(store, session)
            yield "session.jsonl", "".join(f"{line}\n" for line in store.export(session))


def _versions() -> Mapping[str, object]:
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "packages": packages,
    }


def _environment(env: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(env):
        if name in _SHOWN:
            yield f"{name}={env[name]}"
        elif name.upper().startswith(_NAMED):
            yield f"{name} is set"


def _config(options: Options) -> Iterator[str]:
    """What `punie config show` prints, and of servers nothing that is a value."""
    try:
        resolved = load_settings(cwd=options.cwd, env=os.environ, flags=options.flags())
        for key, value, source in resolved.rows():
            written = key.startswith(_FREE) and value
            yield f"{key} = {'(left out)' if written else repr(value)}  ({source})"
        servers = find_servers(resolved)
    except PunieError as error:
        yield f"cannot be read: {error}"
        return
    yield from resolved.notices
    for each in servers.definitions:
        server = each.server
        how = "an address" if server.url else "a program"
        yield f"mcp {each.name} ({each.scope}): {how}, {len(server.env)} variables, {len(server.headers)} headers"


def _state(directory: Path) -> Iterator[str]:
    """Names are Punie's own, or digests; the contents of files that were changed are only counted."""
    kept = 0
    for path in sorted(directory.rglob("*")) if directory.is_dir() else ():
        parts = path.relative_to(directory).parts
        if "blobs" in parts or "shadow" in parts:
            kept += 1
        elif path.is_file():
            yield f"{path.stat().st_size:>12,}  {oct(path.stat().st_mode & 0o777)[2:]}  {Path(*parts)}"
    yield f"and {kept} files that undoing needs"


# --- what is not -----------------------------------------------------------------------------------------------------


class _Safe:
    """Text without secrets and without the name of the home directory."""

    def __init__(self, options: Options, env: Mapping[str, str]) -> None:
        self._redact = Redactor(env, keys=dict(_secrets(options, env)))
        self._home = env.get("HOME", "").rstrip("/")

    def __call__(self, text: str) -> str:
        """The same text, line by line also as the JSON that it may be."""
        try:
            text = json.dumps(self._redact.of(json.loads(text)), indent=2)
        except ValueError:
            text = "\n".join(map(self._line, text.split("\n")))
        text = self._redact(text)
        return text.replace(self._home, "~") if len(self._home) > 1 else text

    def _line(self, line: str) -> str:
        if not line.startswith("{"):
            return line
        try:
            return json.dumps(self._redact.of(json.loads(line)))
        except ValueError:
            return line


def _secrets(options: Options, env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Values that are secret whatever they look like, by what they are called."""
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        yield name, _keys.find(name, env)
    yield from _keys.of_collector(env).items()
    try:
        resolved = load_settings(cwd=options.cwd, env=env, flags=options.flags())
        definitions = find_servers(resolved).definitions
    except PunieError:
        resolved, definitions = None, ()
    addresses = [*env.values(), *(repr(value) for _, value, _ in (resolved.rows() if resolved else ()))]
    for number, password in enumerate(_IN_ADDRESS.findall("\n".join(addresses))):
        yield f"password-{number}", unquote(password)
    for definition in definitions:
        server = definition.server
        words = (word for value in (*server.headers.values(), *server.env.values()) for word in value.split())
        for number, word in enumerate(words):
            if not _PLAIN.fullmatch(word):
                yield f"mcp-{definition.name}-{number}", word
