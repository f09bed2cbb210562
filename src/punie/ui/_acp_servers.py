"""MCP servers that a client names for a session: they count like those of a project, and are agreed to as these are."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from acp.schema import AcpMcpServer, HttpMcpServer, McpServerStdio, SseMcpServer
from pydantic import ValidationError

from punie.errors import UsageError
from punie.extensions import MAX_NAME, Definition, McpServer, checked_name
from punie.ui._clean import one_line
from punie.ui._setup import Setup

ClientServer = HttpMcpServer | SseMcpServer | AcpMcpServer | McpServerStdio
_FILE = Path("the settings of your editor")


def with_servers(setup: Setup, servers: Sequence[ClientServer]) -> Setup:
    """The same with the client's servers after the user's own and the project's, which keep their names.

    They get only the variables that the user lets a project's servers have. UsageError for one that cannot be used.
    """
    found = setup.extensions.found
    taken = {definition.name for definition in found.definitions}
    asked = [_definition(server) for server in servers]
    new = [each for each in asked if each.name not in taken]
    passed_over = tuple(f"The editor's MCP server {each.name} is not used: there is one of that name already."
                        for each in asked if each.name in taken)  # fmt: skip
    if len({each.name for each in new}) < len(new):
        raise UsageError("Two MCP servers have the same name.", "Give each its own in the settings of your editor.")
    extensions = replace(setup.extensions, found=replace(found, definitions=(*found.definitions, *new)))
    return replace(setup, extensions=extensions, notices=(*setup.notices, *passed_over))


def _definition(server: ClientServer) -> Definition:
    named = one_line(server.name, width=MAX_NAME)
    try:
        return Definition(_name(server.name), "project", _FILE, _server(server))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"The MCP server {named} cannot be used: {first['msg']}.") from error
    except ValueError as error:
        raise UsageError(f"The MCP server {named} cannot be used: {error}.") from error


def _server(server: ClientServer) -> McpServer:
    match server:
        case McpServerStdio():
            env = {variable.name: variable.value for variable in server.env}
            return McpServer(command=server.command, args=tuple(server.args), env=env)
        case HttpMcpServer():
            headers = {header.name: header.value for header in server.headers}
            return McpServer(url=server.url, headers=headers)
        case SseMcpServer():
            raise ValueError("Punie speaks streamable HTTP, not server-sent events")
        case AcpMcpServer():
            raise ValueError("Punie starts servers itself, and takes none through the editor")


def _name(given: str) -> str:
    """A name that can stand in the names of tools: `GitHub MCP` is GitHub-MCP."""
    try:
        return checked_name(given)
    except ValueError:
        return checked_name(re.sub(r"[^A-Za-z0-9]+", "-", given)[:MAX_NAME].strip("-"))
