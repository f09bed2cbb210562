"""The small records of runs and evaluations that are kept with the code, and what makes them belong together.

`results/ROW/` holds `report.json` as the evaluation wrote it, `outcomes.json` with marks for each case, and `run.json`
about the training. A run with another seed is kept as `ROW-seedN`. Adapters are not kept.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from punie.backends import _weights
from punie.errors import UsageError
from punie_training.compare import Evaluation, Paired
from punie_training.evaluate import Outcome
from punie_training.measures import MEASURES, Measure
from punie_training.recipe import Recipe

_SEEDED = re.compile(r"(?P<row>.+?)(?:-seed(?P<seed>\d+))?")
_FILES = ("report.json", "outcomes.json", "run.json")


class Interval(BaseModel):
    """A share of cases as a report holds it."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    n: int


class Report(BaseModel):
    """What `punie train eval` said about a model."""

    model_config = ConfigDict(frozen=True)

    identity: Mapping[str, str]
    canary: bool | None = None
    resources: Mapping[str, int] = {}
    n: int
    all: Mapping[str, Interval | float]
    standard: tuple[Mapping[str, Any], ...] = ()

    def share(self, name: str) -> Interval | None:
        """A figure that is a share of cases; None where there are no cases, or no such figure in an older report."""
        found = self.all.get(name)
        return found if isinstance(found, Interval) and found.n else None

    def number(self, name: str) -> float | None:
        """Any figure as a number; a mean of two shares is none where one of them is of no cases."""
        if name == "balanced_discrimination" and not (self.share("tool_recall") and self.share("direct_rate")):
            return None
        found = self.share(name) or self.all.get(name)
        return found.value if isinstance(found, Interval) and found.n else found if isinstance(found, float) else None


