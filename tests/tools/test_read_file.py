import os
import threading
from pathlib import Path

import pytest
from pydantic_ai import ModelRetry
from tests.tools.project import Project


def test_numbered_lines_under_a_header(project: Project):
    project.write("src/a.py", "one\ntwo\nthree")
    assert project.lines("read_file", "src/a.py") == ["src/a.py lines 1-3 of 3", "1\tone", "2\ttwo", "3\tthree"]
    assert project.lines("read_file", "./src/../src/a.py", start=2, end=99) == [
        "src/a.py lines 2-3 of 3",
        "2\ttwo",
        "3\tthree",
    ]
    assert project.lines("read_file", str(project.root / "src/a.py"), start=-5, end=1) == [
        "src/a.py lines 1-1 of 3",
        "1\tone",
    ]


def test_a_long_file_says_where_to_read_on(project: Project):
    project.write("a.txt", "".join(f"{number}\n" for number in range(1, 501)))
    first = project.lines("read_file", "a.txt")
    assert first[0] == "a.txt lines 1-200 of 500"
    assert first[-2:] == ["200\t200", "... 300 more; read on with start=201"]
    last = project.lines("read_file", "a.txt", start=401)
    assert (last[0], last[-1]) == ("a.txt lines 401-500 of 500", "500\t500")


def test_long_lines_are_bounded(project: Project):
    project.write("a.txt", ("x" * 5_000 + "\n") * 100)
    result = project.call("read_file", "a.txt")
    assert len(result) < 21_000
    assert result.endswith("more; read on with start=20")


def test_an_end_before_the_start_is_refused(project: Project):
    project.write("a.txt", "x")
    assert "end=2 lies before start=5" in project.refusal("read_file", "a.txt", start=5, end=2)


def test_past_the_end_and_empty(project: Project):
    project.write("a.txt", "x\n")
    project.write("empty.txt", "")
    assert project.call("read_file", "a.txt", start=9) == "a.txt has 1 line; start=9 lies past the end."
    assert project.call("read_file", "empty.txt") == "empty.txt is empty"


def test_a_missing_file_names_the_nearest(project: Project):
    project.write("src/flask/app.py", "x")
    project.write("src/flask/helpers.py", "x")
    assert project.call("read_file", "app.py") == "No such file: app.py. Nearest: src/flask/app.py"
    assert project.call("read_file", "src/helper.py") == "No such file: src/helper.py. Nearest: src/flask/helpers.py"
    assert project.call("read_file", "src/flask/app.py/x") == "No such file: src/flask/app.py/x."


def test_a_directory_says_how_to_list_it(project: Project):
    project.write("src/a.py", "x")
    assert project.call("read_file", "src") == "src is a directory with 1 file. Use list_files with glob=src/**"
    assert project.call("read_file", ".") == ". is a directory with 1 file. Use list_files with glob=**"


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret", "null\0byte", "half\ud800"])
def test_outside_is_refused(project: Project, path: str):
    project.write("a/b", "x")
    project.write("../secret", "secret")
    assert "outside the workspace" in project.refusal("read_file", path)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "a/../../secret"])
def test_links_that_lead_out_are_refused(project: Project, target: str):
    project.write("../secret", "secret")
    project.write("a/b", "x")
    (project.root / "link").symlink_to(target)
    assert "outside the workspace" in project.refusal("read_file", "link")
    (project.root / "directory").symlink_to("..")
    assert "outside the workspace" in project.refusal("read_file", "directory/secret")


def test_links_inside_are_followed(project: Project):
    project.write("real/a.txt", "content")
    (project.root / "relative").symlink_to("real")
    (project.root / "real" / "up").symlink_to("../relative/a.txt")
    (project.root / "absolute").symlink_to(project.root / "real" / "up")
    assert project.lines("read_file", "absolute") == ["real/a.txt lines 1-1 of 1", "1\tcontent"]
    assert list(project.workspace.seen) == ["real/a.txt"]


def test_a_link_loop_is_refused(project: Project):
    (project.root / "a").symlink_to("b")
    (project.root / "b").symlink_to("a")
    assert "outside the workspace" in project.refusal("read_file", "a")


def test_a_directory_swapped_for_a_link_is_not_followed(project: Project, tmp_path: Path):
    project.write("../outside/a", "secret")
    project.write("dir/a", "fine")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            (project.root / "dir").rename(project.root / "aside")
            (project.root / "dir").symlink_to(tmp_path / "outside")
            (project.root / "dir").unlink()
            (project.root / "aside").rename(project.root / "dir")

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = set()
    for _ in range(300):
        try:
            outcomes.add(project.call("read_file", "dir/a").partition(" ")[0])
            assert "secret" not in project.call("search", "secret")[20:]
        except ModelRetry:
            outcomes.add("refused")
    done.set()
    swapper.join()
    assert outcomes <= {"dir/a", "refused", "No", "Cannot"}
    assert outcomes & {"refused", "No", "Cannot"}


def test_other_kinds_of_files_do_not_block(project: Project):
    os.mkfifo(project.root / "fifo")
    assert project.call("read_file", "fifo") == "fifo is not a regular file."


def test_binary_and_undecodable_files(project: Project):
    project.write("a.bin", b"\x7fELF\0\0")
    project.write("latin.txt", b"caf\xe9\n")
    project.write("wide.txt", "h\u00e9\n".encode("utf-16"))
    assert project.call("read_file", "a.bin") == "a.bin is a binary file of 6 bytes."
    assert project.lines("read_file", "latin.txt")[1:] == [
        "1\tcaf\N{REPLACEMENT CHARACTER}",
        "(not valid UTF-8: unreadable bytes are shown as \N{REPLACEMENT CHARACTER})",
    ]
    assert project.lines("read_file", "wide.txt")[1] == "1\th\u00e9"


def test_a_huge_file_is_read_in_part(project: Project):
    with project.write("huge.txt", b"line\n" * 2_000_000).open("r+b") as file:
        file.truncate(1 << 30)
    result = project.lines("read_file", "huge.txt")
    assert result[0] == "huge.txt lines 1-200 of 1600000"
    assert result[-1] == "(only the first 8 MB of 1074 MB can be read: 1600000 lines)"
    assert not project.workspace.seen


def test_control_characters_are_made_visible(project: Project):
    project.write("a.txt", "a\x1b[2Jb\r\nc\n")
    assert project.lines("read_file", "a.txt")[1:] == ["1\ta␛[2Jb", "2\tc"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_told(project: Project):
    project.write("a.txt", "x").chmod(0)
    assert project.call("read_file", "a.txt") == "Cannot read a.txt: Permission denied"


def test_a_name_that_is_too_long_is_told(project: Project):
    assert project.call("read_file", "x" * 5_000).endswith("File name too long")
