"""`punie config`: show every setting with its source, and change the user's own file."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from punie.config import Settings, load_settings, setting_keys, user_config_file, value_of
from punie.errors import ConfigError, UsageError
from punie.rules import split_rules
from punie.ui._agents_md import agent_files
from punie.ui._clean import clean
from punie.ui.options import Options

_NEW_FILE = "# Settings of punie. `punie config show` names every one.\n"


def run(action: str, *, options: Options, key: str | None = None, value: str | None = None) -> int:
    """Do one action of `punie config` and return the exit code."""
    if action == "path":
        print_line(str(user_config_file(os.environ)))
        return 0
    if action == "edit":
        return _edit(user_config_file(os.environ), options)
    if action == "set" and key is not None and value is not None:
        return _set(user_config_file(os.environ), key=key, text=value)
    return _show(options)


def print_line(text: str) -> None:
    """Write one line to standard output, safe for a terminal."""
    sys.stdout.write(clean(text) + "\n")


def _show(options: Options) -> int:
    resolved = load_settings(cwd=options.cwd, env=os.environ, flags=options.flags())
    rows = [(key, _toml(value), source) for key, value, source in resolved.rows()]
    key_width = max(len(key) for key, _, _ in rows)
    value_width = min(max(len(value) for _, value, _ in rows), 48)
    for key, value, source in rows:
        print_line(f"{key:<{key_width}}  {value:<{value_width}}  {source}")
    files = agent_files(resolved, options.cwd)
    for notice in filter(None, [*resolved.notices, files.refusal, files.line]):
        sys.stderr.write(f"punie: {clean(notice)}\n")
    return 0


def _edit(file: Path, options: Options) -> int:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise UsageError("No editor is chosen.", f"Set EDITOR, or open {file} yourself.")
    if not file.exists():
        _write(file, _NEW_FILE)
    try:
        code = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode
    except (OSError, ValueError) as error:
        raise UsageError(f"The editor '{editor}' cannot be started: {error}.", "Set EDITOR to another one.") from error
    load_settings(cwd=options.cwd, env=os.environ, flags={})
    return 0 if code == 0 else 1


def _set(file: Path, *, key: str, text: str) -> int:
    value = _checked(key, text)
    old = file.read_text("utf-8") if file.exists() else _NEW_FILE
    new = with_setting(old, key=key, value=value)
    if _lookup(new, key) != value:
        raise ConfigError(f"{file}: '{key}' is written there in a way this command does not follow.", _BY_HAND)
    _write(file, new)
    print_line(f"{key} = {_toml(value)}  ({file})")
    return 0


_BY_HAND = "`punie config edit` opens the file."


def _checked(key: str, text: str) -> object:
    """The text as the value the setting takes."""
    if key not in setting_keys() and not re.fullmatch(r"aliases\.[\w-]+", key):
        close = get_close_matches(key, setting_keys(), n=1)
        raise UsageError(f"Unknown setting '{key}'.", f"Did you mean '{close[0]}'?" if close else "`punie config show`")
    value = _from_text(text, several=isinstance(_default(key), tuple))
    if key == "permission_mode" and value == "bypassPermissions":
        raise UsageError(f"'{value}' can only be chosen on the command line.", "Give --yolo to the run that needs it.")
    head, _, rest = key.partition(".")
    try:
        Settings.model_validate({head: {rest: value} if rest else value})
    except ValidationError as error:
        raise UsageError(f"'{text}' cannot be the value of '{key}': {error.errors()[0]['msg']}.") from error
    return value


def _default(key: str) -> object:
    return value_of(Settings(), key) if key in setting_keys() else ""


def _from_text(text: str, *, several: bool) -> object:
    """TOML where it is TOML, words otherwise."""
    if several and not text.lstrip().startswith("["):
        return list(split_rules(text))
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def with_setting(text: str, *, key: str, value: object) -> str:
    """Return the TOML text with one key set; comments and order stay as they are."""
    lines = text.splitlines()
    head, _, rest = key.partition(".")
    headers = {match[1]: number for number, line in enumerate(lines) if (match := re.match(r"\s*\[([\w.-]+)\]", line))}
    start = headers[head] + 1 if rest and head in headers else 0
    name = rest if start else key
    end = min((number for number in headers.values() if number >= start), default=len(lines))
    assignment = f"{name} = {_toml(value)}"
    for number in range(start, end):
        if re.match(rf"\s*{re.escape(name)}\s*=", lines[number]):
            lines[number] = assignment
            return "\n".join(lines) + "\n"
    while end > start and not lines[end - 1].strip():
        end -= 1
    lines.insert(end, assignment)
    return "\n".join(lines) + "\n"


def _lookup(text: str, key: str) -> object:
    try:
        value: object = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _toml(value: object) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def _write(file: Path, text: str) -> None:
    """Replace the file in one step, readable by the user alone."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".config-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}.") from error
