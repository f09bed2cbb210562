import os
import stat
from pathlib import Path

import pytest
from tests.tools.project import Project


def test_the_result_says_where_and_shows_the_diff(project: Project):
    project.write("src/a.py", "a = 1\nb = 2\nc = 3\n")
    assert project.lines("edit_file", "src/a.py", "b = 2", "b = 20\nbb = 21") == [
        "edited src/a.py: 2 lines changed at line 2",
        "@@ -1,3 +1,4 @@",
        " a = 1",
        "-b = 2",
        "+b = 20",
        "+bb = 21",
        " c = 3",
    ]
    assert project.bytes_of("src/a.py") == b"a = 1\nb = 20\nbb = 21\nc = 3\n"


def test_one_line_and_deletion(project: Project):
    project.write("a.txt", "a\nb\nc")
    assert project.lines("edit_file", "a.txt", "c", "d")[0] == "edited a.txt: 1 line changed at line 3"
    assert project.lines("edit_file", "a.txt", "b\n", "")[0] == "edited a.txt: 1 line changed at line 2"
    assert project.bytes_of("a.txt") == b"a\nd"


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        (b"a\r\nb\r\nc\r\n", "a\nb", "a\nx\nb", b"a\r\nx\r\nb\r\nc\r\n"),
        (b"a\r\nb\r\nc\r\n", "b\r\nc", "B\r\nc", b"a\r\nB\r\nc\r\n"),
        (b"a\r\nb\nc\r\nd", "a\nb\nc", "a\nb\nC", b"a\r\nb\nC\r\nd"),
        (b"a\r\nb", "b", "b\nc", b"a\r\nb\r\nc"),
        (b"a\nb\r\n", "a", "a\nx", b"a\nx\nb\r\n"),
        (b"\xef\xbb\xbfa\nb", "a", "A", b"\xef\xbb\xbfA\nb"),
        (b"a\nb", "b", "c", b"a\nc"),
        (b"a\n\n\n", "a\n", "", b"\n\n"),
        (b"\r\n\r\na", "\n\na", "\nb", b"\r\nb"),
        ("ü\r\n\N{GRINNING FACE}\r\nz".encode(), "\N{GRINNING FACE}", "ä", "ü\r\nä\r\nz".encode()),
    ],
)
def test_untouched_bytes_stay(project: Project, before: bytes, old: str, new: str, after: bytes):
    project.write("a.txt", before)
    project.call("edit_file", "a.txt", old, new)
    assert project.bytes_of("a.txt") == after


def test_text_that_is_not_there_quotes_the_nearest_lines(project: Project):
    project.write("a.py", "import os\n\ndef compute(value):\n    return value + 1\n")
    assert project.refusal("edit_file", "a.py", "def compute(values):", "x").split("\n") == [
        "old is not in a.py. Nearest lines:",
        "3\tdef compute(value):",
        "Copy the text exactly, with its indentation.",
    ]
    assert "4\t    return value + 1" in project.refusal("edit_file", "a.py", "  return value + 1\nx", "y")
    assert project.refusal("edit_file", "a.py", "zzzzz", "y") == (
        "old is not in a.py. Read the file and copy the text exactly."
    )
    assert "Leave out the line numbers" in project.refusal("edit_file", "a.py", "1\timport os", "y")


def test_text_that_is_not_unique_names_the_lines(project: Project):
    project.write("a.py", "x = 1\ny = 2\nx = 1\n")
    assert project.refusal("edit_file", "a.py", "x = 1", "x = 2") == (
        "old stands 2 times in a.py, at lines 1, 3. Add lines around it until it is unique."
    )
    project.write("b.txt", "aaa")
    assert "2 times" in project.refusal("edit_file", "b.txt", "aa", "b")


def test_empty_and_equal_texts_are_refused(project: Project):
    project.write("a.txt", "a")
    assert "old is empty" in project.refusal("edit_file", "a.txt", "", "b")
    assert "the same" in project.refusal("edit_file", "a.txt", "a", "a")


