"""`just bench training`: Punie's trainer and stock `mlx_lm.lora` on the same rows, with the same LoRA and BLAS.

Useful tokens are those of the rows, each row counted once an epoch, in Punie's rendering: padding, and a prefix that is
computed once or many times, count for neither. Only the updates are timed, not loading, tokenising or saving. Every
run is a process of its own, the two in turn, so that its peak memory is its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

from punie.backends import _gguf, _mlx_model
from punie.backends._mlx import BLAS, mx, require
from punie.backends._weights import default_cache_dir, ensure_base, shipped_template
from punie.errors import UsageError
from punie.wire import Example, View
from punie_training import plan
from punie_training._memory import peak_bytes
from punie_training.bench import Figure, machine, say
from punie_training.examples import choose, example, prepare, read, renderer_for
from punie_training.fuse import special_tokens
from punie_training.recipe import Data, Lora, Optim, Recipe, Watch
from punie_training.rows import Row, Turn
from punie_training.trainer import Step, train

Who = Literal["punie", "mlx_lm"]
_NAMES: dict[Who, str] = {"punie": "Punie", "mlx_lm": "mlx_lm.lora"}
_NEVER = 10**9
DIFFERENCES = """\
What differs: mlx_lm.lora learns the last assistant turn only (--mask-prompt), Punie every one. mlx_lm.lora takes the
rows as they come, pads to 32 tokens and computes what all rows begin with in every row; Punie puts rows of like length
together and computes that beginning once a batch. Punie also clips the gradient and changes its learning rate."""


@dataclass(frozen=True)
class Job:
    """What both train: paths as text, since it goes to another process as JSON."""

    base: str
    """What Punie loads: a GGUF file or an MLX directory."""
    directory: str
    """The same model for mlx_lm, with the chat template that the rows are rendered with."""
    rows: str
    """Directory with `rows.jsonl` for Punie and `train.jsonl` for mlx_lm."""
    count: int
    batch: int
    """Rows of a batch: exactly for mlx_lm, on average for Punie."""
    batch_tokens: int
    longest: int
    tokens: int
    """Useful tokens of an epoch."""
    layers: int

    @property
    def lora(self) -> Lora:
        """Rank, scale and layers for both."""
        return Lora(layers=self.layers)

    @property
    def recipe(self) -> Recipe:
        """One epoch for Punie."""
        return Recipe(
            data=Data(rows=self.count, max_tokens=self.longest),
            lora=self.lora,
            optim=Optim(batch_tokens=self.batch_tokens),
            eval=Watch(dev_rows=0, every=_NEVER),
        )


@dataclass(frozen=True)
class Ran:
    """One epoch of one of the two."""

    seconds: float
    updates: int
    peak_bytes: int
    """Of the process, as the system counts it."""
    arrays_bytes: int
    """The part of it that MLX's arrays took at most."""


def main(argv: Sequence[str]) -> int:
    """Measure both in turn, print, and write the figures as JSON if asked to."""
    options = _parser().parse_args(argv)
    if options.one:
        who, job, out = options.one
        Path(out).write_text(json.dumps(asdict(ran(who, Job(**json.loads(Path(job).read_text("utf-8")))))), "utf-8")
        return 0
    require()
    with tempfile.TemporaryDirectory(prefix="punie-bench-") as directory:
        job = prepared(options, Path(directory))
        say(f"{machine()}, mlx {version('mlx')}, mlx-lm {version('mlx-lm')}, {BLAS}")
        say(f"{job.count} rows, {job.tokens} useful tokens, LoRA of rank {job.lora.rank} on {job.layers} blocks")
        say(f"{DIFFERENCES}\n")
        pairs = [_pair(job, Path(directory)) for _ in range(options.runs)]
    figures = summary(job, pairs)
    for name, figure in figures.items():
        say(f"{name:<52}{figure}")
    if options.out:
        record = {"machine": machine(), "job": asdict(job), "figures": {k: asdict(v) for k, v in figures.items()}}
        options.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="just bench training", description="Compare the trainer with mlx_lm.lora.")
    parser.add_argument("--runs", type=int, default=5, help="epochs of each")
    parser.add_argument("--rows", type=int, default=64, help="rows of an epoch")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--max-tokens", type=int, default=600, help="longer rows are left out")
    parser.add_argument("--data", type=Path, default=Path("training/data/train.jsonl"), help="the rows")
    parser.add_argument("--base", type=Path, help="GGUF file or MLX directory; default: the embedded model")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # WHO JOB OUT: what each process runs
    return parser


