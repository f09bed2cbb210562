import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from punie.wire import Message, call
from punie_training import generate
from punie_training.card import Sieve, card, page
from punie_training.families import FAMILIES, family
from punie_training.generate import Harvest, Rejected, Row, Studio
from punie_training.tasks import RESULT, Expect, Subject, Task, Voice


@pytest.fixture
def studio(project: Path) -> Studio:
    return Studio("shop", project)


def _subject(studio: Studio) -> Subject:
    return Subject("shop", studio.oracle, Voice(random.Random(2)), ("UserStore", "send_letter", "MAX_RETRY"))


def _task(studio: Studio, name: str, subject_of: str) -> Task:
    tasks = family(name).tasks(_subject(studio))
    return next(t for t in tasks if t.turns[-1].subject == subject_of)


@pytest.mark.parametrize("name", [f.name for f in FAMILIES if f.name != "twin"])
async def test_the_first_task_of_each_family_gives_a_row(studio: Studio, name: str) -> None:
    kind = family(name)
    row = await studio.run(next(kind.tasks(_subject(studio))), changes=kind.changes)
    assert isinstance(row, Row), row
    assert row.messages[0].role == "user"
    assert row.messages[-1].role == "assistant"
    assert not row.messages[-1].calls


async def test_a_row_holds_the_real_result_and_the_marker(studio: Studio) -> None:
    row = await studio.run(_task(studio, "subclasses", "Protocol"), changes=False)
    assert isinstance(row, Row)
    assert [m.role for m in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert "src/shop/basket.py:11 class Priced(Protocol)" in row.messages[2].content
    assert row.messages[3].content == f"2 classes inherit from Protocol:\n{RESULT}"


async def test_an_answer_the_oracle_does_not_agree_with_is_rejected(studio: Studio) -> None:
    task = _task(studio, "subclasses", "Protocol")
    wrong = replace(task.turns[0], expect=Expect("places", ("src/shop/basket.py:11",)))
    outcome = await studio.run(replace(task, turns=(wrong,)), changes=False)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "answer differs: precision 0.5 recall 1.0"


async def test_a_call_the_tool_refuses_is_rejected(studio: Studio) -> None:
    task = _task(studio, "two_hop", "Basket.add")
    turn = task.turns[0]
    backwards = replace(turn.steps[1], arguments={**turn.steps[1].arguments, "start": 20, "end": 2})
    outcome = await studio.run(replace(task, turns=(replace(turn, steps=(backwards, turn.steps[1])),)), changes=False)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "a tool refused the call"


async def test_changes_are_made_to_a_copy(studio: Studio, project: Path) -> None:
    before = _contents(project)
    for name in ("edit", "write", "command"):
        assert isinstance(await studio.run(next(family(name).tasks(_subject(studio))), changes=True), Row)
    assert _contents(project) == before


def _contents(root: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


async def test_a_line_of_the_file_is_one_row_with_arguments_as_an_object(studio: Studio, tmp_path: Path) -> None:
    row = await studio.run(_task(studio, "subclasses", "Protocol"), changes=False)
    assert isinstance(row, Row)
    assert generate.write_rows([row], tmp_path / "rows.jsonl") == 1
    record = json.loads((tmp_path / "rows.jsonl").read_text())
    assert record["messages"][1]["calls"] == [{"name": "find_subclasses", "arguments": {"name": "Protocol"}}]
    assert record["expect"]["kind"] == "places"


async def test_the_harvest_keeps_its_caps_and_asks_nothing_twice(studio: Studio) -> None:
    task = _task(studio, "subclasses", "Protocol")
    crop = Harvest(wanted=1000)
    assert crop.refuses(task) == ""
    assert crop.add(await studio.run(task, changes=False))
    assert crop.refuses(task) == "asked before"
    crop.by_wording[task.template] = 40
    crop.seen.clear()
    assert crop.refuses(task) == "wording used up"
    crop.by_wording.clear()
    crop.by_project["shop"] = 80
    assert crop.refuses(task) == "project used up"


def test_direct_rows_call_no_tool() -> None:
    rows = list(generate.direct_rows("dev"))
    assert len(rows) > 20
    assert all(len(r.messages) == 2 and not r.messages[1].calls for r in rows)


def _row(number: int, *, project: str = "click", answer: str = "1 class inherits from it:\n[[result]]") -> Row:
    messages = (
        Message("user", f"Find the subclasses of Base{number}"),
        Message("assistant", "", (call("find_subclasses", {"name": f"Base{number}"}),)),
        Message("tool", f"1 class inherits from Base{number}\n{project}/a.py:1 class A(Base{number})"),
        Message("assistant", answer),
    )
    return Row(f"{project}-{number}", "subclasses", project, "subclasses/seen0", messages[0].content, messages)


def _talk(number: int) -> Row:
    messages = (Message("user", f"What is {number}?"), Message("assistant", "A number."))
    return Row(f"d{number}", "direct", "", "direct/concept", messages[0].content, messages)


def test_a_lesson_that_is_there_already_and_a_secret_are_taken_out() -> None:
    sieve = Sieve()
    secret = _row(2, answer="The key is AKIA" + "Q7X2MZ4KD6PLT3NV.")
    kept = list(sieve.sifted([_row(1), _row(1, project="flask"), _row(1, answer="None."), secret, _talk(1)]))
    assert [r.id for r in kept] == ["click-1", "click-1", "d1"]
    assert sieve.dropped == {
        "subclasses: same questions, calls and answers": 1,
        "subclasses: a key or token": 1,
    }


def test_the_card_shows_balance_yields_losses_and_licences(studio: Studio) -> None:
    rejected = [Rejected(_task(studio, "subclasses", "Protocol"), "a tool refused the call")]
    counted = card(
        [*(_row(n) for n in range(3)), _talk(0)],
        rejected,
        skipped={"subclasses: wording used up": 7},
        dropped={"direct: same questions, calls and answers": 2},
    )
    assert counted["balance"]["these rows"] == {"tools": 3, "direct": 1, "tool_share": 0.75, "direct_share": 0.25}
    assert counted["balance"]["seed, phase 4"]["tool_share"] == pytest.approx(0.975, abs=1e-3)
    assert counted["yields"] == {"subclasses": {"run": 4, "kept": 3, "yield": 0.75}}
    assert counted["licences"]["click"]["licence"] == "BSD-3-Clause"
    shown = page(counted)
    for line in (
        "| these rows | 3 | 1 | 75.0% / 25.0% |",
        "| seed, phase 4 | 194 | 5 | 97.5% / 2.5% |",
        "| seed, phase 5 (planned) | 150 | 50 | 75.0% / 25.0% |",
        "| subclasses | 3 | 4 | 75.0% |",
        "| rejected | subclasses | a tool refused the call | 1 |",
        "| skipped | subclasses | wording used up | 7 |",
        "| dropped | direct | same questions, calls and answers | 2 |",
        "| (direct) |  | Apache-2.0 | 1 |",
    ):
        assert line in shown


async def test_what_is_not_run_is_counted_by_reason(studio: Studio) -> None:
    crop = Harvest(wanted=4)
    kind = family("subclasses")
    tasks = list(kind.tasks(_subject(studio)))
    await generate._gather(crop, kind, [(studio, iter([*tasks[:1], *tasks[:1]]))], quota=5)
    assert len(crop.rows) == 1
    assert crop.skipped == {"subclasses: asked before": 1}


def test_a_renamed_project_has_the_same_code_under_other_paths_for_as_long_as_it_is_open(studio: Studio) -> None:
    with generate.renamed([studio], seed=3) as (other,):
        with generate.renamed([studio], seed=3) as (again,):
            assert again.oracle.files == other.oracle.files
        assert other.project == studio.project
        assert len(other.oracle.files) == len(studio.oracle.files)
        assert set(other.oracle.files) != set(studio.oracle.files)
        assert {d.qualname for d in other.oracle.definitions} == {d.qualname for d in studio.oracle.definitions}
        assert [p for p in other.oracle.files if p.endswith("__init__.py")]
    assert not other.root.exists()
