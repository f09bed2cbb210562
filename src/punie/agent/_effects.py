"""What a call would touch, resolved: real paths and programs, never the text alone."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from punie.agent._shell import Analysis, Word, analyse, program
from punie.rules import COMMANDS, EDITS, NOTES, READS
from punie.tools._paths import OutsideWorkspaceError, plain_name, relative_path
from punie.tools._protected import SECRETS

Kind = Literal["read", "edit", "command", "other"]

_PROTECTED = frozenset({
    ".agents",
    ".bash_aliases", ".bash_login", ".bash_logout", ".bash_profile", ".bashrc", ".claude", ".codex", ".cshrc",
    ".cursor", ".devcontainer", ".dir-locals.el", ".envrc", ".exrc", ".git", ".gitattributes", ".gitconfig",
    ".gitmodules", ".hg", ".husky", ".idea", ".inputrc", ".kshrc", ".login", ".mcp.json", ".npmrc", ".nvim.lua",
    ".nvimrc", ".pre-commit-config.yaml", ".profile", ".punie", ".ripgreprc", ".vimrc", ".vscode", ".zed", ".zlogin",
    ".zlogout", ".zprofile", ".zshenv", ".zshrc", "agents.md", "claude.md",
})  # fmt: skip
_RUN_BY_OTHERS = frozenset({"package.json", "pyproject.toml"})
_SECRET_NAME = re.compile(r"\.env(\..+)?|id_(rsa|dsa|ecdsa|ed25519)")
_NO_SECRET = (".example", ".sample", ".template", ".dist", ".defaults")


@dataclass(frozen=True)
class Call:
    """A call as it was asked for: of a built-in tool, an MCP tool (`mcp__server__tool`), a hook or a slash command."""

    tool: str
    arguments: Mapping[str, object]


@dataclass(frozen=True)
class Place:
    """Where a path leads: as written, without `..`, and with every link followed. Both are absolute."""

    lexical: str
    real: str

    @property
    def both(self) -> tuple[str, ...]:
        """The two, once if they are the same."""
        return (self.lexical,) if self.lexical == self.real else (self.lexical, self.real)


@dataclass(frozen=True)
class Effects:
    """What a call would do: `places` are the files of a file tool, `analysis` is of a command."""

    tool: str
    kind: Kind
    places: tuple[Place, ...] = ()
    analysis: Analysis | None = None
    links: int = 1
    """Names that the file has; one with more changes elsewhere too."""


def effects_of(call: Call, *, root: Path) -> Effects:
    """Resolve a call. Never raises: a path that leads nowhere stays as it is written."""
    if call.tool in COMMANDS:
        command = call.arguments.get("command")
        return Effects(call.tool, "command", analysis=analyse(command if isinstance(command, str) else ""))
    path = call.arguments.get("path")
    places = (place_of(path, root=root),) if isinstance(path, str) else ()
    if call.tool in NOTES:
        return Effects(call.tool, "read")
    if call.tool in READS:
        return Effects(call.tool, "read", places)
    if call.tool in EDITS:
        return Effects(call.tool, "edit", places, links=max(map(_links, places), default=1))
    return Effects(call.tool, "other")


def place_of(path: str, *, root: Path) -> Place:
    """Where a path from the model leads, read the way the tools read it."""
    try:
        written = os.path.join(root, relative_path(root, path))  # noqa: PTH118 - a null byte must not raise
    except OutsideWorkspaceError:
        written = os.path.join(root, path.replace("\0", ""))  # noqa: PTH118
    lexical = os.path.normpath(written)
    try:
        return Place(lexical, os.path.realpath(written))
    except (OSError, ValueError):
        return Place(lexical, lexical)


def _links(place: Place) -> int:
    try:
        return os.lstat(place.real).st_nlink
    except (OSError, ValueError):
        return 1


def is_inside(place: Place, root: Path) -> bool:
    """Whether both readings of a path stay in the workspace."""
    return all(path == str(root) or path.startswith(f"{root}/".replace("//", "/")) for path in place.both)


def protected_in(place: Place, root: Path) -> str:
    """What other programs, Punie included, take for instructions: the part of the path that is, or empty."""
    for path in place.both:
        parts = [plain_name(part) for part in _below(path, root).split("/")]
        found = next((part for part in parts if part in _PROTECTED), "")
        if found or _holds(parts, ".github", "workflows"):
            return found or ".github/workflows"
    return ""


def is_run_by_others(place: Place) -> bool:
    """Whether a file holds commands that other programs run, besides much else."""
    return any(plain_name(path.rpartition("/")[2]) in _RUN_BY_OTHERS for path in place.both)


def is_secret(place: Place, home: Path | None) -> bool:
    """Whether a file commonly holds keys or passwords."""
    return any(_is_secret(path, home) for path in place.both)


def holds_secret_places(root: Path, home: Path | None) -> bool:
    """Whether a workspace holds, or lies in, one of the places of the home directory where keys are kept."""
    return home is not None and (home.is_relative_to(root) or _is_secret(f"{root}/x", home))


def may_be_secret(path: str) -> bool:
    """Whether a path is worth the closer look of `is_secret`, as far as its last name goes."""
    name = path.rpartition("/")[2]
    return not name.isascii() or name[:1] in ".iI"


def _is_secret(path: str, home: Path | None) -> bool:
    name = plain_name(path.rpartition("/")[2])
    if _SECRET_NAME.fullmatch(name) and not name.endswith(_NO_SECRET):
        return True
    return home is not None and any(_is_at(path, f"{home}/{secret}") for secret in SECRETS)


def _is_at(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _below(path: str, root: Path) -> str:
    return path[len(str(root)) :].lstrip("/") if _is_at(path, str(root)) else path


def _holds(parts: list[str], first: str, second: str) -> bool:
    return any(pair == (first, second) for pair in pairwise(parts))


def words_as_places(analysis: Analysis, *, root: Path) -> tuple[tuple[str, Place], ...]:
    """Every word of a command that may name a file, with its program; relative to the root and to where it goes."""
    bases = [root, *(root / word for argv in analysis.commands if program(argv) == "cd" for word in argv[1:] if word)]
    found: dict[tuple[str, Place], None] = {}
    for name, word in _words(analysis):
        for text in {word, word.partition("=")[2]} if "=" in word else {word}:
            for base in bases:
                if text and not text.startswith("-"):
                    found[name, place_of(text, root=base)] = None
    return tuple(found)


def _words(analysis: Analysis) -> list[tuple[str, str]]:
    words: list[tuple[str, Word]] = [(program(argv), word) for argv in analysis.commands for word in argv[1:]]
    words += [("<", word) for word in analysis.reads]
    words += [(">", write.target) for write in analysis.writes]
    return [(name, word) for name, word in words if word is not None]
