import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.backends import tiny

from punie import wire
from punie.backends import _gguf, _weights
from punie.backends._mlx import mx
from punie.errors import ConfigError, ModelError, UsageError
from punie.wire import Example
from punie_training import checkpoint, plan
from punie_training._loss import collate, summed_loss
from punie_training.base import load
from punie_training.checkpoint import Checkpoint
from punie_training.examples import declarations, prepare
from punie_training.plot import write_curve
from punie_training.progress import Progress
from punie_training.recipe import Data, Lora, Optim, Recipe, Watch
from punie_training.trainer import main, train

RECIPE = Recipe(
    lora=Lora(rank=4, layers=tiny.LAYERS),
    optim=Optim(lr=1e-2, warmup=3, epochs=4, batch_tokens=30, accumulation=2),
    eval=Watch(dev_rows=4, every=7),
)


def sentences() -> list[Example]:
    """Forty rows: after the same beginning and a random letter comes that letter three times over."""
    made = []
    for i in range(40):
        letter = 40 + i % 20
        beginning = (1, 5, 6, 7, 8, letter, *range(100, 100 + i % 5))
        made.append(Example((*beginning, letter, letter, letter, 2), (0,) * len(beginning) + (1,) * 4))
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    steps, forecasts = [], []
    result = train(
        RECIPE,
        rows=sentences(),
        base=base,
        out=out,
        template="a template",
        on_start=forecasts.append,
        on_step=steps.append,
    )
    return out, result, steps, forecasts


def test_it_learns(finished):
    _, result, steps, _ = finished
    assert steps[-1].loss < 0.5 * steps[0].loss
    dev = [point.dev_loss for point in result.history if point.dev_loss is not None]
    assert dev[-1] < dev[0]


def test_reports_every_update_and_a_forecast(finished):
    _, result, steps, (forecast,) = finished
    assert [step.update for step in steps] == list(range(1, forecast.updates + 1)) == [p.update for p in result.history]
    assert (forecast.rows, forecast.dev_rows) == (36, 4)
    assert forecast.prefix == 5
    assert forecast.seconds > 0
    assert 0 < forecast.memory.batch_bytes < forecast.memory.peak_bytes <= steps[-1].peak_bytes
    assert steps[-1].eta_s == 0
    assert all(step.tokens_per_second > 0 for step in steps)


def test_checkpoints_are_adapters_and_the_last_one_is_the_adapter(finished):
    out, result, steps, _ = finished
    expected = sorted({*range(7, len(steps) + 1, 7), len(steps)})
    assert [int(path.name) for path in result.checkpoints] == expected
    names = {"adapters.safetensors", "adapter_config.json", "chat_template.jinja", "manifest.json"}
    assert {p.name for p in result.adapter.iterdir()} == names
    last, other = (load_file(p / "adapters.safetensors") for p in (result.checkpoints[-1], result.checkpoints[0]))
    saved = load_file(out / "adapter" / "adapters.safetensors")
    assert all(np.array_equal(saved[name], last[name]) for name in saved)
    assert not all(np.array_equal(saved[name], other[name]) for name in saved)
    assert {value.dtype for value in saved.values()} == {np.dtype(np.float16)}


def test_manifest_says_what_the_adapter_is_made_of(finished):
    _, result, _, _ = finished
    manifest = json.loads((result.adapter / "manifest.json").read_text())
    assert manifest["recipe"] == RECIPE.hash
    assert Recipe.model_validate(manifest["settings"]) == RECIPE
    assert manifest["update"] == manifest["updates"] == len(result.history)
    assert all(re.fullmatch("[0-9a-f]{64}", manifest[name]) for name in ("recipe", "data", "base"))
    assert (result.adapter / "chat_template.jinja").read_text() == "a template"


def test_mlx_lm_loads_the_adapter_with_the_loss_it_was_saved_at(finished, base):
    from mlx_lm.tuner.utils import load_adapters

    _, result, _, _ = finished
    dev = collate(plan.select(sentences(), RECIPE).dev)
    untrained = load(base)
    trained = load_adapters(load(base), str(result.adapter))
    before, after = (float(np.array(summed_loss(model, dev))) / dev.targets.size for model in (untrained, trained))
    assert after == pytest.approx(result.history[-1].dev_loss, rel=1e-2)  # saved in 16 bits
    assert after < 0.9 * before


def test_the_same_run_twice_gives_the_same_weights(finished, base, tmp_path):
    again = train(RECIPE, rows=sentences(), base=base, out=tmp_path)
    assert [p.loss for p in again.history] == [p.loss for p in finished[1].history]
    assert same_state(tmp_path, finished[0])


