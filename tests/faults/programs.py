"""Runs the programs of this package as tests do: each in a process of its own, because they fork."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]


def program(name: str, *arguments: object) -> dict[str, Any]:
    """What a program of this package has found."""
    command = [sys.executable, "-m", f"tests.faults.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)
