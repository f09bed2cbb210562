"""The rules that would allow a call from now on, as narrow as they can be."""

import re
from collections.abc import Iterable
from pathlib import Path

from punie.agent._covers import allows_command
from punie.agent._effects import Effects, is_inside, is_run_by_others
from punie.agent._safe import has_safe_prefix
from punie.agent._shell import Analysis, Argv
from punie.rules import Rule

MAX_RULES = 3
_SIMPLE_WORD = re.compile(r"[\w./@%+,^=-][\w./@%+,^=:-]*")
_SIMPLE_PATH = re.compile(r"[\w.@%+=,/ -]+")


def suggestions(effects: Effects, allow: Iterable[Rule], *, root: Path) -> tuple[str, ...]:
    """Rules that together cover the call; none if it cannot be covered without covering what nobody looked at."""
    match effects.kind:
        case "read" | "edit":
            return _of_path(effects, root)
        case "command":
            return _of_command(effects.analysis, tuple(allow)) if effects.analysis else ()
        case "other":
            return (effects.tool,) if effects.tool.startswith("mcp__") else ()


def _of_path(effects: Effects, root: Path) -> tuple[str, ...]:
    name = "Read" if effects.kind == "read" else "Edit"
    if len(effects.places) != 1 or not is_inside(effects.places[0], root):
        return ()
    place = effects.places[0]
    relative = place.real[len(str(root)) :].strip("/")
    if place.lexical != place.real or not _SIMPLE_PATH.fullmatch(relative):
        return ()
    directory = relative.rpartition("/")[0]
    if effects.kind == "read" or not directory or is_run_by_others(place):
        return (f"{name}(./{relative})",)
    return (f"{name}(./{directory}/**)",)


def _of_command(analysis: Analysis, allow: tuple[Rule, ...]) -> tuple[str, ...]:
    """One rule for each command that none covers yet: the very words, or a reading program with any words."""
    if not analysis.plain:
        return ()
    open_ones = [argv for argv in analysis.commands if not any(allows_command(rule, argv) for rule in allow)]
    found = [_of_argv(argv) for argv in open_ones]
    if any(rule is None for rule in found) or len(set(found)) > MAX_RULES:
        return ()
    return tuple(dict.fromkeys(rule for rule in found if rule is not None))


def _of_argv(argv: Argv) -> str | None:
    if has_safe_prefix(argv):
        return f"Bash({argv[0]}:*)"
    words = [word for word in argv if word is not None]
    if len(words) != len(argv) or not all(map(_SIMPLE_WORD.fullmatch, words)) or words[-1].endswith(":"):
        return None
    return f"Bash({' '.join(words)})"
