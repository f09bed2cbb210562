from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.conftest import Project
from tests.stubs import scripted

from punie.agent._copying import respelled
from punie.agent.approval import approve_all

QUESTION = "Where is `marshmallow.decorators.POST_DUMP` defined, and what is in src/apscheduler/triggers.py?"


def _nothing(argument: str, value: str) -> bool:
    del argument, value
    return False


@pytest.mark.parametrize(
    ("arguments", "mended"),
    [
        ({"name": "marshallallow.decorators.POST_DUMP"}, {"name": "marshmallow.decorators.POST_DUMP"}),
        ({"path": "src/apthescheduler/triggers.py", "end": 9}, {"path": "src/apscheduler/triggers.py"}),
        ({"glob": "*apthescheduler*"}, {}),  # half a path is no copy of the whole
        ({"name": "marshmallow.decorators.POST_DUMP"}, {}),
        ({"name": "post_dump"}, {}),  # only the case differs: the tools see to that
        ({"name": "Protocol"}, {}),  # nothing in the question is like it
        ({"glob": "src/apscheduler/*.pie"}, {}),  # a pattern is no copy
        ({"pattern": "marshallallow.decorators.POST_DUMP"}, {}),
        ({"name": 3}, {}),
        ({}, {}),
    ],
)
def test_a_name_that_stands_nowhere_becomes_the_one_the_question_has(
    arguments: Mapping[str, object], mended: Mapping[str, str]
):
    assert respelled(arguments, question=QUESTION, seen=(), known=_nothing) == mended


def test_stars_around_a_word_stay():
    assert respelled({"glob": "*aiiohttp*"}, question="files with `aiohttp` in the name", seen=(), known=_nothing) == {
        "glob": "*aiohttp*"
    }


def test_what_was_read_or_exists_is_meant_as_it_is_written():
    wrong = {"name": "marshallallow.decorators.POST_DUMP"}
    assert not respelled(wrong, question=QUESTION, seen=["see marshallallow.decorators.POST_DUMP"], known=_nothing)
    assert not respelled(wrong, question=QUESTION, seen=(), known=lambda argument, value: argument == "name")


def test_two_words_that_are_alike_decide_nothing():
    assert not respelled({"name": "get_userx"}, question="get_user1 or get_user2?", seen=(), known=_nothing)


@given(st.text(), st.text())
def test_no_arguments_and_no_question_do_harm(arguments: str, question: str):
    found = respelled(arguments, question=question, seen=(), known=_nothing)
    assert all(value in question for value in found.values())


@pytest.mark.parametrize("small", [True, False])
async def test_only_a_small_model_is_helped(project: Project, small: bool):
    model = scripted(("find_symbol", {"name": "Flasks"}), "There.")
    vars(model)["compact"] = small
    _, end = await project.turn(model=model)
    assert (end.tool_calls[0].arguments == {"name": "Flask"}) is small
    assert ("class Flask" in end.tool_calls[0].output) is small


async def test_a_change_at_a_mended_path_is_asked_for_again(project: Project):
    wrong = {"path": "Flasks", "content": "x"}
    model = scripted(("write_file", wrong), "No.")
    vars(model)["compact"] = True
    _, end = await project.turn(model=model, approve=approve_all)
    assert "spelt as in the question" in end.tool_calls[0].output
    assert not (project.root / "Flask").exists()
    assert not (project.root / "Flasks").exists()
