"""`punie init`: a first settings file, in which every setting stands with its default and what it means."""

import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from punie.config import (
    PROJECT_KEYS,
    Settings,
    home_of,
    instruction_files,
    setting_keys,
    trust_store,
    user_config_file,
)
from punie.errors import ConfigError, UsageError
from punie.trust import project_root
from punie.ui._clean import clean
from punie.ui._meanings import choices, meaning
from punie.ui.options import Options

_WIDTH = 100
_HEAD = {
    False: "Settings of Punie, for all of your projects.",
    True: "Settings of Punie for this project. They count for those who trust it (`punie trust`), beneath their own.",
}
_HOW = (
    "A line that begins with # and the name of a setting is not in force: it shows the default, or an example where "
    "there is none. Take the # away and change the value. `punie config show` says what is in force, and why."
)
_EXAMPLES: Mapping[str, object] = {
    "agents_md_tokens": 2000,
    "cache_dir": "/var/cache/punie",
    "engine.context": 16384,
    "engine.draft": "/models/small.gguf",
    "engine.kv_bits": 8,
    "engine.memory_gb": 6.5,
    "instructions": "You are a careful reviewer of code.",
    "limits.max_total_tokens": 200_000,
    "skills_tokens": 500,
}
"""Of settings that have no value unless one is given."""
_ANY_VALUE = (8, "something", True, [])


def run(options: Options, *, project: bool) -> int:
    """Write the file and say what comes next. UsageError if it is there already."""
    root = project_root(options.cwd, home=home_of(os.environ))
    file = _of_project(root) if project else user_config_file(os.environ)
    create(file, settings_file(project=project), mode=0o644 if project else 0o600)
    lines = [f"{file} is written: every setting with its default, none of them changed."]
    if project and root not in trust_store(os.environ):
        lines.append("It is read once you trust the project: punie trust")
    if not instruction_files([root]):
        lines.append("AGENTS.md tells models about a project, and there is none here: /init in the chat writes one.")
    sys.stdout.write("".join(f"{clean(line)}\n" for line in lines))
    return 0


def _of_project(root: Path) -> Path:
    if root in {Path(root.anchor), home_of(os.environ)}:
        raise UsageError(f"{root} is not a project.", "Go to the project's own directory, or leave out --project.")
    directory = root / ".punie"
    if directory.is_symlink():
        raise UsageError(f"{directory} is a link, and what it leads to is not written.", "Make it a directory.")
    return directory / "config.toml"


def create(file: Path, text: str, *, mode: int) -> None:
    """Make a file that is there whole or not at all. UsageError if there is one; ConfigError if it cannot be made."""
    if os.path.lexists(file):
        raise UsageError(f"{file} is there already, and is left as it is.", "`punie config show` says what it sets.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o755 if mode & 0o044 else 0o700)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".config-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                os.fchmod(handle, mode)
                stream.flush()
                os.fsync(handle)
            _name(file, name)
        finally:
            Path(name).unlink()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}.") from error


def _name(file: Path, written: str) -> None:
    """Give a file that is written its name; unlike a rename, this takes nothing away that came in between."""
    try:
        file.hardlink_to(written)
    except FileExistsError as error:
        raise UsageError(f"{file} has just been made by another program.", "`punie config show` shows it.") from error


def settings_file(*, project: bool) -> str:
    """The text of a settings file in which nothing is set."""
    parts = [*_prose(_HEAD[project]), *_prose(_HOW), ""]
    table = ""
    for key in setting_keys():
        head, _, name = key.rpartition(".")
        if project and key.split(".")[0] not in PROJECT_KEYS:
            continue
        if head != table:
            parts += [f"[{head}]", ""]
            table = head
        parts += [*_explained(key), f"#{name} = {json.dumps(_value(key), ensure_ascii=False)}", ""]
    return "\n".join(parts)


def _explained(key: str) -> Iterator[str]:
    named = [word for word in choices(key) if word != "bypassPermissions"]
    either = f"One of {', '.join(named)}. " if named else ""
    yield from _prose(either + meaning(key))


def _prose(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _value(key: str) -> object:
    """The default as TOML can hold it; of a setting without one, a value that it would take."""
    value: object = Settings().model_dump(mode="json")
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else None
    if value is not None:
        return value
    candidates = (_EXAMPLES[key],) if key in _EXAMPLES else _ANY_VALUE
    return next(candidate for candidate in candidates if _takes(key, candidate))


def _takes(key: str, value: object) -> bool:
    head, _, name = key.rpartition(".")
    try:
        Settings.model_validate({head: {name: value}} if head else {name: value})
    except ValidationError:
        return False
    return True
