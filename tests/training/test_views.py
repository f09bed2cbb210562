from pathlib import Path

import pytest
from tests.backends import tiny

from punie import wire
from punie.backends import _weights
from punie_training.examples import choose
from punie_training.recipe import Data, Recipe
from punie_training.rows import Call, Row, Turn
from punie_training.sources import direct
from punie_training.views import PLACEHOLDER, viewed

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
FOUND = "2 classes inherit from Priced\nshop/basket.py:12 class Basket\nshop/basket.py:40 class Gift"
LINES = "\n\n    shop/basket.py:12 class Basket\n    shop/basket.py:40 class Gift"
ASK = Turn(role="user", content="Which classes inherit from Priced?")
CALL = Turn(role="assistant", calls=(Call(name="find_subclasses", arguments={"name": "Priced"}),))
RESULT = Turn(role="tool", content=FOUND)
ANSWER = Turn(role="assistant", content="2 classes inherit from Priced:\n[[result]]")
AGAIN = (Turn(role="user", content="How many?"), Turn(role="assistant", content="2 classes."))


def row(*turns: Turn, project: str = "shop", template: str = "", name: str = "1") -> Row:
    return Row(id=name, family="subclasses", project=project, template=template, messages=turns)


def said(row: Row) -> list[str]:
    return [turn.content or f"{turn.calls[0].name}()" for turn in row.messages]


def test_without_a_trace_the_answer_holds_the_lines_and_nothing_was_called() -> None:
    seen = viewed(row(ASK, CALL, RESULT, ANSWER, *AGAIN), trace="none")
    assert said(seen) == [ASK.content, f"2 classes inherit from Priced:{LINES}", "How many?", "2 classes."]
    assert not any(turn.calls for turn in seen.messages)


def test_a_long_result_is_answered_with_the_lines_that_are_shown() -> None:
    result = Turn(role="tool", content="\n".join(["40 matches", *(f"a.py:{n} x" for n in range(40))]))
    (_, answer) = viewed(row(ASK, CALL, result, ANSWER), trace="none").messages
    assert answer.content.endswith("    a.py:4 x\n    ... 34 more lines ...\n    a.py:39 x")


def test_a_placeholder_stands_for_every_result_and_the_answer_tells_what_it_was() -> None:
    seen = viewed(row(ASK, CALL, RESULT, CALL, RESULT, ANSWER), trace="placeholder")
    call = "find_subclasses()"
    answer = f"2 classes inherit from Priced:{LINES}"
    assert said(seen) == [ASK.content, call, PLACEHOLDER, call, PLACEHOLDER, answer]


def test_a_copying_answer_holds_the_lines_and_the_results_stay() -> None:
    seen = viewed(row(ASK, CALL, RESULT, ANSWER, *AGAIN), copied=True)
    answer = f"2 classes inherit from Priced:{LINES}"
    assert said(seen) == [ASK.content, "find_subclasses()", FOUND, answer, "How many?", "2 classes."]


@pytest.mark.parametrize("further", [(), AGAIN, (ASK, CALL, RESULT, ANSWER)])
def test_without_answers_a_row_ends_with_its_first_results(further: tuple[Turn, ...]) -> None:
    seen = viewed(row(ASK, CALL, RESULT, CALL, RESULT, ANSWER, *further), answers=False)
    assert [turn.role for turn in seen.messages] == ["user", "assistant", "tool", "assistant", "tool"]
    assert said(seen)[2] == FOUND


def test_without_answers_no_turn_that_is_learned_ends_the_work(tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer(tmp_path)
    renderer = wire.Wire(tokenizer, template=_weights.shipped_template(), view=wire.View())
    whole, cut = (
        renderer.example(
            [turn.plain() for turn in viewed(row(ASK, CALL, RESULT, ANSWER), answers=answers).messages], ()
        )
        for answers in (True, False)
    )
    learned = [[t for t, counts in zip(e.tokens, e.mask, strict=True) if counts] for e in (whole, cut)]
    end = renderer._specials[wire.END_OF_TURN]
    assert [tokens.count(end) for tokens in learned] == [2, 1]
    assert learned[0][: len(learned[1])] == learned[1]


def test_rows_without_calls_are_left_alone_and_so_is_everything_by_default() -> None:
    general = row(ASK, ANSWER, project="")
    assert viewed(general, trace="none") == viewed(general, answers=False) == general
    called = row(ASK, CALL, RESULT, ANSWER)
    assert viewed(called) == called


def test_twins_come_in_pairs_before_all_other_rows() -> None:
    first, second = [topic for topic in direct.load("train") if topic.twin][:2]
    twins = [row(ASK, CALL, template=f"twin/{t.id}", name=f"twin-{t.id}") for t in (first, second, second)]
    alike = [row(Turn(role="user", content=t.questions[0]), ANSWER, project="", name=t.id) for t in (first, second)]
    others = [row(ASK, CALL, name=f"tool-{n}") for n in range(50)]
    general = [row(ASK, ANSWER, project="", name=f"general-{n}") for n in range(50)]
    rows = [*others, *general, *twins, *alike]
    for share in (None, 0.5):
        chosen = choose(rows, Data(rows=20, direct_share=share, twins=9), seed=3)
        names = [r.id for r in chosen]
        assert len(set(names)) == 20
        assert {first.id, second.id, f"twin-{first.id}"} <= set(names)
        assert sum(name == f"twin-{second.id}" for name in names) == 1
    assert {r.id for r in choose(rows, Data(rows=2, direct_share=0.5, twins=1), seed=3)} in (
        {first.id, f"twin-{first.id}"},
        {second.id, f"twin-{second.id}"},
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path: Path) -> None:
    assert Recipe.load(path).data.rows > 0
