"""Which command a check is in a project: by what the project configures and what its environment holds.

Nothing is run here. What a project configures decides which tool is meant, and where it configures none, what is
installed in its environment.
"""

import configparser
import os
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from pathspec import GitIgnoreSpec

from punie.extensions import Check, CheckName
from punie.tools import Workspace
from punie.tools._paths import read_beneath

MOST_FILES = 200
"""Files that a command names; where more were changed it is about the first of them."""
MAX_CONFIG_BYTES = 1_000_000
_TYPE_CHECKERS = ("ty", "mypy", "pyright")
_OPTIONS = {
    "ruff": "check --no-cache --force-exclude --output-format concise",
    "ty": "check --output-format concise",
    "mypy": "--no-error-summary --no-color-output",
    "pyright": "",
    "pytest": "-q --no-header --tb=short --maxfail=5 -p no:cacheprovider",
}
_FILES = {
    "ruff": ("ruff.toml", ".ruff.toml"),
    "ty": ("ty.toml",),
    "mypy": ("mypy.ini", ".mypy.ini"),
    "pyright": ("pyrightconfig.json",),
    "pytest": ("pytest.ini", ".pytest.ini", "pytest.toml", "conftest.py"),
}
_SECTIONS = {"mypy": (("setup.cfg", "mypy"),), "pytest": (("setup.cfg", "tool:pytest"), ("tox.ini", "pytest"))}


@dataclass(frozen=True)
class Planned:
    """One command that is to be run, or why there is none."""

    name: str
    command: str = ""
    timeout_s: float | None = None
    missing: str = ""


@dataclass(frozen=True)
class Toolbox:
    """What a project configures, and what can be run in it."""

    workspace: Workspace

    def plan(self, check: Check, changed: Sequence[str]) -> Planned | None:
        """The command for a check of these files, by their paths from the root; None if it has nothing to do."""
        if not isinstance(check, str):
            return _own(check.command, check.files, changed=changed, timeout_s=check.timeout_s)
        python = [path for path in changed if path.endswith((".py", ".pyi"))]
        if not python:
            return None
        name, tool = check, self._tool(check)
        if tool is None:
            return Planned(name, missing="the project neither configures it nor has it in its environment")
        if not self._is_there(tool):
            return Planned(name, missing=f"{tool} is neither in the project's environment nor on PATH")
        there = [path for path in python if (self.workspace.root / path).is_file()]
        if check == "tests":
            there = self._tests_of(python)
        elif not there:
            return None
        return Planned(name, " ".join([tool, *_OPTIONS[tool].split(), *map(_operand, there[:MOST_FILES])]))

    def _tool(self, check: CheckName) -> str | None:
        """The program that is meant: what is configured first, then what is installed in the project itself."""
        wanted = {"ruff": ("ruff",), "types": _TYPE_CHECKERS, "tests": ("pytest",)}[check]
        configured = next((tool for tool in wanted if self._configures(tool)), None)
        return configured or next((tool for tool in wanted if self._is_installed(tool)), None)

    def _configures(self, tool: str) -> bool:
        root = self.workspace.root
        if tool in self._tables or any((root / name).is_file() for name in _FILES[tool]):
            return True
        if tool == "pytest" and any((root / name).is_dir() for name in ("tests", "test")):
            return True
        return any(self._has_section(file, section) for file, section in _SECTIONS.get(tool, ()))

    @cached_property
    def _tables(self) -> Mapping[str, object]:
        """The tables of `[tool]` in pyproject.toml."""
        try:
            found = tomllib.loads(self._text("pyproject.toml")).get("tool")
        except tomllib.TOMLDecodeError:
            return {}
        return found if isinstance(found, dict) else {}

    def _has_section(self, file: str, section: str) -> bool:
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parser.read_string(self._text(file))
        except configparser.Error:
            return False
        return parser.has_section(section)

    def _text(self, file: str) -> str:
        try:
            return read_beneath(self.workspace.tree, file, limit=MAX_CONFIG_BYTES).data.decode("utf-8", "replace")
        except OSError:
            return ""

    def _is_installed(self, tool: str) -> bool:
        venv = self.workspace.sandbox.venv
        return venv is not None and os.access(venv / "bin" / tool, os.X_OK)

    def _is_there(self, tool: str) -> bool:
        return self._is_installed(tool) or shutil.which(tool, path=self.workspace.environment.get("PATH")) is not None

    def _tests_of(self, changed: Sequence[str]) -> list[str]:
        """The changed tests and those named after the changed files; none, which means all, if a file has none."""
        names = [entry.path for entry in self.workspace.files() if _is_test(PurePosixPath(entry.path))]
        found: dict[str, None] = {}
        for path in map(PurePosixPath, changed):
            own = [str(path)] if _is_test(path) else [n for n in names if PurePosixPath(n).name in _named_after(path)]
            if not own:
                return []
            found.update(dict.fromkeys(name for name in own if name in names))
        return list(found)


def _own(command: str, files: str, *, changed: Sequence[str], timeout_s: float) -> Planned | None:
    """A command of the user's own, with the files it is about in the place of `{files}`."""
    covered = [*GitIgnoreSpec.from_lines([files]).match_files(changed)]
    if not covered:
        return None
    named = " ".join(map(_operand, sorted(covered)[:MOST_FILES]))
    return Planned(command, command.replace("{files}", named), timeout_s)


def _operand(path: str) -> str:
    """A path as a word of a shell that no program takes for an option."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def _is_test(path: PurePosixPath) -> bool:
    return path.suffix == ".py" and (path.name.startswith("test_") or path.stem.endswith("_test"))


def _named_after(path: PurePosixPath) -> Iterator[str]:
    stem = path.stem.lstrip("_")
    yield from (f"test_{stem}.py", f"{stem}_test.py")
