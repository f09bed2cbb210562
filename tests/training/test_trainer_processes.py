"""Two processes train what one does: the same losses, up to the order in which float32 sums are made."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.backends import tiny

from punie.errors import ModelError, UsageError
from punie_training import _processes
from punie_training._processes import Processes

TOLERANCE = 1e-5
"""Of a loss, relative: sums of some thousand float32 numbers in another order, over the updates of a run."""
CHILD = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from punie.errors import PunieError
from punie.wire import Example
from punie_training._processes import Processes
from punie_training.recipe import Lora, Optim, Recipe, Watch
from punie_training.trainer import train

base, out, accumulation, tokens, *rest = sys.argv[1:]
optim = Optim(lr=3e-3, epochs=2, batch_tokens=int(tokens), accumulation=int(accumulation))
recipe = Recipe(lora=Lora(rank=4, layers=2), optim=optim, eval=Watch(dev_rows=3, every=2))
beginnings = [(1, 5, 6, 7, 8, 40 + i, *range(100, 100 + i % 5)) for i in range(15)]
rows = [Example((*b, b[5], b[5], 2), (0,) * len(b) + (1, 1, 1)) for b in beginnings]
given = {"resume": "resume" in rest, "memory": 1000 if "memory" in rest else None}
processes, told = Processes.joined(), []
try:
    done = train(recipe, rows=rows, base=Path(base), out=Path(out), processes=processes, on_step=told.append, **given)
except PunieError as error:
    sys.exit(str(error))
if processes.is_first:
    (Path(out) / "loss.json").write_text(json.dumps([asdict(point) for point in done.history]))
elif told:
    sys.exit("only the first process is called back")
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


def command(base: Path, out: Path, *, accumulation: int = 1, batch_tokens: int = 60) -> list[str]:
    return [sys.executable, "-c", CHILD, str(base), str(out), str(accumulation), str(batch_tokens)]


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """Runs in one process, by accumulation and tokens of a batch."""
    made: dict[tuple[int, int], Path] = {}

    def run(accumulation: int = 1, batch_tokens: int = 60) -> Path:
        key = accumulation, batch_tokens
        if key not in made:
            made[key] = tmp_path_factory.mktemp("alone")
            asked = command(base, made[key], accumulation=accumulation, batch_tokens=batch_tokens)
            subprocess.run(asked, check=True)
        return made[key]

    return run


def same_losses(ours: Path, theirs: Path) -> None:
    left, right = (json.loads((run / "loss.json").read_text()) for run in (ours, theirs))
    assert [p["update"] for p in left] == [p["update"] for p in right]
    assert [p["tokens"] for p in left] == [p["tokens"] for p in right]
    for name in ("loss", "gradient_norm", "learning_rate"):
        np.testing.assert_allclose([p[name] for p in left], [p[name] for p in right], rtol=TOLERANCE)
    dev = [[p["dev_loss"] for p in run if p["dev_loss"]] for run in (left, right)]
    assert len(dev[0]) >= 2
    np.testing.assert_allclose(*dev, rtol=TOLERANCE)
    a, b = (load_file(run / "adapter" / "adapters.safetensors") for run in (ours, theirs))
    assert max(np.abs(a[n].astype(np.float32) - b[n]).max() for n in a) < 1e-4


@pytest.mark.parametrize(
    ("accumulation", "batch_tokens"),
    [(1, 60), (2, 30), (1, 1)],
    ids=["rows of a batch", "whole batches", "one row a batch: the second process has nothing to do"],
)
def test_the_losses_are_those_of_one_process(alone, base, tmp_path, accumulation, batch_tokens):
    asked = command(base, tmp_path, accumulation=accumulation, batch_tokens=batch_tokens)
    assert _processes.start(asked, count=2) == 0
    same_losses(tmp_path, alone(accumulation, batch_tokens))


def test_a_run_may_go_on_with_another_number_of_processes(alone, base, tmp_path):
    asked = command(base, tmp_path)
    slow = [
        *asked[:2],
        asked[2].replace("on_step=told.append", "on_step=lambda _: __import__('time').sleep(1)"),
        *asked[3:],
    ]
    starting = "import sys; from punie_training import _processes; _processes.start(sys.argv[1:], count=2)"
    watched = subprocess.Popen([sys.executable, "-c", starting, *slow], start_new_session=True)
    assert until((tmp_path / "state.safetensors").exists)
    os.killpg(watched.pid, signal.SIGKILL)
    watched.wait()
    assert not (tmp_path / "loss.json").exists()
    subprocess.run([*asked, "resume"], check=True)
    same_losses(tmp_path, alone())


def until(condition, *, seconds: float = 200.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def test_what_mlx_starts_trains_together(alone, base, tmp_path):
    launch = str(Path(sys.executable).with_name("mlx.launch"))
    port = str(_processes._free_ports(1)[0])
    reading, writing = os.pipe()  # mlx.launch reads without end from an input that is at its end
    try:
        subprocess.run([launch, "-n", "2", "-p", port, "--", *command(base, tmp_path)], stdin=reading, check=True)
    finally:
        os.close(reading)
        os.close(writing)
    same_losses(tmp_path, alone())


def test_the_command_starts_the_processes(base, tmp_path):
    messages = [{"role": "user", "content": "where"}, {"role": "assistant", "content": "here"}]
    rows = [{"id": str(i), "family": "f", "project": "p", "messages": messages, "tools": []} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recipe.toml").write_text("[lora]\nlayers = 2\n[eval]\ndev_rows = 0\n")
    given = ["--data", str(tmp_path / "rows.jsonl"), "--base", str(base), "--out", str(tmp_path / "run")]
    asked = [sys.executable, "-m", "punie", "train", "run", str(tmp_path / "recipe.toml"), *given, "--processes", "2"]
    run = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert run.stderr.count("4 rows in 1 updates") == 1, "the first process alone shows"
    log = (tmp_path / "run" / "train.log").read_text()
    assert re.findall(r"^(\d+/\d+) loss", log, re.MULTILINE) == ["1/1"], "and writes"
    assert {"adapter", "loss.png", "state.safetensors"} <= {path.name for path in (tmp_path / "run").iterdir()}


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_what_all_refuse_is_told_once(base, tmp_path, capfd):
    assert _processes.start([*command(base, tmp_path), "memory"], count=2) == 1
    said = capfd.readouterr().err
    assert said.count("may take 0.00 GB") == 1
    assert "Traceback" not in said


_FAILING = """
import os, sys, time
rank = os.environ["MLX_RANK"]
if rank == "1":
    print("the reason", file=sys.stderr)
    HOW
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("sys.exit(7)", "Process 2 of 2 of the run failed with exit code 7: the reason"),
        ("sys.stderr.flush(); os.kill(os.getpid(), 9)", "Process 2 of 2 of the run was ended by signal 9: the reason"),
    ],
)
def test_when_one_fails_all_end(how, said):
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        _processes.start([sys.executable, "-c", _FAILING.replace("HOW", how)], count=2)
    assert str(caught.value).splitlines()[0] == said
    assert time.monotonic() - began < 30


def test_the_exit_code_of_the_first_is_that_of_the_run():
    assert _processes.start([sys.executable, "-c", "import sys; sys.exit(3)"], count=2) == 3
    assert _processes.start([sys.executable, "-c", "pass"], count=2) == 0


def test_less_than_one_process_is_refused():
    with pytest.raises(UsageError, match="--processes 0"):
        _processes.joined_or_started([], count=0)


# --- what each does --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("update", [((1, 2, 3, 4, 5),), ((1, 2), (3,)), ((1,), (2, 3, 4), (5, 6, 7)), ((9,),)])
def test_the_parts_are_the_update(size, update):
    parts = [Processes(rank, size).part(update) for rank in range(size)]
    found = sorted(i for part in parts for batch in part for i in batch)
    assert found == sorted(i for batch in update for i in batch)
    assert all(batch for part in parts for batch in part)
    assert parts == [Processes(rank, size).part(update) for rank in range(size)]
    loads = [sum(map(len, part)) for part in parts]
    if len(update) % size:
        assert max(loads) - min(loads) <= len(update)
