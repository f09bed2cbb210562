"""The truth about one project: a plain `ast` pass that shares no code with `punie.tools`, to catch its bugs.

Names are matched as people mean them: `Protocol` also stands for `typing.Protocol` and for `import ... as P`.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

Kind = Literal["class", "function", "method", "constant"]
Scope = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """A class, function, method or module-level assignment."""

    path: str
    line: int
    """Where the `class` or `def` keyword stands."""
    start: int
    """The first decorator's line, or `line`."""
    end: int
    name: str
    qualname: str
    kind: Kind
    is_async: bool = False
    decorators: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    """Last component of each base, aliases resolved."""
    parameters: tuple[str, ...] = ()
    nested: bool = False
    """Inside a function, where a reader would not look for it."""

    @property
    def place(self) -> str:
        """`path:line` of the keyword."""
        return f"{self.path}:{self.line}"

    @property
    def length(self) -> int:
        """Lines from the first decorator to the end."""
        return self.end - self.start + 1


class Oracle:
    """Everything known about the Python files below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = tuple(sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()))

    @cached_property
    def trees(self) -> Mapping[str, ast.Module]:
        """Path -> parsed file, for each Python file that parses."""
        found: dict[str, ast.Module] = {}
        for path in self.files:
            if path.endswith((".py", ".pyi")):
                try:
                    found[path] = ast.parse("\n".join(self.lines(path)))
                except SyntaxError:
                    continue
        return found

    def lines(self, path: str) -> tuple[str, ...]:
        """The lines of a text file without their ends; only `\\n` ends a line, as editors count."""
        text = (self.root / path).read_bytes().decode("utf-8-sig", "replace").replace("\r\n", "\n")
        lines = text.split("\n")
        return tuple(lines[:-1] if lines[-1] == "" else lines)

    @cached_property
    def definitions(self) -> tuple[Definition, ...]:
        """All definitions, by path and line."""
        found = [d for path, tree in self.trees.items() for d in _definitions(path, tree)]
        return tuple(sorted(found, key=lambda d: (d.path, d.line)))

    @cached_property
    def nodes(self) -> Mapping[str, Scope]:
        """`path:line` of the keyword -> the syntax of a class or function."""
        return {
            f"{path}:{node.lineno}": node
            for path, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, Scope)
        }

    @cached_property
    def by_name(self) -> Mapping[str, tuple[Definition, ...]]:
        """Plain name and `Class.method` -> definitions."""
        found: defaultdict[str, list[Definition]] = defaultdict(list)
        for definition in self.definitions:
            for name in {definition.name, definition.qualname}:
                found[name].append(definition)
        return {name: tuple(group) for name, group in found.items()}

    @cached_property
    def _by_base(self) -> Mapping[str, tuple[Definition, ...]]:
        found: defaultdict[str, list[Definition]] = defaultdict(list)
        for definition in self.definitions:
            for base in definition.bases:
                found[base].append(definition)
        return {base: tuple(group) for base, group in found.items()}

    @property
    def bases(self) -> tuple[str, ...]:
        """Every name that some class inherits from directly."""
        return tuple(sorted(self._by_base))

    def subclasses(self, name: str) -> tuple[Definition, ...]:
        """Classes that inherit from `name`, directly or through others."""
        found: dict[str, Definition] = {}
        open_names, closed = [name.split(".")[-1]], set[str]()
        while open_names:
            base = open_names.pop()
            closed.add(base)
            for definition in self._by_base.get(base, ()):
                found[definition.place] = definition
                if definition.name not in closed:
                    open_names.append(definition.name)
        return tuple(found.values())

    @cached_property
    def _uses(self) -> Mapping[str, frozenset[str]]:
        found: defaultdict[str, set[str]] = defaultdict(set)
        for path, tree in self.trees.items():
            for name, line in _uses(tree):
                found[name].add(f"{path}:{line}")
        return {name: frozenset(places) for name, places in found.items()}

    def references(self, name: str) -> frozenset[str]:
        """`path:line` of each use of a plain name: names, attributes and imports, not the definition."""
        return self._uses.get(name, frozenset())

    @cached_property
    def _imports(self) -> Mapping[str, frozenset[str]]:
        found: defaultdict[str, set[str]] = defaultdict(set)
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                    for name in (*alias.name.split("."), alias.asname or ""):
                        found[name].add(f"{path}:{alias.lineno}")
        return {name: frozenset(places) for name, places in found.items()}

    def imports(self, name: str) -> frozenset[str]:
        """`path:line` of each import of a plain name."""
        return self._imports.get(name, frozenset())

    def top_level(self, path: str) -> frozenset[str]:
        """`path:line` of each class and function of a module that is in no other, below an `if` or not."""
        return frozenset(
            d.place for d in self.definitions if d.path == path and d.kind != "constant" and d.qualname == d.name
        )

    def matches(self, text: str, *, paths: tuple[str, ...] | None = None) -> frozenset[str]:
        """`path:line` of each line that holds the literal text."""
        return self.matching(re.compile(re.escape(text)), paths=paths)

    def matching(self, pattern: re.Pattern[str], *, paths: tuple[str, ...] | None = None) -> frozenset[str]:
        """`path:line` of each line the pattern is found in."""
        chosen = self.files if paths is None else paths
        return frozenset(
            f"{path}:{number}"
            for path in chosen
            for number, line in enumerate(self.lines(path), start=1)
            if pattern.search(line)
        )


def _definitions(path: str, tree: ast.Module) -> Iterator[Definition]:
    aliases = dict(_aliases(tree))
    yield from _in_scope(path, tree.body, aliases=aliases, outer="", in_class=False, nested=False)


def _in_scope(
    path: str, body: list[ast.stmt], *, aliases: Mapping[str, str], outer: str, in_class: bool, nested: bool
) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, Scope):
            yield _scope(path, node, aliases=aliases, outer=outer, in_class=in_class, nested=nested)
            inside = f"{outer}{node.name}."
            is_class = isinstance(node, ast.ClassDef)
            yield from _in_scope(
                path, node.body, aliases=aliases, outer=inside, in_class=is_class, nested=nested or not is_class
            )
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not outer:
            yield from _assigned(path, node)
        else:
            for block in _blocks(node):
                yield from _in_scope(path, block, aliases=aliases, outer=outer, in_class=in_class, nested=nested)


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The statement lists inside `if`, `try`, `with` and the like."""
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            yield block
    for handler in getattr(node, "handlers", ()):
        yield handler.body


