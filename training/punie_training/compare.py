"""Two evaluations of one suite, case by case: what the second model wins and loses, and whether that may be luck."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from punie.errors import UsageError
from punie_training import evaluate
from punie_training.evaluate import Outcome
from punie_training.measures import ANSWER, FIRST_CALL, MEASURES, Measure, Rate, Z, asked, difference

_APART = frozenset({"standard", "canary"})
"""Families that are asked beside the suite and never scored."""


class _Report(BaseModel):
    model_config = ConfigDict(extra="ignore")

    identity: dict[str, str]
    canary: bool | None = None
    n: int


@dataclass(frozen=True)
class Evaluation:
    """What `punie train eval` left in a directory."""

    directory: Path
    identity: Mapping[str, str]
    canary: bool | None
    outcomes: Mapping[str, Outcome]
    """By case, in the order of the suite."""

    @classmethod
    def load(cls, directory: Path) -> "Evaluation":
        """Read report and outcomes. Raises UsageError where one is missing, damaged or does not belong to the other."""
        path = directory / "report.json"
        try:
            found = _Report.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(
                f"{path}: {error.strerror}.", f"Run `punie train eval --out {directory}` first."
            ) from error
        except ValidationError as error:
            raise UsageError(f"{path} is not the report of an evaluation: {error.errors()[0]['msg']}.") from error
        kept = evaluate.stored(directory / "outcomes.jsonl", key=evaluate.key(found.identity))
        outcomes = {name: o for name, o in kept.items() if o.family not in _APART}
        if len(outcomes) != found.n:
            cause = f"{directory} holds {len(outcomes)} outcomes for a report about {found.n}."
            raise UsageError(cause, f"Run `punie train eval --out {directory}` again.")
        return cls(directory, found.identity, found.canary, outcomes)

    def says(self, name: str) -> str:
        """A value of the identity, "?" where an older report has none."""
        return self.identity.get(name, "?")


@dataclass(frozen=True)
class Paired:
    """How often two models hit on the same cases: both of them, one alone, none."""

    measure: Measure
    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, measure: Measure, pairs: Sequence[tuple[Outcome, Outcome]]) -> "Paired":
        """Count the pairs that the measure is about."""
        hits = [(measure.hit(a), measure.hit(b)) for a, b in pairs if measure.counts(a)]
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return cls(measure, *(hits.count(kind) for kind in kinds))

    @property
    def n(self) -> int:
        """Cases."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def a(self) -> Rate:
        """The first model's share."""
        return Rate(self.both + self.only_a, self.n)

    @property
    def b(self) -> Rate:
        """The second model's share."""
        return Rate(self.both + self.only_b, self.n)

    @property
    def gained(self) -> int:
        """Cases by which the second model is better, below zero where it is worse."""
        more = self.only_b - self.only_a
        return more if self.measure.wanted else -more

    @property
    def p_value(self) -> float:
        """McNemar's test, exact and two-sided: how likely a split this uneven of the differing cases is by luck."""
        differing, fewer = self.only_a + self.only_b, min(self.only_a, self.only_b)
        return min(1.0, 2 * sum(math.comb(differing, i) for i in range(fewer + 1)) / 2**differing)

    @property
    def difference(self) -> float:
        """Second share less first."""
        return self.b.value - self.a.value

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the difference of paired shares (method 10)."""
        return difference(self.a, self.b, correlation=self._correlation)

    @property
    def _correlation(self) -> float:
        margins = self.a.hits * self.b.hits * (self.n - self.a.hits) * (self.n - self.b.hits)
        if not margins:
            return 0.0
        product = self.both * self.neither - self.only_a * self.only_b
        corrected = max(product - self.n / 2, 0.0) if product > 0 else product
        return corrected / math.sqrt(margins)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same cases."""

    a: Evaluation
    b: Evaluation
    pairs: tuple[tuple[Outcome, Outcome], ...]

    @property
    def whole(self) -> tuple[Paired, ...]:
        """Every measure over the whole suite."""
        return tuple(Paired.of(measure, self.pairs) for measure in MEASURES)

    def family(self, name: str) -> tuple[Paired, Paired]:
        """First call and answer of one family."""
        pairs = [pair for pair in self.pairs if pair[0].family == name]
        return Paired.of(FIRST_CALL, pairs), Paired.of(ANSWER, pairs)

    @property
    def families(self) -> Mapping[str, tuple[Paired, Paired]]:
        """First call and answer of every family that an oracle judges."""
        names = dict.fromkeys(a.family for a, _ in self.pairs if asked(a))
        return {name: self.family(name) for name in names}


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Pair the outcomes. Raises UsageError for evaluations of different questions."""
    if a.says("suite") != b.says("suite") or set(a.outcomes) != set(b.outcomes):
        raise UsageError(
            f"{a.directory} and {b.directory} hold different suites: {a.says('suite')} and {b.says('suite')}.",
            "Run `punie train eval` with the same options, on the same version, for both.",
        )
    return Comparison(a, b, tuple((outcome, b.outcomes[name]) for name, outcome in a.outcomes.items()))


def markdown(compared: Comparison) -> str:
    """The comparison for people: whole suite, families, and what else differs between the two runs."""
    a, b = compared.a, compared.b
    lines = [
        "# Comparison",
        "",
        f"- A: `{a.says('model')}` ({a.directory})",
        f"- B: `{b.says('model')}` ({b.directory})",
    ]
    lines.append(f"- suite: `{a.says('suite')}`, {a.says('split')}, {len(compared.pairs)} cases")
    lines += [f"- also different: {name}" for name in ("base", "template", "settings") if a.says(name) != b.says(name)]
    lines += ["", *head("figure"), *(row(p.measure.name, p) for p in compared.whole), _f1_row(compared.pairs)]
    lines += ["", *head("family")]
    for name, found in compared.families.items():
        lines += [row(f"{name}: {paired.measure.name}", paired) for paired in found]
    return "\n".join([*lines, "", "p: McNemar's exact test on the cases that only one of the two got right.", ""])


def head(what: str) -> Iterator[str]:
    """The first two lines of a table of `row`s."""
    names = (what, "n", "A", "B", "B less A (95%)", "only A", "only B", "p")
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"


def row(name: str, paired: Paired) -> str:
    """One measure of two evaluations as a line of a Markdown table."""
    low, high = paired.interval
    change = f"{100 * paired.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    shares = f"{paired.a.value:.1%} | {paired.b.value:.1%}"
    return f"| {name} | {paired.n} | {shares} | {change} | {paired.only_a} | {paired.only_b} | {paired.p_value:.3f} |"


def _f1_row(pairs: Sequence[tuple[Outcome, Outcome]]) -> str:
    """The mean F1 with the normal interval of its paired difference."""
    judged = [(a.f1, b.f1) for a, b in pairs if asked(a)]
    if len(judged) < 2:
        return f"| F1 | {len(judged)} | | | | | | |"
    gains = [b - a for a, b in judged]
    mean, half = statistics.fmean(gains), Z * statistics.stdev(gains) / math.sqrt(len(gains))
    first, second = (statistics.fmean(column) for column in zip(*judged, strict=True))
    fewer, more = sum(gain < 0 for gain in gains), sum(gain > 0 for gain in gains)
    change = f"{100 * mean:+.1f} ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})"
    return f"| F1 | {len(judged)} | {first:.3f} | {second:.3f} | {change} | {fewer} | {more} | |"
