"""The comparison with mlx_lm.lora: the same rows on both sides, trained once each, on a tiny model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.backends import tiny

from punie.backends._weights import shipped_template
from punie.errors import UsageError
from punie_training import bench, bench_training
from punie_training.bench_training import Job, Ran
from punie_training.examples import example, read, renderer_for
from punie_training.trainer import plan

TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"properties": {"name": {}}}}}]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Nine rows with a call, its result of many lines, and an answer; one is longer than the others by far."""
    lines = []
    for i in range(9):
        messages = [
            {"role": "user", "content": f"where is {'x' * i}"},
            {"role": "assistant", "calls": [{"name": "find", "arguments": {"name": "é" * (1 + i % 3)}}]},
            {"role": "tool", "content": "\n".join(f"a.py:{n}" for n in range(12))},
            {"role": "assistant", "content": "there " * (200 if i == 8 else 1 + i % 2)},
        ]
        lines.append(json.dumps({"id": str(i), "family": "f", "project": "p", "messages": messages, "tools": TOOLS}))
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def measured(base, data, tmp_path_factory) -> dict[str, dict[str, float]]:
    out = tmp_path_factory.mktemp("out") / "bench.json"
    given = ["--runs", "1", "--rows", "9", "--batch", "4", "--max-tokens", "900"]
    assert bench.main(["training", *given, "--data", str(data), "--base", str(base), "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_both_are_measured_in_one_run(measured):
    job, figures = measured["job"], measured["figures"]
    assert job["count"] == 8, "the long row is left out, and what does not fill a batch"
    for name in ("Punie", "mlx_lm.lora"):
        assert figures[f"{name}: useful tokens/s"]["median"] > 0
        assert figures[f"{name}: rows of a batch"]["median"] == 4
        whole = figures[f"{name}: peak memory of the process, GB"]["median"]
        assert 0 < figures[f"{name}: of which arrays, GB"]["median"] < whole
    speeds = [figures[f"{name}: useful tokens/s"]["median"] for name in ("Punie", "mlx_lm.lora")]
    assert figures["Punie over mlx_lm.lora, useful tokens/s"]["median"] == pytest.approx(speeds[0] / speeds[1])


def test_both_read_the_same_tokens(base, data, tmp_path):
    """mlx_lm's own reading of the rows, token for token."""
    from mlx_lm.lora import CONFIG_DEFAULTS
    from mlx_lm.tuner.datasets import load_dataset
    from mlx_lm.utils import load

    options = bench_training._parser().parse_args(
        ["--rows", "8", "--batch", "4", "--max-tokens", "900", "--data", str(data), "--base", str(base)]
    )
    job = bench_training.prepared(options, tmp_path)
    _, tokenizer = load(job.directory)[:2]
    args = SimpleNamespace(**(CONFIG_DEFAULTS | bench_training._settings(job, tmp_path / "out")))
    theirs: Any = load_dataset(args, tokenizer)[0]  # type: ignore[arg-type]  # mlx_lm passes its wrapper too
    renderer = renderer_for(base, template=shipped_template())
    ours = [example(row, renderer) for row in read(tmp_path / "rows.jsonl")]
    assert len(ours) == len(theirs) == 8
    for at, row in enumerate(ours):
        tokens, offset = theirs.process(theirs[at])
        assert tuple(tokens) == row.tokens
        assert sum(row.mask[offset:]) > 0
        assert sum(row.mask[:offset]) > 0, "Punie learns the call too"
    assert job.tokens == sum(len(row.tokens) for row in ours)


def test_the_batches_are_as_many_as_wanted():
    examples = [bench_training.Example((1, 2, 3, *range(10, 20 + i)), (0,) * (12 + i) + (1,)) for i in range(24)]
    for batches in (1, 3, 5, 24):
        tokens = bench_training._batch_tokens(examples, batches=batches)
        shared = plan.beginnings(examples)
        made = list(plan.batches(examples, shared=shared, batch_tokens=tokens, order=range(24)))
        assert len(made) <= batches
        tighter = list(plan.batches(examples, shared=shared, batch_tokens=tokens - 1, order=range(24)))
        assert len(tighter) > batches or tokens == 1


def test_figures_are_taken_run_by_run():
    job = Job("", "", "", count=8, batch=4, batch_tokens=1, longest=1, tokens=1000, layers=2)
    pairs = [(Ran(1.0, 2, 10**9, 1), Ran(2.0, 2, 3 * 10**9, 1)), (Ran(2.0, 2, 10**9, 1), Ran(10.0, 2, 10**9, 1))]
    figures = bench_training.summary(job, pairs)
    assert figures["Punie: useful tokens/s"] == bench.Figure(750, 500, 1000, 2)
    assert figures["mlx_lm.lora: useful tokens/s"] == bench.Figure(300, 100, 500, 2)
    assert figures["Punie over mlx_lm.lora, useful tokens/s"] == bench.Figure(3.5, 2, 5, 2)
    assert figures["mlx_lm.lora: peak memory of the process, GB"].median == 2.0


def test_too_few_rows_are_no_measurement(base, data, tmp_path):
    with pytest.raises(UsageError, match="fewer than 20 rows of at most 900"):
        bench.main(["training", "--batch", "20", "--max-tokens", "900", "--data", str(data), "--base", str(base)])