def _scope(
    path: str, node: Scope, *, aliases: Mapping[str, str], outer: str, in_class: bool, nested: bool
) -> Definition:
    is_class = isinstance(node, ast.ClassDef)
    bases = tuple(b for b in (_base_name(base, aliases) for base in node.bases) if b) if is_class else ()
    return Definition(
        path=path,
        line=node.lineno,
        start=min([node.lineno, *(d.lineno for d in node.decorator_list)]),
        end=node.end_lineno or node.lineno,
        name=node.name,
        qualname=outer + node.name,
        kind="class" if is_class else "method" if in_class else "function",
        is_async=isinstance(node, ast.AsyncFunctionDef),
        decorators=tuple(ast.unparse(d) for d in node.decorator_list),
        bases=bases,
        parameters=() if is_class else tuple(_parameters(node.args)),
        nested=nested,
    )


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    for group in (arguments.posonlyargs, arguments.args):
        yield from (a.arg for a in group)
    if arguments.vararg:
        yield "*" + arguments.vararg.arg
    yield from (a.arg for a in arguments.kwonlyargs)
    if arguments.kwarg:
        yield "**" + arguments.kwarg.arg


def _assigned(path: str, node: ast.Assign | ast.AnnAssign) -> Iterator[Definition]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    for target in targets:
        for name in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(name, ast.Name):
                yield Definition(
                    path, node.lineno, node.lineno, node.end_lineno or node.lineno, name.id, name.id, "constant"
                )


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, alias.name


def _base_name(node: ast.expr, aliases: Mapping[str, str]) -> str | None:
    if isinstance(node, ast.Subscript):
        return _base_name(node.value, aliases)
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    return None


def _uses(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.end_lineno or node.lineno
        elif isinstance(node, ast.ImportFrom):
            for part in (node.module or "").split("."):
                yield part, node.lineno
            for alias in node.names:
                yield alias.name, alias.lineno
                yield alias.asname or alias.name, alias.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                for part in (*alias.name.split("."), alias.asname or ""):
                    yield part, alias.lineno
