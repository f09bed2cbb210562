"""Python files as tokens: what is defined, imported and used on which line."""

import io
import re
import token
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

Tokens = list[tokenize.TokenInfo]
_QUIET = {token.NL, token.COMMENT, token.ENCODING, token.ENDMARKER}
_COMPOUND = frozenset(
    ("if", "elif", "else", "try", "except", "finally", "with", "while", "for", "async", "match", "case")
)


@dataclass
class Definition:
    """A class, function or top-level name; `end` is filled in when its block is over."""

    path: str
    line: int
    end: int
    name: str
    qualname: str
    kind: str
    depth: int
    nested: bool = False
    is_async: bool = False
    decorators: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    """What stands between the parentheses, split at its commas."""
    returns: str = ""

    @property
    def place(self) -> str:
        """`path:line`."""
        return f"{self.path}:{self.line}"


class Statement(NamedTuple):
    """A logical line, and how deep it is indented."""

    tokens: Tokens
    depth: int


class Source:
    """One file, cut into statements."""

    def __init__(self, root: Path, path: str) -> None:
        self.path = path
        self.text = (root / path).read_bytes().decode("utf-8-sig", "replace").replace("\r\n", "\n")
        self.lines = self.text.split("\n")

    @cached_property
    def statements(self) -> list[Statement]:
        """Every logical line; none of a file that Python cannot cut into tokens."""
        found, current, depth = [], Tokens(), 0
        try:
            for item in tokenize.generate_tokens(io.StringIO(self.text).readline):
                if item.type == token.INDENT:
                    depth += 1
                elif item.type == token.DEDENT:
                    depth -= 1
                elif item.type == token.NEWLINE:
                    found.append(Statement(current, depth))
                    current = []
                elif item.type not in _QUIET:
                    current.append(item)
        except (tokenize.TokenError, SyntaxError):
            return []
        return [s for s in found if s.tokens]

    def text_of(self, items: Sequence[tokenize.TokenInfo]) -> str:
        """The source text of neighbouring tokens, on one line."""
        return " ".join(t.string for t in items)

    @cached_property
    def definitions(self) -> list[Definition]:
        """Everything that is defined, in order."""
        found: list[Definition] = []
        scopes: list[Definition] = []
        marks: list[str] = []
        last = 0
        for statement in self.statements:
            while scopes and scopes[-1].depth >= statement.depth:
                scopes.pop().end = last
            first = [t.string for t in statement.tokens[:3]]
            if first[0] == "@":
                marks.append(self.text_of(statement.tokens[1:]))
            elif _keyword(first):
                made = self._scope(statement, scopes, marks)
                marks = []
                found.append(made)
                scopes.append(made)
            elif not scopes and first[0] not in _COMPOUND:
                found += self._assigned(statement)
            last = statement.tokens[-1].end[0]
        for scope in scopes:
            scope.end = last
        return found

    def _scope(self, statement: Statement, scopes: list[Definition], marks: list[str]) -> Definition:
        items = statement.tokens
        at = 1 + (items[0].string == "async")
        is_class = items[0].string == "class"
        header = items[at + 1 : _colon(items)]
        inside = _brackets(header)
        after = [i for i, t in enumerate(header) if t.string == "->"]
        outer = ".".join([s.name for s in scopes])
        return Definition(
            path=self.path,
            line=items[0].start[0],
            end=items[-1].end[0],
            name=items[at].string,
            qualname=f"{outer}.{items[at].string}".lstrip("."),
            kind="class" if is_class else "method" if scopes and scopes[-1].kind == "class" else "function",
            depth=statement.depth,
            nested=any(s.kind != "class" for s in scopes),
            is_async=items[0].string == "async",
            decorators=marks,
            items=[self.text_of(part) for part in _split(inside)],
            returns=self.text_of(header[after[-1] + 1 :]) if after else "",
        )

    def _assigned(self, statement: Statement) -> Iterator[Definition]:
        items = statement.tokens
        names: list[tokenize.TokenInfo] = []
        if len(items) > 1 and items[0].type == token.NAME and items[1].string == ":":
            names.append(items[0])
        else:
            for target in _parts(items, "=")[:-1]:
                plain = [t for t in target if t.string not in "()[],"]
                if all(t.type == token.NAME for t in plain):
                    names += plain
        for name in names:
            row = items[0].start[0]
            yield Definition(self.path, row, items[-1].end[0], name.string, name.string, "constant", statement.depth)

    @cached_property
    def imports(self) -> list[tuple[str, str, str, int]]:
        """Module, imported name, its name here, line."""
        found = []
        for items, _ in self.statements:
            words = [t.string for t in items]
            if words[0] == "import":
                found += [(dotted(part), "", "", items[0].start[0]) for part in _split(items[1:])]
            elif words[0] == "from" and "import" in words:
                at = words.index("import")
                module = "".join(words[1:at])
                named = _split([t for t in items[at + 1 :] if t.string not in "()"])
                found += [(module, part[0].string, part[-1].string, items[0].start[0]) for part in named]
        return found

    def uses(self, name: str) -> tuple[set[int], set[int]]:
        """Lines where the name is used for certain, and where it may be: inside f-strings, patterns, `x += 1`."""
        certain, perhaps = set[int](), set[int]()
        for items, _ in self.statements:
            for at, item in enumerate(items):
                if item.type == token.STRING:
                    if "f" in item.string.split(item.string[-1])[0].lower() and re.search(rf"\b{name}\b", item.string):
                        perhaps.update(range(item.start[0], item.end[0] + 1))
                elif item.string == name and item.type == token.NAME:
                    verdict = _use(items, at)
                    if verdict:
                        (certain if verdict == "use" else perhaps).add(item.start[0])
        return certain, perhaps


