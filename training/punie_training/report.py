"""What a run of the suite comes to: figures with their counts and 95% intervals, as JSON and as Markdown."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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

    def record(self) -> Mapping[str, object]:
        """The rate as JSON holds it."""
        low, high = self.interval
        return {"value": round(self.value, 4), "low": round(low, 4), "high": round(high, 4), "n": self.n}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}, n={self.n})"


def rate(outcomes: Iterable[Outcome], hit: Callable[[Outcome], bool]) -> Rate:
    """The share of outcomes that hit."""
    seen = [hit(o) for o in outcomes]
    return Rate(sum(seen), len(seen))


@dataclass(frozen=True)
class Summary:
    """The figures of some outcomes."""

    tool_recall: Rate
    direct_rate: Rate
    balanced_discrimination: float
    valid_calls: Rate
    first_call_right: Rate
    answer_right: Rate
    precision: float
    recall: float
    f1: float
    looped: Rate
    invented_paths: Rate
    turns_mean: float
    turns_p95: float
    total_s_mean: float
    total_s_p95: float
    prefill_s_mean: float
    decode_s_mean: float
    tools_s_mean: float
    output_tokens_mean: float
    cache_hit_rate: float

    def record(self) -> Mapping[str, object]:
        """The figures as JSON holds them."""
        return {k: v.record() if isinstance(v, Rate) else round(v, 4) for k, v in vars(self).items()}


def summary(outcomes: Sequence[Outcome]) -> Summary:
    """Compute every figure; answer figures leave the general questions out, whose prose no oracle judges."""
    tool = [o for o in outcomes if o.needs_tool]
    concept = [o for o in outcomes if o.family == "concept"]
    asked = [o for o in outcomes if o.family != "concept"]
    called, kept = rate(tool, lambda o: o.used_tool), rate(concept, lambda o: not o.used_tool)
    return Summary(
        tool_recall=called,
        direct_rate=kept,
        balanced_discrimination=(called.value + kept.value) / 2,
        valid_calls=rate(tool, lambda o: o.valid_calls),
        first_call_right=rate(asked, lambda o: o.first_call_right),
        answer_right=rate(asked, lambda o: o.right),
        precision=_mean(o.precision for o in asked),
        recall=_mean(o.recall for o in asked),
        f1=_mean(o.f1 for o in asked),
        looped=rate(outcomes, lambda o: o.looped),
        invented_paths=rate(asked, lambda o: o.invented_paths > 0),
        turns_mean=_mean(o.turns for o in tool),
        turns_p95=_p95(o.turns for o in tool),
        total_s_mean=_mean(o.total_s for o in outcomes),
        total_s_p95=_p95(o.total_s for o in outcomes),
        prefill_s_mean=_mean(o.prefill_s for o in outcomes),
        decode_s_mean=_mean(o.decode_s for o in outcomes),
        tools_s_mean=_mean(o.tools_s for o in outcomes),
        output_tokens_mean=_mean(o.output_tokens for o in outcomes),
        cache_hit_rate=sum(o.cached_tokens for o in outcomes) / max(1, sum(o.input_tokens for o in outcomes)),
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.fmean(found) if found else 0.0


def _p95(values: Iterable[float]) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, math.ceil(0.95 * len(found)) - 1)] if found else 0.0


def groups(outcomes: Sequence[Outcome]) -> Mapping[str, Sequence[Outcome]]:
    """The cuts a report shows: each family, and seen against held-out wordings of the tool questions."""
    families = dict.fromkeys(o.family for o in outcomes)
    found: dict[str, Sequence[Outcome]] = {f: [o for o in outcomes if o.family == f] for f in families}
    asked = [o for o in outcomes if o.family != "concept"]
    found["wording: seen"] = [o for o in asked if o.seen_wording]
    found["wording: held out"] = [o for o in asked if not o.seen_wording]
    return found


def write(
    outcomes: Sequence[Outcome],
    directory: Path,
    *,
    identity: Mapping[str, str],
    standard: Sequence[Outcome] = (),
    canary: bool | None = None,
) -> Path:
    """Write `report.json` and `report.md`; returns the latter."""
    directory.mkdir(parents=True, exist_ok=True)
    cuts = {name: summary(group) for name, group in groups(outcomes).items()}
    record = {
        "identity": dict(identity),
        "canary": canary,
        "n": len(outcomes),
        "all": summary(outcomes).record(),
        "cuts": {name: cut.record() for name, cut in cuts.items()},
        "standard": [asdict(o) for o in standard],
    }
    (directory / "report.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
    page = directory / "report.md"
    page.write_text(markdown(outcomes, identity=identity, standard=standard, canary=canary), "utf-8")
    return page


def markdown(
    outcomes: Sequence[Outcome],
    *,
    identity: Mapping[str, str],
    standard: Sequence[Outcome] = (),
    canary: bool | None = None,
) -> str:
    """The report for people."""
    whole = summary(outcomes)
    lines = ["# Evaluation", "", *(f"- {name}: `{value}`" for name, value in identity.items())]
    if canary is not None:
        lines.append(f"- canary: {'passed' if canary else 'FAILED, the adapter may not be loaded'}")
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in vars(whole).items()]
    lines += [
        "",
        "| cut | n | first call right | answer right | F1 | used a tool | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(name, group) for name, group in groups(outcomes).items()]
    return "\n".join([*lines, *_standard_section(standard), *_misses(outcomes), ""])


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _row(name: str, group: Sequence[Outcome]) -> str:
    cut, used = summary(group), rate(group, lambda o: o.used_tool)
    if name == "concept":
        return f"| {name} | {len(group)} | | | | {used.value:.1%} | {cut.total_s_mean:.2f} |"
    first, right = cut.first_call_right.value, cut.answer_right.value
    figures = f"{first:.1%} | {right:.1%} | {cut.f1:.3f} | {used.value:.1%} | {cut.total_s_mean:.2f}"
    return f"| {name} | {len(group)} | {figures} |"


def _standard_section(standard: Sequence[Outcome]) -> list[str]:
    lines = ["", "## Standard queries, verbatim"] if standard else []
    for outcome in standard:
        calls = "; ".join(f"{name} {arguments}" for name, arguments in outcome.calls) or "no tool"
        lines += ["", f"**{outcome.question}** ({outcome.project}, {outcome.total_s:.2f} s, {calls})", ""]
        lines += [f"    {line}".rstrip() for line in outcome.answer.splitlines()]
    return lines


def _misses(outcomes: Sequence[Outcome], *, most: int = 40) -> list[str]:
    missed = [o for o in outcomes if not (o.right or o.family == "concept") or (o.family == "concept" and o.used_tool)]
    lines = ["", f"## What missed ({len(missed)})", ""] if missed else []
    for o in missed[:most]:
        calls = "; ".join(f"{name} {arguments}" for name, arguments in o.calls) or "no tool"
        said = " ".join(o.said.split())[:120]
        lines.append(f"- {o.family} ({o.project}): {o.question} -> {calls} -> {said}")
    return lines
