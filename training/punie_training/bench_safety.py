"""`just bench safety`: what it costs to be careful, in milliseconds.

Each entry of `MEASURES` measures one precaution the way it happens in use, once for each round it is asked for.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from punie.agent._shell import analyse
from punie.agent.permissions import Call, Permissions, authorize
from punie.rules import RuleSet, parse_rule
from punie.tools import Sandbox, SandboxState
from punie.tools._process import run
from punie.tools._sandbox import Kind, fault_of
from punie_training import bench_sessions
from punie_training.bench import Figure, machine, say

AUTHORIZE_MS = 2.0
"""What judging one call may take."""
SANDBOX_MS = 50.0
"""What a sandbox may add to a command."""

_RULES = RuleSet(
    deny=tuple(map(parse_rule, ("Bash(curl:*)", "Bash(git push:*)", "Read(./secrets/**)", "Edit(~/**)"))),
    ask=(parse_rule("Bash(git commit:*)"),),
    allow=tuple(map(parse_rule, ("Bash(pytest:*)", "Bash(git log:*)", "Bash(npm run test)", "Edit(src/**)"))),
)
_CALLS: Mapping[str, Call] = {
    "authorize: read a file": Call("read_file", {"path": "src/punie/app.py"}),
    "authorize: edit a file": Call("edit_file", {"path": "src/punie/app.py", "old": "a", "new": "b"}),
    "authorize: plain command": Call("run_command", {"command": "pytest -q tests/agent | tail -n 20"}),
    "authorize: command that hides what it runs": Call(
        "run_command", {"command": "for f in src/*.py; do env A=1 bash -c \"cat $f | grep -n 'x y' > out/$f\"; done"}
    ),
    "authorize: command that deletes": Call("run_command", {"command": "rm -rf build && git reset --hard HEAD~1"}),
}

Measure = Callable[[int], Iterator[float]]
"""Gives the milliseconds of each of so many rounds."""


def _authorizing(call: Call) -> Measure:
    """Judge a call that was never seen before: what is remembered of commands is forgotten first."""

    def rounds(count: int) -> Iterator[float]:
        permissions = Permissions("default", _RULES, uses_sandbox=True, home=Path.home())
        with tempfile.TemporaryDirectory(prefix="punie-") as directory:
            root = Path(directory).resolve()
            (root / "src" / "punie").mkdir(parents=True)
            (root / "src" / "punie" / "app.py").write_text("a\n", "utf-8")
            authorize(call, root=root, permissions=permissions)  # what is imported and compiled once is no part of it
            for _ in range(count):
                analyse.cache_clear()
                started = time.perf_counter()
                authorize(call, root=root, permissions=permissions, sandbox_works=True)
                yield (time.perf_counter() - started) * 1000

    return rounds


def _running(kind: Kind) -> Measure:
    """Run the shortest command there is, as the tool does; nothing where this kind of sandbox does not work."""

    def rounds(count: int) -> Iterator[float]:
        if kind != "none" and fault_of(kind, os.environ["PATH"]) is not None:
            return
        with tempfile.TemporaryDirectory(prefix="punie-") as directory, asyncio.Runner() as runner:
            root = Path(directory).resolve()
            subprocess.run(["git", "init", "-q", str(root)], check=True)  # noqa: S607 - the git of whoever measures
            sandbox = Sandbox(root, environment=os.environ, state=SandboxState(kind, ""))
            for index in range(count + 1):
                started = time.perf_counter()
                outcome = runner.run(run("true", sandbox=sandbox, timeout_s=60))
                if outcome.status != 0:
                    raise RuntimeError(outcome.head.decode("utf-8", "replace"))
                if index:  # the first one makes directories that the others share
                    yield (time.perf_counter() - started) * 1000

    return rounds


_BARE = "command: without a sandbox"
_COMMANDS: Mapping[str, Measure] = {
    _BARE: _running("none"),
    "command: in bubblewrap": _running("bubblewrap"),
    "command: with Landlock": _running("landlock"),
    "command: in sandbox-exec": _running("seatbelt"),
}

MEASURES: Mapping[str, Measure] = {
    **{name: _authorizing(call) for name, call in _CALLS.items()},
    **_COMMANDS,
    **bench_sessions.MEASURES,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(prog="just bench safety", description="Time Punie's precautions.")
    parser.add_argument("--runs", type=int, default=200, help="rounds of each measure")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    say(f"{machine()}\nmilliseconds: median, smallest .. largest\n")
    measured = {name: list(measure(options.runs)) for name, measure in MEASURES.items()}
    figures = {name: Figure.of(values) for name, values in measured.items() if values}
    for name, figure in figures.items():
        say(f"{name:<44}{figure}")
    for name in (name for name in _COMMANDS if name in figures and name != _BARE):
        added = figures[name].median - figures[_BARE].median
        say(f"\n{name} adds {added:.1f} ms to the median; the goal is at most {SANDBOX_MS:g} ms")
    if options.out:
        record = {"machine": machine(), "unit": "ms", "figures": {name: asdict(f) for name, f in figures.items()}}
        options.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return 0
