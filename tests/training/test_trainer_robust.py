"""What goes wrong while training: full disks, killed processes, sets that cannot be learned from."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tests.backends import tiny
from tests.training.test_trainer import RECIPE, same_state, sentences

from punie.backends._files import claimed
from punie.errors import ConfigError, ModelError, UsageError, WeightsMissing
from punie.wire import Example
from punie_training import trainer
from punie_training.recipe import Data, Lora
from punie_training.trainer import train

STOPPED = 12
"""The state of update 10 is the last one before it; 14 is the second checkpoint."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "first"
    train(RECIPE, rows=sentences(), base=base, out=out)
    return out


# --- stopped in the middle of saving ---------------------------------------------------------------------------------

_CHILD = """
import os, resource, signal, sys
from pathlib import Path
from tests.training.test_trainer import RECIPE, sentences
from punie.errors import PunieError
from punie_training import adapter, checkpoint
from punie_training.trainer import train
base, out, how, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

write = checkpoint.write_arrays
def die_half_way(path, arrays, *, metadata):
    write(path, arrays, metadata=metadata)
    os.truncate(path, path.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)

def step(done):
    if done.update == stop and how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    if done.update == stop and how == "killed in a state":
        checkpoint.write_arrays = die_half_way
    if done.update == stop and how == "killed in an adapter":
        adapter.write_arrays = die_half_way
try:
    train(RECIPE, rows=sentences(), base=base, out=out, on_step=step)
except PunieError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def stopped(base: Path, out: Path, *, how: str, after: int) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-c", _CHILD, str(base), str(out), how, str(after)]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize(
    ("how", "after", "last", "rest"),
    [
        ("full", STOPPED, 10, {"checkpoints", "state.safetensors"}),
        ("killed in a state", 8, 7, {"checkpoints", "state.safetensors", "state.safetensors.*.part"}),
        ("killed in an adapter", STOPPED, 10, {"checkpoints", "state.safetensors"}),
    ],
)
def test_the_last_state_survives_and_the_run_ends_bit_for_bit_the_same(
    base, finished, tmp_path, how, after, last, rest
):
    ended = stopped(base, tmp_path, how=how, after=after)
    if how == "full":
        assert ended.returncode == 1
        said = ended.stderr.strip().splitlines()
        assert said[0] == f"ModelError: The run cannot be stored in {tmp_path}: File too large."
        assert "--resume" in said[1]
        assert len(said) == 2
    else:
        assert ended.returncode == -signal.SIGKILL
    names = {"state.safetensors.*.part" if path.suffix == ".part" else path.name for path in tmp_path.iterdir()}
    assert names == rest
    whole = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.suffix != ".part"]
    assert whole == ["000007"]
    seen = []
    train(RECIPE, rows=sentences(), base=base, out=tmp_path, resume=True, on_step=seen.append)
    assert seen[0].update == last + 1
    assert same_state(tmp_path, finished)
    for adapter in ("checkpoints/000014", "adapter"):
        ours, theirs = (load_file(out / adapter / "adapters.safetensors") for out in (tmp_path, finished))
        assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_another_process_trains_is_left_alone(base, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with claimed(tmp_path / "run"), pytest.raises(UsageError, match=r"Another process is writing into .*run"):
        train(RECIPE, rows=sentences(), base=base, out=tmp_path / "run", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    train(RECIPE, rows=sentences(), base=base, out=tmp_path / "run", resume=True)


def test_a_command_that_cannot_write_says_so(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(f"[lora]\nlayers = {tiny.LAYERS}\n[data]\nmax_tokens = 5000\n")
    (tmp_path / "rows.jsonl").write_text(line("where is it", "there"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be stored in file") as caught:
        trainer.main(["recipe.toml", "--data", "rows.jsonl", "--base", str(base), "--out", "file/run"])
    assert len(str(caught.value).splitlines()) == 2


# --- sets ------------------------------------------------------------------------------------------------------------


def line(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": question, "family": "count", "project": "p", "messages": messages}) + "\n"


def test_one_row_is_enough(base, tmp_path):
    result = train(RECIPE, rows=sentences()[:1], base=base, out=tmp_path)
    assert (result.forecast.rows, result.forecast.dev_rows, result.forecast.updates) == (1, 0, RECIPE.optim.epochs)
    assert result.history[-1].loss < result.history[0].loss


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (sentences(), "of 40, 40 are longer than 9 tokens, 0 have nothing to learn.\nThe shortest has 10 tokens"),
        ([Example((1, 2, 3), (0, 0, 0))], "of 1, 0 are longer than 9 tokens, 1 have nothing to learn.\nSee what"),
        ([], "of 0, 0 are longer"),
    ],
)
def test_rows_of_which_none_is_left_are_counted_by_reason(base, tmp_path, rows, said):
    recipe = RECIPE.model_copy(update={"data": Data(max_tokens=9)})
    with pytest.raises(UsageError) as caught:
        train(recipe, rows=rows, base=base, out=tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "rows.jsonl:1: the file holds no row"),
        (line("a", "b") + "\n\n" + line("c", "d")[:30] + "\n", "rows.jsonl:4: not valid JSON"),
        (line("a", "b") + "[1, 2]\n", "rows.jsonl:2: not a JSON object"),
        (line("a", "b") + '{"id": "x"}\n', "rows.jsonl:2: `family`: Field required"),
        (line("a", "b") + "\x00\x01\n", "rows.jsonl:2: not valid JSON"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(base, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UsageError) as caught:
        trainer.main(["recipe.toml", "--data", "rows.jsonl", "--base", str(base)])
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.toml", "rows.jsonl"]


# --- what a run starts from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (RECIPE.lora.model_copy(update={"rank": 2}), "lora_a is (96, 4) there, and (96, 2) here"),
        (RECIPE.lora.model_copy(update={"kind": "dora"}), "m is none there, and (64,) here"),
        (Lora(rank=4, layers=1), "model.layers.0.mlp.down_proj.lora_a is (96, 4) there, and none here"),
    ],
    ids=["rank", "kind", "layers"],
)
def test_an_adapter_of_another_shape_is_told_by_its_first_matrix(base, finished, tmp_path, lora, said):
    shutil.copytree(finished, tmp_path / "first")
    recipe = RECIPE.model_copy(update={"start": "first", "lora": lora})
    with pytest.raises(ConfigError) as caught:
        train(recipe, rows=sentences(), base=base, out=tmp_path / "second")
    assert said in str(caught.value)
    assert not (tmp_path / "second").exists()


def test_an_adapter_of_another_base_is_not_trained_further(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "first")
    other = tiny.write_gguf(tmp_path / "other.gguf", seed=5)
    with pytest.raises(ConfigError, match="does not fit other"):
        train(RECIPE.model_copy(update={"start": "first"}), rows=sentences(), base=other, out=tmp_path / "second")


def test_a_start_that_is_not_there_is_named(base, tmp_path):
    with pytest.raises(WeightsMissing, match="nowhere"):
        train(RECIPE.model_copy(update={"start": "nowhere"}), rows=sentences(), base=base, out=tmp_path / "second")


def test_the_limit_of_the_simulated_disk_is_below_a_state(finished):
    assert (finished / "state.safetensors").stat().st_size > 20_000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY, "only the child was limited"