def _keyword(first: list[str]) -> bool:
    return first[0] in {"class", "def"} or first[:2] == ["async", "def"]


def _colon(items: Tokens) -> int:
    depth = 0
    for at, item in enumerate(items):
        depth += (item.string in "([{" and item.type == token.OP) - (item.string in ")]}" and item.type == token.OP)
        if item.string == ":" and not depth:
            return at
    return len(items)


def _brackets(items: Tokens) -> Tokens:
    """What stands in the first pair of parentheses."""
    depth, found = 0, Tokens()
    for item in items:
        if item.string in ")]}" and item.type == token.OP:
            depth -= 1
            if not depth:
                return found
        if depth:
            found.append(item)
        depth += item.string in "([{" and item.type == token.OP
        if not depth:
            return found
    return found


def _parts(items: Tokens, mark: str) -> list[Tokens]:
    """Cut at a mark that is in no brackets."""
    depth, found = 0, [Tokens()]
    for item in items:
        is_mark = item.type == token.OP
        depth += (is_mark and item.string in "([{") - (is_mark and item.string in ")]}")
        if is_mark and item.string == mark and not depth:
            found.append([])
        else:
            found[-1].append(item)
    return found


def _split(items: Tokens) -> list[Tokens]:
    return [part for part in _parts(items, ",") if part]


def dotted(items: Sequence[tokenize.TokenInfo]) -> str:
    """The leading `a.b.c`, with its leading dots."""
    found = ""
    for item in items:
        if item.string == "." or (item.type == token.NAME and found[-1:] in {"", "."}):
            found += item.string
        else:
            break
    return found


def _use(items: Tokens, at: int) -> str:
    """ "use", "perhaps", or "" for what is defined, assigned or only named here."""
    first, before = items[0].string, items[at - 1].string if at else ""
    after = items[at + 1].string if at + 1 < len(items) else ""
    if first in {"from", "import"} or before == ".":
        return "use"
    if before in {"def", "class", "as"} or first in {"global", "nonlocal", "del"} or after == ":=":
        return ""
    depth = _depth(items, at)
    if depth and after == "=" and before in {"(", ","}:
        return ""
    if depth == 1 and before in {"(", ",", "*", "**"} and _in_parameters(items, at):
        return ""
    if _in_lambda(items, at) and before in {"lambda", ",", "*", "**"}:
        return ""
    if _in_for_target(items, at) and after not in {".", "[", "("}:
        return ""
    if first == "case":
        return "perhaps"
    return _assigned_here(items, at, after)


def _assigned_here(items: Tokens, at: int, after: str) -> str:
    if items[0].string in _COMPOUND or _keyword([t.string for t in items[:3]]) or after in {".", "[", "("}:
        return "use"
    if at == 0 and after == ":":
        return ""
    if _colon(items) < at:
        return "use"  # an annotation
    rest = _parts(items[at + 1 :], "=") if not _depth(items, at) or _only_tuples(items, at) else []
    if len(rest) > 1:
        return ""
    if at == 0 and after.endswith("=") and after not in {"==", "!=", "<=", ">="}:
        return "perhaps"
    return "use"


def _in_parameters(items: Tokens, at: int) -> bool:
    """Whether a token of the outermost brackets of a `def` lies before its arrow or colon."""
    words = [t.string for t in items[:at]]
    return _keyword(words[:3]) and words[0] != "class" and at < _colon(items) and "->" not in words


def _only_tuples(items: Tokens, at: int) -> bool:
    """Whether a token lies in the brackets of a target such as `(a, b) = ...`, and in no call or index."""
    return all(t.type == token.NAME or t.string in "()[],*" for t in items[: at + 1]) and items[0].string in "(["


def _depth(items: Tokens, at: int) -> int:
    marks = [t.string for t in items[:at] if t.type == token.OP]
    return sum(m in "([{" for m in marks) - sum(m in ")]}" for m in marks)


def _in_lambda(items: Tokens, at: int) -> bool:
    for back in range(at - 1, -1, -1):
        if items[back].string == "lambda":
            return True
        if items[back].type == token.OP and items[back].string in ":([{":
            return False
    return False


def _in_for_target(items: Tokens, at: int) -> bool:
    for back in range(at - 1, -1, -1):
        if items[back].string == "for":
            return any(t.string == "in" for t in items[at:])
        if items[back].string in {"in", ":", "="}:
            return False
    return False