def test_a_file_changed_since_it_was_read_is_refused(project: Project):
    project.write("a.txt", "one\n")
    project.call("read_file", "a.txt")
    project.write("a.txt", "one\ntwo\n")
    assert "changed since it was read" in project.refusal("edit_file", "a.txt", "one", "1")
    project.call("read_file", "a.txt")
    project.call("edit_file", "a.txt", "one", "1")
    project.call("edit_file", "a.txt", "two", "2")
    assert project.bytes_of("a.txt") == b"1\n2\n"


def test_a_file_that_was_touched_but_not_changed_is_edited(project: Project):
    place = project.write("a.txt", "one\n")
    project.call("read_file", "a.txt")
    os.utime(place, (1, 1))
    assert project.call("edit_file", "a.txt", "one", "1").startswith("edited")


def test_the_mode_stays_and_nothing_else_is_left(project: Project):
    place = project.write("run.sh", "echo a\n")
    place.chmod(0o751)
    project.call("edit_file", "run.sh", "a", "b")
    assert stat.S_IMODE(place.stat().st_mode) == 0o751
    assert [entry.name for entry in project.root.iterdir()] == ["run.sh"]


def test_files_that_are_no_text_are_refused(project: Project):
    project.write("latin.txt", b"caf\xe9\n")
    project.write("a.bin", b"a\0b")
    project.write("big.txt", b"a" * 8_000_001)
    project.write("b.txt", "a")
    assert "not UTF-8" in project.refusal("edit_file", "latin.txt", "caf", "x")
    assert "binary" in project.refusal("edit_file", "a.bin", "a", "x")
    assert "over 8 MB" in project.refusal("edit_file", "big.txt", "a", "x")
    assert "would be over 8 MB" in project.refusal("edit_file", "b.txt", "a", "a" * 8_000_001)
    assert "UTF-8 cannot write" in project.refusal("edit_file", "b.txt", "a", "\ud800")
    assert project.bytes_of("latin.txt") == b"caf\xe9\n"


def test_missing_read_only_and_outside(project: Project):
    project.write("src/app.py", "a")
    project.write("locked.txt", "a").chmod(0o444)
    project.write("../outside.txt", "a")
    (project.root / "out").symlink_to("../outside.txt")
    assert project.call("edit_file", "app.py", "a", "b") == "No such file: app.py. Nearest: src/app.py"
    assert project.call("edit_file", "locked.txt", "a", "b") == "Cannot write locked.txt: it is read-only"
    assert "outside the workspace" in project.refusal("edit_file", "out", "a", "b")
    assert project.bytes_of("../outside.txt") == b"a"


def test_a_link_inside_is_kept_and_its_target_written(project: Project):
    project.write("real.txt", "a")
    (project.root / "link.txt").symlink_to("real.txt")
    assert project.call("edit_file", "link.txt", "a", "b").startswith("edited real.txt")
    assert (project.root / "link.txt").readlink() == Path("real.txt")
    assert project.bytes_of("real.txt") == b"b"


@pytest.mark.parametrize("path", [".git/config", "sub/.GIT/hooks/pre-commit", "alias/config"])
def test_the_repository_is_not_for_editing(project: Project, path: str):
    project.write(".git/config", "a")
    project.write("sub/.GIT/hooks/pre-commit", "a")
    (project.root / "alias").symlink_to(".git")
    assert ".git are not for editing" in project.refusal("edit_file", path, "a", "b")


def test_an_edit_is_seen_by_the_index_at_once(project: Project):
    project.write("a.py", "class One: ...\n")
    assert project.lines("find_symbol", "One")[0] == "1 definition of One"
    project.call("edit_file", "a.py", "One", "Two")
    assert project.lines("find_symbol", "One")[0] == "0 definitions of One"
    assert project.lines("find_symbol", "Two")[0] == "1 definition of Two"
