"""`just settings`: the table of docs/configuration.md, made from the settings and tried out on the real loader."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from punie.config import Resolved, Settings, load_settings, setting_keys, value_of
from punie.errors import ConfigError
from punie.ui import _meanings
from punie.ui.options import Options

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->\n"
HEAD = "| setting | default | project | means |\n|---|---|:-:|---|\n"


def page(text: str) -> str:
    """The page with a new table in it."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def table() -> str:
    """One row for each setting."""
    return HEAD + "".join(map(row, setting_keys()))


def row(key: str) -> str:
    """What a setting is called, what it is unless set, whether a project may set it, and what it means."""
    default = value_of(Settings(), key)
    project = "yes" if loaded_from_project(key, default) else "no"
    meaning = " ".join(filter(None, [*choices(key), documented(key)]))
    return f"| `{key}` | {_shown(default)} | {project} | {meaning} |\n"


def documented(key: str) -> str:
    """The text below the field in the source. Raises KeyError where there is none."""
    return _meanings.meaning(key).replace("|", "\\|")


def choices(key: str) -> list[str]:
    """The values there are, where they are counted."""
    words = [f"`{word}`" for word in _meanings.choices(key)]
    return [", ".join(words) + "."] if words else []


def loaded_from_project(key: str, value: object) -> bool:
    """Whether the real loader takes the setting from the file of a trusted project."""
    head, _, name = key.rpartition(".")
    line = f"{name} = {_toml(value)}\n"
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory).resolve()
        _write(home / "config" / "punie" / "config.toml", f'trusted_projects = ["{home / "project"}"]\n')
        _write(home / "project" / ".punie" / "config.toml", f"[{head}]\n{line}" if head else line)
        try:
            resolved = loaded(home, {})
        except ConfigError as error:
            if "a project cannot set" not in str(error):
                raise
            return False
    return ".punie" in resolved.sources[key] or bool(resolved.project_hooks.model_fields_set)


def loaded(home: Path, variables: Mapping[str, str]) -> Resolved:
    """The settings of the project in a home directory."""
    env = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), **variables}
    return load_settings(cwd=home / "project", env=env, flags={})


def variable(key: str) -> str:
    """The environment variable of a setting."""
    return "PUNIE_" + key.upper().replace(".", "__")


def as_text(key: str) -> str:
    """The default of a setting as a variable would hold it; some value where there is no default."""
    value = value_of(Settings(), key)
    if value is None:
        return "8"
    return value if isinstance(value, str) else _toml(value)


def flags() -> dict[str, str]:
    """Settings that a flag sets, with the flag."""
    return {key: "--" + key.rpartition(".")[2].replace("_", "-") for key in Options(Path()).flags()} | {
        "save_sessions": "--no-session"
    }


def _shown(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 3:
        return "all"
    return "" if value is None or value == () or value == {} else f"`{_toml(value)}`"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps(list(value))
    if isinstance(value, Mapping):
        return "{}"
    return '"8"' if value is None else json.dumps(value)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text, "utf-8")


def main() -> int:
    """Write the page anew."""
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
