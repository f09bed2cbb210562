"""`punie train choose RUN`: the checkpoint of a run that behaves best becomes its adapter.

Behaviour is what the agent does with about 60 cases of the development projects, never a validation loss: loss goes on
falling while calls get worse, and the other way round.
"""

import json
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from punie.backends import _weights
from punie.backends._files import write_text
from punie.errors import UsageError
from punie_training import measures
from punie_training.compare import Evaluation
from punie_training.measures import Rate

SCALE, CONCEPTS = 0.13, 13
"""What makes the development suite 60 cases."""
PAGE, OLD = "choice.json", "adapter.old"
Examine = Callable[[Path, Path], Awaitable[Path]]
"""Evaluates the adapter in the first directory into the second one."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and how it behaved."""

    directory: Path
    evaluation: Evaluation

    @property
    def right(self) -> Rate:
        """Answers the oracle agrees with, and general questions answered without a tool, of all cases."""
        answers, direct = (m.of(self.evaluation.outcomes.values()) for m in (measures.ANSWER, measures.DIRECT))
        return Rate(answers.hits + direct.hits, answers.n + direct.n)

    @property
    def first_calls(self) -> int:
        """What decides between two that are right as often."""
        return measures.FIRST_CALL.of(self.evaluation.outcomes.values()).hits


def checkpoints(run: Path, *, last: int | None) -> Sequence[Path]:
    """The adapters that the run has saved on its way, in order, or the last few. Raises UsageError for none."""
    found = sorted(path for path in (run / "checkpoints").glob("*") if (path / "manifest.json").is_file())
    if not found:
        raise UsageError(f"{run} has no checkpoints.", "Name the directory that `punie train run` wrote.")
    if (run / OLD).is_dir() and not (run / "adapter").exists():  # cut off while one took the place of the other
        (run / OLD).rename(run / "adapter")
    if not (run / "adapter" / "manifest.json").is_file():
        raise UsageError(f"{run} has not come to its end.", "Go on with it: punie train run RECIPE --resume")
    return found[-last:] if last else found


async def choose(run: Path, *, examine: Examine, say: Callable[[str], None], last: int | None = None) -> Checkpoint:
    """Evaluate every checkpoint, or the `last` ones, and put the best one into `run/adapter`; of equals the later.

    Evaluations are kept under `run/choice`, so that a choice that was cut off goes on. Nothing is lost: the last state
    is among the checkpoints. Raises UsageError where there is nothing to choose from.
    """
    seen: list[Checkpoint] = []
    for directory in checkpoints(run, last=last):
        out = run / "choice" / directory.name
        await examine(directory, out)
        seen.append(Checkpoint(directory, Evaluation.load(out)))
        say(f"{directory.name}: right {seen[-1].right}, first calls {seen[-1].first_calls}")
    best = max(seen, key=lambda c: (c.right.hits, c.first_calls, c.directory.name))
    _take(best, run, among=seen)
    return best


def _take(best: Checkpoint, run: Path, *, among: Sequence[Checkpoint]) -> None:
    """Let the copy take the place of what was there in one step, and note in it why."""
    noted = {
        "checkpoint": best.directory.name,
        "right": best.right.record(),
        "suite": best.evaluation.identity["suite"],
        "adapter": _weights.adapter_hash(best.directory),
        "among": {c.directory.name: c.right.hits for c in among},
    }
    part, old = run / "adapter.part", run / OLD
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(best.directory, part)
    manifest = json.loads((part / "manifest.json").read_bytes())
    write_text(part / "manifest.json", json.dumps({**manifest, "name": "adapter", "chosen": noted}, indent=2) + "\n")
    (run / "adapter").rename(old)
    part.rename(run / "adapter")
    shutil.rmtree(old)
    write_text(run / PAGE, json.dumps(noted, indent=2) + "\n")
