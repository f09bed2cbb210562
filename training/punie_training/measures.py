"""What is measured of the outcomes as shares of cases: each share said once, for reports, comparisons and the gate."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from punie_training.evaluate import Outcome

Z = 1.959964


@dataclass(frozen=True)
class Rate:
    """A share of cases, with its Wilson 95% interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share itself; 0 of nothing is 0."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        if not self.n:
            return 0.0, 1.0
        spread = Z * Z / self.n
        middle = (self.value + spread / 2) / (1 + spread)
        half = Z * math.sqrt(self.value * (1 - self.value) / self.n + spread / (4 * self.n)) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)

    def record(self) -> dict[str, float]:
        """The rate as JSON holds it."""
        low, high = self.interval
        return {"value": round(self.value, 4), "low": round(low, 4), "high": round(high, 4), "n": self.n}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}, n={self.n})"


def difference(a: Rate, b: Rate, *, correlation: float = 0.0) -> tuple[float, float]:
    """95% interval of `b` less `a` (Newcombe 1998); `correlation` is that of two answers to one case."""
    (low_a, high_a), (low_b, high_b) = a.interval, b.interval
    below, above = (b.value - low_b, high_a - a.value), (high_b - b.value, a.value - low_a)

    def length(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))

    return b.value - a.value - length(*below), b.value - a.value + length(*above)


@dataclass(frozen=True)
class Measure:
    """A figure that is a share of cases."""

    name: str
    counts: Callable[[Outcome], bool]
    """Whether the case is one of those the share is of."""
    hit: Callable[[Outcome], bool]
    wanted: bool = True
    """False where fewer hits are better."""

    def of(self, outcomes: Iterable[Outcome]) -> Rate:
        """The share among these outcomes."""
        hits = [self.hit(o) for o in outcomes if self.counts(o)]
        return Rate(sum(hits), len(hits))


def is_concept(outcome: Outcome) -> bool:
    """Whether it is a general question, whose prose no oracle judges."""
    return outcome.family == "concept"


def asked(outcome: Outcome) -> bool:
    """Whether the question is one about the project, which the oracle judges."""
    return not is_concept(outcome)


FIRST_CALL = Measure("first call right", asked, lambda o: o.first_call_right)
"""The planned tool with the planned arguments, or no call where none is planned."""
ANSWER = Measure("answer right", asked, lambda o: o.right)
"""Nothing missing, nothing too much."""
TOOL_RECALL = Measure("tool recall", lambda o: o.needs_tool, lambda o: o.used_tool)
DIRECT = Measure("direct rate", is_concept, lambda o: not o.used_tool)
VALID = Measure("valid calls", lambda o: o.needs_tool, lambda o: o.valid_calls)
"""Every call names a tool and fits it, and there is one."""
LOOPED = Measure("looped", lambda o: True, lambda o: o.looped, wanted=False)
"""Stopped by the loop guard or a limit."""
INVENTED = Measure("invented paths", asked, lambda o: o.invented_paths > 0, wanted=False)

MEASURES = (FIRST_CALL, ANSWER, TOOL_RECALL, DIRECT, VALID, LOOPED, INVENTED)
"""What two models are compared by, case by case; kept records go by this order."""

OVER_EAGER = Measure("over eager", lambda o: not o.needs_tool, lambda o: o.used_tool, wanted=False)
"""A tool where none is needed: general questions, and follow-up questions that the conversation answers."""
UNDER_EAGER = Measure("under eager", lambda o: o.needs_tool, lambda o: not o.used_tool, wanted=False)
LOOP_GUARD = Measure("loop guard", lambda o: True, lambda o: o.stop_reason == "loop", wanted=False)
"""Stopped because the same call, or the same text, came again and again."""
NO_ANSWER = Measure("no answer", lambda o: True, lambda o: not o.answered, wanted=False)
"""Stopped before the end, or ended without a word."""
PLACES = Measure("places exact", lambda o: o.cited > 0, lambda o: o.cited == o.cited_right)
"""Of the answers that cite `path:line` where places, or none, are asked for: those whose every place is right."""
