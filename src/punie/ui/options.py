"""What the command line asked for, as one frozen value.

A NamedTuple: importing `dataclasses` would be a fifth of the time `punie --help` takes.
"""

import os
from pathlib import Path
from typing import Literal, NamedTuple

from punie.errors import UsageError

OutputFormat = Literal["text", "json", "stream-json"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = ("text", "json", "stream-json")
ExportFormat = Literal["json", "jsonl", "markdown"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("json", "jsonl", "markdown")
MODES = ("default", "acceptEdits", "auto", "dontAsk", "plan", "bypassPermissions")
"""The permission modes; `auto` needs a sandbox that works."""


class Options(NamedTuple):
    """Flags as given; None and () mean that a flag was not given and the settings decide."""

    cwd: Path
    prompt: str | None = None
    print_only: bool = False
    model: str | None = None
    permission_mode: str | None = None
    allowed_tools: tuple[str, ...] = ()
    disallowed_tools: tuple[str, ...] = ()
    max_turns: int | None = None
    output_format: OutputFormat = "text"
    no_session: bool = False
    verbose: bool = False
    continue_last: bool = False
    resume: str | None = None
    """The beginning of a session's id; empty when none was given."""
    fork: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether a stored session is gone on with."""
        return self.continue_last or self.resume is not None

    def flags(self) -> dict[str, object]:
        """Return the settings these flags override, by their dotted keys."""
        return {
            "model": self.model,
            "permission_mode": self.permission_mode,
            "allowed_tools": self.allowed_tools or None,
            "disallowed_tools": self.disallowed_tools or None,
            "limits.max_turns": self.max_turns,
            "save_sessions": False if self.no_session else None,
        }


def directory(given: str | None) -> Path:
    """The real working directory; a clear error where there is none that can be read."""
    try:
        path = Path(given).expanduser() if given is not None else Path.cwd()
        path = path.resolve(strict=True)
    except FileNotFoundError as error:
        where = f"No such directory: {given}" if given is not None else "The current directory no longer exists"
        raise UsageError(f"{where}.", "Name an existing one with --cwd DIR.") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"Cannot work in {given or 'the current directory'}: {error}.") from error
    if not path.is_dir():
        raise UsageError(f"Not a directory: {path}.", "Name a directory with --cwd DIR.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UsageError(f"Not allowed to read the directory {path}.")
    return path
