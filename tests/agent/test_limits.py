import pytest

from punie.agent.limits import LoopWatch, cut_repetition, repetition_at_end


def seen(watch: LoopWatch, name: str, result: str, *, changes_files: bool = False) -> int | str:
    """Make one call: the count, or "refused"."""
    if watch.refuses(name, {"x": 1}):
        return "stuck" if watch.stuck else "refused"
    return watch.record(name, {"x": 1}, result, changes_files=changes_files)


def test_same_call_is_refused_the_fifth_time_and_stuck_the_eighth():
    watch = LoopWatch()
    assert [seen(watch, "a", "r") for _ in range(8)] == [1, 2, 3, 4, "refused", "refused", "refused", "stuck"]


def test_two_calls_in_turns_are_seen_too():
    watch = LoopWatch()
    counts = [seen(watch, name, "r") for name in "ab" * 5]
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4, "stuck", "stuck"]


def test_seven_calls_in_a_row_that_give_nothing_new_are_stuck():
    watch = LoopWatch()
    assert [seen(watch, name, "r") for name in "abcd" + "dbcadb" + "c"] == [*[1] * 4, *[2] * 4, 3, 3, "stuck"]


def test_something_new_among_old_calls_shows_progress():
    watch = LoopWatch()
    counts = [seen(watch, name, "r") for name in "abc" + "abcabc" + "d" + "abd"]
    assert counts == [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 4, 4, 2]


def test_other_results_are_other_calls():
    watch = LoopWatch()
    assert [seen(watch, "a", str(number)) for number in range(9)] == [1] * 9


def test_duration_in_a_result_makes_no_difference():
    watch = LoopWatch()
    assert [seen(watch, "a", f"exit 1 in 0.{n} s\nfailed") for n in range(5)] == [1, 2, 3, 4, "refused"]


def test_argument_order_makes_no_difference():
    watch = LoopWatch()
    watch.record("a", {"x": 1, "y": 2}, "r")
    assert watch.record("a", {"y": 2, "x": 1}, "r") == 2


def test_a_new_change_starts_the_counts_anew():
    watch = LoopWatch()
    for _ in range(4):
        seen(watch, "tests", "failed")
    watch.record("edit_file", {"new": "1"}, "edited", changes_files=True)
    assert seen(watch, "tests", "failed") == 1


def test_the_same_change_again_does_not():
    watch = LoopWatch()
    rounds = [(seen(watch, "tests", "failed"), seen(watch, "edit", "edited", changes_files=True)) for _ in range(5)]
    assert rounds[3:] == [(3, 4), (4, "stuck")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Start.\n" + "the same line again\n" * 4, "Start.\nthe same line again"),
        ("So " + "and then it goes on and on and so forth, " * 8, "So and then it goes on and on and so forth,"),
        ("ha" * 200, "ha"),
        ("Start.\nThe same line.\n" + "The same line.\n" * 5 + "The sa", "Start.\nThe same line."),
        ("The same line.\n" * 5, "The same line."),
        ("Intro.\n" + "- first item\n- second item\n" * 5 + "- fir", "Intro.\n- first item\n- second item"),
    ],
)
def test_repeated_text_is_cut_after_its_first_copy(text: str, kept: str):
    assert cut_repetition(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "|---|---|---|\n" * 30,
        "=" * 500,
        "0" * 200,
        "    }\n" * 10,
        "\n".join(f"src/a.py:{n} return None" for n in range(200)),
        "the same line again\n" * 3,
        "def f():\n    return None\n\n\ndef g():\n    return None\n" * 2,
    ],
)
def test_honest_text_is_not_cut(text: str):
    assert cut_repetition(text) is None


def test_repetition_is_found_at_the_end_only():
    assert repetition_at_end("the same line again\n" * 4 + "and on it goes") is None
