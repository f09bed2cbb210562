"""Where a row made again differs from what is kept of it: hashes exactly, shares beyond their intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from punie_training.results import Kept, Report, Training

OF_DATA = ("recipe", "data", "base", "start", "template", "rows", "updates")
OF_EVALUATION = ("spec", "base", "template", "settings", "split", "suite")


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was kept."""

    name: str
    kept: str
    found: str

    def __str__(self) -> str:
        return f"{self.name}: kept {self.kept}, found {self.found}"


def of_training(kept: Training, found: Mapping[str, object]) -> Sequence[Difference]:
    """Compare what a run is made of; a manifest that lacks a value says nothing about it."""
    values = kept.model_dump()
    return [
        Difference(f"training {name}", _short(values[name]), _short(found[name]))
        for name in OF_DATA
        if name in found and values[name] not in {found[name], ""}
    ]


def _short(value: object) -> str:
    return str(value)[:16] or "none"


def of_evaluation(kept: Report, found: Report) -> Sequence[Difference]:
    """Compare identities exactly, and every share: the new one has to lie in the kept one's interval."""
    return [*_identities(kept, found), *_shares(kept, found)]


def _identities(kept: Report, found: Report) -> Iterator[Difference]:
    for name in OF_EVALUATION:
        before, now = kept.identity.get(name, "?"), found.identity.get(name, "?")
        if before != now:
            yield Difference(name, before, now)
    if kept.canary != found.canary:
        yield Difference("canary", str(kept.canary), str(found.canary))
    if kept.n != found.n:
        yield Difference("cases", str(kept.n), str(found.n))


def _shares(kept: Report, found: Report) -> Iterator[Difference]:
    for name in kept.all:
        before, now = kept.share(name), found.share(name)
        if before is None:
            continue
        if now is None or not before.low - 5e-5 <= now.value <= before.high + 5e-5:
            value = f"{now.value:.4f}" if now else "nothing"
            yield Difference(name, f"{before.value:.4f} ({before.low:.4f} to {before.high:.4f})", value)


def shown(kept: Kept, found: Report) -> Iterator[str]:
    """Every figure beside the kept one; the ones that depend on the machine are not judged."""
    for name in kept.report.all:
        before, now = kept.report.number(name), found.number(name)
        judged = "" if kept.report.share(name) else " (not judged)"
        yield (
            f"  {name:24} kept {before:.4f}  found {now:.4f}{judged}" if before is not None and now is not None else ""
        )
