"""The tracker's plots; rows that were not run are named as such and drawn as nothing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from punie.backends._files import replacing
from punie_training.recipe import Data
from punie_training.tracker import NOT_RUN, Entry, Tracker

Draw = Callable[[Any, Tracker], None]


def draw(tracker: Tracker, out: Path, *, shares: Mapping[str, Data]) -> Sequence[Path]:
    """Write every plot into `out`; `shares` has the data part of each recipe by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure

    plots: Mapping[str, Draw] = {
        "learning-curve.png": lambda axes, t: _learning(axes, t, shares),
        "discrimination.png": lambda axes, t: _mix(axes, t, shares),
        "loops.png": _loops,
        "latency.png": _latency,
    }
    for name, fill in plots.items():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        fill(figure.add_subplot(), tracker)
        with replacing(out / name) as part:
            FigureCanvasAgg(figure).print_png(str(part), metadata={"Software": None})
    return [out / name for name in plots]


def _learning(axes: Any, tracker: Tracker, shares: Mapping[str, Data]) -> None:
    points = [(shares[name].rows, tracker.entry(name)) for name in tracker.declared.curve.rows]
    figures = {"first call right": "first_call_right", "answer right": "answer_right", "valid calls": "valid_calls"}
    axes.set(xscale="log", xlabel="rows trained on", ylabel="share of the test questions", ylim=(0, 1.02))
    axes.set_xticks([x for x, _ in points], [str(x) for x, _ in points])
    axes.minorticks_off()
    _lines(axes, points, figures)


def _mix(axes: Any, tracker: Tracker, shares: Mapping[str, Data]) -> None:
    points = [(100 * (1 - (shares[n].direct_share or 0)), tracker.entry(n)) for n in tracker.declared.mix.rows]
    figures = {
        "tool where needed": "tool_recall",
        "no tool where not": "direct_rate",
        "mean of both": "balanced_discrimination",
    }
    axes.set(xlabel="rows with a tool, %", ylabel="share of the test questions", ylim=(0, 1.02))
    axes.set_xticks([x for x, _ in points])
    _lines(axes, points, figures)


def _lines(axes: Any, points: Sequence[tuple[float, Entry]], figures: Mapping[str, str]) -> None:
    for label, name in figures.items():
        known = [(x, found) for x, entry in points if (found := entry.figure(name))]
        means = [found.mean for _, found in known]
        ends = [found.ends or (found.mean, found.mean) for _, found in known]
        below = [max(0.0, mean - low) for mean, (low, _) in zip(means, ends, strict=True)]
        above = [max(0.0, high - mean) for mean, (_, high) in zip(means, ends, strict=True)]
        axes.errorbar([x for x, _ in known], means, yerr=[below, above], marker="o", capsize=3, label=label)
    for x, entry in points:
        if not entry.kept:
            axes.annotate(NOT_RUN, (x, 0.02), rotation=90, ha="center", va="bottom", color="gray")
    axes.set_xlim(*_wide([x for x, _ in points]))
    _legend(axes)


def _legend(axes: Any) -> None:
    axes.figure.legend(loc="outside upper center", ncols=3)


def _wide(values: Sequence[float]) -> tuple[float, float]:
    return (min(values) * 0.9, max(values) * 1.1) if values else (0.0, 1.0)


def _loops(axes: Any, tracker: Tracker) -> None:
    rungs = [entry for entry in tracker.entries if entry.row.ladder or entry.row.beside]
    axes.set(ylabel="share of the questions, %", ylim=(0, 105))
    kinds = (("looped", "by a limit or the loop guard", "tab:orange"), ("loop_guard", "by the loop guard", "tab:red"))
    for shift, (name, label, color) in zip((-0.2, 0.2), kinds, strict=True):
        known = [(at, found) for at, entry in enumerate(rungs) if (found := entry.figure(name))]
        heights = [100 * found.mean for _, found in known]
        ends = [found.ends or (found.mean, found.mean) for _, found in known]
        below = [max(0.0, mean - 100 * low) for mean, (low, _) in zip(heights, ends, strict=True)]
        above = [max(0.0, 100 * high - mean) for mean, (_, high) in zip(heights, ends, strict=True)]
        places = [at + shift for at, _ in known]
        axes.bar(places, heights, width=0.4, yerr=[below, above], capsize=3, color=color, label=label)
    for at, entry in enumerate(rungs):
        if not entry.kept:
            _say_not_run(axes, at)
    _legend(axes)
    _names(axes, rungs)


def _latency(axes: Any, tracker: Tracker) -> None:
    rungs = [entry for entry in tracker.entries if entry.row.ladder]
    parts = {"prompt": "prefill_s_mean", "writing": "decode_s_mean", "tools": "tools_s_mean"}
    axes.set(ylabel="seconds a question, mean")
    floor = [0.0] * len(rungs)
    for label, name in parts.items():
        heights = [found.mean if (found := entry.figure(name)) else 0.0 for entry in rungs]
        axes.bar(range(len(rungs)), heights, bottom=floor, label=label)
        floor = [a + b for a, b in zip(floor, heights, strict=True)]
    for at, entry in enumerate(rungs):
        if not entry.kept:
            _say_not_run(axes, at)
    axes.set_ylim(0, 1.1 * max([*floor, 0.1]))
    _legend(axes)
    _names(axes, rungs)


def _say_not_run(axes: Any, at: int) -> None:
    axes.annotate(NOT_RUN, (at, 0.0), rotation=90, ha="center", va="bottom", color="gray")


def _names(axes: Any, rungs: Sequence[Entry]) -> None:
    axes.set_xticks(range(len(rungs)), [entry.row.title for entry in rungs], rotation=30, ha="right")
