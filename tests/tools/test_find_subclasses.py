from tests.tools.project import Project


def test_direct_ones_through_every_way_to_name_the_base(project: Project):
    project.write(
        "a.py",
        "import typing\nimport typing as t\nfrom typing import Protocol, Protocol as P, Generic\n"
        "class A(Protocol): ...\n"
        "class B(P): ...\n"
        "class C(t.Protocol[int]): ...\n"
        "class D(typing.Protocol, Generic[T]): ...\n"
        "class E(Generic[Protocol]): ...\n"
        "Alias = t.Protocol\n"
        "class F(Alias): ...\n"
        "class Outer:\n    class Inner(Protocol): ...\n"
        "def make():\n    class Local(Protocol): ...\n",
    )
    assert project.lines("find_subclasses", "Protocol") == [
        "7 classes inherit from Protocol",
        "a.py:4 class A(Protocol)",
        "a.py:5 class B(P)",
        "a.py:6 class C(t.Protocol[int])",
        "a.py:7 class D(typing.Protocol, Generic[T])",
        "a.py:10 class F(Alias)",
        "a.py:12 class Outer.Inner(Protocol)",
        "a.py:14 class make.Local(Protocol)",
    ]


def test_an_alias_that_only_looks_like_the_name_is_left_out(project: Project):
    project.write("a.py", "from x import Thing as Protocol\nclass A(Protocol): ...\n")
    assert project.lines("find_subclasses", "Protocol")[0] == "0 classes inherit from Protocol"
    assert project.lines("find_subclasses", "Thing") == ["1 class inherits from Thing", "a.py:2 class A(Protocol)"]


def test_indirect_ones_come_after_direct_ones(project: Project):
    project.write("pkg/__init__.py", "from .base import Base\n")
    project.write("pkg/base.py", "class Base: ...\n")
    project.write("pkg/z.py", "from pkg import Base\nclass Child(Base): ...\n")
    project.write("pkg/a.py", "from .z import Child\nclass Grand(Child): ...\nclass Great(Grand): ...\n")
    assert project.lines("find_subclasses", "Base") == [
        "3 classes inherit from Base",
        "pkg/z.py:2 class Child(Base)",
        "pkg/a.py:2 class Grand(Child)",
        "pkg/a.py:3 class Great(Grand)",
    ]


def test_a_class_of_the_same_name_elsewhere_passes_nothing_on(project: Project):
    project.write("one.py", "class Root: ...\nclass Model(Root): ...\n")
    project.write("two.py", "from django.db.models import Model\nclass User(Model): ...\n")
    project.write("three.py", "from one import *\nclass Star(Model): ...\n")
    assert project.lines("find_subclasses", "Root") == [
        "2 classes inherit from Root",
        "one.py:2 class Model(Root)",
        "three.py:2 class Star(Model)",
    ]


def test_classes_that_inherit_from_each_other_end(project: Project):
    project.write("a.py", "class A(B): ...\nclass B(A): ...\n")
    assert project.lines("find_subclasses", "A") == [
        "2 classes inherit from A",
        "a.py:2 class B(A)",
        "a.py:1 class A(B)",
    ]


def test_a_module_in_front_chooses_among_equal_names(project: Project):
    project.write("a.py", "import typing, other\nclass A(typing.Protocol): ...\nclass B(other.Protocol): ...\n")
    assert project.lines("find_subclasses", "typing.Protocol")[1:] == ["a.py:2 class A(typing.Protocol)"]
    assert project.lines("find_subclasses", "unknown.Protocol")[0] == "2 classes inherit from unknown.Protocol"


def test_a_workspace_that_is_a_package_is_imported_by_its_name(project: Project):
    name = project.root.name
    project.write("base.py", "class Base(Root): ...\n")
    project.write("heir.py", f"from {name}.base import Base\nclass Heir(Base): ...\n")
    assert project.lines("find_subclasses", "Root")[0] == "2 classes inherit from Root"


def test_relative_imports_that_climb_too_far(project: Project):
    project.write("a.py", "from .....far import Base\nclass A(Base): ...\n")
    assert project.lines("find_subclasses", "Base")[1] == "a.py:2 class A(Base)"


def test_nothing_found_names_bases_that_are_near(project: Project):
    project.write("a.py", "class A(Protocol): ...\n")
    assert project.lines("find_subclasses", "Protocl") == ["0 classes inherit from Protocl", "Nearest names: Protocol"]
    assert project.lines("find_subclasses", "A") == ["0 classes inherit from A"]


def test_a_base_in_the_wrong_case(project: Project):
    project.write("a.py", "from typing import Protocol\nclass A(Protocol): ...\n")
    assert project.lines("find_subclasses", "protocol") == [
        "1 class inherits from Protocol",
        "a.py:2 class A(Protocol)",
        "(there is no protocol: this is the name that differs in upper and lower case only)",
    ]
