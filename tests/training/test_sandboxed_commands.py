"""The commands of the training data say the same in a sandbox as their plan expects, which is made without one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from punie.tools import Sandbox, SandboxState
from punie.tools._process import run
from punie.tools._sandbox import Kind
from punie_training.family_changes import COMMANDS

KINDS: list[Kind] = ["bubblewrap", "landlock"] if sys.platform == "linux" else ["seatbelt"]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_command_says_the_same(kind: Kind, tmp_path: Path):
    project = Path(__file__).parents[1] / "tools"
    roots = [tmp_path / name / "project" for name in ("plain", "confined")]
    for root in roots:
        shutil.copytree(project, root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "README.md").write_text("# A project\n")
    sandbox = Sandbox(roots[1], environment=os.environ, state=SandboxState(kind, ""))
    for pattern in COMMANDS:
        text = pattern.format(p="tools/project.py", d="tools")
        plain = subprocess.run(  # noqa: ASYNC221, S602 - as the plan does it
            text, shell=True, cwd=roots[0], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        outcome = await run(text, sandbox=sandbox, timeout_s=60)
        assert outcome.status == plain.returncode, text
        said = plain.stdout.decode().replace("/bin/sh: 1:", "/bin/bash: line 1:").replace(str(roots[0]), str(roots[1]))
        assert (outcome.head + outcome.tail).decode() == said, text
