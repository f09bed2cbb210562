"""Permission rules as users write them: `Bash(git log:*)`, `Read(./secrets/**)`, `Edit(src/**)`, `mcp__server__tool`.

This is their grammar only; what a rule covers is decided where the effects of a call are known.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

READS = frozenset({"read_file", "list_files", "search", "find_symbol", "find_subclasses", "find_references"})
EDITS = frozenset({"edit_file", "write_file"})
COMMANDS = frozenset({"run_command"})
NOTES = frozenset({"write_todos", "load_skill"})
"""Tools that touch nothing of the workspace, so that nobody is asked about them."""

_GROUPS = {"Read": READS, "Edit": EDITS, "Write": EDITS, "Bash": COMMANDS}
_NAMES = {**_GROUPS, **{name: frozenset({name}) for name in READS | EDITS | COMMANDS | NOTES}}
_MCP = re.compile(r"mcp__[\w.-]+?(__[\w.*-]+)?")
# Rules about the files these show are written as rules of Read.
_WITHOUT_PATH = READS - {"read_file"}


@dataclass(frozen=True)
class Rule:
    """One rule. `tools` are the built-in tools it is about; an MCP rule has none, and its name is a pattern."""

    text: str
    name: str
    tools: frozenset[str]
    spec: str | None
    source: str = ""
    """Where it is written: "PATH:LINE", "--flag", or what else can be told to the user."""

    def __str__(self) -> str:
        return f"{self.text} ({self.source})" if self.source else self.text


@dataclass(frozen=True)
class RuleSet:
    """Rules by what they do. They are tried in this order, and the first that covers a call decides."""

    deny: tuple[Rule, ...] = ()
    ask: tuple[Rule, ...] = ()
    allow: tuple[Rule, ...] = ()

    def with_allowed(self, rules: Iterable[Rule]) -> "RuleSet":
        """The same with more that is allowed; what is denied or asked about stays so."""
        return replace(self, allow=(*self.allow, *rules))


def parse_rule(text: str, *, source: str = "") -> Rule:
    """Read one rule. Raises ValueError with what is wrong in words."""
    text = text.strip()
    name, bracket, rest = text.partition("(")
    if not bracket:
        return Rule(text, text, _tools(text), None, source)
    if not rest.endswith(")") or _depth(text) != 0:
        raise ValueError(f"the parentheses of '{text}' do not match.")
    spec = rest[:-1].strip()
    tools = _tools(name)
    if not spec:
        raise ValueError(f"'{text}' has nothing between its parentheses.")
    if not tools:
        raise ValueError(f"'{text}': a rule about an MCP tool is its name alone.")
    _check_spec(text, spec, tools)
    return Rule(text, name, tools, spec, source)


def _tools(name: str) -> frozenset[str]:
    if _MCP.fullmatch(name):
        return frozenset()
    if name not in _NAMES:
        close = get_close_matches(name, _NAMES, n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'?" if close else f"There are {', '.join(_GROUPS)} and the tools' own names."
        raise ValueError(f"there is no tool named '{name}'. {hint}")
    return _NAMES[name]


def _check_spec(text: str, spec: str, tools: frozenset[str]) -> None:
    if tools <= COMMANDS:
        if not words_of(spec):
            raise ValueError(f"'{text}' names no command.")
        return
    if tools <= _WITHOUT_PATH:
        raise ValueError(f"'{text}': a path can only be given to Read.")
    if spec.startswith("!"):
        raise ValueError(f"'{text}': a path rule cannot be negated.")
    if spec.startswith("/") and not spec.startswith("//"):
        raise ValueError(f"'{text}' is ambiguous: write /{spec} for the whole disk or .{spec} for the project.")
    if ".." in spec.split("/"):
        raise ValueError(f"'{text}': a path rule cannot hold '..'.")


def words_of(spec: str) -> tuple[str, ...]:
    """The words of a command rule, without the `:*` or ` *` that ends a prefix. ValueError for an open quote."""
    import shlex  # costs a millisecond that most runs need not pay

    try:
        words = shlex.split(spec.removesuffix(":*").removesuffix(" *") if is_prefix(spec) else spec)
    except ValueError as error:
        raise ValueError(f"'{spec}': {str(error).lower()}.") from None
    return tuple(words)


def is_prefix(spec: str) -> bool:
    """Whether any words may follow those of a command rule."""
    return spec.endswith((":*", " *"))


def _depth(text: str) -> int:
    """How many parentheses stay open; -1 if one is closed that was never opened."""
    depth = 0
    for char in text:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth < 0:
            return -1
    return depth


def split_rules(text: str) -> Iterator[str]:
    """The rules of a flag or an environment variable, separated by commas or spaces outside parentheses."""
    depth, start = 0, 0
    for place, char in enumerate(text):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth <= 0 and char in ", \t\n":
            yield from _filled(text[start:place])
            start = place + 1
    yield from _filled(text[start:])


def _filled(text: str) -> Iterator[str]:
    if text.strip():
        yield text.strip()
