import json
from pathlib import Path

import pytest
from tests.backends import tiny

from punie.errors import UsageError
from punie_training.again import cases
from punie_training.recipe import Data, Recipe, Watch
from punie_training.tasks import Expect, Step

RECIPE = Recipe(data=Data(trace="none", max_tokens=3000, direct_share=0.25), eval=Watch(dev_rows=2))


def row(number: int, *, project: str = "shop", turns: int = 1) -> dict[str, object]:
    asked = [
        {"role": "user", "content": f"Where is name{number}?"},
        {"role": "assistant", "calls": [{"name": "find_symbol", "arguments": {"name": f"name{number}"}}]},
        {"role": "tool", "content": f"1 definition of name{number}\nshop/a.py:{number} class name{number}"},
        {"role": "assistant", "content": "It is here:\n[[result]]"},
    ]
    expect = {"kind": "places", "values": [f"shop/a.py:{number}"], "total": None, "says": []}
    messages = asked * turns if project else [asked[0], asked[3]]
    return {
        "id": f"{project}{number}-{turns}",
        "family": "definition",
        "project": project,
        "template": "definition/seen1",
        "messages": messages,
        "expect": expect if project else None,
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


def written(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_questions_trained_on_are_asked_with_their_plan_and_answer(base: Path, tmp_path: Path) -> None:
    tool, general = [row(n) for n in range(9)], [row(n, project="") for n in range(3)]
    data = written(tmp_path / "rows.jsonl", *tool, *general, row(20, turns=2))
    found = cases(RECIPE, data=data, base=base)
    assert 6 <= len(found) <= 9  # nine rows of ten, less two that are kept for the dev loss and the one of two turns
    assert {case.task.project for case in found} == {"shop"}
    (turn,) = found[0].task.turns
    number = turn.question.removeprefix("Where is name").removesuffix("?")
    assert turn.steps == (Step("find_symbol", {"name": f"name{number}"}),)
    assert turn.expect == Expect("places", (f"shop/a.py:{number}",))
    assert all(len(case.task.turns) == 1 for case in found)
    assert cases(RECIPE, data=data, base=base, most=4) == found[:4]


def test_rows_that_are_kept_for_the_dev_loss_are_not_asked(base: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", *(row(n) for n in range(9)))
    asked = {
        kept: {
            case.id
            for case in cases(Recipe(data=Data(max_tokens=3000), eval=Watch(dev_rows=kept)), data=data, base=base)
        }
        for kept in (0, 4)
    }
    assert len(asked[0]) == 9
    assert len(asked[4]) == 5
    assert asked[4] < asked[0]


def test_general_questions_alone_are_no_test_of_memory(base: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", *(row(n, project="") for n in range(5)))
    with pytest.raises(UsageError, match="no question about a project"):
        cases(Recipe(data=Data(max_tokens=3000)), data=data, base=base)
