"""The tools the agent has: one file each, gathered here by name."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from pydantic_ai import FunctionToolset

from punie.tools._index import Index, Reference, Snapshot
from punie.tools._facts import Symbol
from punie.tools._workspace import Workspace
from punie.tools.find_references import find_references
from punie.tools.find_subclasses import find_subclasses
from punie.tools.find_symbol import find_symbol
from punie.tools.list_files import list_files
from punie.tools.read_file import read_file
from punie.tools.search import search

__all__ = ["READ_ONLY", "TOOLS", "Index", "Reference", "Snapshot", "Symbol", "Workspace", "toolset"]

READ_ONLY = frozenset({"read_file", "list_files", "search", "find_symbol", "find_subclasses", "find_references"})

TOOLS: Mapping[str, Callable[..., object]] = MappingProxyType({
    function.__name__: function
    for function in (read_file, list_files, search, find_symbol, find_subclasses, find_references)
})  # fmt: skip


def toolset(names: Iterable[str], *, max_retries: int = 2) -> FunctionToolset[Workspace]:
    """The named tools, in the order given. An unknown name raises KeyError."""
    functions = [TOOLS[name] for name in names]
    return FunctionToolset(functions, max_retries=max_retries, docstring_format="google")
