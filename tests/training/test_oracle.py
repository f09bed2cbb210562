from pathlib import Path

import pytest

from punie_training.oracle import Oracle

SOURCE = """\
import typing as t
from typing import Protocol as P, Generic
from abc import ABC

LIMIT = 5
low, high = 1, 2


class Shape(ABC):
    @property
    def area(self) -> float:
        return LIMIT


class Square(Shape):
    async def draw(self, canvas, *, size=3, **rest):
        def inner():
            return size
        return inner


class Speaks(P): ...
class Reads(t.Protocol[int]): ...


if LIMIT:
    @staticmethod
    def helper(a, /, b, *args): ...
"""


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "shapes.py").write_text(SOURCE)
    (tmp_path / "use.py").write_text(
        "from pkg.shapes import Square, LIMIT\nclass Cube(Square): ...\nCube().draw(LIMIT)\n"
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    return Oracle(tmp_path)


def test_definitions_know_where_they_stand_and_what_they_are(oracle: Oracle) -> None:
    found = {d.qualname: (d.kind, d.line, d.start, d.is_async) for d in oracle.definitions if d.path == "pkg/shapes.py"}
    assert found["LIMIT"] == ("constant", 5, 5, False)
    assert found["high"] == ("constant", 6, 6, False)
    assert found["Shape.area"] == ("method", 11, 10, False)
    assert found["Square.draw"] == ("method", 16, 16, True)
    assert found["helper"] == ("function", 28, 27, False)
    assert [d.nested for d in oracle.by_name["inner"]] == [True]


def test_parameters_are_in_order_with_stars(oracle: Oracle) -> None:
    assert oracle.by_name["Square.draw"][0].parameters == ("self", "canvas", "size", "**rest")
    assert oracle.by_name["helper"][0].parameters == ("a", "b", "*args")


def test_subclasses_go_through_aliases_subscripts_and_other_classes(oracle: Oracle) -> None:
    assert {d.name for d in oracle.subclasses("Protocol")} == {"Speaks", "Reads"}
    assert {d.name for d in oracle.subclasses("typing.Protocol")} == {"Speaks", "Reads"}
    assert {d.name for d in oracle.subclasses("Shape")} == {"Square", "Cube"}
    assert oracle.subclasses("Nothing") == ()


def test_references_are_uses_not_definitions(oracle: Oracle) -> None:
    assert oracle.references("LIMIT") == {"pkg/shapes.py:12", "pkg/shapes.py:26", "use.py:1", "use.py:3"}
    assert oracle.references("draw") == {"use.py:3"}
    assert oracle.references("Cube") == {"use.py:3"}


def test_imports_are_known_from_calls(oracle: Oracle) -> None:
    assert oracle.imports("LIMIT") == {"use.py:1"}
    assert oracle.imports("draw") == frozenset()


def test_the_top_level_is_what_stands_in_no_class_or_function(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        '"""\nclass of its own\n"""\nif True:\n    def low(): ...\nclass A:\n    def b(self): ...\n'
    )
    assert Oracle(tmp_path).top_level("m.py") == {"m.py:5", "m.py:6"}


def test_text_matches_are_lines_of_any_file(oracle: Oracle) -> None:
    assert oracle.matches("def (") == {"broken.py:1"}
    assert oracle.matches("class", paths=("use.py",)) == {"use.py:2"}
