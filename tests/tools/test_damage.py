"""A little of what `python -m tests.tools.damage` does."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_process_killed_while_it_replaces_a_file_leaves_the_old_or_the_new_one():
    command = [sys.executable, "-m", "tests.tools.damage", "--kills", "10", "--bytes", "2000000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    kills, steps = map(json.loads, done.stdout.splitlines())
    assert (kills["kills"], kills["torn"]) == (10, 0)
    assert {"open", "write", "fsync", "rename", "unlink"} <= set(steps["steps"])
    assert steps["kills"] == sum(steps["of each"]) > 10
    assert steps["torn"] == 0
