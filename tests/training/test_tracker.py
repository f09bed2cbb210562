import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.backends import tiny
from tests.training import evaluations

from punie.backends import _weights
from punie.errors import ConfigError, PunieError, UsageError
from punie_training import cli, compare, evaluate, results, tracker_command, tracker_page, verify
from punie_training.checkpoint import Point
from punie_training.evaluate import Outcome
from punie_training.measures import FIRST_CALL
from punie_training.progress import cost, describe
from punie_training.tracker import Declared, Tracker
from punie_training.trainer import Step, main

TRAINING = Path(__file__).parents[2] / "training"
RECIPE = """\
[data]
max_tokens = 2000
direct_share = 0.0
[lora]
layers = 2
rank = 2
[optim]
batch_tokens = 9000
[eval]
dev_rows = 2
"""
DECLARED = """\
[[quoted]]
system = "Claude Code"
model_size = "0 (cloud)"
memory = "0 GB local"
speed = "**2.41s**"
autonomous = "Yes"
accuracy = "100%"
status = "Baseline"

[[row]]
name = "base"
title = "base"
about = "The floor."
adapter = "none"
ladder = true

[[row]]
name = "one"
title = "1 small"
about = "A few rows."
recipe = true
timed = "on one core"
ladder = true
goals = [{ figure = "first_call_right", at_least = 0.9 }, { figure = "looped", at_most = 0.02 }]
seed = [{ text = "20+ tool calls", place = "Phase 1" }]

[[row]]
name = "two"
title = "2 larger"
about = "More rows."
recipe = true
ladder = true

[[row]]
name = "seen"
title = "1 on seen projects"
about = "As 1."
beside = "one"
split = "train"

[curve]
rows = ["one", "two"]
[mix]
rows = ["one", "two"]

[[elsewhere]]
system = "A large model"
command = "punie train eval --model large"
said = "Not measured: it does not fit."
"""


def rows() -> list[dict[str, object]]:
    made = []
    for i in range(12):
        expect = {"kind": "nothing", "values": [], "total": None, "says": []}
        messages = [
            {"role": "user", "content": f"where is number {i}"},
            {"role": "assistant", "calls": [{"name": "find_symbol", "arguments": {"name": f"n{i}"}}]},
            {"role": "tool", "content": f"0 definitions of n{i}"},
            {"role": "assistant", "content": "There is none."},
        ]
        made.append({"id": f"r{i}", "family": "empty", "project": "shop", "messages": messages, "expect": expect})
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with recipes, rows, and the run of `one` with two seeds."""
    home = tmp_path_factory.mktemp("home")
    (home / "recipes").mkdir()
    (home / "tracker.toml").write_text(DECLARED)
    for name, every in (("one", 3), ("two", 5)):
        (home / "recipes" / f"{name}.toml").write_text(RECIPE + f"every = {every}\n")
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    for seed in (0, 1):
        options = ["--data", str(home / "rows.jsonl"), "--base", str(base), "--seed", str(seed)]
        assert main([str(home / "recipes" / "one.toml"), *options, "--out", str(home / f"run{seed}")]) == 0
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "home")


def evaluated(
    home: Path,
    name: str,
    outcomes: Sequence[Outcome],
    *,
    run: str = "run0",
    adapter: str = "",
    **other: str,
) -> Path:
    """Write an evaluation of the run's adapter; `adapter` is the hash of another one, for the report to name."""
    directory = home / name
    evaluation = evaluations.written(directory, list(outcomes), adapter=home / run / "adapter", canary=True, **other)
    if adapter:
        named = {**evaluation.identity, "adapter": adapter}
        report, cases = directory / "report.json", directory / "outcomes.jsonl"
        report.write_text(json.dumps({**json.loads(report.read_text()), "identity": named}))
        cases.write_text(cases.read_text().replace(evaluate.key(evaluation.identity), evaluate.key(named)))
    return directory


def add(home: Path, row: str, evaluation: Path, *, run: str | None = "run0") -> int:
    of_run = ["--run", str(home / run)] if run else []
    return cli.main(
        ["tracker", "--home", str(home), "--add", row, "--evaluation", str(evaluation), *of_run],
    )


