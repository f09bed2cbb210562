from tests.tools.project import Project


def test_uses_and_imports_but_not_the_definition(project: Project):
    project.write("a.py", "class Inject:\n    limit: int = 3\n\nCONSTANT = 1\nprint(CONSTANT)\n")
    project.write(
        "b.py",
        "from a import (\n    CONSTANT,\n    Inject,\n)\nimport a.Inject as inj\n\n"
        "def f(x: Inject) -> None:\n    return a.Inject(Inject)\n# Inject in a comment, 'Inject' in text\n",
    )
    assert project.lines("find_references", "Inject") == [
        "4 references to Inject",
        "b.py:3 Inject,",
        "b.py:5 import a.Inject as inj",
        "b.py:7 def f(x: Inject) -> None:",
        "b.py:8 return a.Inject(Inject)",
    ]
    assert project.lines("find_references", "CONSTANT")[1:] == ["a.py:5 print(CONSTANT)", "b.py:2 CONSTANT,"]
    assert project.lines("find_references", "limit") == ["0 references to limit"]


def test_local_variables_are_uses(project: Project):
    project.write("a.py", "def f():\n    local = 1\n    return local\n")
    assert project.lines("find_references", "local")[0] == "2 references to local"


def test_an_attribute_stands_on_the_line_of_its_name(project: Project):
    project.write("a.py", "(\n    thing\n    .first()\n    .second()\n)\n")
    assert project.lines("find_references", "second")[1:] == ["a.py:4 .second()"]


def test_only_the_last_part_of_a_dotted_name_counts(project: Project):
    project.write("a.py", "x.run()\n")
    assert project.lines("find_references", "Flask.run") == ["1 reference to run", "a.py:1 x.run()"]


def test_long_lines_are_clipped_and_line_ends_do_not_shift(project: Project):
    project.write("a.py", b"x = 1\r\n\r\ny = [" + b"name, " * 100 + b"]\r\n")
    [line] = project.lines("find_references", "name")[1:]
    assert line.startswith("a.py:3 y = [name, name")
    assert len(line) == len("a.py:3 ") + 160
    assert line.endswith("...")


def test_nothing_found_names_definitions_that_are_near(project: Project):
    project.write("a.py", "class Inject: ...\n")
    assert project.lines("find_references", "Injekt") == ["0 references to Injekt", "Nearest names: Inject"]


def test_a_changed_file_is_read_again(project: Project):
    project.write("a.py", "use(name)\n")
    assert project.lines("find_references", "name")[0] == "1 reference to name"
    project.write("a.py", "\nuse(name)\nuse(name)\n")
    assert project.lines("find_references", "name")[1:] == ["a.py:2 use(name)", "a.py:3 use(name)"]
    (project.root / "a.py").unlink()
    assert project.lines("find_references", "name")[0] == "0 references to name"


def test_many_references_say_how_to_reach_the_rest(project: Project):
    project.write("a.py", "use(name)\n" * 250)
    result = project.lines("find_references", "name")
    assert result[0] == "250 references to name"
    assert result[-1] == "... 50 more; narrow with search(name, glob=...)"


def test_an_unknown_name_is_tried_without_regard_to_case(project: Project):
    project.write("a.py", "def inject(): ...\n\ninject()\n")
    assert project.lines("find_references", "Inject") == [
        "1 reference to inject",
        "a.py:3 inject()",
        "(there is no Inject: this is the name that differs in upper and lower case only)",
    ]


def test_a_defined_name_without_uses_is_not_taken_for_another(project: Project):
    project.write("a.py", "def inject(): ...\nclass Inject: ...\n\ninject()\n")
    assert project.lines("find_references", "Inject")[0] == "0 references to Inject"
