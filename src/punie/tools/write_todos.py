"""The model's own list of steps. It lives in the conversation and nowhere else."""

import json
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_ai import ModelRetry, RunContext
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from punie.tools._output import clip
from punie.tools._workspace import Workspace

MAX_TODOS = 50
_MARKS = {"pending": "[ ]", "in_progress": "[>]", "completed": "[x]"}


class Todo(TypedDict):
    """One step."""

    content: str
    status: Literal["pending", "in_progress", "completed"]


# Written out, because a template for a local model shows a tool's own properties only, not what they refer to.
_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"content": {"type": "string"}, "status": {"type": "string", "enum": list(_MARKS)}},
        "required": ["content", "status"],
        "additionalProperties": False,
    },
}


def _read(value: object) -> object:
    """A list that came as the text of one: models whose calls are tags write every value so."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def write_todos(
    ctx: RunContext[Workspace], todos: Annotated[list[Todo], BeforeValidator(_read), WithJsonSchema(_SCHEMA)]
) -> str:
    """Keep a list of steps for longer work.

    Args:
        todos: Every step in order, done ones too, with only one in_progress at a time.
    """
    del ctx
    if len(todos) > MAX_TODOS:
        raise ModelRetry(f"{len(todos)} steps are too many. Sum them up in at most {MAX_TODOS}.")
    if not todos:
        return "The list is empty."
    done = sum(todo["status"] == "completed" for todo in todos)
    lines = [f"{_MARKS[todo['status']]} {clip(' '.join(todo['content'].split()))}" for todo in todos]
    return "\n".join([f"{done} of {len(todos)} done", *lines])
