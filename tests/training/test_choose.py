import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from tests.backends import tiny
from tests.training import evaluations

from punie.backends._weights import adapter_hash
from punie.cli import main
from punie.errors import UsageError
from punie_training import choose, examine, suite

WRONG = {"000010": {"definition": 9}, "000020": {"definition": 3}, "000030": {"definition": 5}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of three checkpoints with different weights; the last one is its adapter."""
    directory = tmp_path / "run"
    for factor, name in enumerate(WRONG, start=1):
        _adapter(directory / "checkpoints" / name, factor, name)
    _adapter(directory / "adapter", len(WRONG), "000030")
    return directory


def _adapter(directory: Path, factor: int, name: str) -> None:
    tiny.write_adapter(directory)
    weights = directory / "adapters.safetensors"
    scaled = {k: (factor * v).astype(v.dtype) for k, v in load_file(weights).items()}
    save_file(scaled, directory / "new")
    (directory / "new").replace(weights)
    (directory / "manifest.json").write_text(json.dumps({"name": name, "update": int(name)}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that were evaluated: a plan's cases come out as WRONG says."""
    names: list[str] = []

    async def examined(plan: examine.Plan, *, say: examine.Say) -> Path:
        assert plan.adapter is not None
        assert plan.split == "dev"
        names.append(plan.adapter.name)
        outcomes = evaluations.run(**WRONG[plan.adapter.name])
        evaluations.written(plan.out, outcomes, adapter=plan.adapter, split="dev")
        return plan.out / "report.md"

    monkeypatch.setattr(examine, "examine", examined)
    return names


def test_the_checkpoint_that_is_right_most_often_becomes_the_adapter(
    run: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    best = adapter_hash(run / "checkpoints" / "000020")
    assert main(["train", "choose", str(run)]) == 0
    assert asked == ["000010", "000020", "000030"]
    assert adapter_hash(run / "adapter") == best
    manifest = json.loads((run / "adapter" / "manifest.json").read_text())
    n = sum(evaluations.FAMILIES.values())
    assert manifest["update"] == 20
    assert manifest["chosen"]["among"] == {"000010": n - 9, "000020": n - 3, "000030": n - 5}
    assert manifest["chosen"] == json.loads((run / choose.PAGE).read_text())
    assert manifest["chosen"]["adapter"] == best
    assert "adapter is checkpoint 000020 now" in capsys.readouterr().out
    assert {path.name for path in run.iterdir()} == {"adapter", "checkpoints", "choice", choose.PAGE}


def test_of_equals_first_calls_decide_and_then_the_later_one(
    run: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRONG, "000020", {"definition": 3, "concept": 2})  # 5 wrong as well, but fewer of its calls
    assert main(["train", "choose", str(run)]) == 0
    assert adapter_hash(run / "adapter") == adapter_hash(run / "checkpoints" / "000020")
    monkeypatch.setitem(WRONG, "000010", {"definition": 5})
    monkeypatch.setitem(WRONG, "000020", {"definition": 5})
    assert main(["train", "choose", str(run)]) == 0
    assert adapter_hash(run / "adapter") == adapter_hash(run / "checkpoints" / "000030")


def test_only_the_last_ones_are_looked_at_when_asked_so(run: Path, asked: list[str]) -> None:
    assert main(["train", "choose", str(run), "--last", "1"]) == 0
    assert asked == ["000030"]
    assert main(["train", "choose", str(run), "--last", "0"]) == 2


def test_a_choice_that_was_cut_off_between_two_adapters_is_mended(run: Path, asked: list[str]) -> None:
    (run / "adapter").rename(run / choose.OLD)
    assert main(["train", "choose", str(run), "--last", "1"]) == 0
    assert adapter_hash(run / "adapter") == adapter_hash(run / "checkpoints" / "000030")
    assert not (run / choose.OLD).exists()


def test_a_run_without_checkpoints_or_without_an_end_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoints"):
        choose.checkpoints(tmp_path, last=None)
    (run / "adapter" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="not come to its end"):
        choose.checkpoints(run, last=None)


def test_the_suite_of_a_choice_has_sixty_cases() -> None:
    asked = sum(max(1, round(count * choose.SCALE)) for count in suite.CASES.values())
    assert asked + choose.CONCEPTS == 60
