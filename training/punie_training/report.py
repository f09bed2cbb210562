"""What a run of the suite comes to: figures with their counts and 95% intervals, as JSON and as Markdown."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from punie_training import measures
from punie_training.evaluate import Outcome
from punie_training.measures import Rate


@dataclass(frozen=True)
class Summary:
    """The figures of some outcomes."""

    tool_recall: Rate
    direct_rate: Rate
    balanced_discrimination: float
    over_eager: Rate
    under_eager: Rate
    valid_calls: Rate
    first_call_right: Rate
    answer_right: Rate
    precision: float
    recall: float
    f1: float
    places_exact: Rate
    no_answer: Rate
    looped: Rate
    loop_guard: Rate
    invented_paths: Rate
    turns_mean: float
    turns_p95: float
    total_s_mean: float
    total_s_p95: float
    prefill_s_mean: float
    decode_s_mean: float
    tools_s_mean: float
    output_tokens_mean: float
    decode_tokens_per_s: float
    cache_hit_rate: float

    def record(self) -> Mapping[str, object]:
        """The figures as JSON holds them."""
        return {k: v.record() if isinstance(v, Rate) else round(v, 4) for k, v in vars(self).items()}


def summary(outcomes: Sequence[Outcome]) -> Summary:
    """Compute every figure; answer figures leave the general questions out, whose prose no oracle judges."""
    tool = [o for o in outcomes if o.needs_tool]
    asked = [o for o in outcomes if measures.asked(o)]
    called, kept = measures.TOOL_RECALL.of(outcomes), measures.DIRECT.of(outcomes)
    return Summary(
        tool_recall=called,
        direct_rate=kept,
        balanced_discrimination=(called.value + kept.value) / 2,
        over_eager=measures.OVER_EAGER.of(outcomes),
        under_eager=measures.UNDER_EAGER.of(outcomes),
        valid_calls=measures.VALID.of(outcomes),
        first_call_right=measures.FIRST_CALL.of(outcomes),
        answer_right=measures.ANSWER.of(outcomes),
        precision=_mean(o.precision for o in asked),
        recall=_mean(o.recall for o in asked),
        f1=_mean(o.f1 for o in asked),
        places_exact=measures.PLACES.of(outcomes),
        no_answer=measures.NO_ANSWER.of(outcomes),
        looped=measures.LOOPED.of(outcomes),
        loop_guard=measures.LOOP_GUARD.of(outcomes),
        invented_paths=measures.INVENTED.of(outcomes),
        turns_mean=_mean(o.turns for o in tool),
        turns_p95=_p95(o.turns for o in tool),
        total_s_mean=_mean(o.total_s for o in outcomes),
        total_s_p95=_p95(o.total_s for o in outcomes),
        prefill_s_mean=_mean(o.prefill_s for o in outcomes),
        decode_s_mean=_mean(o.decode_s for o in outcomes),
        tools_s_mean=_mean(o.tools_s for o in outcomes),
        output_tokens_mean=_mean(o.output_tokens for o in outcomes),
        decode_tokens_per_s=_share(outcomes, lambda o: o.output_tokens, lambda o: o.decode_s),
        cache_hit_rate=_share(outcomes, lambda o: o.cached_tokens, lambda o: o.input_tokens),
    )


def _share(outcomes: Sequence[Outcome], part: Callable[[Outcome], float], whole: Callable[[Outcome], float]) -> float:
    """One sum over another: long answers weigh more than short ones."""
    total = sum(map(whole, outcomes))
    return sum(map(part, outcomes)) / total if total else 0.0


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
    asked = [o for o in outcomes if measures.asked(o)]
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
    resources: Mapping[str, int] | None = None,
) -> Path:
    """Write `report.json` and `report.md`; returns the latter. `resources`: bytes of model, adapter and memory."""
    directory.mkdir(parents=True, exist_ok=True)
    cuts = {name: summary(group) for name, group in groups(outcomes).items()}
    record = {
        "identity": dict(identity),
        "canary": canary,
        "resources": dict(resources or {}),
        "n": len(outcomes),
        "all": summary(outcomes).record(),
        "cuts": {name: cut.record() for name, cut in cuts.items()},
        "standard": [asdict(o) for o in standard],
    }
    (directory / "report.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
    page = directory / "report.md"
    page.write_text(
        markdown(outcomes, identity=identity, standard=standard, canary=canary, resources=resources), "utf-8"
    )
    return page


def markdown(
    outcomes: Sequence[Outcome],
    *,
    identity: Mapping[str, str],
    standard: Sequence[Outcome] = (),
    canary: bool | None = None,
    resources: Mapping[str, int] | None = None,
) -> str:
    """The report for people."""
    whole = summary(outcomes)
    lines = ["# Evaluation", "", *(f"- {name}: `{value}`" for name, value in identity.items())]
    if canary is not None:
        lines.append(f"- canary: {'passed' if canary else 'FAILED, the adapter may not be loaded'}")
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in vars(whole).items()]
    lines += [f"| {name.replace('_', ' ')} | {size / 1e6:,.1f} MB |" for name, size in (resources or {}).items()]
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
    cut, used = summary(group), _mean(o.used_tool for o in group)
    if name == "concept":
        return f"| {name} | {len(group)} | | | | {used:.1%} | {cut.total_s_mean:.2f} |"
    first, right = cut.first_call_right.value, cut.answer_right.value
    figures = f"{first:.1%} | {right:.1%} | {cut.f1:.3f} | {used:.1%} | {cut.total_s_mean:.2f}"
    return f"| {name} | {len(group)} | {figures} |"


def _standard_section(standard: Sequence[Outcome]) -> list[str]:
    lines = ["", "## Standard queries, verbatim"] if standard else []
    for outcome in standard:
        calls = "; ".join(f"{name} {arguments}" for name, arguments in outcome.calls) or "no tool"
        lines += ["", f"**{outcome.question}** ({outcome.project}, {outcome.total_s:.2f} s, {calls})", ""]
        lines += [f"    {line}".rstrip() for line in outcome.answer.splitlines()]
    return lines


def _misses(outcomes: Sequence[Outcome], *, most: int = 40) -> list[str]:
    missed = [o for o in outcomes if (o.used_tool if measures.is_concept(o) else not o.right)]
    lines = ["", f"## What missed ({len(missed)})", ""] if missed else []
    for o in missed[:most]:
        calls = "; ".join(f"{name} {arguments}" for name, arguments in o.calls) or "no tool"
        said = " ".join(o.said.split())[:120]
        lines.append(f"- {o.family} ({o.project}): {o.question} -> {calls} -> {said}")
    return lines
