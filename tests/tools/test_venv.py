"""Commands find the Python environment of a trusted project, and nothing of it in the place of other programs."""

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic_ai import RunContext
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RunUsage

from punie.agent._safe import is_safe
from punie.config import SandboxOptions
from punie.tools import Workspace, run_command
from punie.tools._programs import READERS
from punie.tools._venv import kept_names, project_venv, with_venv

OFF, REQUIRED = SandboxOptions(mode="off"), SandboxOptions(mode="required")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a real environment, in which a console script stands as pip writes it."""
    root = tmp_path_factory.mktemp("venv") / "project"
    root.mkdir()
    venv.create(root / ".venv", with_pip=False, symlinks=True)
    program(root, "pytest", f"#!{root}/.venv/bin/python\nimport sys\nprint('pytest of', sys.prefix)\n")
    return root


@pytest.fixture
def root(made: Path) -> Path:
    for path in (made / ".venv" / "bin").iterdir():
        if not path.name.startswith(("python", "pytest", "activate", "Activate")):
            path.unlink()
    return made


def program(root: Path, name: str, text: str = "#!/bin/sh\necho shadowed\n") -> Path:
    file = root / ".venv" / "bin" / name
    file.write_text(text)
    file.chmod(0o755)
    return file


async def output(
    root: Path,
    command: str,
    *,
    project: Path | None,
    sandbox: SandboxOptions = OFF,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    variables = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | dict(environment or {})
    workspace = Workspace(root, sandbox=sandbox, environment=variables, project=project)
    context = RunContext(deps=workspace, model=TestModel(), usage=RunUsage())
    return (await run_command(context, command)).splitlines()[1:]


@pytest.mark.parametrize("sandbox", [OFF, REQUIRED], ids=["bare", "sandboxed"])
async def test_python_and_its_tools_are_the_environments(root: Path, sandbox: SandboxOptions):
    told = "import sys; print(sys.prefix)"
    said = await output(root, f'python -c "{told}"; pytest; echo $VIRTUAL_ENV', project=root, sandbox=sandbox)
    assert said == [f"{root}/.venv", f"pytest of {root}/.venv", f"{root}/.venv"]


async def test_an_environment_above_is_found_up_to_the_root_of_the_project(root: Path):
    below = root / "packages" / "one"
    below.mkdir(parents=True, exist_ok=True)
    said = await output(below, "pytest; echo $VIRTUAL_ENV", project=root, sandbox=REQUIRED)
    assert said == [f"pytest of {root}/.venv", f"{root}/.venv"]
    assert project_venv(below, below) is None


async def test_of_a_project_that_nobody_trusts_nothing_is_found(root: Path):
    own = {"VIRTUAL_ENV": "/nowhere"}
    said = await output(root, "command -v python3; echo $PATH; echo $VIRTUAL_ENV", project=None, environment=own)
    assert said[1:] == [os.environ["PATH"], "/nowhere"]
    assert ".venv" not in said[0] or str(root) not in said[0]


@pytest.mark.parametrize("sandbox", [OFF, REQUIRED], ids=["bare", "sandboxed"])
async def test_no_other_program_is_shadowed(root: Path, sandbox: SandboxOptions):
    names = ("git", "ls", "GIT", "env", "bash")
    for name in names:
        program(root, name)
    program(root, "mine", "#!/bin/sh\necho mine\n")
    said = await output(
        root, "git --version; ls -d .venv; env true && bash -c 'echo bash'; mine", project=root, sandbox=sandbox
    )
    assert said[0].startswith("git version")
    assert said[1:] == [".venv", "bash", "mine"]


def test_the_attack_is_real_with_the_environment_simply_first(root: Path):
    for name in ("git", "ls"):
        program(root, name)
    path = f"{root}/.venv/bin:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", "git --version; ls"], env={"PATH": path}, capture_output=True, text=True)
    assert done.stdout == "shadowed\nshadowed\n"


async def test_what_is_let_through_unasked_is_missing_rather_than_the_environments(root: Path, tmp_path: Path):
    few = tmp_path / "bin"
    few.mkdir()
    (few / "sh").symlink_to("/bin/sh")
    program(root, "rg")
    program(root, "git")
    said = await output(root, "rg x; git log; echo $?", project=root, environment={"PATH": str(few)})
    assert said == ["rg: command not found", "git: command not found", "127"]


async def test_a_program_that_a_command_adds_does_not_count_for_the_next(root: Path):
    variables = {"PATH": os.environ["PATH"]}
    workspace = Workspace(root, sandbox=REQUIRED, environment=variables, project=root)
    context = RunContext(deps=workspace, model=TestModel(), usage=RunUsage())
    shadow = "printf '#!/bin/sh\\necho shadowed\\n' > .venv/bin/{0}; chmod +x .venv/bin/{0}"
    await run_command(context, "; ".join(shadow.format(name) for name in ("cat", "head")))
    assert (root / ".venv/bin/cat").exists()
    assert (await run_command(context, "echo mine | cat; echo yours | head")).splitlines()[1:] == ["mine", "yours"]


async def test_what_is_kept_cannot_be_changed_by_a_command(root: Path):
    program(root, "git")
    workspace = Workspace(root, sandbox=REQUIRED, environment={"PATH": os.environ["PATH"]}, project=root)
    context = RunContext(deps=workspace, model=TestModel(), usage=RunUsage())
    await run_command(context, 'd=${PATH%%:*}; rm -f $d/git; ln -s "$PWD/.venv/bin/git" $d/git; echo x > $d/new')
    assert (await run_command(context, "git --version")).splitlines()[1].startswith("git version")


def test_every_program_that_is_let_through_is_kept(root: Path):
    for name in READERS:
        program(root, name)
        assert is_safe((name,)) or name in {"sed"}
    assert set(kept_names(root / ".venv", path="/nowhere")) >= READERS


def test_what_is_no_environment_is_passed_over(tmp_path: Path, root: Path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert project_venv(tmp_path, tmp_path) is None  # no pyvenv.cfg
    (tmp_path / "venv").symlink_to(root / ".venv")
    assert project_venv(tmp_path, tmp_path) == tmp_path / "venv"
    odd = tmp_path / "a:b"
    odd.mkdir()
    (odd / ".venv").symlink_to(root / ".venv")
    assert project_venv(odd, odd) is None


def test_where_nothing_is_shadowed_nothing_is_made(root: Path):
    def private() -> Path:
        raise AssertionError("not needed")

    found = with_venv({"PATH": "/usr/bin:/bin"}, root / ".venv", private=private)
    assert found == {"VIRTUAL_ENV": f"{root}/.venv", "PATH": f"{root}/.venv/bin:/usr/bin:/bin"}
