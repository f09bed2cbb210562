"""The tracker: every rung of the ladder with what was measured of it, from the records that are kept with the code."""

import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from punie.errors import ConfigError, UsageError
from punie_training import results
from punie_training.compare import MEASURES, Paired
from punie_training.recipe import Recipe
from punie_training.results import Kept, Training
from punie_training.suite import STANDARD

NOT_RUN = "not run"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quoted(_Part):
    """A line of the seed's quick-reference table, word for word."""

    system: str
    model_size: str
    memory: str
    speed: str
    autonomous: str
    accuracy: str
    status: str


class Quote(_Part):
    """A figure of the seed, word for word, and where it stands there."""

    text: str
    place: str


class Goal(_Part):
    """What a rung has to show."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> "Goal":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a goal has either at_least or at_most")
        return self

    def met(self, value: float) -> bool:
        """Whether the figure is on the right side."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)

    def __str__(self) -> str:
        bound = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        return f"{self.figure.replace('_', ' ')} {bound}"


class Row(_Part):
    """One model that the tracker is about, run or not."""

    name: str
    title: str
    about: str
    recipe: bool = False
    """Whether `recipes/NAME.toml` trains it."""
    ladder: bool = False
    """Whether it is a rung, so that it is compared with the next one."""
    beside: str = ""
    """The row it belongs to, with whose record it is compared."""
    split: str = "test"
    adapter: str = ""
    """The adapter's hash where it has to be that one; "none" for the bare model."""
    again: bool = False
    """Whether it is asked the questions that the row beside it was trained on."""
    timed: str = ""
    """What its seconds were measured on, where that is not a whole machine with nothing else to do."""
    goals: tuple[Goal, ...] = ()
    seed: tuple[Quote, ...] = ()


class Curve(_Part):
    """Rows that are points of one plot, in order."""

    rows: tuple[str, ...]


class Elsewhere(_Part):
    """A model that no figure is here of, and why."""

    system: str
    command: str
    said: str


class Declared(_Part):
    """`tracker.toml`."""

    quoted: tuple[Quoted, ...] = ()
    row: tuple[Row, ...]
    curve: Curve = Curve(rows=())
    mix: Curve = Curve(rows=())
    elsewhere: tuple[Elsewhere, ...] = ()

    @model_validator(mode="after")
    def _names_exist(self) -> "Declared":
        known = [row.name for row in self.row]
        named = (*self.curve.rows, *self.mix.rows, *(row.beside for row in self.row if row.beside))
        wrong = [row.name for row in self.row if row.again and not row.beside]
        wrong += [name for name in named if name not in known] + [n for n in known if known.count(n) > 1]
        if wrong:
            raise ValueError(f"unknown or repeated rows: {', '.join(sorted(set(wrong)))}")
        return self

    @classmethod
    def load(cls, path: Path) -> "Declared":
        """Read the file. Raises ConfigError that names it."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text("utf-8")))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, ValidationError) as error:
            raise ConfigError(f"{path}: {error}.") from error

    def find(self, name: str) -> Row:
        """The row of a record's name. Raises UsageError that lists the rows."""
        wanted, _ = results.parts(name)
        found = next((row for row in self.row if row.name == wanted), None)
        if found is None:
            raise UsageError(f"The tracker has no row {wanted!r}.", f"Rows: {', '.join(r.name for r in self.row)}.")
        return found


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds: one value with its interval, or mean and range of several."""

    values: tuple[float, ...]
    interval: tuple[float, float] | None = None
    n: int | None = None

    @property
    def mean(self) -> float:
        """The value, or the mean of the seeds."""
        return statistics.fmean(self.values)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The 95% interval of one value, the range of several; None for one value without an interval."""
        return (min(self.values), max(self.values)) if len(self.values) > 1 else self.interval

    def shown(self, form: str) -> str:
        """The figure, its ends, and what they are of."""
        if self.ends is None:
            return f"{self.mean:{form}}"
        low, high = (f"{end:{form}}" for end in self.ends)
        of = f"{len(self.values)} seeds" if len(self.values) > 1 else f"n={self.n}"
        return f"{self.mean:{form}} ({low} to {high}, {of})"