def test_a_row_is_kept_small_and_shown_with_its_interval(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(home, "one", evaluated(home, "e", evaluations.run(definition=4))) == 0
    kept = home / "results" / "one"
    assert sorted(path.name for path in kept.iterdir()) == ["outcomes.json", "report.json", "run.json"]
    assert all(path.stat().st_size < 100_000 for path in kept.iterdir())
    page = (home / "TRACKER.md").read_text()
    assert "97.7% (94.3% to 99.1%, n=176)" in page
    assert "| **1 small** |" in page
    assert page.count("| 2 larger | not run |") == 4
    assert '- seed: "20+ tool calls" (Phase 1)' in page
    assert "| seed: Claude Code | 0 (cloud) | 0 GB local | **2.41s** | Yes | 100% | Baseline |" in page
    assert "Not measured: it does not fit." in page
    record = json.loads((home / "tracker.json").read_text())
    one, two = record["rows"][1:3]
    assert (one["status"], two["status"], two["figures"]) == ("goal met", "not run", None)
    assert one["figures"]["first_call_right"]["n"] == 176
    assert one["records"][0]["training"]["rows"] == 10
    assert str(home / "results" / "loops.png") in capsys.readouterr().out


def test_every_plot_is_drawn_whether_rows_were_run_or_not(home: Path) -> None:
    declared = Declared.load(home / "tracker.toml")
    nothing = {path.name: path.read_bytes() for path in tracker_command.write(declared, home) if path.suffix == ".png"}
    assert add(home, "one", evaluated(home, "e", evaluations.run())) == 0
    after = {name: (home / "results" / name).read_bytes() for name in nothing}
    assert set(nothing) == {"learning-curve.png", "discrimination.png", "loops.png", "latency.png"}
    assert all(image.startswith(b"\x89PNG") for image in nothing.values())
    assert [name for name in nothing if after[name] == nothing[name]] == []


def test_seeds_are_a_mean_and_a_range(home: Path) -> None:
    add(home, "one", evaluated(home, "e0", evaluations.run()))
    add(home, "one-seed1", evaluated(home, "e1", evaluations.run(definition=44), run="run1"), run="run1")
    page = (home / "TRACKER.md").read_text()
    assert "87.5% (75.0% to 100.0%, 2 seeds)" in page
    assert "p95 (on one core) |" in page
    row = json.loads((home / "tracker.json").read_text())["rows"][1]
    assert [record["name"] for record in row["records"]] == ["one", "one-seed1"]
    assert row["status"] == "missed: first call right at least 0.9"


def test_neighbours_are_compared_case_by_case_as_two_evaluations_are(home: Path) -> None:
    bare = evaluated(home, "bare", evaluations.run(definition=30), adapter="none")
    small = evaluated(home, "small", evaluations.run(definition=4, edit=1))
    add(home, "base", bare, run=None)
    add(home, "one", small)
    (pair,) = json.loads((home / "tracker.json").read_text())["pairs"]
    whole = compare.compare(compare.Evaluation.load(bare), compare.Evaluation.load(small)).whole
    assert (pair["a"], pair["b"]) == ("base", "one")
    assert [(m["measure"], m["only_a"], m["only_b"]) for m in pair["measures"]] == [
        (paired.measure.name, paired.only_a, paired.only_b) for paired in whole
    ]
    assert pair["measures"][0]["p"] == pytest.approx(whole[0].p_value, abs=1e-6)


def test_other_questions_are_not_paired(home: Path) -> None:
    add(home, "base", evaluated(home, "bare", evaluations.run(), adapter="none", suite="other"), run=None)
    add(home, "one", evaluated(home, "small", evaluations.run()))
    kept = results.load_all(home / "results")
    assert results.pair(kept["base"], kept["one"], FIRST_CALL) is None
    assert "Asked different questions" in (home / "TRACKER.md").read_text()


@pytest.mark.parametrize(
    ("row", "run", "identity", "said"),
    [
        ("three", "run0", {}, "no row 'three'"),
        ("one", None, {}, "its run is wanted"),
        ("one", "run1", {}, "another recipe or seed"),
        ("two", "run0", {}, "another recipe or seed"),
        ("one", "run0", {"adapter": "0123456789ab"}, "evaluation of adapter 0123456789ab"),
        ("one", "run0", {"split": "dev"}, "on the dev split"),
        ("base", None, {}, "base is about none"),
        ("one", "recipes", {}, "manifest.json"),
    ],
)
def test_what_does_not_belong_together_is_refused_and_nothing_written(
    home: Path, row: str, run: str | None, identity: dict[str, str], said: str
) -> None:
    evaluation = evaluated(home, "e", evaluations.run(), **identity)
    with pytest.raises(UsageError, match=said):
        add(home, row, evaluation, run=run)
    assert not (home / "results").exists()
    assert not (home / "TRACKER.md").exists()


def test_a_row_beside_another_is_about_its_adapter(home: Path) -> None:
    add(home, "one", evaluated(home, "e", evaluations.run()))
    other = evaluated(home, "other", evaluations.run(), split="train", adapter="0123456789ab")
    with pytest.raises(UsageError, match="seen is about"):
        add(home, "seen", other, run=None)
    add(home, "seen", evaluated(home, "same", evaluations.run(), split="train"), run=None)
    assert "**1 small → 1 on seen projects**" in (home / "TRACKER.md").read_text()


def test_a_damaged_record_is_named(home: Path) -> None:
    add(home, "one", evaluated(home, "e", evaluations.run()))
    (home / "results" / "one" / "outcomes.json").write_text('{"measures": ["luck"], "cases": {}}')
    with pytest.raises(UsageError, match="other measures"):
        cli.main(["tracker", "--home", str(home)])


def test_a_directory_that_no_row_is_of_is_named(home: Path) -> None:
    add(home, "one", evaluated(home, "e", evaluations.run()))
    (home / "results" / "one").rename(home / "results" / "ten")
    with pytest.raises(UsageError, match="no row 'ten'"):
        cli.main(["tracker", "--home", str(home)])


def test_figures_that_no_case_is_about_are_left_out(home: Path) -> None:
    asked = [o for o in evaluations.run() if o.family != "concept"]
    add(home, "one", evaluated(home, "e", asked))
    entry = Tracker.load(Declared.load(home / "tracker.toml"), results.load_all(home / "results")).entry("one")
    assert entry.figure("direct_rate") is None
    assert entry.figure("balanced_discrimination") is None
    assert entry.figure("tool_recall") is not None
    assert tracker_page.autonomy(entry) == "Yes: tool where needed 100%"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[row]]\nname = 'a'", "title"),
        ("[[row]]\nname = 'a'\ntitle = 'a'\nabout = 'a'\n[curve]\nrows = ['b']", "unknown or repeated rows: b"),
        ("[[row]]\nname = 'a'\ntitle = 'a'\nabout = 'a'\ngoals = [{figure = 'f1'}]", "either at_least or at_most"),
        ("[[row", "tracker.toml"),
    ],
)
def test_a_wrong_declaration_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "tracker.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"tracker\.toml") as caught:
        Declared.load(tmp_path / "tracker.toml")
    assert said in str(caught.value)