@pytest.mark.parametrize(
    "changed",
    [
        RECIPE.model_copy(update={"optim": RECIPE.optim.model_copy(update={"clip": 1e-3})}),
        RECIPE.model_copy(update={"optim": RECIPE.optim.model_copy(update={"weight_decay": 0.5})}),
        RECIPE.model_copy(update={"optim": RECIPE.optim.model_copy(update={"beta2": 0.5})}),
    ],
    ids=["clip", "weight decay", "beta2"],
)
def test_optimizer_settings_reach_the_optimizer(finished, base, tmp_path, changed):
    train(changed, rows=sentences(), base=base, out=tmp_path)
    ours, theirs = (load_file(d / "adapter" / "adapters.safetensors") for d in (tmp_path, finished[0]))
    assert not all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_run_can_start_from_the_adapter_of_another(finished, base, tmp_path):
    shutil.copytree(finished[0], tmp_path / "first")
    still = {"start": "first", "optim": RECIPE.optim.model_copy(update={"lr": 1e-12, "weight_decay": 0.0})}
    train(RECIPE.model_copy(update=still), rows=sentences(), base=base, out=tmp_path / "second")
    ours, theirs = (load_file(d / "adapter" / "adapters.safetensors") for d in (tmp_path / "second", finished[0]))
    assert all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_an_adapter_of_another_shape_cannot_be_trained_further(finished, base, tmp_path):
    shutil.copytree(finished[0], tmp_path / "first")
    other = {"start": "first", "lora": RECIPE.lora.model_copy(update={"rank": 2})}
    with pytest.raises(ConfigError, match="does not fit"):
        train(RECIPE.model_copy(update=other), rows=sentences(), base=base, out=tmp_path / "second")


# --- stopping and going on -----------------------------------------------------------------------------------------

_CHILD = """
import os, signal, sys
from pathlib import Path
from tests.training.test_trainer import RECIPE, sentences
from punie_training.trainer import train
base, out, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def die(step):
    if step.update == stop:
        os.kill(os.getpid(), signal.SIGKILL)
train(RECIPE, rows=sentences(), base=base, out=out, resume=True, on_step=die)
"""


