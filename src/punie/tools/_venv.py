"""The Python environment of a trusted project: commands find its programs, but never one in the place of the system's.

`python`, `pytest` and the other tools of Python are the environment's. Every other program that the system has as well
stays the system's, and so do those that are let through unasked because they only read: a repository that brings a
`.venv/bin/git` or a `.venv/bin/ls` is not run where git or ls was allowed.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from punie.tools._programs import READERS, find_program

NAMES = (".venv", "venv")

_PYTHON = re.compile(r"(python|pip|pydoc|idle|2to3-?)(\d+(\.\d+)*)?")
# They run the code of the project, or read it to judge it; whoever allows one of them means the project's.
_TOOLS = frozenset({
    "basedpyright", "bandit", "black", "codespell", "coverage", "django-admin", "dmypy", "flake8", "flask", "hatch",
    "hypothesis", "ipython", "isort", "jupyter", "lint-imports", "mypy", "nox", "pdm", "poetry", "pre-commit",
    "py.test", "pycodestyle", "pydocstyle", "pyflakes", "pylint", "pyrefly", "pyright", "pytest", "ruff",
    "sphinx-build", "stubgen", "stubtest", "tox", "twine", "ty", "uvicorn", "vulture", "wheel", "yapf",
})  # fmt: skip
_KEPT = READERS | {"git"}
_MISSING = '#!/bin/sh\necho "{name}: command not found" >&2\nexit 127\n'


def project_venv(root: Path, project: Path) -> Path | None:
    """The environment in the nearest directory from `root` up to `project` that has one; None if there is none."""
    above = [path for path in (root, *root.parents) if path.is_relative_to(project)]
    found = (path / name for path in above for name in NAMES)
    return next((path for path in found if _is_venv(path)), None)


def _is_venv(path: Path) -> bool:
    python = path / "bin" / "python"
    # A colon would part the entry of PATH in two.
    return (path / "pyvenv.cfg").is_file() and os.access(python, os.X_OK) and os.pathsep not in str(path)


def with_venv(environment: Mapping[str, str], venv: Path, *, private: Callable[[], Path]) -> dict[str, str]:
    """The variables that put an environment first. `private` is a directory that commands cannot change.

    What stays the system's is found there before the environment's programs are.
    """
    path = environment.get("PATH", os.defpath)
    kept = kept_names(venv, path=path)
    first = [str(_directory_of(kept, private()))] if kept else []
    return {"VIRTUAL_ENV": str(venv), "PATH": os.pathsep.join([*first, str(venv / "bin"), path])}


def kept_names(venv: Path, *, path: str) -> dict[str, str | None]:
    """The programs of an environment that are not run from it, and where the system has them, if it does.

    Found out anew for every command: the one before may have added some.
    """
    kept: dict[str, str | None] = {}
    places = path.split(os.pathsep)
    with os.scandir(venv / "bin") as scan:
        # Some disks take names in another case for the same.
        names = {name for entry in scan for name in (entry.name, entry.name.casefold())}
    for name in sorted(names):
        if _is_pythons(name):
            continue
        # Most names are nowhere else, which is found out here in a tenth of the time.
        anywhere = any(os.access(f"{place}/{name}", os.X_OK) for place in places)
        found = find_program(name, path=path, workspace=venv) if anywhere else None
        if found or name in _KEPT:
            kept[name] = found
    return kept


def _is_pythons(name: str) -> bool:
    return name in _TOOLS or _PYTHON.fullmatch(name) is not None


def _directory_of(kept: Mapping[str, str | None], private: Path) -> Path:
    """A directory with these programs and no others."""
    directory = private / f"kept-{hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()[:16]}"
    if not directory.is_dir():
        directory.mkdir(mode=0o755)
        for name, program in kept.items():
            if program:
                (directory / name).symlink_to(program)
            else:
                (directory / name).write_text(_MISSING.format(name=name))
                (directory / name).chmod(0o755)
    return directory
