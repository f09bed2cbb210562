import hashlib
from pathlib import Path

import pytest

from punie_training.score import first_number, mark, paths, places
from punie_training.tasks import Expect

PLACES = Expect("places", ("src/a.py:3", "src/b.py:10"))


def test_prose_that_only_mentions_the_right_tool_scores_nothing() -> None:
    prose = "I would call find_subclasses with the name Protocol to find all classes that inherit from Protocol."
    assert mark(prose, PLACES).f1 == 0
    assert mark(prose, Expect("count", total=2)).f1 == 0
    assert mark(prose, Expect("paths", ("src/a.py",))).f1 == 0
    assert mark(prose, Expect("lines", ("1\timport os",))).f1 == 0
    assert mark(prose, Expect("nothing")).f1 == 0


def test_an_unexecuted_call_scores_nothing() -> None:
    call = '<tool_call>\n{"name": "read_file", "arguments": {"path": "src/a.py"}}\n</tool_call>'
    assert mark(call, PLACES).f1 == 0
    assert mark(call, Expect("lines", ("1\timport os",))).f1 == 0


def test_an_empty_answer_scores_nothing_even_where_nothing_is_expected() -> None:
    for expect in (PLACES, Expect("nothing"), Expect("words"), Expect("output"), Expect("count", total=0)):
        assert not mark("  \n", expect).right


def test_places_are_compared_as_a_set() -> None:
    answer = "2 classes:\n\n    src/a.py:3-40 class A(P)\n    src/b.py:10 class B(P):  # see c.py:5"
    assert mark(answer, PLACES).right
    half = mark("It is in src/a.py:3 and in src/c.py:7.", PLACES)
    assert (half.precision, half.recall) == (0.5, 0.5)


def test_a_right_list_without_what_must_be_said_is_wrong() -> None:
    expect = Expect("places", ("a.py:1",), says=("Yes",))
    assert mark("Yes, f is async:\n\n    a.py:1 async def f()", expect).right
    assert mark("No, f is not async:\n\n    a.py:1 async def f()", expect).f1 == 0


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("5 classes inherit from Base2.", 5),
        ("There are no TOML files.", 0),
        ("In h11 I counted 7.", 7),
        ("Many.", None),
    ],
)
def test_the_first_number_is_the_count(answer: str, number: int | None) -> None:
    assert first_number(answer) == number


def test_files_are_lines_of_the_result_or_words_of_the_prose() -> None:
    assert paths("2 files match **/*.py:\n\n    src/a.py\n    LICENSE") == {"src/a.py", "LICENSE"}
    assert paths("They are `src/a.py` and setup.py.") == {"src/a.py", "setup.py"}


def test_read_lines_are_compared_with_their_numbers() -> None:
    expect = Expect("lines", ("3\tdef f():", "4\t", "5\t    return 1"))
    assert mark("Lines 3 to 5 of a.py:\n\n    3\tdef f():\n    4\n    5\t    return 1", expect).right
    assert mark("Lines 3 to 5 of a.py:\n\n    3\tdef f():\n    4\n    5\t    return 2", expect).recall == pytest.approx(
        2 / 3
    )


def test_nothing_needs_a_no_and_not_one_place() -> None:
    assert mark("No class inherits from X.", Expect("nothing")).right
    assert mark("No class, but see a.py:1.", Expect("nothing")).f1 == 0


def test_a_changed_file_is_judged_by_what_it_holds(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x = 2").hexdigest()
    expect = Expect("file", ("a.py", digest), says=("a.py",))
    assert not mark("Done, a.py is changed.", expect, root=tmp_path).right
    (tmp_path / "a.py").write_text("x = 2\n")
    assert mark("Done, a.py is changed.", expect, root=tmp_path).right
    (tmp_path / "a.py").write_text("x = 3\n")
    assert not mark("Done, a.py is changed.", expect, root=tmp_path).right


def test_places_ignore_times_and_ports() -> None:
    assert places("At 12:30 the server on port localhost:8000 was up.") == set()