def run_until(update: int, *, base: Path, out: Path) -> int:
    """Train in another process that kills itself after this update."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _CHILD, str(base), str(out), str(update)]
    return subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=200).returncode


def same_state(ours: Path, theirs: Path) -> bool:
    left, right = (load_file(directory / "state.safetensors") for directory in (ours, theirs))
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_killed_twice_and_resumed_it_ends_bit_for_bit_the_same(finished, base, tmp_path):
    assert run_until(9, base=base, out=tmp_path) == -signal.SIGKILL
    assert run_until(12, base=base, out=tmp_path) == -signal.SIGKILL
    assert not same_state(tmp_path, finished[0])
    seen = []
    result = train(
        RECIPE, rows=sentences(), base=base, out=tmp_path, template="a template", resume=True, on_step=seen.append
    )
    assert seen[0].update == 11  # the state of update 10 was the last one saved
    assert same_state(tmp_path, finished[0])
    assert result.history == finished[1].history
    assert [p.name for p in result.checkpoints] == [p.name for p in finished[1].checkpoints]


def test_a_finished_run_resumes_to_nothing_left(finished, base):
    before = (finished[0] / "state.safetensors").stat().st_mtime_ns
    seen = []
    train(RECIPE, rows=sentences(), base=base, out=finished[0], resume=True, on_step=seen.append)
    assert seen == []
    assert (finished[0] / "state.safetensors").stat().st_mtime_ns == before


def test_a_directory_with_a_run_is_not_overwritten(finished, base):
    with pytest.raises(UsageError, match="--resume"):
        train(RECIPE, rows=sentences(), base=base, out=finished[0])


@pytest.mark.parametrize("part", ["recipe", "data", "base"])
def test_a_state_of_another_run_is_refused(finished, base, tmp_path, part):
    recipe = RECIPE.model_copy(update={"seed": 1}) if part == "recipe" else RECIPE
    rows = sentences()[1:] if part == "data" else sentences()
    model = tiny.write_gguf(tmp_path / "other.gguf", seed=5) if part == "base" else base
    with pytest.raises(UsageError, match=part):
        train(recipe, rows=rows, base=model, out=finished[0], resume=True)


def test_a_state_is_replaced_whole_or_not_at_all(finished, base, tmp_path, monkeypatch):
    out, result, _, _ = finished
    path = tmp_path / "state.safetensors"
    path.write_bytes((out / "state.safetensors").read_bytes())

    def full_disk(part: Path, *_: object, **__: object) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "write_arrays", full_disk)
    from mlx.optimizers import AdamW

    with pytest.raises(OSError, match="no space"):
        Checkpoint(path, identity={}).save(load(base), AdamW(0.1), history=result.history)
    assert path.read_bytes() == (out / "state.safetensors").read_bytes()
    assert list(tmp_path.iterdir()) == [path]


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_state(base, tmp_path):
    wild = RECIPE.model_copy(update={"optim": Optim(lr=1e18, warmup=0, epochs=20, batch_tokens=30)})
    with pytest.raises(ModelError, match="Update"):
        train(wild, rows=sentences(), base=base, out=tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        assert all(np.isfinite(value).all() for value in load_file(path).values()), path


def test_without_a_usable_row_nothing_starts(base, tmp_path):
    recipe = RECIPE.model_copy(update={"data": Data(max_tokens=3)})
    with pytest.raises(UsageError, match="No row"):
        train(recipe, rows=sentences(), base=base, out=tmp_path)


# --- what people see -----------------------------------------------------------------------------------------------


def test_lines_where_there_is_no_terminal(finished, tmp_path, capsys):
    _, _, steps, (forecast,) = finished
    with Progress(sys.stderr, log=tmp_path / "train.log") as progress:
        progress.start(forecast)
        for step in steps:
            progress.step(step)
    shown, logged = capsys.readouterr().err.splitlines(), (tmp_path / "train.log").read_text().splitlines()
    assert "estimate" in shown[1]
    assert set(shown) <= set(logged)
    assert len(logged) == len(steps) + 2
    assert re.search(r"loss [\d.]+ dev [\d.]+ .* tok/s .* ETA 0:00", logged[-1])


def test_curve_as_picture_and_numbers(finished, tmp_path):
    write_curve(finished[1].history, tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((tmp_path / "loss.json").read_text())
    assert [p["loss"] for p in points] == [p.loss for p in finished[1].history]


def test_loads_a_model_directory_too(base, tmp_path):
    from mlx.utils import tree_flatten

    model = load(base)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (tmp_path / "config.json").write_text(json.dumps(_gguf.config(base)))
    prompt = mx.array([[1, 5, 9]])
    assert mx.array_equal(load(tmp_path)(prompt), model(prompt))


def test_a_person_may_interrupt_and_go_on(base, tmp_path):
    def stop(step):
        if step.update == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, rows=sentences(), base=base, out=tmp_path, on_step=stop)
    seen = []
    train(RECIPE, rows=sentences(), base=base, out=tmp_path, resume=True, on_step=seen.append)
    assert seen[0].update == 11


def test_the_command_trains_from_a_data_file(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = []
    for i in range(12):
        messages = [{"role": "user", "content": f"where is number {i}"}, {"role": "assistant", "content": "here " * 3}]
        lines.append(json.dumps({"id": str(i), "family": "count", "project": "p", "messages": messages, "expect": {}}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    recipe = (
        "[lora]\nlayers = 2\nrank = 2\n[data]\nmax_tokens = 2000\n[eval]\ndev_rows = 2\n[optim]\nbatch_tokens = 9000\n"
    )
    (tmp_path / "0009-try.toml").write_text(recipe)
    assert main(["0009-try.toml", "--data", "rows.jsonl", "--base", str(base)]) == 0
    run = tmp_path / "training" / "runs" / "0009-try"
    assert {p.name for p in run.iterdir()} == {
        "adapter",
        "checkpoints",
        "loss.json",
        "loss.png",
        "state.safetensors",
        "train.log",
    }
    assert (run / "adapter" / "chat_template.jinja").read_text() == _weights.shipped_template()
    assert "10 rows in" in capsys.readouterr().err
    assert main(["0009-try.toml", "--data", "rows.jsonl", "--base", str(base), "--seed", "2"]) == 0
    again = json.loads((tmp_path / "training/runs/0009-try-seed2/adapter/manifest.json").read_text())
    assert again["settings"]["seed"] == 2


def test_rows_are_rendered_as_the_model_is_served(base, tmp_path):
    messages = [
        {"role": "user", "content": "where is Flask"},
        {"role": "assistant", "calls": [{"name": "find_symbol", "arguments": {"name": "Flask"}}]},
        {"role": "tool", "content": "1 definition of Flask\na.py:1 class Flask"},
        {"role": "assistant", "content": "There: [[result]]"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "1", "family": "definition", "project": "p", "messages": messages}) + "\n")
    prepared = prepare(Recipe(), data=path, base=base)
    (example,) = prepared.examples
    renderer = wire.Wire(_gguf.tokenizer(base), template=prepared.template, view=wire.View())
    served = renderer.prompt([wire.Message("user", "where is Flask")], declarations())
    assert example.tokens[: len(served)] == served
    assert not any(example.mask[: len(served)])
    learned = renderer.tokenizer.decode(
        [t for t, m in zip(example.tokens, example.mask, strict=True) if m], skip_special_tokens=False
    )
    call = '<tool_call>\n{"name": "find_symbol", "arguments": {"name": "Flask"}}\n</tool_call>'
    assert learned == f"{call}<|im_end|>There: [[result]]<|im_end|>"


def test_a_missing_data_file_names_the_command_that_makes_it(base, tmp_path):
    with pytest.raises(UsageError, match="punie train data"):
        prepare(Recipe(), data=tmp_path / "none.jsonl", base=base)
