import time

from tests.tools.project import Project


def test_plain_text(project: Project):
    project.write("a.py", "import os\n    def f():  # todo\n")
    project.write("sub/b.md", "todo\r\nTODO\r\n")
    assert project.lines("search", "todo") == [
        "2 matches for todo",
        "a.py:2 def f():  # todo",
        "sub/b.md:1 todo",
    ]
    assert project.lines("search", "nothing here") == ["0 matches for nothing here"]


def test_regular_expressions(project: Project):
    project.write("a.py", "class Foo:\nclass B\u00e4r(Foo):\r\nclassic\n")
    assert project.lines("search", r"class \w+\(") == [r"1 match for class \w+\(", "a.py:2 class B\u00e4r(Foo):"]
    assert project.lines("search", r":$")[0] == "2 matches for :$"


def test_an_invalid_expression_is_taken_literally(project: Project):
    project.write("a.py", "call(a\n")
    assert project.lines("search", "call(") == [
        "1 match for call( (taken literally: not a valid regular expression)",
        "a.py:1 call(a",
    ]


def test_only_files_that_match_the_glob(project: Project):
    project.write("a.py", "x\n")
    project.write("a.md", "x\n")
    assert project.lines("search", "x", glob="*.md") == ["1 match for x", "a.md:1 x"]
    assert project.lines("search", "x", glob="*.rs") == ["0 matches for x", "(no file matches *.rs)"]


def test_an_expression_that_does_not_end_is_stopped(project: Project):
    project.workspace.search_timeout_s = 1
    project.write("a.txt", "ab\n")
    project.write("b.txt", "a" * 40 + "b\n")
    started = time.monotonic()
    result = project.lines("search", "(a+)+(b)?$|ab(?=$)", glob="a.txt")
    assert result[0].startswith("1 match")
    result = project.lines("search", "^(a+)+$")
    assert time.monotonic() - started < 5
    assert result[0] == "0 matches for ^(a+)+$"
    assert result[-1] == "(stopped after 1 s: use a simpler pattern or glob=)"


def test_many_matches_are_counted_and_bounded(project: Project):
    project.write("a.txt", "x\n" * 150)
    project.write("b.txt", "x\n" * 150)
    result = project.lines("search", "x")
    assert result[0] == "300 matches for x"
    assert result[-2:] == ["b.txt:50 x", "... 100 more; narrow with glob="]


def test_long_matches_are_bounded_by_bytes(project: Project):
    project.write("a.txt", ("\u00e9" * 300 + "\n") * 199)
    result = project.call("search", "\u00e9")
    assert len(result.encode()) < 20_200
    assert "more; narrow with glob=" in result


def test_binary_huge_and_outside_files_are_not_searched(project: Project):
    project.write("a.bin", b"\0needle\n")
    project.write("big.txt", b"needle\n" + b"x" * 2_000_001)
    project.write("../outside.txt", "needle\n")
    (project.root / "link.txt").symlink_to("../outside.txt")
    assert project.lines("search", "needle") == ["0 matches for needle", "(1 file skipped: over 2 MB)"]


def test_what_looks_like_options_is_a_pattern(project: Project):
    project.write("a.txt", "--pre=./evil.sh\n")
    assert project.lines("search", "--pre=./evil.sh")[1:] == ["a.txt:1 --pre=./evil.sh"]


def test_an_empty_pattern_is_refused(project: Project):
    assert "pattern is empty" in project.refusal("search", "")
