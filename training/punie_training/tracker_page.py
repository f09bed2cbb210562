"""The tracker as Markdown for people and JSON for programs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from punie_training import compare
from punie_training.results import Kept
from punie_training.tracker import NOT_RUN, Entry, Quoted, Tracker

HEAD = """\
# Model performance tracker

Written by `punie train tracker` from [tracker.toml](tracker.toml) and the records in [results/](results); edit those.
A share has its number of cases and its Wilson 95% interval, a figure of several seeds its mean and range. A row without
a record says "{not_run}". Each record can be made again and compared: `punie train verify ROW`.
"""
CHOICES = (
    ("valid calls", "valid_calls", ".1%"),
    ("tool recall", "tool_recall", ".1%"),
    ("direct rate", "direct_rate", ".1%"),
    ("balanced discrimination", "balanced_discrimination", ".3f"),
    ("over-eager", "over_eager", ".1%"),
    ("first call right", "first_call_right", ".1%"),
)
ANSWERS = (
    ("answer right", "answer_right", ".1%"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("F1", "f1", ".3f"),
    ("places exact", "places_exact", ".1%"),
    ("no answer", "no_answer", ".1%"),
    ("looped or cut off", "looped", ".1%"),
    ("of these by the loop guard", "loop_guard", ".1%"),
    ("invented paths", "invented_paths", ".1%"),
    ("turns, mean", "turns_mean", ".2f"),
    ("turns, p95", "turns_p95", ".0f"),
)
TIMES = (
    ("all, mean", "total_s_mean", ".2f"),
    ("all, p95", "total_s_p95", ".2f"),
    ("prompt", "prefill_s_mean", ".2f"),
    ("writing", "decode_s_mean", ".2f"),
    ("tools", "tools_s_mean", ".3f"),
    ("standard query 1, slower project", "standard_s", ".2f"),
    ("tokens out", "output_tokens_mean", ".0f"),
    ("tokens a second", "decode_tokens_per_s", ".0f"),
    ("prompt from cache", "cache_hit_rate", ".0%"),
)
COSTS = (
    ("rows", "rows", ".0f"),
    ("updates", "updates", ".0f"),
    ("loss, first batch", "first_loss", ".3f"),
    ("loss, last batch", "loss", ".3f"),
    ("dev loss", "dev_loss", ".3f"),
)
PLOTS = (
    ("learning-curve.png", "First calls and answers against the rows that were trained on"),
    ("discrimination.png", "Discrimination against the share of tool questions in the data"),
    ("loops.png", "Runs that did not stop by themselves, rung by rung"),
    ("latency.png", "Where the seconds of a question go, rung by rung"),
)
_MISSING = "-"


def markdown(tracker: Tracker) -> str:
    """The whole page."""
    lines = [HEAD.format(not_run=NOT_RUN), *_quick(tracker), *_seed_figures(tracker)]
    for title, columns in (
        ("Which tool, and whether", CHOICES),
        ("Answers and endings", ANSWERS),
        ("Seconds of a question", TIMES),
    ):  # how busy the machine was is said in the first table
        lines += ["", f"## {title}", "", *_table(tracker.entries, columns)]
    lines += ["", "## What the training took", "", *_costs(tracker.entries), *_plots(), *_neighbours(tracker)]
    lines += [*_elsewhere(tracker), *_identities(tracker.entries), *_transcripts(tracker.entries)]
    return "\n".join([*lines, ""])


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


# --- the quick reference -------------------------------------------------------------------------------------------


def _quick(tracker: Tracker) -> Iterator[str]:
    head = (
        "System",
        "Model size",
        "Memory (training)",
        "Memory (running)",
        "Speed",
        "Autonomous tools?",
        "Accuracy",
        "Status",
    )
    yield from ("## Quick reference", "")
    yield from _rows(head, (_quick_row(entry) for entry in tracker.entries))
    yield from ("", "The seed's own table, word for word; its models, machine and questions are others:", "")
    yield from _rows((*head[:3], *head[4:]), (_quoted_row(quoted) for quoted in tracker.declared.quoted))


def _quoted_row(quoted: Quoted) -> Sequence[str]:
    return (f"seed: {quoted.system}", quoted.model_size, quoted.memory, quoted.speed, *_rest(quoted))


def _rest(quoted: Quoted) -> Sequence[str]:
    return quoted.autonomous, quoted.accuracy, quoted.status


def _quick_row(entry: Entry) -> Sequence[str]:
    if not entry.kept:
        return (f"**{entry.row.title}**", *[_MISSING] * 6, NOT_RUN)
    cells = (_size(entry), _bytes(entry, "peak_bytes", of_training=True), _bytes(entry, "peak_bytes"), _speed(entry))
    return (f"**{entry.row.title}**", *cells, autonomy(entry), _cell(entry, "answer_right", ".1%"), entry.status)


def _size(entry: Entry) -> str:
    model, adapter = _bytes(entry, "model_bytes"), _bytes(entry, "adapter_bytes")
    return model if adapter == _MISSING else f"{model} + {adapter} adapter"


def _bytes(entry: Entry, name: str, *, of_training: bool = False) -> str:
    found = entry.training(name) if of_training else entry.figure(name)
    if found is None:
        return _MISSING
    return f"{found.mean / 1e9:.1f} GB" if found.mean >= 1e9 else f"{found.mean / 1e6:.0f} MB"


def _speed(entry: Entry) -> str:
    standard = f"{_cell(entry, 'standard_s', '.2f')} s standard query 1; " if entry.figure("standard_s") else ""
    mean, slow = _cell(entry, "total_s_mean", ".2f"), _cell(entry, "total_s_p95", ".2f")
    on = f" ({entry.row.timed})" if entry.row.timed else ""
    return f"{standard}{mean} s mean, {slow} s p95{on}"


def autonomy(entry: Entry) -> str:
    """What the seed's column says, by stated bounds, with the shares it is by."""
    shares = {name: entry.figure(name) for name in ("tool_recall", "loop_guard")}
    recall, looped = (spread.mean if spread else 0.0 for spread in shares.values())
    direct = entry.figure("direct_rate")  # None where no question was one to answer without a tool
    said = "Yes" if recall >= 0.9 else "Partly"
    if recall < 0.1:
        said = "No"
    elif looped >= 0.3:
        said = "Yes, but loops"
    elif direct and direct.mean < 0.5:
        said = "Over-eager"
    return f"{said}: tool where needed {recall:.0%}" + (f", none where not {direct.mean:.0%}" if direct else "")