def test_the_cost_of_a_run_is_read_from_its_log(tmp_path: Path) -> None:
    def step(update: int, speed: float, peak: int) -> str:
        return describe(Step(update, 2, 0.5, 0.25, 1e-3, 1.0, 6, speed, 0.0, peak))

    lines = ["10 rows in 2 updates", step(1, 100.0, 2_000_000_000), step(1, 50.0, 3_100_000_000), step(2, 200.0, 10**9)]
    (tmp_path / "train.log").write_text("\n".join(lines))
    history = [Point(n, 0.5, None, 1e-3, 1.0, tokens) for n, tokens in ((1, 1000), (2, 400))]
    found = cost(tmp_path / "train.log", history)
    assert found.seconds == pytest.approx(10 + 20 + 2)
    assert found.peak_bytes == 3_100_000_000


# --- making a row again --------------------------------------------------------------------------------------------


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, base: Path):
    """Let every evaluation find these outcomes, and every training start from the tiny model."""
    from punie_training import examine

    found: list[Outcome] = evaluations.run(definition=4)

    async def written(plan, *, say):
        del say
        evaluations.written(plan.out, found, adapter=plan.adapter, spec="local", split=plan.split)
        return plan.out / "report.md"

    monkeypatch.setattr(examine, "examine", written)
    monkeypatch.setattr(_weights, "ensure_base", lambda *_, **__: base)
    return found


@pytest.fixture
def kept(home: Path, examined: list[Outcome]) -> Path:
    add(home, "one", evaluated(home, "e", examined, spec="local"))
    return home


