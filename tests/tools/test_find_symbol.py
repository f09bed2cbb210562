import pytest
from tests.tools.project import Project

APP = """\
import typing as t
from dataclasses import dataclass

NAME: t.Final = "flask"
A, (B, *C) = 1, (2, 3)


class Scaffold:
    def run(self, host: str | None = None, *, port=5000) -> None:
        pass

    @property
    def name(self): return 1


@dataclass(frozen=True)
class Flask(Scaffold, metaclass=type):
    async def serve(self, *args, **kwargs):
        def inner(): ...
        return inner


if NAME:
    def run(): pass
"""


@pytest.fixture(autouse=True)
def app(project: Project) -> None:
    project.write("src/flask/app.py", APP)
    project.write("src/flask/__init__.py", "from .app import Flask as Flask\n")


def test_a_class_with_decorator_bases_and_range(project: Project):
    assert project.lines("find_symbol", "Flask") == [
        "1 definition of Flask",
        "src/flask/app.py:17-20 @dataclass(...) class Flask(Scaffold, metaclass=type)",
    ]


def test_methods_carry_their_class(project: Project):
    assert project.lines("find_symbol", "run") == [
        "2 definitions of run",
        "src/flask/app.py:9-10 def Scaffold.run(self, host: str | None=None, *, port=5000) -> None",
        "src/flask/app.py:24 def run()",
    ]


def test_async_nested_and_decorated(project: Project):
    assert (
        project.lines("find_symbol", "serve")[1]
        == "src/flask/app.py:18-20 async def Flask.serve(self, *args, **kwargs)"
    )
    assert project.lines("find_symbol", "inner")[1] == "src/flask/app.py:19 def Flask.serve.inner()"
    assert project.lines("find_symbol", "name")[1] == "src/flask/app.py:13 @property def Scaffold.name(self)"


def test_module_variables(project: Project):
    assert project.lines("find_symbol", "NAME")[1] == "src/flask/app.py:4 NAME: t.Final = 'flask'"
    assert project.lines("find_symbol", "C")[1] == "src/flask/app.py:5 C = (1, (2, 3))"


@pytest.mark.parametrize(
    "name", ["flask.app.Flask", "app.Flask", "`Flask`", "class Flask(Scaffold):", "Flask()", "Flask[T]"]
)
def test_ways_to_write_a_name(project: Project, name: str):
    assert "src/flask/app.py:17-20" in project.call("find_symbol", name)


def test_a_qualified_name_leaves_out_others(project: Project):
    assert len(project.lines("find_symbol", "Scaffold.run")) == 2
    assert project.lines("find_symbol", "nowhere.run")[0] == "2 definitions of nowhere.run"


def test_an_inherited_method_is_found_in_the_base_class(project: Project):
    assert project.lines("find_symbol", "Flask.run") == [
        "1 definition of Flask.run",
        "src/flask/app.py:9-10 def Scaffold.run(self, host: str | None=None, *, port=5000) -> None",
    ]
    assert project.lines("find_symbol", "Flask.inner")[0] == "0 definitions of Flask.inner"


def test_nothing_found_names_what_is_near(project: Project):
    assert project.lines("find_symbol", "Flaks") == ["0 definitions of Flaks", "Nearest names: Flask"]
    assert project.lines("find_symbol", "zzzzzz") == ["0 definitions of zzzzzz"]


def test_an_empty_name_is_refused(project: Project):
    assert "name is empty" in project.refusal("find_symbol", " `` ")


def test_files_that_do_not_parse_are_told_only_where_they_matter(project: Project):
    project.write("bad.py", "class Flask(:\n")
    project.write("null.py", b"Flask = 1\0")
    project.write("huge.py", "Flask = 1\n" + "#" * 1_000_001)
    result = project.lines("find_symbol", "Flask")
    assert result[0] == "1 definition of Flask"
    assert result[-2:] == ["(2 files skipped: syntax errors)", "(1 file skipped: over 1 MB)"]
    assert project.lines("find_symbol", "Scaffold")[-1] == "(1 file skipped: over 1 MB)"


def test_long_lists_and_long_signatures_are_bounded(project: Project):
    arguments = ", ".join(f"argument_{number}" for number in range(50))
    project.write("many.py", f"def same({arguments}): pass\n" * 300)
    result = project.lines("find_symbol", "same")
    assert result[0] == "300 definitions of same"
    assert all(len(line) < 180 for line in result)
    kept = len(result) - 2
    assert kept > 50
    assert result[-1] == f"... {300 - kept} more; narrow with a qualified name"
    assert len("\n".join(result)) < 21_000


def test_sources_with_odd_bytes_and_warnings(project: Project):
    project.write("latin.py", b"# -*- coding: latin-1 -*-\nclass Caf\xe9: pass\n")
    project.write("escape.py", b'class Odd:\n    pattern = "\\d"\n')
    project.write("bom.py", b"\xef\xbb\xbfclass Marked: pass\n")
    assert project.lines("find_symbol", "Café")[1] == "latin.py:2 class Café"
    assert project.lines("find_symbol", "Odd")[1] == "escape.py:1-2 class Odd"
    assert project.lines("find_symbol", "Marked")[1] == "bom.py:1 class Marked"


def test_a_name_in_the_wrong_case_is_found_and_said(project: Project):
    assert project.lines("find_symbol", "Flask.Serve") == [
        "1 definition of Flask.serve",
        "src/flask/app.py:18-20 async def Flask.serve(self, *args, **kwargs)",
        "(there is no Flask.Serve: this is the name that differs in upper and lower case only)",
    ]


def test_two_names_that_differ_in_case_only_are_both_named(project: Project):
    project.write("src/flask/other.py", "def SERVE(): ...\n")
    assert project.lines("find_symbol", "Serve") == ["0 definitions of Serve", "Nearest names: SERVE, serve"]
