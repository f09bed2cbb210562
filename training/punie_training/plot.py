"""The loss curve of a run, for people (PNG) and for programs (JSON)."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from punie_training.checkpoint import Point


def write_curve(history: Sequence[Point], out: Path) -> None:
    """Write `loss.json` and `loss.png` into `out`."""
    (out / "loss.json").write_text(json.dumps([asdict(point) for point in history], indent=1) + "\n", "utf-8")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="update", ylabel="loss per learned token", yscale="log")
    axes.plot([p.update for p in history], [p.loss for p in history], linewidth=0.8, label="training batches")
    dev = [(p.update, p.dev_loss) for p in history if p.dev_loss is not None]
    if dev:
        axes.plot(*zip(*dev, strict=True), marker="o", label="dev rows")
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(out / "loss.png"))