def summary(job: Job, pairs: Sequence[tuple[Ran, Ran]]) -> dict[str, Figure]:
    """Speeds, what one is over the other run by run, and memory."""
    figures: dict[str, Figure] = {}
    for at, name in enumerate(_NAMES.values()):
        found = [pair[at] for pair in pairs]
        figures[f"{name}: useful tokens/s"] = Figure.of(job.tokens / one.seconds for one in found)
        figures[f"{name}: peak memory of the process, GB"] = Figure.of(one.peak_bytes / 1e9 for one in found)
        figures[f"{name}: of which arrays, GB"] = Figure.of(one.arrays_bytes / 1e9 for one in found)
        figures[f"{name}: rows of a batch"] = Figure.of(job.count / one.updates for one in found)
    figures["Punie over mlx_lm.lora, useful tokens/s"] = Figure.of(b.seconds / a.seconds for a, b in pairs)
    return figures


# --- the same for both -----------------------------------------------------------------------------------------------


def prepared(options: argparse.Namespace, directory: Path) -> Job:
    """Write the rows in both forms, and the model as a directory with the chat template that Punie uses."""
    base = options.base or ensure_base(default_cache_dir())
    template = shipped_template()
    renderer = renderer_for(base, template=template)
    drawn = choose(read(options.data), Data(), seed=0)
    fitting = ((row, made) for row in drawn if len((made := example(row, renderer)).tokens) <= options.max_tokens)
    some = [pair for pair, _ in zip(fitting, range(options.rows), strict=False)]
    some = some[: len(some) // options.batch * options.batch]  # mlx_lm.lora leaves out a last batch that is not full
    if not some:
        cause = f"{options.data} has fewer than {options.batch} rows of at most {options.max_tokens} tokens."
        raise UsageError(cause, "Lower --batch or raise --max-tokens.")
    rows, examples = [row for row, _ in some], [made for _, made in some]
    _write_lines(directory / "rows.jsonl", (row.model_dump_json(exclude_none=True) for row in rows))
    _write_lines(directory / "train.jsonl", (json.dumps(chat(row, renderer.view)) for row in rows))
    model = _directory(base, template, directory)
    return Job(
        base=str(base),
        directory=str(model),
        rows=str(directory),
        count=len(rows),
        batch=options.batch,
        batch_tokens=_batch_tokens(examples, batches=len(rows) // options.batch),
        longest=max(len(made.tokens) for made in examples),
        tokens=sum(len(made.tokens) for made in examples),
        layers=json.loads((model / "config.json").read_text("utf-8"))["num_hidden_layers"],
    )


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def chat(row: Row, view: View) -> dict[str, Any]:
    """The row as mlx_lm.lora reads it, tool results shortened as the model is shown them."""
    return {"messages": [_message(turn, view) for turn in row.messages], "tools": list(row.offered())}


def _message(turn: Turn, view: View) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": turn.role,
        "content": view.of(turn.content) if turn.role == "tool" else turn.content,
    }
    if turn.calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in turn.plain().calls]
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def _batch_tokens(examples: Sequence[Example], *, batches: int) -> int:
    """The least `batch_tokens` with which the rows are at most so many batches."""
    shared, order = plan.beginnings(examples), range(len(examples))
    low, high = 1, max(shared) + sum(len(made.tokens) for made in examples)
    while low < high:
        middle = (low + high) // 2
        found = plan.batches(examples, shared=shared, batch_tokens=middle, order=order)
        low, high = (low, middle) if sum(1 for _ in found) <= batches else (middle + 1, high)
    return low