def again(home: Path, *options: str) -> int:
    given = ("--home", str(home), "--data", str(home / "rows.jsonl"), "--out", str(home / "again"))
    return cli.main(["verify", "one", *given, *options])


def test_a_row_is_trained_again_and_found_to_be_the_same(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(kept) == 0
    assert (kept / "again" / "run" / "adapter" / "adapters.safetensors").is_file()
    assert "one is what was kept." in capsys.readouterr().out


def climbed(home: Path, *options: str) -> int:
    return cli.main(["ladder", "--home", str(home), "--data", str(home / "rows.jsonl"), *options])


def test_rows_without_a_record_are_made_and_kept_and_not_made_twice(
    home: Path, examined: list[Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    assert climbed(home, "one", "one-seed1", "seen") == 0
    assert {path.name for path in (home / "results").iterdir() if path.is_dir()} == {"one", "one-seed1", "seen"}
    training = results.load(home / "results" / "one-seed1").training
    assert training is not None
    assert training.seed == 1
    assert "A few rows." in (home / "TRACKER.md").read_text()
    state = home / "runs" / "one" / "state.safetensors"
    made = state.stat().st_mtime_ns
    examined.clear()
    assert climbed(home, "one") == 0
    assert state.stat().st_mtime_ns == made
    assert "one: kept already" in capsys.readouterr().out


def test_the_rows_that_are_missing_are_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(home, "one", evaluated(home, "e", evaluations.run(definition=4)))
    capsys.readouterr()
    assert climbed(home, "--list") == 0
    assert capsys.readouterr().out.split() == ["base", "two", "seen"]


def test_a_row_beside_one_that_was_not_trained_here_is_refused(home: Path) -> None:
    with pytest.raises(UsageError, match="seen is about the adapter of one"):
        climbed(home, "seen")


def test_an_adapter_may_be_given(kept: Path) -> None:
    assert again(kept, "--adapter", str(kept / "run0" / "adapter")) == 0
    assert not (kept / "again" / "run").exists()


def test_a_share_outside_its_interval_is_named(
    kept: Path, examined: list[Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    examined[:] = evaluations.run(definition=30)
    with pytest.raises(PunieError, match="2 places") as caught:
        again(kept, "--adapter", str(kept / "run0" / "adapter"))
    assert caught.value.exit_code == 1
    out = capsys.readouterr().out
    assert "DIFFERS first_call_right: kept 0.9773 (0.9430 to 0.9911), found 0.8295" in out
    assert "DIFFERS looped" not in out


def test_other_data_are_found_before_anything_is_trained(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (kept / "rows.jsonl").read_text().replace("There is none.", "None is there.")
    (kept / "rows.jsonl").write_text(lines)
    with pytest.raises(PunieError, match="1 place"):
        again(kept)
    assert "DIFFERS training data: kept " in capsys.readouterr().out
    assert not (kept / "again").exists()


def test_an_adapter_of_another_recipe_is_refused(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PunieError, match="places"):
        again(kept, "--adapter", str(kept / "run1" / "adapter"))
    assert "DIFFERS training recipe" in capsys.readouterr().out


def test_identities_have_to_be_the_same(kept: Path) -> None:
    report = results.load(kept / "results" / "one").report
    other = report.model_copy(update={"identity": {**report.identity, "suite": "r", "adapter": "x"}, "canary": False})
    names = [difference.name for difference in verify.of_evaluation(report, other)]
    assert names == ["suite", "canary"]


# --- what is committed ---------------------------------------------------------------------------------------------


def test_the_committed_page_is_what_its_records_give(tmp_path: Path) -> None:
    home = tmp_path / "training"
    for name in ("recipes", "results"):
        if (TRAINING / name).is_dir():
            shutil.copytree(TRAINING / name, home / name)
    declared = Declared.load(TRAINING / "tracker.toml")
    tracker_command.write(declared, home)
    for name in ("TRACKER.md", "tracker.json"):
        assert (home / name).read_text() == (TRAINING / name).read_text(), f"run `punie train tracker` for {name}"


def test_every_rung_has_its_recipe() -> None:
    declared = Declared.load(TRAINING / "tracker.toml")
    trained = {row.name for row in declared.row if row.recipe}
    recipes = {path.stem for path in (TRAINING / "recipes").glob("*.toml")}
    assert {name for name in recipes if name.startswith(("rung-", "mix-"))} <= trained <= recipes
