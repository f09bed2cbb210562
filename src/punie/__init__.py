"""Punie: a coding agent that runs on your own machine.

The names below are loaded when they are first used: `import punie` itself loads no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from punie.agent import Session, SessionStore, create_agent, run_turn
    from punie.config import AgentConfig, Limits
    from punie.errors import PunieError
    from punie.tools import Workspace

    __version__: str

_HOMES = {
    "AgentConfig": "punie.config",
    "Limits": "punie.config",
    "PunieError": "punie.errors",
    "Session": "punie.agent",
    "SessionStore": "punie.agent",
    "Workspace": "punie.tools",
    "create_agent": "punie.agent",
    "run_turn": "punie.agent",
}

__all__ = [
    "AgentConfig",
    "Limits",
    "PunieError",
    "Session",
    "SessionStore",
    "Workspace",
    "__version__",
    "create_agent",
    "run_turn",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'punie' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slower to import than all of `punie --help`

    try:
        return version("punie")
    except PackageNotFoundError:
        return "0.0.0+unknown"