def _directory(base: Path, template: str, directory: Path) -> Path:
    if base.is_dir():
        return base
    tokenizer = directory / "tokenizer.json"
    _gguf.tokenizer(base).save(str(tokenizer))
    model = _mlx_model.ensure_directory(base, tokenizer=tokenizer, cache=directory)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens(base)}
    (model / "tokenizer_config.json").write_text(json.dumps(described), "utf-8")
    (model / "chat_template.jinja").write_text(template, "utf-8")
    return model


# --- one run of one --------------------------------------------------------------------------------------------------


def _pair(job: Job, directory: Path) -> tuple[Ran, Ran]:
    first, second = (_in_a_process(who, job, directory) for who in _NAMES)
    return first, second


def _in_a_process(who: Who, job: Job, directory: Path) -> Ran:
    given, out = directory / "job.json", directory / f"{who}.json"
    given.write_text(json.dumps(asdict(job)), "utf-8")
    command = [sys.executable, "-m", "punie_training.bench", "training", "--one", who, str(given), str(out)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return Ran(**json.loads(out.read_text("utf-8")))


def ran(who: Who, job: Job) -> Ran:
    """Train one epoch in this process."""
    require()
    with tempfile.TemporaryDirectory() as out:
        seconds = _punie(job, Path(out)) if who == "punie" else _mlx_lm(job, Path(out))
    return Ran(sum(seconds), len(seconds), peak_bytes(), mx.get_peak_memory())


def _punie(job: Job, out: Path) -> list[float]:
    """Seconds of each update."""
    given = prepare(job.recipe, data=Path(job.rows) / "rows.jsonl", base=Path(job.base))
    steps: list[Step] = []
    rows, base, template = given.examples, given.base, given.template
    done = train(job.recipe, rows=rows, base=base, template=template, out=out, on_step=steps.append)
    if sum(point.tokens for point in done.history) != job.tokens:
        raise UsageError("The rows were not trained once each.")
    return [point.tokens / step.tokens_per_second for point, step in zip(done.history, steps, strict=True)]


def _mlx_lm(job: Job, out: Path) -> list[float]:
    """Seconds of each iteration, as mlx_lm.lora itself reports them."""
    from mlx_lm import lora
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.datasets import load_dataset
    from mlx_lm.utils import load

    class Timed(TrainingCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_loss_report(self, train_info: dict[str, float]) -> None:
            self.seconds.append(1 / train_info["iterations_per_second"])

    model, tokenizer = load(job.directory)[:2]
    args = SimpleNamespace(**(lora.CONFIG_DEFAULTS | _settings(job, out)))
    train_set, valid_set, _ = load_dataset(args, cast("Any", tokenizer))
    timed = Timed()
    lora.train_model(args, model, train_set, valid_set, timed)
    return timed.seconds


def _settings(job: Job, out: Path) -> dict[str, object]:
    """What is not left at mlx_lm.lora's own defaults."""
    optim, iterations = Optim(), job.count // job.batch
    return {
        "model": job.directory,
        "train": True,
        "data": job.rows,
        "adapter_path": str(out),
        "mask_prompt": True,
        "optimizer": "adamw",
        "learning_rate": optim.lr,
        "num_layers": job.layers,
        "lora_parameters": {
            "rank": job.lora.rank,
            "scale": job.lora.scale,
            "dropout": 0.0,
            "keys": list(job.lora.keys),
        },
        "batch_size": job.batch,
        "iters": iterations,
        "steps_per_report": 1,
        "save_every": iterations + 1,
        "max_seq_length": job.longest + 2,
    }
