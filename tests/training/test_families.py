import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from punie_training.families import FAMILIES, quota
from punie_training.oracle import Oracle
from punie_training.sources import direct
from punie_training.sources.direct import normalised
from punie_training.tasks import HERE, RESULT, Subject, Turn, Voice, wordings

FEWEST_WORDINGS = 6


@pytest.fixture
def subject(project: Path) -> Subject:
    twins = [topic for topic in direct.load("train") if topic.twin]
    return Subject("shop", Oracle(project), Voice(random.Random(1)), ("UserStore", "send_letter", "MAX_RETRY"), twins)


def _turns(subject: Subject, name: str) -> Iterator[Turn]:
    chosen = next(f for f in FAMILIES if f.name == name)
    return (turn for task in chosen.tasks(subject) for turn in task.turns)


def test_the_quotas_are_the_whole() -> None:
    assert sum(quota(f, wanted=1000) for f in FAMILIES) == pytest.approx(1000, abs=len(FAMILIES) / 2)


@pytest.mark.parametrize("template", sorted(wordings()))
def test_no_wording_is_both_seen_and_held_out(template: str) -> None:
    seen, held_out = wordings()[template]["train"], wordings()[template]["held_out"]
    assert len(held_out) >= 2
    assert len(set(seen)) >= (FEWEST_WORDINGS if template not in {"definition_class", "definition_function"} else 5)


def _as_asked(template: str, kind: str) -> set[str]:
    """Every form of the wordings, whatever stands for `{here}`."""
    return {normalised(w.replace("{here}", here)) for w in wordings()[template][kind] for here in HERE}


def test_no_form_of_a_held_out_wording_is_shown_in_training() -> None:
    seen = set().union(*(_as_asked(template, "train") for template in wordings()))
    for template in wordings():
        assert not seen & _as_asked(template, "held_out"), template


def test_every_family_asks_something_about_a_small_project(subject: Subject) -> None:
    for family in FAMILIES:
        assert next(family.tasks(subject), None) is not None, family.name


def test_a_subclass_question_carries_the_name_to_the_tool_and_the_count_to_the_answer(subject: Subject) -> None:
    turn = next(t for t in _turns(subject, "subclasses") if t.subject.endswith("Protocol"))
    assert turn.subject in turn.question
    assert [(s.tool, dict(s.arguments)) for s in turn.steps] == [("find_subclasses", {"name": turn.subject})]
    assert turn.answer == f"2 classes inherit from {turn.subject}:\n{RESULT}"
    assert len(turn.expect.values) == 2


def test_code_is_read_by_the_lines_that_the_definition_names(subject: Subject) -> None:
    turn = next(t for t in _turns(subject, "two_hop") if t.subject == "Basket.add")
    found = subject.oracle.by_name["Basket.add"][0]
    assert dict(turn.steps[1].arguments) == {"path": found.path, "start": found.line, "end": found.end}


def test_names_in_empty_questions_do_not_exist(subject: Subject) -> None:
    for turn in _turns(subject, "empty"):
        assert turn.expect.kind == "nothing"
        assert RESULT not in turn.answer


def test_held_out_wordings_are_put_only_when_asked_for(project: Path) -> None:
    voice = Voice(random.Random(1), held_out=True)
    subject = Subject("shop", Oracle(project), voice, ("UserStore",))
    assert all("/held" in t.template for t in _turns(subject, "definition"))


def test_an_english_word_as_a_name_gets_backticks() -> None:
    voice = Voice(random.Random(1))
    assert {voice.name("run") for _ in range(20)} == {"`run`"}
    assert "Flask" in {voice.name("Flask") for _ in range(20)}


def test_a_decorator_is_searched_for_only_where_it_is_never_just_mentioned(project: Path) -> None:
    (project / "marks.py").write_text("from x import one, two\n\n\n@one\n@two\ndef f(): ...  # before @two\n")
    (project / "more.py").write_text("from x import one\n\n\n@one\nclass C: ...\n")
    subject = Subject("shop", Oracle(project), Voice(random.Random(1)), ())
    found = {t.subject: t.expect.values for t in _turns(subject, "search") if t.template.startswith("search_decorator")}
    assert "@two" not in found
    assert found["@one"] == ("marks.py:4", "more.py:4")


def test_a_twin_calls_with_what_the_question_names(project: Path) -> None:
    twins = [topic for topic in direct.load("train") if topic.twin]
    for seed in range(12):
        subject = Subject("shop", Oracle(project), Voice(random.Random(seed)), (), twins)
        for turn in _turns(subject, "twin"):
            name = turn.steps[0].arguments.get("name", "")
            assert str(name) in turn.question


def test_a_sequence_asks_twice_and_looks_up_twice(subject: Subject) -> None:
    pairs = [task.turns for task in next(f for f in FAMILIES if f.name == "sequence").tasks(subject)]
    assert pairs
    assert all(turn.steps for pair in pairs for turn in pair)
    assert any(turn.steps[0].tool == "run_command" for pair in pairs for turn in pair)
