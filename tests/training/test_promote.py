import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.backends import tiny
from tests.training.evaluations import TEMPLATE, base, run, written

from punie.backends._weights import adapter_hash
from punie.backends.catalogue import EMBEDDED
from punie.cli import main
from punie.errors import UsageError, WeightsMissing
from punie_training.compare import ANSWER, FIRST_CALL, Evaluation, Paired, compare, markdown
from punie_training.evaluate import Outcome
from punie_training.promote import NotPromoted, _rename_in_turn, _swap, judge, promote


def made_adapter(directory: Path, *, seed: int) -> Path:
    tiny.write_adapter(directory, seed=seed)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "manifest.json").write_text(json.dumps({"base": base(), "recipe": f"r{seed}", "rows": 7}))
    return directory


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return made_adapter(tmp_path / "installed" / "tiny", seed=1)


@pytest.fixture
def better(tmp_path: Path) -> Path:
    return made_adapter(tmp_path / "runs" / "0009-better" / "checkpoints" / "000200", seed=2)


@pytest.fixture
def current(tmp_path: Path, shipped: Path) -> Evaluation:
    return written(tmp_path / "current", run(definition=20, references=10, concept=3), adapter=shipped)


def test_a_better_adapter_takes_the_place_of_the_shipped_one(
    tmp_path: Path, shipped: Path, better: Path, current: Evaluation
) -> None:
    candidate = written(tmp_path / "candidate", run(definition=5, references=10, concept=2), adapter=better)
    before = adapter_hash(shipped)
    verdict = promote(better, evaluation=candidate, current=current, shipped=shipped)
    assert verdict.losses == ()
    assert "first call right 83.0% -> 91.5% (n=176, p=0.000)" in verdict.wins
    assert adapter_hash(shipped) == adapter_hash(better)
    assert (shipped / "chat_template.jinja").read_text() == TEMPLATE
    manifest = json.loads((shipped / "manifest.json").read_text())
    assert (manifest["name"], manifest["recipe"], manifest["rows"]) == (EMBEDDED, "r2", 7)
    assert manifest["run"] == "0009-better"
    assert manifest["scores"]["first_call_right"]["value"] == pytest.approx(161 / 176, abs=1e-4)
    assert manifest["gate"]["replaces"] == before
    assert set(manifest["files"]) == {"adapters.safetensors", "adapter_config.json", "chat_template.jinja"}
    assert [path.name for path in shipped.parent.iterdir()] == ["tiny"], "nothing is left beside it"


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"definition": 5, "references": 10, "concept": 6}, r"direct rate 95\.0% -> 90\.0% \(n=60\)"),
        ({"definition": 2, "references": 10, "edit": 2}, r"edit, first call right 100\.0% -> 87\.5% \(n=16"),
        ({"definition": 19, "references": 10}, "neither first call nor answer is better"),
    ],
)
def test_one_that_is_worse_somewhere_or_not_clearly_better_is_refused(
    tmp_path: Path, shipped: Path, better: Path, current: Evaluation, wrong: dict[str, int], where: str
) -> None:
    before = adapter_hash(shipped)
    candidate = written(tmp_path / "candidate", run(**wrong), adapter=better)
    with pytest.raises(NotPromoted, match=where) as refused:
        promote(better, evaluation=candidate, current=current, shipped=shipped)
    assert refused.value.exit_code == 1
    assert adapter_hash(shipped) == before


def test_loops_and_invented_paths_and_refused_calls_are_losses(tmp_path: Path, shipped: Path) -> None:
    fine = written(tmp_path / "a", run(definition=20), adapter=shipped)
    worse = [
        replace(o, looped=n % 20 == 0, invented_paths=n % 20, valid_calls=o.valid_calls and n % 10 > 0)
        for n, o in enumerate(run())
    ]
    verdict = judge(compare(fine, written(tmp_path / "b", worse, adapter=shipped)))
    assert verdict.wins
    assert [loss.rsplit(" ", 4)[0] for loss in verdict.losses] == ["valid calls", "looped", "invented paths"]
    assert judge(compare(fine, written(tmp_path / "c", run(edit=1), adapter=shipped))).passed, "one case is forgiven"


def test_evaluations_that_say_nothing_about_the_adapter_are_refused(
    tmp_path: Path, shipped: Path, better: Path, current: Evaluation
) -> None:
    def refused(
        message: str, outcomes: list[Outcome] | None = None, *, of: Path = better, canary: bool = True, **other: str
    ) -> None:
        made = written(tmp_path / "e", run() if outcomes is None else outcomes, adapter=of, canary=canary, **other)
        with pytest.raises(UsageError, match=message):
            promote(better, evaluation=made, current=current, shipped=shipped)

    refused(f"evaluation of adapter {adapter_hash(shipped)}", of=shipped)
    refused("dev split", split="dev")
    refused("train split", split="train")
    refused("another chat template", template="0123")
    refused("another model", base="0123")
    refused("different suites", suite="0123")
    refused("different suites", run()[1:])
    refused("different settings", settings="0123")
    refused("canary", canary=False)
    refused("has 199 cases", run()[:199])
    good = written(tmp_path / "good", run(), adapter=better)
    with pytest.raises(UsageError, match="was not given"):
        promote(better, evaluation=good, current=None, shipped=shipped)
    with pytest.raises(UsageError, match="shipped is"):
        promote(better, evaluation=good, current=good, shipped=shipped)


