"""`punie mcp`: list, add, remove, approve and try out MCP servers."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from punie.config import Resolved, load_settings
from punie.errors import McpError, UsageError
from punie.extensions import PROJECT_FILE, USER_FILE, Definition, McpServer, checked_name, write_server
from punie.ui._clean import clean, one_line
from punie.ui._extensions import Extensions
from punie.ui.configure import print_line
from punie.ui.options import Options

Action = Literal["list", "add", "remove", "approve", "test"]
ACTIONS: tuple[Action, ...] = ("list", "add", "remove", "approve", "test")


@dataclass(frozen=True)
class Asked:
    """What the command line says besides the action."""

    name: str = ""
    target: tuple[str, ...] = ()
    """The address, or the program with its arguments."""
    transport: str | None = None
    env: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    project: bool = False
    as_json: bool = False


def run(action: Action, asked: Asked, *, options: Options) -> int:
    """Do one action of `punie mcp` and return the exit code."""
    resolved = load_settings(cwd=options.cwd, env=os.environ, flags={})
    if action == "add":
        return _add(resolved, asked, cwd=options.cwd)
    if action == "remove":
        return _remove(resolved, asked)
    extensions = Extensions.of(resolved, env=os.environ)
    for notice in extensions.found.notices:
        sys.stderr.write(f"punie: {clean(notice)}\n")
    if action == "list":
        return _list(extensions, as_json=asked.as_json)
    definition = next((each for each in extensions.found.definitions if each.name == asked.name), None)
    if definition is None:
        raise UsageError(
            f"There is no MCP server named '{asked.name}' here.", "`punie mcp list` shows those there are."
        )
    return asyncio.run(_try_out(extensions, definition, agree=action == "approve"))


# --- list ---


def _list(extensions: Extensions, *, as_json: bool) -> int:
    rows = [_row(extensions, definition) for definition in extensions.found.definitions]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    if not rows:
        print_line("No MCP servers. `punie mcp add --help` shows how to add one.")
    for row, definition in zip(rows, extensions.found.definitions, strict=True):
        changed = row["changed"]
        state = f"{row['state']}: {', '.join(changed)}" if isinstance(changed, list) and changed else str(row["state"])
        cost = f"{row['tools']} tools, about {row['tokens']} tokens" if row["tools"] is not None else "never started"
        print_line(f"{definition.name}  ({definition.scope}, {state}; {cost})")
        print_line(f"  {one_line(definition.server.line(), width=200)}")
        print_line(f"  seen by {', '.join(definition.server.models) or 'every model but the small embedded ones'}")
    return 0


def _row(extensions: Extensions, definition: Definition) -> dict[str, object]:
    from punie.agent._mcp_tools import tokens
    from punie.agent._pins import changes

    server, pin = definition.server, extensions.pins.of(definition)
    changed = changes(pin.parts, definition.fingerprint()) if pin else ()
    state = "not approved" if pin is None else "changed" if changed else "approved"
    known = pin if pin is not None and pin.tools is not None else None
    return {
        "name": definition.name,
        "scope": definition.scope,
        "file": str(definition.file),
        "transport": "http" if server.url else "stdio",
        "command": server.command,
        "args": list(server.args),
        "url": server.url,
        "env": sorted(server.env),
        "headers": sorted(server.headers),
        "models": list(server.models),
        "state": state,
        "changed": list(changed),
        "tools": len(known.tools or ()) if known else None,
        "tokens": tokens(known.characters) if known else None,
    }


# --- add and remove ---


def _file(resolved: Resolved, *, project: bool) -> Path:
    return resolved.root / PROJECT_FILE if project else resolved.user_file.with_name(USER_FILE)


def _add(resolved: Resolved, asked: Asked, *, cwd: Path) -> int:
    from punie.agent._pins import Pins
    from punie.trust import state_directory

    file = _file(resolved, project=asked.project)
    server = _server(asked)
    if (
        not asked.project and server.command and "/" in server.command
    ):  # a program of its own, wherever Punie is started
        whole = (cwd / Path(server.command).expanduser()).absolute()
        server = server.model_copy(update={"command": str(whole)})
    definition = Definition(_name(asked.name), "project" if asked.project else "user", file, server)
    if write_server(file, definition.name, definition.server):
        raise UsageError(
            f"{file} has a server named '{asked.name}' already.", f"`punie mcp remove {asked.name}` first."
        )
    Pins(state_directory(os.environ), resolved.root).add(definition)
    print_line(f"Added {definition.name} to {file}")
    if asked.project and not resolved.trusted:
        print_line(f"{resolved.root} is not trusted, so it is not used yet. `punie trust` trusts it.")
    else:
        print_line(f"`punie mcp test {definition.name}` tries it out.")
    return 0


def _name(name: str) -> str:
    try:
        return checked_name(name)
    except ValueError as error:
        raise UsageError(f"'{name}' cannot be the name of a server: {error}.") from None


def _server(asked: Asked) -> McpServer:
    first, *rest = asked.target
    is_url = first.startswith(("http://", "https://"))
    if asked.transport == "http" and not is_url:
        raise UsageError(f"'{first}' is no address.", "Give one that starts with https:// or http://.")
    env, headers = _pairs(asked.env, "=", flag="--env"), _pairs(asked.headers, ":", flag="--header")
    as_url = is_url and asked.transport != "stdio"
    if as_url and (rest or env):
        raise UsageError("A server at an address takes no arguments and no --env.", "It may take --header.")
    if not as_url and headers:
        raise UsageError("A server that is a program takes no --header.", "It may take --env.")
    try:
        if as_url:
            return McpServer(url=first, headers=headers, models=asked.models)
        return McpServer(command=first, args=tuple(rest), env=env, models=asked.models)
    except ValidationError as error:
        raise UsageError(f"That cannot be a server: {error.errors()[0]['msg']}.") from None


def _pairs(texts: Sequence[str], sign: str, *, flag: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, there, value = text.partition(sign)
        if not there or not name.strip():
            raise UsageError(f"'{text}' is no value for {flag}.", f"Write NAME{sign}VALUE; ${{VARIABLE}} is filled in.")
        found[name.strip()] = value.strip() if sign == ":" else value
    return found


def _remove(resolved: Resolved, asked: Asked) -> int:
    from punie.agent._pins import Pins
    from punie.trust import state_directory

    file = _file(resolved, project=asked.project)
    if not write_server(file, asked.name, None):
        other = "without" if asked.project else "with"
        raise UsageError(f"{file} has no server named '{asked.name}'.", f"Try {other} --project, or `punie mcp list`.")
    pins = Pins(state_directory(os.environ), resolved.root)
    pins.remove(asked.name, "project" if asked.project else "user")
    print_line(f"Removed {asked.name} from {file}")
    return 0


# --- test and approve ---


async def _try_out(extensions: Extensions, definition: Definition, *, agree: bool) -> int:
    """Start a server, show its tools and see whether it answers. `agree` agrees to it and to its tools as they are."""
    from punie.agent._mcp_tools import tokens
    from punie.agent._pins import changes

    pins, servers, name = extensions.pins, extensions.servers, definition.name
    assert servers is not None  # noqa: S101 - there is this one
    print_line(f"{name}: {one_line(definition.server.line(), width=200)}  ({definition.file})")
    if agree:
        pins.add(definition)
    elif not pins.agrees(definition):
        pin = pins.of(definition)
        why = f"it changed: {', '.join(changes(pin.parts, definition.fingerprint()))}" if pin else "it is new here"
        step = f"Look at {definition.file}, then `punie mcp approve {name}`."
        raise UsageError(f"You have not agreed to this server: {why}.", step)
    connection = servers.connection(definition)
    started = time.perf_counter()
    try:
        await connection.start()
        seconds = time.perf_counter() - started
        await connection.ping()
    finally:
        await connection.close()
    found = connection.tools
    for full, tool in found.tools.items():
        print_line(f"  {full}  {one_line(tool.description or '', width=100)}".rstrip())
    for problem in found.problems:
        print_line(f"  left out: {problem}")
    cost = f"{len(found.tools)} tools, about {tokens(found.characters)} tokens"
    print_line(f"It answers, {seconds:.1f} s after its start: {cost}.")
    pin = pins.of(definition)
    differs = changes(pin.tools, found.digests) if pin and pin.tools is not None else ()
    if differs:
        raise McpError(
            f"Its tools changed since you agreed to them: {', '.join(differs)}.", f"`punie mcp approve {name}`"
        )
    pins.add(definition, tools=found.digests, characters=found.characters)
    return 0
