import io

from rich.console import Console

from punie.agent.events import (
    Event,
    Notice,
    Text,
    TextReplaced,
    Thinking,
    Timing,
    ToolCalled,
    ToolReturned,
    TurnEnded,
    UsageUpdated,
)
from punie.ui._draw import TurnDrawing, diff_text
from punie.ui._screen import Screen

FIRST = "Two places:\n\n    a.py:1 class X\n    a.py:2 class Y\n\nThat is all."


def drawn(*events: Event, width: int = 80, verbose: bool = False) -> str:
    file = io.StringIO()
    drawing = TurnDrawing(Screen(Console(file=file, width=width, highlight=False)), verbose=verbose)
    for event in events:
        drawing.take(event)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def ended(**fields: object) -> TurnEnded:
    start = TurnEnded("done", "", (), 1, Timing(), UsageUpdated(0, 0, 0))
    return TurnEnded(**{**start.__dict__, **fields})


def test_a_text_that_is_withdrawn_and_given_again_is_shown_once() -> None:
    for step in (1, 5, 200):
        again = [Text(FIRST[start : start + step]) for start in range(0, len(FIRST), step)]
        text = drawn(Text(FIRST), TextReplaced(""), *again, ended())
        assert text == drawn(Text(FIRST), ended())
        assert text.count("class X") == 1


def test_a_text_that_only_goes_on_is_not_shown_again() -> None:
    text = drawn(Text(FIRST), TextReplaced(FIRST + "\n\nMore."), ended())
    assert text.count("class X") == 1
    assert text.count("That is all.") == 1
    assert text.endswith("More.")


def test_a_text_that_changes_is_shown_again_and_marked() -> None:
    text = drawn(Text(FIRST), TextReplaced(FIRST.replace("class Y", "class Z")), ended())
    assert text.index("Corrected:") < text.index("class Z")


def test_a_text_that_is_withdrawn_for_good_is_marked() -> None:
    text = drawn(Text(FIRST), TextReplaced(""), Notice("asked again"), Text("Something else."), ended())
    assert "The text above is withdrawn." in text
    assert text.index("withdrawn") < text.index("asked again") < text.index("Something else.")


def test_text_that_was_not_printed_yet_is_simply_replaced() -> None:
    text = drawn(Text("Perhaps it is"), TextReplaced("It is in a.py."), ended())
    assert text == "It is in a.py."


def test_the_result_of_a_long_call_stays_on_its_line() -> None:
    called = ToolCalled("1", "run_command", {"command": "echo " + "x" * 500})
    returned = ToolReturned("1", "run_command", "denied", "The user refused this call.\nmore\n", 0.5)
    first = drawn(called, returned, ended()).splitlines()[0]
    assert len(first) <= 80
    assert first.endswith("… → denied: The user refused this call. (500 ms)")


def test_why_a_turn_ended_is_said() -> None:
    assert "no answer" in drawn(ended(stop_reason="error", error="The server gave no answer."))
    assert "Stopped" in drawn(Text("half"), ended(stop_reason="interrupted"))
    assert drawn(Text("whole"), ended()) == "whole"


def test_thinking_stands_before_the_answer_and_outside_of_it() -> None:
    text = drawn(Thinking("Is it\nin a.p"), Thinking("y?\x1b[2J"), Text("It is."), ended())
    assert text == "Is it\nin a.py?\nIt is."


def test_what_each_request_read_anew_is_shown_to_those_who_ask() -> None:
    told = (UsageUpdated(100, 5, 0), UsageUpdated(220, 9, 100))
    assert drawn(*told, Text("x"), ended()) == "x"
    lines = drawn(*told, Text("x"), ended(), verbose=True).splitlines()[:2]
    assert [line.partition(" in ")[0] for line in lines] == [
        "request 1: reused 0 / prefilled 100 tokens, wrote 5",
        "request 2: reused 100 / prefilled 20 tokens, wrote 4",
    ]


def test_a_diff_has_its_colours() -> None:
    text = diff_text("--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new\n same")
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans if span.style}
    assert styles == {"--- a": "bold", "+++ b": "bold", "@@ -1 +1 @@": "cyan", "-old": "red", "+new": "green"}
