"""The gate before the adapter that Punie ships: it is replaced only by one that is better, and nowhere worse."""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import punie
from punie.backends import _weights
from punie.backends._files import sha256, write_text
from punie.backends.catalogue import EMBEDDED, entry
from punie.errors import PunieError, UsageError
from punie_training import report
from punie_training.compare import ANSWER, FIRST_CALL, Comparison, Evaluation, Paired, compare
from punie_training.examine import digest

SHIPPED = Path(punie.__file__).parent / "adapters" / EMBEDDED
MARGIN = 0.02
LEAST_CASES = 200
_SIGNIFICANT = 0.05
_FILES = ("adapters.safetensors", "adapter_config.json", "chat_template.jinja")
_PACKAGES = ("mlx", "mlx-lm", "xllamacpp", "pydantic-ai-slim", "tokenizers")


class NotPromoted(PunieError):  # noqa: N818 - it says what happened, as the errors of punie do
    """The adapter did not pass the gate; the one that is shipped stays."""


@dataclass(frozen=True)
class Verdict:
    """What a comparison with the current adapter means for a candidate."""

    wins: tuple[str, ...]
    losses: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether it is better somewhere that counts, and nowhere worse."""
        return bool(self.wins) and not self.losses


def judge(compared: Comparison, *, margin: float = MARGIN) -> Verdict:
    """Weigh B against A, the current one."""
    headline = [paired for paired in compared.whole if paired.measure in {FIRST_CALL, ANSWER}]
    wins = tuple(_shown(paired.measure.name, paired) for paired in headline if _is_better(paired))
    return Verdict(wins, tuple(_losses(compared, margin)))


def _is_better(paired: Paired) -> bool:
    apart = paired.b.interval[0] > paired.a.interval[1]
    return paired.gained > 0 and (paired.p_value < _SIGNIFICANT or apart)


def _losses(compared: Comparison, margin: float) -> Iterator[str]:
    for paired in compared.whole:
        if -paired.gained > margin * paired.n:
            yield _shown(paired.measure.name, paired)
    for name, found in compared.families.items():
        for paired in found:
            # One case of a family of sixteen weighs six points: no margin in points could forgive it.
            if -paired.gained > max(1, margin * paired.n):
                yield _shown(f"{name}, {paired.measure.name}", paired)


def _shown(name: str, paired: Paired) -> str:
    chance = f", p={paired.p_value:.3f}" if paired.measure in {FIRST_CALL, ANSWER} else ""
    return f"{name} {paired.a.value:.1%} -> {paired.b.value:.1%} (n={paired.n}{chance})"


# --- the gate ------------------------------------------------------------------------------------------------------


def promote(
    adapter: Path,
    *,
    evaluation: Evaluation,
    current: Evaluation | None,
    shipped: Path = SHIPPED,
    margin: float = MARGIN,
) -> Verdict:
    """Ship the adapter if it passes. Raises NotPromoted with every figure that speaks against it, or UsageError."""
    _refuse_unfit(adapter, evaluation)
    if current is None and (shipped / _FILES[0]).is_file():
        again = "Run `punie train eval --out DIR` without --adapter, then give --current DIR."
        raise UsageError("An adapter is shipped already and its evaluation was not given.", again)
    verdict = _against(current, evaluation, shipped=shipped, margin=margin) if current else Verdict(("first",), ())
    if not verdict.passed:
        raise NotPromoted(f"Not promoted: {_reason(verdict, margin)}.", "The shipped adapter stays as it is.")
    _ship(adapter, evaluation, shipped=shipped, gate=_gate(verdict, current=current, margin=margin))
    return verdict


def _reason(verdict: Verdict, margin: float) -> str:
    lost = f"it loses more than {100 * margin:g} points in: {'; '.join(verdict.losses)}" if verdict.losses else ""
    same = "" if verdict.wins else "neither first call nor answer is better by more than luck may explain"
    return " and ".join(filter(None, (same, lost)))


def _refuse_unfit(adapter: Path, evaluation: Evaluation) -> None:
    """Raise UsageError unless the evaluation is of this adapter, on held-out projects, and whole."""
    found, said = _weights.adapter_hash(adapter), evaluation.says("adapter")
    if found != said:
        raise UsageError(f"{evaluation.directory} is the evaluation of adapter {said}, not of {found} ({adapter}).")
    template = digest(_weights.template_of(adapter) or _weights.shipped_template())
    if template != evaluation.says("template"):
        raise UsageError(f"{adapter} has another chat template than when {evaluation.directory} was made.")
    if not str(_manifest(adapter).get("base", "")).startswith(_embedded_base()[:16]):
        raise UsageError(f"{adapter} was not trained on the embedded model {EMBEDDED}.")
    _refuse_weak(evaluation)


def _refuse_weak(evaluation: Evaluation) -> None:
    directory = evaluation.directory
    if evaluation.says("split") != "test":
        raise UsageError(
            f"{directory} is an evaluation on the {evaluation.says('split')} split, which training may look at.",
            "Run `punie train eval --split test`.",
        )
    if evaluation.says("base") != _embedded_base()[:16]:
        raise UsageError(f"{directory} is an evaluation of another model: {evaluation.says('model')}.")
    if not evaluation.canary:
        raise UsageError(f"{directory}: the canary question failed, the adapter may not have been loaded.")
    if len(evaluation.outcomes) < LEAST_CASES:
        raise UsageError(f"{directory} has {len(evaluation.outcomes)} cases; the gate asks for {LEAST_CASES}.")


def _against(current: Evaluation, evaluation: Evaluation, *, shipped: Path, margin: float) -> Verdict:
    expected = _weights.adapter_hash(shipped)
    if current.says("adapter") != expected:
        cause = f"{current.directory} is the evaluation of adapter {current.says('adapter')}, shipped is {expected}."
        raise UsageError(cause, "Run `punie train eval --out DIR` without --adapter, then give --current DIR.")
    _refuse_weak(current)
    if current.says("settings") != evaluation.says("settings"):
        cause = f"{current.directory} and {evaluation.directory} were made with different settings."
        raise UsageError(cause, "Run `punie train eval` for both on the same version.")
    return judge(compare(current, evaluation), margin=margin)


def _embedded_base() -> str:
    file = entry(EMBEDDED).file
    return file.sha256 if file else ""


# --- the files -----------------------------------------------------------------------------------------------------


def _ship(adapter: Path, evaluation: Evaluation, *, shipped: Path, gate: Mapping[str, object]) -> None:
    """Build the new directory beside the old one and put it in its place in one step."""
    part = shipped.with_name(f"{shipped.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        for name in _FILES:
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, part / name)
        manifest = {**_manifest(adapter), **_described(adapter, evaluation, part), "gate": gate}
        write_text(part / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        _replace(shipped, part)
    except OSError as error:
        cause = f"The adapter cannot be stored in {shipped.parent}: {error.strerror or error}."
        raise NotPromoted(cause, "The shipped adapter stays as it is.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _described(adapter: Path, evaluation: Evaluation, part: Path) -> Mapping[str, object]:
    outcomes = tuple(evaluation.outcomes.values())
    place = adapter.resolve()
    run = place.parents[1] if place.parent.name == "checkpoints" else place.parent
    scores = {
        "command": "punie train eval",
        "identity": dict(evaluation.identity),
        "canary": evaluation.canary,
        "n": len(outcomes),
        **report.summary(outcomes).record(),
    }
    return {
        "name": EMBEDDED,
        "run": run.name,
        "files": {path.name: sha256(path) for path in sorted(part.iterdir())},
        "versions": dict(_versions()),
        "scores": scores,
    }


def _gate(verdict: Verdict, *, current: Evaluation | None, margin: float) -> Mapping[str, object]:
    before = current.says("adapter") if current else "none"
    return {"replaces": before, "margin": margin, "better": list(verdict.wins)}


def _manifest(adapter: Path) -> dict[str, object]:
    path = adapter / "manifest.json"
    try:
        return cast("dict[str, object]", json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read, so nobody knows what the adapter is made of: {error}.") from error


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS has the same value."""


def _replace(old: Path, new: Path) -> None:
    """Let `new` be at `old`; where the system can swap two directories, there is no moment without either."""
    if not old.exists():
        new.rename(old)
    elif not _swap(old, new):
        _rename_in_turn(old, new)


def _rename_in_turn(old: Path, new: Path) -> None:
    aside = new.with_name(f"{new.name}.old")
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)


def _swap(old: Path, new: Path) -> bool:
    library = ctypes.CDLL(None)
    names: Sequence[bytes] = (os.fsencode(new), os.fsencode(old))
    try:
        if sys.platform == "darwin":
            return library.renamex_np(*names, _EXCHANGE) == 0
        return library.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0
    except AttributeError:
        return False
