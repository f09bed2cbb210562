"""What the index keeps of one Python file, read from its syntax tree."""

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Kind = Literal["class", "def", "async def", "assignment"]
MAX_SIGNATURE = 160
MAX_VALUE = 60
# The made-up file name the compiler's warnings about workspace sources carry; they are not ours to show.
SOURCE_NAME = "<punie-index>"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Symbol:
    """A definition. `name` is qualified inside the file (`Flask.run`); in `bases`, import aliases are resolved."""

    path: str
    line: int
    end: int
    kind: Kind
    name: str
    text: str
    decorators: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()

    @property
    def last_name(self) -> str:
        """The name without the classes and functions around it."""
        return self.name.rpartition(".")[2]

    @property
    def span(self) -> str:
        """`81-1536`, or `5` for one line."""
        return str(self.line) if self.line == self.end else f"{self.line}-{self.end}"


@dataclass(frozen=True, slots=True)
class Facts:
    """The definitions of one file, and the dotted names its imports stand for."""

    path: str
    module: tuple[str, ...]
    symbols: tuple[Symbol, ...]
    imports: dict[str, str]
    has_star: bool


@dataclass(frozen=True, slots=True)
class _Scope:
    """The qualified name of the classes and functions around a statement, and whether one is a function."""

    name: str
    local: bool

    def qualified(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def parse(source: bytes) -> ast.Module | None:
    """The syntax tree, or None where this Python cannot read the source."""
    warnings.filterwarnings("ignore", module=SOURCE_NAME)
    try:
        return ast.parse(source, SOURCE_NAME)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def module_of(path: str) -> tuple[str, ...]:
    """`src/flask/app.py` as `("src", "flask", "app")`; a package's `__init__` is the package."""
    parts = PurePosixPath(path).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def read_facts(path: str, tree: ast.Module) -> Facts:
    """Definitions and imports of one file. Only statements are visited: expressions hold neither."""
    module = module_of(path)
    package = module if path.endswith(("__init__.py", "__init__.pyi")) else module[:-1]
    statements = list(_statements(tree))
    imports: dict[str, str] = {}
    for _, node in statements:
        _add_imports(imports, node, package)
    for scope, node in statements:
        if not scope.name:
            _add_alias(imports, node)
    symbols = [symbol for scope, node in statements for symbol in _symbols(path, scope, node=node, imports=imports)]
    symbols.sort(key=lambda symbol: (symbol.line, symbol.name))
    return Facts(path, module, tuple(symbols), imports, "*" in imports)


def _statements(tree: ast.Module) -> Iterator[tuple[_Scope, ast.stmt]]:
    """Every statement with the scope it stands in. A stack, as `elif` chains nest deep."""
    pending: list[tuple[_Scope, ast.AST]] = [(_Scope("", local=False), node) for node in tree.body]
    while pending:
        scope, node = pending.pop()
        if isinstance(node, ast.stmt):
            yield scope, node
        inner = scope
        if isinstance(node, Definition):
            inner = _Scope(scope.qualified(node.name), local=scope.local or not isinstance(node, ast.ClassDef))
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            children = getattr(node, block, None)
            if isinstance(children, list):
                pending += [(inner, child) for child in children]


def _add_imports(imports: dict[str, str], node: ast.stmt, package: tuple[str, ...]) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname is not None:
                imports[alias.asname] = alias.name
    elif isinstance(node, ast.ImportFrom):
        source = _import_source(node, package)
        for alias in node.names:
            imports[alias.asname or alias.name] = f"{source}.{alias.name}".lstrip(".")


def _import_source(node: ast.ImportFrom, package: tuple[str, ...]) -> str:
    if not node.level:
        return node.module or ""
    above = package[: max(len(package) - node.level + 1, 0)]
    return ".".join([*above, *([node.module] if node.module else [])])


def _add_alias(imports: dict[str, str], node: ast.stmt) -> None:
    """`Base = other.Thing` at module level names the same class; an import of that name goes first."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Name | ast.Attribute):
        return
    dotted = dotted_name(node.value)
    for target in node.targets:
        if dotted is not None and isinstance(target, ast.Name) and target.id != dotted.partition(".")[0]:
            imports.setdefault(target.id, resolve(dotted, imports))


def resolve(dotted: str, imports: dict[str, str]) -> str:
    """A dotted name with its first part replaced by what that part was imported as."""
    first, dot, rest = dotted.partition(".")
    return imports.get(first, first) + dot + rest


def dotted_name(node: ast.expr) -> str | None:
    """`a.b.C` for the expressions `a.b.C` and `a.b.C[T]`; None for anything that is computed."""
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Name):
            return ".".join([node.id, *reversed(parts)])
        else:
            return None


def _symbols(path: str, scope: _Scope, *, node: ast.stmt, imports: dict[str, str]) -> Iterator[Symbol]:
    if isinstance(node, Definition):
        yield _definition(path, scope.qualified(node.name), node=node, imports=imports)
    elif scope.name:
        return
    elif isinstance(node, ast.Assign):
        for name in sorted({target.id for target in _targets(node)}):
            yield _assignment(path, node, name=name, text=f"{name} = {_value(node.value)}")
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        value = f" = {_value(node.value)}" if node.value else ""
        text = f"{node.target.id}: {ast.unparse(node.annotation)}{value}"
        yield _assignment(path, node, name=node.target.id, text=text)
    elif type(node).__name__ == "TypeAlias":  # `type X = ...`, known to Python 3.12 and later
        text = ast.unparse(node)
        yield _assignment(path, node, name=text.split()[1].partition("[")[0], text=text)


def _targets(node: ast.stmt) -> Iterator[ast.Name]:
    """The plain names an assignment binds, also those inside `a, (b, *c) = ...`."""
    pending: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        pending = list(node.targets)
    elif isinstance(node, ast.AnnAssign):
        pending = [node.target]
    while pending:
        target = pending.pop()
        if isinstance(target, ast.Name):
            yield target
        elif isinstance(target, ast.Tuple | ast.List):
            pending += target.elts
        elif isinstance(target, ast.Starred):
            pending.append(target.value)


def _value(node: ast.expr) -> str:
    text = "..." if _is_large(node) else ast.unparse(node)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def _is_large(node: ast.expr) -> bool:
    """Whether writing the value out would take long only to be cut."""
    return (node.end_lineno or node.lineno) - node.lineno > 40


def _assignment(path: str, node: ast.stmt, *, name: str, text: str) -> Symbol:
    return Symbol(path, node.lineno, node.end_lineno or node.lineno, "assignment", name, _one_line(text))


def _definition(path: str, name: str, *, node: Definition, imports: dict[str, str]) -> Symbol:
    kind, signature = _signature(node)
    bases: tuple[str, ...] = ()
    if isinstance(node, ast.ClassDef):
        dotted = (dotted_name(base) for base in node.bases)
        bases = tuple(resolve(base, imports) for base in dotted if base is not None)
    decorators = tuple(_decorator(decorator) for decorator in node.decorator_list)
    text = _one_line(f"{kind} {name}{signature}")
    return Symbol(path, node.lineno, node.end_lineno or node.lineno, kind, name, text, decorators, bases)


def _signature(node: Definition) -> tuple[Kind, str]:
    parameters = _type_parameters(node)
    if isinstance(node, ast.ClassDef):
        arguments = [ast.unparse(item) for item in (*node.bases, *node.keywords)]
        return "class", parameters + (f"({', '.join(arguments)})" if arguments else "")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    kind: Kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return kind, f"{parameters}({ast.unparse(node.args)}){returns}"


def _type_parameters(node: Definition) -> str:
    parameters = getattr(node, "type_params", [])  # Python 3.12 and later
    return f"[{', '.join(ast.unparse(item) for item in parameters)}]" if parameters else ""


def _decorator(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return f"@{dotted_name(node.func) or '...'}(...)"
    return f"@{dotted_name(node) or '...'}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SIGNATURE else f"{line[: MAX_SIGNATURE - 3]}..."


def read_references(tree: ast.Module) -> dict[str, tuple[int, ...]]:
    """Every name used in a file, with the lines of its uses; definitions, also of variables, are no uses."""
    lines: dict[str, set[int]] = {}
    own = {id(target) for scope, node in _statements(tree) if not scope.local for target in _targets(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if id(node) not in own:
                lines.setdefault(node.id, set()).add(node.lineno)
        elif isinstance(node, ast.Attribute):
            lines.setdefault(node.attr, set()).add(node.end_lineno or node.lineno)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name, line in _imported(node):
                lines.setdefault(name, set()).add(line)
    return {name: tuple(sorted(found)) for name, found in lines.items()}


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.ImportFrom):
        for part in (node.module or "").split("."):
            yield part, node.lineno
    for alias in node.names:
        for part in alias.name.split("."):
            yield part, alias.lineno
        if alias.asname is not None:
            yield alias.asname, alias.lineno
