"""The rows of a data file: one conversation a line, with the tools that are on offer in it."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from punie import tools, wire
from punie.config import AgentConfig
from punie.errors import UsageError
from punie_training import jsonl


class _Strict(BaseModel):
    """Refuses what it does not know: `tool_calls` would be lost without a word."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Call(_Strict):
    """A call in a row."""

    name: str
    arguments: dict[str, object]


class Function(BaseModel):
    """What a declaration says about a tool."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str = ""
    parameters: Mapping[str, Any]

    @field_validator("parameters")
    @classmethod
    def _can_be_rendered(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if not isinstance(value.get("properties", {}), Mapping) or not isinstance(value.get("required", []), list):
            raise ValueError("`properties` is no object or `required` is no list")
        return value


class Declaration(BaseModel):
    """A tool as `wire.declarations` gives it."""

    model_config = ConfigDict(frozen=True)

    type: str = "function"
    function: Function


class Turn(_Strict):
    """A turn of a row."""

    role: wire.Role
    content: str = ""
    calls: tuple[Call, ...] = ()

    def plain(self) -> wire.Message:
        """The turn as it is rendered."""
        calls = tuple(wire.call(c.name, c.arguments) for c in self.calls)
        return wire.Message(self.role, self.content, calls)


class Row(BaseModel):
    """What training needs of a line of the data file."""

    model_config = ConfigDict(frozen=True)

    id: str
    family: str
    project: str = ""
    template: str = ""
    """The wording of the question; that of a twin names its topic."""
    messages: tuple[Turn, ...]
    tools: tuple[Declaration, ...] | None = None
    """The tools on offer in this conversation; None means Punie's own."""
    source: str = ""
    """The set it was imported from, or the teacher that gave it; none for what `punie train data build` makes."""

    @model_validator(mode="after")
    def _can_be_encoded(self) -> Self:
        """Half a surrogate pair is valid JSON but no text; encoding it raises a ValueError."""
        declared = [tool.model_dump() for tool in self.tools or ()]
        texts = (*(turn.plain().text for turn in self.messages), json.dumps(declared, ensure_ascii=False))
        "".join(texts).encode("utf-8")
        return self

    @property
    def origin(self) -> str:
        """The name of its source as a recipe gives it."""
        return self.source or ("generated" if self.project else "direct")

    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools as the chat template gets them."""
        return declarations() if self.tools is None else tuple(tool.model_dump() for tool in self.tools)


@cache
def declarations() -> tuple[dict[str, Any], ...]:
    """The tools as the agent offers them by default."""
    known = tools.toolset(AgentConfig().tools).tools.values()
    return wire.declarations([tool.tool_def for tool in known])


def read(path: Path) -> tuple[Row, ...]:
    """Read a JSON lines file. Raises UsageError that names file and line of what is no row."""
    if not path.is_file():
        raise UsageError(f"There is no data file {path}.", "Make it: punie train data")
    return tuple(_row(record, f"{path}:{number}") for number, record in jsonl.records(path))


def _row(record: jsonl.Record, place: str) -> Row:
    try:
        return Row.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{place}: `{where}`: {first['msg']}.", "See all of it: punie train data check FILE"
        ) from error