class Training(BaseModel):
    """What a run was made of, and what it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    """Its hash."""
    data: str
    """Hash of the tokens and masks that were learned from."""
    base: str
    start: str
    template: str
    adapter: str
    seed: int
    rows: int
    updates: int
    first_loss: float
    loss: float
    """Of the first and the last batch; the batches are not the same rows."""
    dev_loss: float | None
    seconds: float
    peak_bytes: int


Marks = Mapping[str, str]
"""Case -> for each measure of `MEASURES` 1 or 0, or - where the measure is not about the case."""


class Kept(BaseModel):
    """One evaluated model: a row of the tracker with one seed."""

    model_config = ConfigDict(frozen=True)

    name: str
    report: Report
    marks: Marks
    training: Training | None = None

    @property
    def row(self) -> str:
        """The row it belongs to."""
        return parts(self.name)[0]


def parts(name: str) -> tuple[str, int | None]:
    """The row that a record belongs to, and the seed where it names one."""
    found = cast("re.Match[str]", _SEEDED.fullmatch(name))
    return found["row"], int(found["seed"]) if found["seed"] else None


def _marks_in(path: Path) -> Marks:
    found = json.loads(path.read_bytes())
    if found["measures"] != [measure.name for measure in MEASURES]:
        raise ValueError(f"{path.name} is about other measures: {found['measures']}")
    return found["cases"]


def report(directory: Path) -> Report:
    """Read the report of an evaluation."""
    return Report.model_validate_json((directory / "report.json").read_bytes())


def load(directory: Path) -> Kept:
    """Read one record. Raises UsageError that names the file that is missing or damaged."""
    _, marks, run = (directory / name for name in _FILES)
    try:
        return Kept(
            name=directory.name,
            report=report(directory),
            marks=_marks_in(marks),
            training=Training.model_validate_json(run.read_bytes()) if run.exists() else None,
        )
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}.", "Add the row again: punie train tracker --add"
        ) from error
    except (ValidationError, ValueError, KeyError) as error:
        raise UsageError(
            f"{directory} holds no record: {error}.", "Add the row again: punie train tracker --add"
        ) from error


def load_all(results: Path) -> Mapping[str, Kept]:
    """Every record of a directory by its name; none where the directory is not there."""
    found = sorted(path.parent for path in results.glob("*/report.json"))
    return {directory.name: load(directory) for directory in found}


def pair(a: Kept, b: Kept, measure: Measure) -> Paired | None:
    """Two models case by case; None where they were asked different questions."""
    at = [m.name for m in MEASURES].index(measure.name)
    if a.report.identity.get("suite") != b.report.identity.get("suite") or a.marks.keys() != b.marks.keys():
        return None
    both = [(a.marks[case][at], b.marks[case][at]) for case in a.marks]
    counted = [(x == "1", y == "1") for x, y in both if "-" not in {x, y}]
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return Paired(measure, *(counted.count(kind) for kind in kinds))


# --- keeping -------------------------------------------------------------------------------------------------------


def keep(
    name: str,
    *,
    evaluation: Path,
    run: Path | None,
    recipe: Recipe | None,
    results: Path,
    split: str = "test",
    adapter: str | None = None,
) -> Kept:
    """Copy what is worth keeping of an evaluation and the run it is of; nothing is written unless all of it fits.

    Raises UsageError where the run is not one of `recipe`, or the evaluation not one of the run's adapter, or of
    `adapter` where there is no run, or not on that split.
    """
    found = Evaluation.load(evaluation)
    if found.says("split") != split:
        cause = f"{evaluation} is an evaluation on the {found.says('split')} split, {name} is one on the {split} split."
        raise UsageError(cause, f"punie train eval --split {split} --out DIRECTORY")
    training = _training(run, recipe) if run else None
    if recipe and not training:
        raise UsageError(f"{name} is a row with a recipe, so its run is wanted too.", "Give --run DIRECTORY.")
    wanted = training.adapter if training else adapter
    if wanted and wanted != found.says("adapter"):
        cause = f"{evaluation} is the evaluation of adapter {found.says('adapter')}, {name} is about {wanted}."
        raise UsageError(cause, "Run `punie train eval --adapter DIRECTORY` with that one.")
    marks = {case: _marks(outcome) for case, outcome in found.outcomes.items()}
    texts = {
        "report.json": (evaluation / "report.json").read_text("utf-8"),
        "outcomes.json": json.dumps({"measures": [m.name for m in MEASURES], "cases": marks}, indent=0) + "\n",
    }
    if training:
        texts["run.json"] = training.model_dump_json(indent=2) + "\n"
    _replace(results / name, texts)
    return load(results / name)


def _marks(outcome: Outcome) -> str:
    return "".join(str(int(m.hit(outcome))) if m.counts(outcome) else "-" for m in MEASURES)


def _replace(directory: Path, texts: Mapping[str, str]) -> None:
    part = directory.with_name(f"{directory.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        for name, text in texts.items():
            (part / name).write_text(text, "utf-8")
        if directory.exists():
            shutil.rmtree(directory)
        part.rename(directory)
    except OSError as error:
        raise UsageError(f"{directory} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _training(run: Path, recipe: Recipe | None) -> Training:
    """Read a finished run. Raises UsageError for one that is not, or is another recipe's."""
    from punie_training.checkpoint import Point  # needs MLX, which is an extra
    from punie_training.progress import cost

    try:
        manifest: dict[str, Any] = json.loads((run / "adapter" / "manifest.json").read_bytes())
        history = [Point(**point) for point in json.loads((run / "loss.json").read_bytes())]
        took = cost(run / "train.log", history)
        training = Training(
            **{
                name: manifest[name]
                for name in ("recipe", "data", "base", "start", "rows", "updates", "loss", "dev_loss")
            },
            template=manifest.get("template", ""),
            adapter=_weights.adapter_hash(run / "adapter"),
            seed=manifest["settings"]["seed"],
            first_loss=history[0].loss,
            seconds=round(took.seconds, 1),
            peak_bytes=took.peak_bytes,
        )
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}.", f"Finish the run first: --resume --out {run}"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{run} is not a finished run: {error!r}.") from error
    if recipe and training.recipe != recipe.hash:
        raise UsageError(f"{run} was made by another recipe or seed: {training.recipe[:12]}, not {recipe.hash[:12]}.")
    return training
