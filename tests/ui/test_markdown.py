import io

import pytest
from rich.console import Console

from punie.ui._markdown import Block, draw, split, split_all, tail

ANSWER = """# Title

Found in two places:
src/flask/__init__.py:81-1536 class Flask(App)
src/a.py:3 class X(Y)

It uses __init__ and `__main__`.
A second line.

```python
def f():

    return 1
```

1. one

   more of one

2. two

done"""


def drawn(*blocks: Block, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for block in blocks:
        console.print(draw(block))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_lines_of_a_tool_are_not_joined_and_not_formatted() -> None:
    text = drawn(*split_all(ANSWER))
    lines = [line.strip() for line in text.splitlines()]
    assert "src/flask/__init__.py:81-1536 class Flask(App)" in lines
    assert "src/a.py:3 class X(Y)" in lines


def test_prose_keeps_its_line_breaks_and_its_dunder_names() -> None:
    lines = [line.strip() for line in drawn(*split_all(ANSWER)).splitlines()]
    assert "It uses __init__ and __main__." in lines
    assert "A second line." in lines


def test_places_may_be_indented() -> None:
    blocks = split_all("One class:\n\n    a.py:2 class P1(Protocol)\n    a.py:3 class P2(P1)\n")
    assert [block.kind for block in blocks] == ["markdown", "lines"]
    assert drawn(*blocks).splitlines()[-2:] == ["    a.py:2 class P1(Protocol)", "    a.py:3 class P2(P1)"]


def test_empty_lines_of_a_file_stay_in_line_with_the_others() -> None:
    blocks = split_all("Lines 1 to 3:\n\n    1\timport os\n    2\n    3\timport sys\n\n2\n")
    assert [(block.kind, block.text) for block in blocks][1:] == [
        ("lines", "    1\timport os\n    2\n    3\timport sys"),
        ("markdown", "2"),
    ]


def test_what_goes_on_indented_stays_in_line() -> None:
    answer = "Done:\n\n    @@ -3,2 +3,2 @@\n     import os\n    -import sys\n    +import re\n\nIt is changed.\n"
    blocks = split_all(answer, verbatim={"@@ -3,2 +3,2 @@", "-import sys"})
    assert [block.kind for block in blocks] == ["markdown", "lines", "markdown"]
    assert drawn(blocks[1]).splitlines() == [
        "    @@ -3,2 +3,2 @@",
        "     import os",
        "    -import sys",
        "    +import re",
    ]


def test_verbatim_lines_are_literal_whatever_they_look_like() -> None:
    line = "* not *a* list  __x__"
    assert split_all(line + "\n", verbatim={line}) == (Block("lines", line),)


@pytest.mark.parametrize("step", [1, 2, 7, 40, 1000])
def test_streaming_in_any_pieces_prints_every_word_once_and_in_order(step: int) -> None:
    printed: list[Block] = []
    pending = ""
    for start in range(0, len(ANSWER), step):
        blocks, pending = split(pending + ANSWER[start : start + step])
        printed += blocks
    printed += split_all(pending)
    assert "\n".join(b.text for b in printed if b.text).split() == ANSWER.split()
    assert drawn(*printed).split() == drawn(*split_all(ANSWER)).split()


def test_a_code_block_is_never_cut_in_two() -> None:
    texts = [block.text for block in split_all(ANSWER)]
    assert "```python\ndef f():\n\n    return 1\n```" in texts


def test_a_fence_is_closed_only_by_a_fence_of_its_own_kind() -> None:
    text = "````\n```\nsrc/a.py:3 inside\n\nstill inside\n````\n\nafter"
    assert [block.text for block in split_all(text)] == ["````\n```\nsrc/a.py:3 inside\n\nstill inside\n````", "after"]


def test_what_is_unfinished_never_takes_more_than_its_height() -> None:
    console = Console(file=io.StringIO(), width=40)
    long_code = "```python\n" + "\n".join(f"x{n} = {n}" for n in range(500))
    lines = console.render_lines(tail(long_code, height=8), pad=False)
    text = ["".join(segment.text for segment in line) for line in lines]
    assert len([line for line in text if line.strip()]) <= 8
    assert any("x499" in line for line in text)


def test_a_paragraph_that_is_still_growing_is_held_back() -> None:
    blocks, rest = split("first\n\nsecond line is not")
    assert [block.text for block in blocks] == []
    assert rest.startswith("first")
    blocks, rest = split("first\n\nsecond line is\n")
    assert [block.text for block in blocks] == ["first"]
    assert rest == "second line is\n"