def _cell(entry: Entry, name: str, form: str) -> str:
    found = entry.figure(name)
    return found.shown(form) if found else _MISSING


def _seed_figures(tracker: Tracker) -> Iterator[str]:
    yield from ("", "## The rungs", "")
    for entry in tracker.entries:
        made = f" [Recipe](recipes/{entry.row.name}.toml)." if entry.row.recipe else ""
        goals = f" Goal: {'; '.join(map(str, entry.row.goals))}." if entry.row.goals else ""
        yield f"- **{entry.row.title}** (`{entry.row.name}`): {entry.row.about}{made}{goals}"
        yield from (f'  - seed: "{quote.text}" ({quote.place})' for quote in entry.row.seed)


# --- the figures ---------------------------------------------------------------------------------------------------


def _table(entries: Sequence[Entry], columns: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    rows = (
        (entry.row.title, *(_cell(entry, name, form) for _, name, form in columns))
        if entry.kept
        else (entry.row.title, NOT_RUN, *[""] * (len(columns) - 1))
        for entry in entries
    )
    yield from _rows(("", *(title for title, _, _ in columns)), rows)


def _costs(entries: Sequence[Entry]) -> Iterator[str]:
    head = ("", *(title for title, _, _ in COSTS), "minutes", "peak memory", "adapter")
    yield from _rows(head, (_cost(entry) for entry in entries if entry.row.recipe or entry.training("rows")))


def _cost(entry: Entry) -> Sequence[str]:
    seconds = entry.training("seconds")
    if seconds is None:
        return (entry.row.title, NOT_RUN, *[""] * (len(COSTS) + 2))
    spreads = [(entry.training(name), form) for _, name, form in COSTS]
    cells = [spread.shown(form) if spread else _MISSING for spread, form in spreads]
    memory, size = _bytes(entry, "peak_bytes", of_training=True), _bytes(entry, "adapter_bytes")
    return entry.row.title, *cells, f"{seconds.mean / 60:.1f}", memory, size


def _plots() -> Iterator[str]:
    yield from ("", "## Plots")
    for name, said in PLOTS:
        yield from ("", f"![{said}](results/{name})")


def _neighbours(tracker: Tracker) -> Iterator[str]:
    yield from (
        "",
        "## Rung against rung",
        "",
        "The same cases before (A) and after (B), each with the record of one seed.",
    )
    for a, b in tracker.neighbours:
        yield from ("", f"**{a.row.title} → {b.row.title}**", "")
        found = tracker.paired(a, b)
        if found:
            yield from (*compare.head("figure"), *(compare.row(paired.measure.name, paired) for paired in found))
        else:
            yield "Asked different questions, so there is nothing to pair."
    yield from ("", "p: McNemar's exact test on the cases that only one of the two got right.")


def _elsewhere(tracker: Tracker) -> Iterator[str]:
    yield from ("", "## Larger models", "")
    yield from _rows(("Model", "What is known here", "Command"), _not_here(tracker))


def _not_here(tracker: Tracker) -> Iterator[Sequence[str]]:
    for model in tracker.declared.elsewhere:
        yield model.system, model.said, f"`{model.command}`"


# --- what the figures are of ---------------------------------------------------------------------------------------


def _identities(entries: Sequence[Entry]) -> Iterator[str]:
    names = ("base", "adapter", "template", "settings", "split", "suite")
    head = ("record", "cases", *names, "canary")
    yield from ("", "## What the figures are of", "")
    rows = (
        (f"`{kept.name}`", str(kept.report.n), *(_hash(kept, name) for name in names), _canary(kept))
        for entry in entries
        for kept in entry.kept
    )
    yield from _rows(head, rows)
    yield from (
        "",
        "The canary is one question whose first call only an adapter that is loaded gets right; rungs that were "
        "not taught calls fail it by what they are.",
    )


def _hash(kept: Kept, name: str) -> str:
    return f"`{kept.report.identity.get(name, '?')}`"


def _canary(kept: Kept) -> str:
    return {True: "passed", False: "failed", None: "not asked"}[kept.report.canary]


def _transcripts(entries: Sequence[Entry]) -> Iterator[str]:
    yield from ("", "## Standard queries, verbatim")
    for entry in entries:
        if entry.row.beside or not (entry.first and entry.first.report.standard):
            continue
        yield from ("", f"<details><summary>{entry.row.title}</summary>")
        for asked in entry.first.report.standard:
            yield from _transcript(asked)
        yield from ("", "</details>")


def _transcript(asked: Mapping[str, Any]) -> Iterator[str]:
    calls = "; ".join(f"`{name} {arguments}`" for name, arguments in asked["calls"]) or "no tool"
    ended = "" if asked["stop_reason"] == "done" else f", ended by: {asked['stop_reason']}"
    yield from ("", f"**{asked['question']}** ({asked['project']}, {asked['total_s']:.2f} s, {calls}{ended})", "")
    yield from (f"    {line}".rstrip() for line in str(asked["answer"]).splitlines())


def as_json(tracker: Tracker) -> str:
    """The same for programs: rows in order, figures as numbers, what is not known as null."""
    names = [name for columns in (CHOICES, ANSWERS, TIMES) for _, name, _ in columns]
    rows = [_record(entry, [*names, "model_bytes", "adapter_bytes", "peak_bytes"]) for entry in tracker.entries]
    pairs = [
        {"a": a.row.name, "b": b.row.name, "measures": [_pair(paired) for paired in tracker.paired(a, b)]}
        for a, b in tracker.neighbours
    ]
    quoted = [quoted.model_dump() for quoted in tracker.declared.quoted]
    elsewhere = [model.model_dump() for model in tracker.declared.elsewhere]
    whole = {"rows": rows, "pairs": pairs, "seed": quoted, "elsewhere": elsewhere}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _record(entry: Entry, names: Sequence[str]) -> Mapping[str, Any]:
    figures = {name: _figure(entry, name) for name in names} if entry.kept else None
    seeds = [
        {"name": kept.name, "identity": dict(kept.report.identity), "canary": kept.report.canary, "n": kept.report.n}
        | {"training": kept.training.model_dump() if kept.training else None}
        for kept in entry.kept
    ]
    described = {"name": entry.row.name, "title": entry.row.title, "status": entry.status}
    return {**described, "seed": [q.model_dump() for q in entry.row.seed], "figures": figures, "records": seeds}


def _figure(entry: Entry, name: str) -> Mapping[str, Any] | None:
    found = entry.figure(name)
    if found is None:
        return None
    low, high = found.ends or (None, None)
    return {"value": round(found.mean, 4), "low": low, "high": high, "n": found.n, "seeds": len(found.values)}


def _pair(paired: compare.Paired) -> Mapping[str, Any]:
    low, high = paired.interval
    counts = {"n": paired.n, "both": paired.both, "only_a": paired.only_a, "only_b": paired.only_b}
    change = {"difference": round(paired.difference, 4), "low": round(low, 4), "high": round(high, 4)}
    return {"measure": paired.measure.name, **counts, **change, "p": round(paired.p_value, 6)}
