"""Finding a helper program where the project being worked on cannot put one of its own in its place."""

import os
from pathlib import Path

READERS = frozenset({
    "cat", "cut", "du", "echo", "egrep", "false", "fgrep", "file", "find", "grep", "head", "id", "ls", "nl", "pwd",
    "rev", "rg", "sed", "seq", "sort", "stat", "tail", "test", "tr", "true", "uname", "uniq", "wc", "which",
})  # fmt: skip
"""Programs that only read, but for some of their options."""


def find_program(name: str, *, path: str, workspace: Path | None = None) -> str | None:
    """The program of that name on `path`, the value of PATH; None when there is none.

    Entries that are empty or relative mean the working directory, and are passed over like those in the workspace.
    """
    for entry in map(Path, path.split(os.pathsep)):
        found = entry / name
        if not (entry.is_absolute() and found.is_file() and os.access(found, os.X_OK)):
            continue
        places = (entry.resolve(), found.resolve().parent)
        if workspace is None or not any(place.is_relative_to(workspace.resolve()) for place in places):
            return str(found)
    return None