def test_adapters_of_another_base_or_without_a_manifest_are_refused(
    tmp_path: Path, shipped: Path, better: Path
) -> None:
    good = written(tmp_path / "good", run(), adapter=better)
    (better / "manifest.json").write_text('{"base": "0123"}')
    with pytest.raises(UsageError, match="not trained on the embedded model"):
        promote(better, evaluation=good, current=None, shipped=shipped)
    (better / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match="nobody knows"):
        promote(better, evaluation=good, current=None, shipped=shipped)
    with pytest.raises(WeightsMissing):
        promote(tmp_path, evaluation=good, current=None, shipped=shipped)


def test_the_first_adapter_has_nothing_to_beat(tmp_path: Path, better: Path) -> None:
    empty = tmp_path / "installed" / "tiny"
    promote(better, evaluation=written(tmp_path / "e", run(), adapter=better), current=None, shipped=empty)
    assert adapter_hash(empty) == adapter_hash(better)


def test_a_full_disk_leaves_the_shipped_adapter(
    tmp_path: Path, shipped: Path, better: Path, current: Evaluation
) -> None:
    candidate = written(tmp_path / "candidate", run(), adapter=better)
    before = adapter_hash(shipped)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(NotPromoted, match="cannot be stored"):
            promote(better, evaluation=candidate, current=current, shipped=shipped)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert adapter_hash(shipped) == before
    assert [path.name for path in shipped.parent.iterdir()] == ["tiny"]


def test_where_directories_cannot_be_swapped_they_are_renamed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    _rename_in_turn(tmp_path / "old", tmp_path / "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new"]


def test_directories_are_swapped_in_one_step(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert _swap(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "old" / "new").is_file()
    assert (tmp_path / "new" / "old").is_file()


def test_an_interval_of_paired_shares_is_the_published_one() -> None:
    paired = Paired(FIRST_CALL, both=36, only_a=2, only_b=12, neither=0)
    assert paired.interval == pytest.approx((0.0569, 0.3404), abs=1e-4), "Newcombe 1998, table II, method 10"
    assert paired.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert Paired(ANSWER, both=5, only_a=0, only_b=0, neither=0).p_value == 1.0


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    random, shares = np.random.default_rng(0), (0.7, 0.05, 0.15, 0.1)
    drawn = [Paired(ANSWER, *map(int, random.multinomial(80, shares))) for _ in range(2000)]
    covered = np.mean([low <= 0.1 <= high for low, high in (paired.interval for paired in drawn)])
    assert 0.93 < covered < 0.98


def test_the_page_compares_the_whole_and_every_family(tmp_path: Path, shipped: Path, better: Path) -> None:
    a = written(tmp_path / "a", run(definition=20), adapter=shipped)
    b = written(tmp_path / "b", run(definition=10, edit=1), adapter=better, settings="other")
    page = markdown(compare(a, b))
    assert "- also different: settings" in page
    assert "| answer right | 176 | 88.6% | 93.8% | +5.1 (" in page
    assert "| definition: first call right | 80 | 75.0% | 87.5% | +12.5 (" in page
    assert "| F1 | 176 | 0.886 | 0.938 |" in page
    assert "concept:" not in page, "nobody judges the prose of general answers"


def test_directories_that_hold_no_whole_evaluation(tmp_path: Path, shipped: Path) -> None:
    with pytest.raises(UsageError, match=r"report\.json"):
        Evaluation.load(tmp_path)
    made = written(tmp_path / "e", run(), adapter=shipped).directory
    lines = (made / "outcomes.jsonl").read_text().splitlines()
    (made / "outcomes.jsonl").write_text("\n".join(lines[5:]))
    with pytest.raises(UsageError, match="holds 231 outcomes for a report about 236"):
        Evaluation.load(made)
    (made / "report.json").write_text("{}")
    with pytest.raises(UsageError, match="not the report"):
        Evaluation.load(made)


def test_the_command_line_compares_and_promotes(
    tmp_path: Path, shipped: Path, better: Path, current: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    good = written(tmp_path / "good", run(), adapter=better)
    assert main(["train", "compare", str(current.directory), str(good.directory)]) == 0
    assert "| first call right |" in capsys.readouterr().out
    rest = ["--evaluation", str(good.directory), "--current", str(current.directory), "--shipped", str(shipped)]
    assert main(["train", "promote", str(better), *rest]) == 0
    assert adapter_hash(shipped) == adapter_hash(better)
    rest[3] = str(good.directory)
    assert main(["train", "promote", str(better), *rest]) == 1
    assert "Not promoted" in capsys.readouterr().err
