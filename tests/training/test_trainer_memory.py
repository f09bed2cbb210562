"""What a run takes is measured before it starts, and compared with what it may take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.backends import tiny
from tests.training.test_trainer import RECIPE, sentences

from punie.errors import NotEnoughMemory, UsageError
from punie.wire import Example
from punie_training._memory import Measured, parse_size, peak_bytes
from punie_training.trainer import train

MEASURED = Measured(peak_bytes=5_000, batch_bytes=4_000, batch_tokens=2_000, longest=300)


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), (" 3.5 GiB ", int(3.5 * 2**30)), ("800mb", 800 * 10**6), ("1b", 1)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["4", "0GB", "four GB", "-1GB", "GB", ""])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="no amount of memory"):
        parse_size(text)


def test_within_the_limit_nothing_is_said():
    MEASURED.refuse_over(5_000)


def test_beyond_it_what_fits_is_named():
    with pytest.raises(NotEnoughMemory, match="batch_tokens = 900 ") as caught:
        MEASURED.refuse_over(3_000)
    assert len(str(caught.value).splitlines()) == 2


def test_where_no_batch_fits_the_longest_row_is_named():
    with pytest.raises(NotEnoughMemory, match="of 300 tokens") as caught:
        MEASURED.refuse_over(1_500)
    assert MEASURED.least == 1_600
    assert len(str(caught.value).splitlines()) == 3


def test_peak_is_what_the_process_held():
    before = peak_bytes()
    held = np.ones(before // 8 + 12_500_000)
    assert peak_bytes() - before > 0.9 * 100e6
    assert held.sum() == held.size
    del held
    assert peak_bytes() - before > 0.9 * 100e6, "it is the most that was held, not what is held now"


def test_a_refused_run_leaves_nothing_that_stops_the_next_one(tmp_path):
    base = tiny.write_gguf(tmp_path / "tiny.gguf")
    seen = []
    with pytest.raises(NotEnoughMemory, match=r"may take 0\.00 GB"):
        train(RECIPE, rows=sentences(), base=base, out=tmp_path / "run", memory=1000, on_start=seen.append)
    assert seen[0].memory.peak_bytes > 1000, "the forecast is told before the refusal"
    assert not list((tmp_path / "run").iterdir())
    train(RECIPE, rows=sentences(), base=base, out=tmp_path / "run", memory=1 << 40)


_CHILD = """
import json, sys
from pathlib import Path
from tests.training.test_trainer import RECIPE
from tests.training.test_trainer_memory import long_rows
from punie.errors import NotEnoughMemory
from punie_training.trainer import train
base, out, tokens, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
optim = RECIPE.optim.model_copy(update={"batch_tokens": tokens, "epochs": 1, "accumulation": 1, "window": 64})
recipe, seen = RECIPE.model_copy(update={"optim": optim}), []
try:
    train(recipe, rows=long_rows(), base=base, out=out, memory=limit, on_start=seen.append, on_step=seen.append)
    said = ""
except NotEnoughMemory as error:
    said = str(error)
forecast = seen[0].memory
step = seen[-1].peak_bytes if len(seen) > 1 else 0
print(json.dumps([forecast.peak_bytes, forecast.batch_bytes, forecast.batch_tokens, step, said]))
"""


def long_rows() -> list[Example]:
    """Sixty-four rows of 400 to 463 tokens that begin with the same five."""
    made = []
    for i in range(64):
        tokens = (1, 5, 6, 7, 8, *((i * j) % 200 + 40 for j in range(1, 396 + i)))
        made.append(Example(tokens, (0,) * (len(tokens) - 4) + (1,) * 4))
    return made


def child(base: Path, out: Path, *, tokens: int, limit: int) -> tuple[int, int, int, int, str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _CHILD, str(base), str(out), str(tokens), str(limit)]
    ended = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(json.loads(ended.stdout))


def test_what_is_proposed_does_fit_and_the_forecast_is_true(tmp_path):
    base = tiny.write_gguf(tmp_path / "tiny.gguf")
    peak, batch, tokens, _, said = child(base, tmp_path / "a", tokens=16_000, limit=1000)
    assert batch > 100e6, "the batches must show beside the interpreter"
    assert "alone" in said
    limit = peak - batch // 2
    _, _, _, _, said = child(base, tmp_path / "b", tokens=16_000, limit=limit)
    proposed = int(said.partition("batch_tokens = ")[2].split()[0])
    assert 0.25 * tokens < proposed < 0.75 * tokens
    foreseen, _, _, reached, said = child(base, tmp_path / "c", tokens=proposed, limit=limit)
    assert said == ""
    assert foreseen <= limit
    # A heap in pieces takes more than the forecast; how much more is up to the C library and its threads.
    assert foreseen <= reached < 1.5 * foreseen
