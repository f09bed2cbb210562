"""Every error Punie raises on purpose, with the exit code it ends the program with.

    PunieError                 1
    ├── ConfigError            2   a setting, a configuration file or a model spec is wrong
    ├── UsageError             2   the command line is wrong
    ├── ModelError             1   the model could not answer
    │   ├── WeightsMissing     1   the weights are not here and could not be fetched
    │   ├── WeightsDamaged     1   the weights do not have the checksum they should have
    │   ├── EngineMissing      1   the engine that runs the weights cannot be imported here
    │   ├── NotEnoughMemory    1   the model would not fit into this machine's memory
    │   ├── ContextTooLong     1   the conversation does not fit the model's context window
    │   └── NetworkRefused     1   a server could not be reached, or the network is switched off
    ├── ToolCrashed            1   a tool failed in a way that is Punie's own mistake
    ├── McpError               1   an MCP server could not be started or used
    ├── SessionError           1   a conversation could not be stored, found or read
    ├── PermissionNeeded       3   a tool needed a permission and nobody could give it
    ├── LimitReached           4   turns, tool calls or tokens ran out
    │   ├── LoopDetected       4   the model repeats the same calls
    │   └── RepeatedText       4   the model repeats the same text
    └── Interrupted          130   the user stopped the work

`main()` prints `str(error)` and exits with `error.exit_code`; anything else keeps its traceback.
"""

# ruff: noqa: N818 - the names say what happened ("WeightsMissing"), which an "Error" suffix would not add to.

from typing import ClassVar

MAX_LINES = 3


class PunieError(Exception):
    """Something the user can act on: what happened, and what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, next_step: str = "") -> None:
        super().__init__(cause, next_step)
        self.cause = cause
        self.next_step = next_step

    def __str__(self) -> str:
        """At most three lines: the cause, then the next step."""
        step = [line for line in self.next_step.splitlines() if line.strip()][: MAX_LINES - 1]
        cause = [line for line in self.cause.splitlines() if line.strip()]
        return "\n".join([*cause[: MAX_LINES - len(step)], *step])


class ConfigError(PunieError):
    """A setting, a configuration file or a model spec is wrong."""

    exit_code = 2


class UsageError(PunieError):
    """The command line is wrong."""

    exit_code = 2


class ModelError(PunieError):
    """The model could not answer."""


class WeightsMissing(ModelError):
    """The weights are not on this machine and could not be fetched."""


class WeightsDamaged(ModelError):
    """The weights on this machine do not have the checksum they should have."""


class EngineMissing(ModelError):
    """The engine that would run the weights cannot be imported on this machine."""


class NotEnoughMemory(ModelError):
    """The model would take more memory than can be had; raised before any of it is loaded."""


class ContextTooLong(ModelError):
    """The conversation does not fit the model's context window; raised before anything is generated."""


class NetworkRefused(ModelError):
    """A server could not be reached, or the network is switched off."""


class ToolCrashed(PunieError):
    """A tool failed in a way that is Punie's own mistake."""


class McpError(PunieError):
    """An MCP server could not be started or used."""


class SessionError(PunieError):
    """A conversation could not be stored, found or read."""


class PermissionNeeded(PunieError):
    """A tool needed a permission and nobody could give it."""

    exit_code = 3


class LimitReached(PunieError):
    """Turns, tool calls or tokens ran out."""

    exit_code = 4


class LoopDetected(LimitReached):
    """The model repeats the same calls with the same results."""


class RepeatedText(LimitReached):
    """The model repeats the same text."""


class Interrupted(PunieError):
    """The user stopped the work."""

    exit_code = 130
