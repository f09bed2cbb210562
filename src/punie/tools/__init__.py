"""The tools the agent has: one file each, gathered here by name."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType

from pydantic_ai import FunctionToolset, Tool

from punie.rules import NOTES, READS
from punie.tools._facts import Symbol
from punie.tools._index import Index, Reference, Snapshot
from punie.tools._preview import planned, preview, refuse_impossible
from punie.tools._sandbox import Sandbox, SandboxState, sandbox_state
from punie.tools._workspace import Workspace
from punie.tools.edit_file import edit_file
from punie.tools.find_references import find_references
from punie.tools.find_subclasses import find_subclasses
from punie.tools.find_symbol import find_symbol
from punie.tools.list_files import list_files
from punie.tools.load_skill import load_skill
from punie.tools.read_file import read_file
from punie.tools.run_command import run_command
from punie.tools.search import search
from punie.tools.write_file import write_file
from punie.tools.write_todos import write_todos

__all__ = [
    "READ_ONLY",
    "TOOLS",
    "Index",
    "Reference",
    "Sandbox",
    "SandboxState",
    "Snapshot",
    "Symbol",
    "Workspace",
    "planned",
    "preview",
    "refuse_impossible",
    "sandbox_state",
    "toolset",
]

READ_ONLY = READS | NOTES

TOOLS: Mapping[str, Callable[..., str | Awaitable[str]]] = MappingProxyType(
    {
        "read_file": read_file,
        "list_files": list_files,
        "search": search,
        "find_symbol": find_symbol,
        "find_subclasses": find_subclasses,
        "find_references": find_references,
        "edit_file": edit_file,
        "write_file": write_file,
        "run_command": run_command,
        "write_todos": write_todos,
        "load_skill": load_skill,
    }
)


def toolset(names: Iterable[str], *, max_retries: int = 2) -> FunctionToolset[Workspace]:
    """The named tools, in the order given; those that change something never run side by side.

    An unknown name raises KeyError.
    """
    tools = [
        Tool[Workspace](
            TOOLS[name],
            takes_ctx=True,
            docstring_format="google",
            require_parameter_descriptions=True,
            sequential=name not in READ_ONLY,
        )
        for name in names
    ]
    return FunctionToolset(tools, max_retries=max_retries)
