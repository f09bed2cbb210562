import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec
from tests.tools.project import Project

from punie.tools import _walk


@pytest.fixture(autouse=True)
def files(project: Project) -> None:
    for path in ("README.md", "src/a.py", "src/pkg/b.py", "src/pkg/c.pyi", "tests/test_a.py", "src-old/d.py"):
        project.write(path, "x")


def test_everything_in_the_order_of_paths(project: Project):
    assert project.lines("list_files") == [
        "6 files",
        *sorted(["README.md", "src/a.py", "src/pkg/b.py", "src/pkg/c.pyi", "tests/test_a.py", "src-old/d.py"]),
    ]


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.md", ["README.md"]),
        ("b.py", ["src/pkg/b.py"]),
        ("src/*.py", ["src/a.py"]),
        ("src/**/*.py", ["src/a.py", "src/pkg/b.py"]),
        ("**/pkg/*", ["src/pkg/b.py", "src/pkg/c.pyi"]),
        ("src/**", ["src/a.py", "src/pkg/b.py", "src/pkg/c.pyi"]),
        ("src/", ["src/a.py", "src/pkg/b.py", "src/pkg/c.pyi"]),
        ("./src/pkg", ["src/pkg/b.py", "src/pkg/c.pyi"]),
        ("pkg", ["src/pkg/b.py", "src/pkg/c.pyi"]),
        ("pkg/*.{py,pyi}", []),
        ("**/*.{pyi,md}", ["README.md", "src/pkg/c.pyi"]),
        ("[a-b].py", ["src/a.py", "src/pkg/b.py"]),
        ("?.py", ["src-old/d.py", "src/a.py", "src/pkg/b.py"]),
    ],
)
def test_globs(project: Project, glob: str, found: list[str]):
    verb = "1 file matches" if len(found) == 1 else f"{len(found)} files match"
    assert project.lines("list_files", glob)[: len(found) + 1] == [f"{verb} {glob}", *found]


def test_an_absolute_glob_inside_the_workspace(project: Project):
    assert project.lines("list_files", f"{project.root}/src/*.py")[1:] == ["src/a.py"]


def test_nothing_found_names_paths_that_are_near(project: Project):
    assert project.lines("list_files", "README.rst") == ["0 files match README.rst", "Nearest: README.md"]


def test_a_hostile_glob_ends(project: Project):
    project.write("a" * 200, "x")
    assert project.lines("list_files", "*a" * 60 + "b")[0].startswith("0 files")
    project.write("a/" * 30 + "end", "x")
    assert project.lines("list_files", "**/a/" * 14 + "b")[0].startswith("0 files")


def test_generated_and_ignored_files_are_left_out(project: Project):
    for path in (".git/config", ".venv/x.py", "node_modules/x.js", "a/__pycache__/x.pyc", "myenv/lib/x.py", "out/x.o"):
        project.write(path, "x")
    project.write("myenv/pyvenv.cfg", "")
    project.write(".gitignore", "*.log\n/out/\n[\n!keep.log\n")
    project.write("x.log", "x")
    project.write("keep.log", "x")
    project.write("sub/.gitignore", "!y.log\n*.tmp\n")
    project.write("sub/y.log", "x")
    project.write("sub/y.tmp", "x")
    project.write("z.tmp", "x")
    project.write(".git/info/exclude", "private\n")
    project.write("private/x", "x")
    listed = set(project.lines("list_files")[1:])
    assert listed - {"README.md", "src/a.py", "src/pkg/b.py", "src/pkg/c.pyi", "tests/test_a.py", "src-old/d.py"} == {
        ".gitignore",
        "keep.log",
        "sub/.gitignore",
        "sub/y.log",
        "z.tmp",
    }


def test_links_are_left_out_and_loops_end(project: Project):
    (project.root / "loop").symlink_to(project.root)
    (project.root / "src" / "up").symlink_to("..")
    (project.root / "link.py").symlink_to("src/a.py")
    assert project.lines("list_files")[0] == "6 files"


def test_odd_names_are_shown_on_one_line(project: Project):
    project.write("bad\nname", "x")
    (project.root / "caf\udce9.txt").write_text("x")
    result = project.lines("list_files")
    assert "bad\\nname" in result
    assert "caf\\xe9.txt" in result


def test_many_files_are_bounded(project: Project):
    for number in range(300):
        project.write(f"many/{number:03}.txt")
    result = project.lines("list_files", "many")
    assert result[0] == "300 files match many"
    assert result[200:] == ["many/199.txt", "... 100 more; narrow with glob="]


def test_directories_nested_beyond_reason_end(project: Project):
    project.write("d/" * 900 + "deep.txt", "x")
    assert project.lines("list_files")[0] == "6 files"


def test_ignore_patterns_of_a_stranger_take_a_bounded_time(project: Project):
    """Each star used to be tried at every letter for every other star: hours, before anybody trusted the project."""
    project.write(".gitignore", f"{'*a' * 20}*b\n{'**/a/' * 20}b\n{'x' * 2_000}*\n[z-a]\n*a*.log\n")
    project.write("a" * 200, "x")
    project.write("/".join(["a"] * 40) + "/c", "x")
    project.write("aa.log", "x")
    listed = project.call("list_files")
    assert "a" * 100 in listed
    assert "aa.log" not in listed


STARRY = st.text("ab*?[]!/.\\-", max_size=9).filter(lambda text: text.count("[") < 2 and "--" not in text)
"""Two brackets or dashes in a class are a warning of Python's."""


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STARRY, st.text("ab/.", min_size=1, max_size=9))
def test_ignore_patterns_mean_what_they_meant(pattern: str, path: str):
    try:
        plain = GitIgnoreSpec.from_lines([pattern])
    except (ValueError, re.error):
        assert not _walk._rules(pattern.encode()).match_file(path)
        return
    assert _walk._rules(pattern.encode()).check_file(path).include == plain.check_file(path).include
