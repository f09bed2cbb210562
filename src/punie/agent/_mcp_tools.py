"""What an MCP server says, made fit for a model: names, descriptions, schemas and results, cleaned and bounded.

Everything a server says is as untrusted as the output of a command. Nothing here needs the `mcp` extra.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import BinaryContent
from pydantic_ai.profiles import InlineDefsJsonSchemaTransformer
from pydantic_ai.tools import ToolDefinition

from punie import controls
from punie.extensions import digest
from punie.tools._output import MAX_BYTES, MAX_ITEMS, clip, counted, fitting

PREFIX = "mcp__"
MAX_TOOLS = 128
MAX_DESCRIPTION = 2_000
MAX_SCHEMA = 32_000
"""Characters of one tool's schema as JSON."""
MAX_TOOL_NAME = 64
"""What the services take at most."""
MAX_LINE = 1_000
MAX_ERROR = 500
CHARACTERS_A_TOKEN = 4
"""A rule of thumb, for estimates."""

_LOOKED_AT = 100_000
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_JOINERS = str.maketrans("", "", "\u200c\u200d")  # harmless in a page of text, but here every character counts


@dataclass(frozen=True)
class Offered:
    """A tool as a server offers it, before anything of it is believed."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Accepted:
    """The tools of a server as a model sees them, by their full names, and what was left out."""

    tools: Mapping[str, ToolDefinition] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    """Full name -> the name the server knows."""
    problems: tuple[str, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each tool, by the name the server knows."""
        return {self.names[name]: digest(_told(tool)) for name, tool in self.tools.items()}

    @property
    def characters(self) -> int:
        """How long the tools are as a model is told of them."""
        return sum(len(json.dumps(_told(tool), ensure_ascii=False)) for tool in self.tools.values())


def _told(tool: ToolDefinition) -> list[object]:
    return [tool.name, tool.description, tool.parameters_json_schema]


def tokens(characters: int) -> int:
    """About how many tokens a text of that length takes."""
    return -(-characters // CHARACTERS_A_TOKEN)


def plain(text: str, *, limit: int) -> str:
    """Text without control sequences and without characters that cannot be seen, cut at `limit` characters."""
    shown = controls.clean(text[: 4 * limit]).translate(_JOINERS)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


# --- tools ---


def accepted(server: str, offered: Iterable[Offered]) -> Accepted:
    """The tools that can be told to a model; the others are named with what is wrong with them."""
    tools: dict[str, ToolDefinition] = {}
    names: dict[str, str] = {}
    problems: list[str] = []
    for tool in sorted(offered, key=lambda tool: tool.name):
        name = full_name(server, tool.name)
        problem = _problem(tool, taken=name in tools, full=len(tools) >= MAX_TOOLS)
        if problem:
            problems.append(f"{clip(plain(tool.name, limit=MAX_TOOL_NAME), limit=MAX_TOOL_NAME)}: {problem}")
            continue
        schema = _cleaned(tool.schema)
        description = plain(tool.description, limit=MAX_DESCRIPTION)
        tools[name] = ToolDefinition(name=name, description=description, parameters_json_schema=schema, sequential=True)
        names[name] = tool.name
    return Accepted(tools, names, tuple(problems))


def full_name(server: str, tool: str) -> str:
    """`mcp__server__tool` in characters that every service takes; a name that had to be cut ends in a digest."""
    name = f"{PREFIX}{server}__{_UNFIT.sub('_', tool)}"
    if len(name) <= MAX_TOOL_NAME:
        return name
    return f"{name[: MAX_TOOL_NAME - 9]}_{hashlib.sha256(tool.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _problem(tool: Offered, *, taken: bool, full: bool) -> str:
    if full:
        return f"a server can have {MAX_TOOLS} tools at most"
    if taken:
        return "another tool has the same name"
    try:
        text = json.dumps(tool.schema)
    except (ValueError, RecursionError):
        return "its schema is no JSON"
    if len(text) > MAX_SCHEMA:
        return f"its schema is longer than {MAX_SCHEMA} characters"
    return _schema_problem(tool.schema)


def _schema_problem(schema: Mapping[str, Any]) -> str:
    from jsonschema import Draft202012Validator, SchemaError  # comes with the `mcp` extra
    from jsonschema.validators import validator_for

    if schema.get("type") != "object":
        return "its schema does not describe an object"
    if not isinstance(schema.get("$schema", ""), str):
        return "its schema names no dialect"
    try:
        validator_for(dict(schema), default=Draft202012Validator).check_schema(dict(schema))
        # Some services are sent the definitions in place of the references to them: what is missing would end the turn.
        InlineDefsJsonSchemaTransformer(copy.deepcopy(dict(schema)), strict=None).walk()
    except (SchemaError, UserError) as error:
        return f"its schema is invalid: {plain(error.message, limit=MAX_ERROR)}"
    except RecursionError:
        return "its schema is nested too deeply"
    properties = schema.get("properties", {})
    if any(plain(name, limit=MAX_LINE) != name for name in properties):
        return "the name of a parameter holds hidden characters"
    return ""


def _cleaned(value: Any) -> Any:
    """The same schema with every text in it cleaned. What a schema allows does not change: names are as they were."""
    if isinstance(value, str):
        return plain(value, limit=MAX_DESCRIPTION)
    if isinstance(value, Mapping):
        return {name: _cleaned(each) for name, each in value.items()}
    return [_cleaned(each) for each in value] if isinstance(value, list) else value


# --- results ---


def result_text(result: object) -> str:
    """What a call gave, as text: cleaned, its start and its end where it is long."""
    lines = [clip(line, limit=MAX_LINE) for line in plain_lines(_ends(_as_text(result)))]
    if len(fitting(lines)) == len(lines):
        return "\n".join(lines) or "(no output)"
    first = _half(lines)
    rest = lines[len(first) :]
    last = _half(rest[::-1])[::-1]
    left = counted(len(rest) - len(last), "line")
    return "\n".join([*first, f"... {left} left out here; ask for a smaller part", *last])


def _ends(text: str) -> str:
    """The start and the end of a text that is far too long, so that nobody has to look at all of it."""
    left = len(text) - 2 * _LOOKED_AT
    return f"{text[:_LOOKED_AT]}\n... {left} characters left out here\n{text[-_LOOKED_AT:]}" if left > 0 else text


def plain_lines(text: str) -> list[str]:
    """The lines of a text, cleaned."""
    return plain(text, limit=max(len(text), 1)).splitlines()


def _half(lines: list[str]) -> list[str]:
    return fitting(lines, limit=MAX_ITEMS // 2, room=MAX_BYTES // 2)


def _as_text(result: object) -> str:
    """Text as it is, data as indented JSON, everything else by its kind and size."""
    if isinstance(result, str):
        return result
    if isinstance(result, BinaryContent):
        return f"[{result.media_type}, {len(result.data)} bytes: only text is shown here]"
    if isinstance(result, list) and any(isinstance(part, str | BinaryContent) for part in result):
        return "\n".join(map(_as_text, result))
    try:
        return json.dumps(result, ensure_ascii=False, indent=1, default=_as_text)
    except (ValueError, TypeError, RecursionError):
        return f"[{type(result).__name__}: cannot be shown]"