@dataclass(frozen=True)
class Entry:
    """A row and the records of it, one a seed; none where it was not run."""

    row: Row
    kept: tuple[Kept, ...] = ()

    @property
    def first(self) -> Kept | None:
        """The record that is compared case by case with other rows: that of the recipe's own seed, if there is one."""
        return self.kept[0] if self.kept else None

    def figure(self, name: str) -> Spread | None:
        """A figure of the reports; None where no record has it."""
        values = tuple(value for kept in self.kept if (value := number(kept, name)) is not None)
        if not values:
            return None
        share = self.kept[0].report.share(name) if len(self.kept) == 1 else None
        return Spread(values, (share.low, share.high), share.n) if share else Spread(values)

    def training(self, name: str) -> Spread | None:
        """A figure of the runs."""
        values = [getattr(kept.training, name) for kept in self.kept if isinstance(kept.training, Training)]
        known = tuple(float(value) for value in values if value is not None)
        return Spread(known) if known else None

    @property
    def status(self) -> str:
        """Whether the goals are met, by the mean of the seeds."""
        if not self.kept:
            return NOT_RUN
        missed = [str(goal) for goal in self.row.goals if not self._meets(goal)]
        if missed:
            return f"missed: {'; '.join(missed)}"
        return "goal met" if self.row.goals else "measured"

    def _meets(self, goal: Goal) -> bool:
        found = self.figure(goal.figure)
        return found is not None and goal.met(found.mean)


def number(kept: Kept, name: str) -> float | None:
    """A figure of a record: one of the report, `standard_s`, or bytes of `resources`."""
    if name == "standard_s":
        took = [float(s["total_s"]) for s in kept.report.standard if s["question"] == STANDARD[0]]
        return max(took) if took else None
    found = kept.report.resources.get(name)
    return kept.report.number(name) if found is None else float(found)


@dataclass(frozen=True)
class Tracker:
    """Everything the page, the JSON and the plots show."""

    declared: Declared
    entries: tuple[Entry, ...]

    @classmethod
    def load(cls, declared: Declared, kept: Mapping[str, Kept]) -> "Tracker":
        """Sort the records to their rows. Raises UsageError for one that no row is of."""
        for name in kept:
            declared.find(name)
        entries = (Entry(row, tuple(k for k in kept.values() if k.row == row.name)) for row in declared.row)
        return cls(declared, tuple(entries))

    def entry(self, name: str) -> Entry:
        """The row of that name."""
        return next(entry for entry in self.entries if entry.row.name == name)

    @property
    def neighbours(self) -> tuple[tuple[Entry, Entry], ...]:
        """Rungs that follow each other, and rows beside a rung with it."""
        rungs = [entry for entry in self.entries if entry.row.ladder and entry.kept]
        beside = [(self.entry(e.row.beside), e) for e in self.entries if e.row.beside and e.kept]
        return (*pairwise(rungs), *((a, b) for a, b in beside if a.kept))

    def paired(self, a: Entry, b: Entry) -> Sequence[Paired]:
        """Every measure of two rows case by case; nothing where they were asked different questions."""
        if a.first is None or b.first is None:
            return ()
        found = (results.pair(a.first, b.first, measure) for measure in MEASURES)
        return [paired for paired in found if paired is not None]


def recipe_of(row: Row, *, seed: int | None, recipes: Path) -> Recipe | None:
    """The recipe that trains a row with that seed; None where nothing is trained for it."""
    if not row.recipe:
        return None
    recipe = Recipe.load(recipes / f"{row.name}.toml")
    return recipe if seed is None else recipe.model_copy(update={"seed": seed})


def adapter_hash(row: Row, *, home: Path) -> str | None:
    """The adapter an evaluation of a row that is not trained has to be of, where that is known."""
    if row.recipe or not row.beside:
        return row.adapter or None
    return results.load(home / "results" / row.beside).report.identity.get("adapter")
