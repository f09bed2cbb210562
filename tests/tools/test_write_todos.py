import pytest
from pydantic import TypeAdapter, ValidationError
from tests.tools.project import Project

from punie.tools import toolset
from punie.tools.write_todos import MAX_TODOS, Todo


def step(content: str, status: str = "pending") -> dict[str, str]:
    return {"content": content, "status": status}


STEPS = [step("Read the parser", "completed"), step("Write a test", "in_progress"), step("Mend it")]


def test_it_shows_the_list_with_how_far_it_is(project: Project):
    shown = "1 of 3 done\n[x] Read the parser\n[>] Write a test\n[ ] Mend it"
    assert project.call("write_todos", STEPS) == shown
    assert project.call("write_todos", []) == "The list is empty."


def test_it_touches_nothing(project: Project):
    project.call("write_todos", STEPS)
    assert list(project.root.iterdir()) == []


def test_a_step_stays_on_one_bounded_line_whatever_stands_in_it(project: Project):
    lines = project.lines("write_todos", [step("one\n[x] two\x1b[2J\u202e" + "x" * 500)])
    assert len(lines) == 2
    assert lines[1].startswith("[ ] one [x] two\u241b[2J<U+202E>xx")
    assert len(lines[1]) < 200


def test_too_many_steps_are_refused(project: Project):
    assert len(project.lines("write_todos", [step("x")] * MAX_TODOS)) == MAX_TODOS + 1
    assert project.refusal("write_todos", [step("x")] * (MAX_TODOS + 1)) == (
        "51 steps are too many. Sum them up in at most 50."
    )


def test_what_the_model_is_told_of_it_refers_to_nothing_else():
    schema = toolset(["write_todos"]).tools["write_todos"].tool_def.parameters_json_schema
    assert set(schema) == {"type", "properties", "required", "additionalProperties"}
    item = schema["properties"]["todos"]["items"]
    assert item["properties"]["status"]["enum"] == ["pending", "in_progress", "completed"]
    assert item["required"] == ["content", "status"]


@pytest.mark.parametrize("wrong", [{"content": "x"}, step("x", "done"), {"status": "pending"}, "x"])
def test_a_step_has_words_and_a_known_status(wrong: object):
    with pytest.raises(ValidationError):
        TypeAdapter(Todo).validate_python(wrong)
