"""Several evaluations as one: a recipe trained with several seeds, on unseen projects and on seen ones."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from punie.errors import UsageError
from punie_training.compare import Evaluation
from punie_training.measures import Rate, difference
from punie_training.report import Summary, summary

UNSEEN, SEEN = "test", "train"
_COMPARED = ("first_call_right", "answer_right", "tool_recall", "direct_rate", "valid_calls", "places_exact")


def by_split(evaluations: Sequence[Evaluation]) -> Mapping[str, Sequence[Evaluation]]:
    """Put those of one split together. Raises UsageError where they are of different questions."""
    found: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        found.setdefault(evaluation.says("split"), []).append(evaluation)
    for group in found.values():
        for a, b in pairwise(group):
            if a.says("suite") != b.says("suite") or a.outcomes.keys() != b.outcomes.keys():
                raise UsageError(
                    f"{a.directory} and {b.directory} hold different suites: {a.says('suite')} and {b.says('suite')}.",
                    "Run `punie train eval` with the same options, on the same version, for all.",
                )
    return found


def pooled(rates: Sequence[Rate]) -> Rate:
    """The mean share, of as many cases as one run has: another seed asks the same questions, not more of them."""
    n = round(statistics.fmean(r.n for r in rates))
    return Rate(round(statistics.fmean(r.value for r in rates) * n), n)


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """Mean, range and single values of each figure, split by split, and what is lost from seen to unseen projects."""
    groups = by_split(evaluations)
    summaries = {split: [summary(tuple(e.outcomes.values())) for e in group] for split, group in groups.items()}
    lines = ["# Evaluations", ""]
    for split, group in groups.items():
        lines += [*_head(split, group), *_table(summaries[split]), ""]
    if SEEN in groups and UNSEEN in groups:
        lines += [*_gap(summaries[SEEN], summaries[UNSEEN]), ""]
    return "\n".join(lines)


def _head(split: str, group: Sequence[Evaluation]) -> Iterator[str]:
    yield f"## {split}: {len(group)} runs, suite `{group[0].says('suite')}`, {len(group[0].outcomes)} cases"
    yield ""
    yield from (f"- {i}: `{e.says('model')}` ({e.directory})" for i, e in enumerate(group, start=1))
    for name in ("base", "template", "settings"):
        if len({e.says(name) for e in group}) > 1:
            yield f"- also different: {name}"
    if len({e.says("adapter") for e in group}) < len(group):
        yield "- one adapter more than once: this is no comparison of seeds"
    yield ""


def _table(group: Sequence[Summary]) -> Iterator[str]:
    runs = [str(i) for i in range(1, len(group) + 1)]
    yield f"| figure | n | mean (95% by cases) | range | {' | '.join(runs)} |"
    yield f"|{'---|' * (4 + len(runs))}"
    for name in vars(group[0]):
        values: list[Rate | float] = [getattr(s, name) for s in group]
        rates = [v for v in values if isinstance(v, Rate)]
        numbers = [v.value if isinstance(v, Rate) else v for v in values]
        form = "{:.1%}" if rates else "{:.3f}"
        shown = [form.format(v) for v in numbers]
        mean = form.format(statistics.fmean(numbers))
        if rates:
            low, high = pooled(rates).interval
            mean += f" ({low:.1%} to {high:.1%})"
        n = "/".join(dict.fromkeys(str(r.n) for r in rates))
        span = f"{form.format(min(numbers))} to {form.format(max(numbers))}"
        yield f"| {name.replace('_', ' ')} | {n} | {mean} | {span} | {' | '.join(shown)} |"


def _gap(seen: Sequence[Summary], unseen: Sequence[Summary]) -> Iterator[str]:
    yield "## Seen projects and unseen ones, means over the runs"
    yield ""
    yield "| figure | seen | unseen | unseen less seen, points (95%) |"
    yield "|---|---|---|---|"
    for name in _COMPARED:
        a, b = (pooled([getattr(s, name) for s in group]) for group in (seen, unseen))
        low, high = difference(a, b)
        points = f"{100 * (b.value - a.value):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        yield f"| {name.replace('_', ' ')} | {a} | {b} | {points} |"
    a, b = (statistics.fmean(s.f1 for s in group) for group in (seen, unseen))
    yield f"| F1 | {a:.3f} | {b:.3f} | {100 * (b - a):+.1f} |"
