from dataclasses import replace
from pathlib import Path

import pytest
from tests.backends import tiny
from tests.training.evaluations import run, written

from punie.cli import main
from punie.errors import UsageError
from punie_training.compare import Evaluation
from punie_training.measures import Rate, difference
from punie_training.seeds import markdown, pooled


@pytest.fixture
def seeds(tmp_path: Path) -> list[Evaluation]:
    made = []
    for seed, wrong in enumerate((20, 10, 0)):
        adapter = tiny.write_adapter(tmp_path / f"adapter-{seed}", seed=seed)
        made.append(written(tmp_path / f"test-{seed}", run(definition=wrong, concept=seed), adapter=adapter))
    return made


def test_several_seeds_have_a_mean_a_range_and_each_value(seeds: list[Evaluation]) -> None:
    page = markdown(seeds)
    assert "## test: 3 runs, suite `q`, 236 cases" in page
    assert "| answer right | 176 | 94.3% (89.9% to 96.9%) | 88.6% to 100.0% | 88.6% | 94.3% | 100.0% |" in page
    assert "| f1 |  | 0.943 | 0.886 to 1.000 | 0.886 | 0.943 | 1.000 |" in page
    assert "more than once" not in page
    assert "unseen" not in page


def test_the_same_adapter_again_is_no_seed(seeds: list[Evaluation]) -> None:
    assert "one adapter more than once" in markdown([*seeds, seeds[0]])


def test_seen_projects_are_set_against_unseen_ones(tmp_path: Path, seeds: list[Evaluation]) -> None:
    adapter = tiny.write_adapter(tmp_path / "adapter", seed=1)
    seen = written(tmp_path / "train", run(definition=4), adapter=adapter, split="train", suite="other")
    page = markdown([*seeds, seen])
    assert "## train: 1 runs, suite `other`, 236 cases" in page
    low, high = difference(Rate(172, 176), Rate(166, 176))
    expected = f"| -3.4 ({100 * low:+.1f} to {100 * high:+.1f}) |"
    assert next(line for line in page.splitlines() if line.startswith("| answer right | 97.7%")).endswith(expected)
    assert low < -0.034 < high
    assert page.rstrip().endswith("| F1 | 0.977 | 0.943 | -3.4 |")


def test_different_questions_make_no_mean(tmp_path: Path, seeds: list[Evaluation]) -> None:
    adapter = tiny.write_adapter(tmp_path / "adapter", seed=1)
    other = written(tmp_path / "other", run(), adapter=adapter, suite="another")
    with pytest.raises(UsageError, match="different suites: q and another"):
        markdown([*seeds, other])
    fewer = written(tmp_path / "fewer", run()[1:], adapter=adapter)
    with pytest.raises(UsageError, match="different suites"):
        markdown([*seeds, fewer])


def test_more_runs_are_not_more_cases() -> None:
    assert pooled([Rate(80, 100), Rate(90, 100)]) == Rate(85, 100)


def test_the_interval_of_independent_shares_is_the_published_one() -> None:
    assert difference(Rate(48, 80), Rate(56, 70)) == pytest.approx((0.0524, 0.3339), abs=1e-4), "Newcombe 1998, (a)"


def test_the_command_line_reports_one_evaluation_or_several(
    seeds: list[Evaluation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = [str(e.directory) for e in seeds]
    assert main(["train", "report", directories[0]]) == 0
    assert capsys.readouterr().out.startswith("# Evaluation\n")
    assert main(["train", "report", *directories]) == 0
    assert "| first call right | 176 | 94.3%" in capsys.readouterr().out
    assert main(["train", "report", directories[0], str(tmp_path / "nowhere")]) == 2
    assert "report.json" in capsys.readouterr().err


def test_an_outcome_of_before_has_no_places(seeds: list[Evaluation]) -> None:
    outcome = replace(next(iter(seeds[0].outcomes.values())), answer=" ")
    assert (outcome.cited, outcome.answered) == (0, False)
