import json
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import pytest
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from tests.backends import tiny
from tests.training.evaluations import outcome

from punie.backends._files import claimed
from punie.config import AgentConfig
from punie.errors import PunieError, UsageError
from punie.wire import conversation, expand
from punie_training import examine, report, suite
from punie_training.evaluate import Outcome, evaluate, invented, normal
from punie_training.examine import Plan, resources
from punie_training.generate import Studio
from punie_training.rss import forget_peak, resident_peak
from punie_training.suite import Case, fingerprint, tool_cases
from punie_training.tasks import Expect, Task, Turn

COUNTS = {"subclasses": 2, "references": 2, "two_hop": 2, "edit": 2, "write": 4, "empty": 2}
PROSE = "I would call find_subclasses, find_references, find_symbol, edit_file and read_file with the right name."


@pytest.fixture
def studio(project: Path) -> Studio:
    return Studio("shop", project)


@pytest.fixture
async def cases(studio: Studio) -> list[Case]:
    concept = Turn("concept/concept", "What is a protocol?", (), "A protocol is a set of methods.", Expect("words"))
    asked = await tool_cases("dev", (studio,), counts=COUNTS)
    return [*asked, Case("concept-protocol", Task("concept", "shop", (concept,), seen_wording=False))]


def _scripted(cases: Sequence[Case]) -> FunctionModel:
    """A model that knows every case, and puts result lines in as a local model does."""
    plans = {case.task.turns[-1].question: case.task.turns[-1] for case in cases}

    async def reply(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        talk = conversation(messages)
        turn = next(plans[m.content] for m in reversed(talk) if m.role == "user")
        done = sum(m.role == "tool" for m in talk)
        if done < len(turn.steps):
            step = turn.steps[done]
            yield {0: DeltaToolCall(step.tool, json.dumps(dict(step.arguments)), tool_call_id=f"call-{done}")}
        else:
            yield expand(turn.answer, talk)

    return FunctionModel(stream_function=reply)


def _talking(text: str) -> FunctionModel:
    async def reply(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield text

    return FunctionModel(stream_function=reply)


async def _run(cases: Sequence[Case], studio: Studio, model: FunctionModel, store: Path) -> tuple[Outcome, ...]:
    return await evaluate(cases, model=model, config=AgentConfig(), opened=(studio,), store=store, key="k")


async def test_a_model_that_follows_the_plans_gets_everything_right(
    studio: Studio, cases: list[Case], tmp_path: Path
) -> None:
    outcomes = await _run(cases, studio, _scripted(cases), tmp_path / "outcomes.jsonl")
    whole = report.summary(outcomes)
    assert len(cases) == sum(COUNTS.values()) + 1
    assert [o.question for o in outcomes if not (o.right and o.first_call_right)] == []
    assert (whole.f1, whole.balanced_discrimination, whole.looped.hits) == (1.0, 1.0, 0)
    assert whole.valid_calls.value == 1.0
    assert whole.invented_paths.hits == 0


def test_a_path_counts_as_invented_unless_it_is_there_or_was_written(studio: Studio) -> None:
    known = studio.oracle.files[0]
    assert invented(f"Look at `{known}` and docs/nowhere.md:3.", studio) == 1
    assert invented("Done, docs/nowhere.md is written.", studio, written=("docs/nowhere.md",)) == 0
    assert invented("Done, docs/nowhere.md is written.", studio, written=("docs/other.md",)) == 1


async def test_what_is_cited_and_what_is_not_answered_is_counted(
    studio: Studio, cases: list[Case], tmp_path: Path
) -> None:
    right = report.summary(await _run(cases, studio, _scripted(cases), tmp_path / "right.jsonl"))
    assert (right.places_exact.value, right.no_answer.hits) == (1.0, 0)
    assert (right.over_eager.hits, right.under_eager.hits) == (0, 0)
    place = "It is in src/shop/basket.py:1."
    wrong = await _run(cases, studio, _talking(place), tmp_path / "wrong.jsonl")
    asked_for_places = {"subclasses", "references", "empty"}
    assert {o.family for o in wrong if o.cited} == asked_for_places
    assert (report.summary(wrong).places_exact.hits, report.summary(wrong).places_exact.n) == (0, 6)
    assert (report.summary(wrong).under_eager.value, report.summary(wrong).over_eager.hits) == (1.0, 0)
    silent = report.summary(await _run(cases, studio, _talking(" "), tmp_path / "silent.jsonl"))
    assert (silent.no_answer.value, silent.places_exact.n) == (1.0, 0)


def test_more_tokens_a_second_need_less_time() -> None:
    made = outcome("definition", 1, right=True)
    fast, slow = (replace(made, output_tokens=30, decode_s=seconds) for seconds in (0.5, 1.0))
    assert report.summary([fast, slow]).decode_tokens_per_s == pytest.approx(40.0)
    assert report.summary([]).decode_tokens_per_s == 0.0


async def test_prose_that_mentions_the_right_tools_scores_nothing(
    studio: Studio, cases: list[Case], tmp_path: Path
) -> None:
    whole = report.summary(await _run(cases, studio, _talking(PROSE), tmp_path / "outcomes.jsonl"))
    assert (whole.f1, whole.first_call_right.hits, whole.valid_calls.hits) == (0.0, 0, 0)
    assert whole.balanced_discrimination == 0.5


async def test_a_run_goes_on_where_it_stopped(studio: Studio, cases: list[Case], tmp_path: Path) -> None:
    store = tmp_path / "outcomes.jsonl"
    first = await _run(cases[:3], studio, _scripted(cases), store)
    with store.open("a") as file:
        file.write('{"key": "k", "id": "torn')
    again = await _run(cases[:3], studio, _talking("never asked"), store)
    assert again == first
    other = await evaluate(
        cases[:1], model=_talking(PROSE), config=AgentConfig(), opened=(studio,), store=store, key="another"
    )
    assert not other[0].right


async def test_an_evaluation_that_another_process_makes_is_left_alone(
    studio: Studio, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def few(*_: object, **__: object) -> Sequence[Case]:
        return cases[:2]

    monkeypatch.setattr(examine, "studios", lambda *_, **__: (studio,))
    monkeypatch.setattr(examine, "build", lambda *_: _talking(PROSE))
    monkeypatch.setattr(suite, "suite", few)
    out = tmp_path / "evaluation"
    await examine.examine(Plan("claude", "test", out, cache_dir=tmp_path), say=print)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with claimed(out), pytest.raises(UsageError, match=r"Another process is writing into .*evaluation"):
        await examine.examine(Plan("claude", "test", out, cache_dir=tmp_path), say=print)
    assert before == {path: path.read_bytes() for path in out.iterdir()}


async def test_an_outcome_after_a_torn_line_is_kept(studio: Studio, cases: list[Case], tmp_path: Path) -> None:
    store = tmp_path / "outcomes.jsonl"
    store.write_text('{"key": "k", "id": "torn')
    for _ in range(2):
        await evaluate(cases[:1], model=_scripted(cases), config=AgentConfig(), opened=(studio,), store=store, key="k")
    assert [json.loads(line)["id"] for line in store.read_text("utf-8").splitlines()[1:]] == [cases[0].id]


@pytest.mark.parametrize(("status", "kept"), [(401, 0), (503, 0), (400, 1)])
async def test_a_backend_that_fails_makes_no_wrong_answers(
    status: int, kept: int, studio: Studio, cases: list[Case], tmp_path: Path
) -> None:
    async def fail(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        raise ModelHTTPError(status, "m", "refused")
        yield ""

    store = tmp_path / "outcomes.jsonl"
    model = FunctionModel(stream_function=fail)
    run = evaluate(cases[:1], model=model, config=AgentConfig(), opened=(studio,), store=store, key="k")
    if kept:
        assert [o.stop_reason for o in await run] == ["error"]
    else:
        with pytest.raises(PunieError):
            await run
    assert store.exists() == bool(kept)


async def test_no_case_changes_a_project_that_others_are_asked_about(
    studio: Studio, cases: list[Case], tmp_path: Path
) -> None:
    async def reply(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if any(m.role == "tool" for m in conversation(messages)):
            yield "Done."
        else:
            yield {0: DeltaToolCall("write_file", '{"path": "new.py", "content": "x"}', tool_call_id="w")}

    outcomes = await _run(cases, studio, FunctionModel(stream_function=reply), tmp_path / "outcomes.jsonl")
    assert all(o.used_tool for o in outcomes)
    assert {o.family for o in outcomes if o.stop_reason == "done"} == {"edit", "write"}
    assert not (studio.root / "new.py").exists()


async def test_every_project_of_training_has_its_turn(project: Path, tmp_path: Path) -> None:
    opened = []
    for name in ("a", "b", "c", "d"):
        shutil.copytree(project, tmp_path / name / "shop")
        opened.append(Studio(name, tmp_path / name / "shop"))
    counts = {"subclasses": 2, "references": 2, "read": 2}
    seen = await tool_cases("train", opened, counts=counts)
    assert [c.task.project for c in seen] == ["a", "b", "c", "d", "a", "b"]
    unseen = await tool_cases("test", opened, counts=counts)
    assert {c.task.project for c in unseen} == {"a"}, "the order of the suite is its fingerprint"


def test_the_bytes_of_models_that_are_files_are_told(tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", tiny.write_adapter(tmp_path / "adapter", seed=1)
    model.mkdir()
    (model / "weights").write_bytes(b"12345")
    plan = Plan(f"mlx:{model}+{adapter}", "test", tmp_path, tmp_path)
    assert resources(plan)["model_bytes"] == 5
    service = resources(Plan("claude:claude-x", "test", tmp_path, tmp_path, adapter=adapter))
    assert service.keys() == {"adapter_bytes"}
    assert service["adapter_bytes"] == (adapter / "adapters.safetensors").stat().st_size


def test_the_memory_of_an_evaluation_is_not_that_of_what_ran_before_it() -> None:
    size = 200_000_000
    with mmap(-1, size) as block:  # given back at once, whatever the heap would keep
        block[::4096] = b"x" * len(range(0, size, 4096))
        held = resident_peak()
    assert held > size
    forget_peak()
    assert resident_peak() < held - size / 2


def test_a_report_made_again_keeps_the_memory_it_had(tmp_path: Path) -> None:
    assert examine._peak_before(tmp_path) == {}
    (tmp_path / "report.json").write_text('{"resources": {"peak_bytes": 7}}')
    assert examine._peak_before(tmp_path) == {"peak_bytes": 7}
    (tmp_path / "report.json").write_text('{"resources": []}')
    assert examine._peak_before(tmp_path) == {}


async def test_half_of_the_cases_are_in_held_out_wordings(cases: list[Case]) -> None:
    asked = [c for c in cases if not c.is_concept]
    assert sum(c.task.seen_wording for c in asked) == len(asked) / 2
    assert fingerprint(cases) != fingerprint(cases[1:])


async def test_the_report_has_intervals_hashes_and_misses(studio: Studio, cases: list[Case], tmp_path: Path) -> None:
    outcomes = await _run(cases, studio, _talking(PROSE), tmp_path / "outcomes.jsonl")
    page = report.write(
        outcomes, tmp_path, identity={"adapter": "abc"}, canary=False, resources={"peak_bytes": 2_500_000}
    ).read_text()
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["identity"] == {"adapter": "abc"}
    assert record["all"]["tool_recall"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.2153, abs=1e-3), "n": 14}
    assert record["resources"] == {"peak_bytes": 2_500_000}
    assert "| peak bytes | 2.5 MB |" in page
    assert "canary: FAILED" in page
    assert "What missed (14)" in page


def test_a_wilson_interval_stays_between_nought_and_one() -> None:
    assert report.Rate(10, 10).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert report.Rate(0, 0).interval == (0.0, 1.0)


def test_a_null_and_a_first_line_mean_nothing() -> None:
    assert normal({"path": "a.py", "start": 1, "end": None}) == {"path": "a.py"}
    assert normal({"path": "a.py", "start": 2}) != normal({"path": "a.py"})
