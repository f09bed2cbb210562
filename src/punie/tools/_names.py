"""Finding definitions and heirs in an index snapshot from a name as a person or a model writes it."""

import re
from collections.abc import Iterable

from pydantic_ai import ModelRetry

from punie.tools._facts import Facts, Symbol, module_of
from punie.tools._index import Snapshot
from punie.tools._output import clip, nearest

_KEYWORD = re.compile(r"^(?:async\s+def|def|class)\s+")


def clean_name(name: str) -> str:
    """`class Foo[T](Bar):` and `` `pkg.Foo()` `` as `Foo` and `pkg.Foo`."""
    plain = _KEYWORD.sub("", name.strip().strip("`'\"@ "))
    plain = re.split(r"[\[(:\s]", plain.replace("::", "."), maxsplit=1)[0].strip(".")
    if not plain:
        raise ModelRetry("name is empty. Give the name of a class, function or variable.")
    return plain


def definitions(snapshot: Snapshot, name: str) -> list[Symbol]:
    """Definitions whose module and qualified name end most like `name`.

    `Flask.run` with `run` inherited gives the definition in the base class. A name that qualifies by something
    unknown (`app.run`) gives every `run`.
    """
    wanted = name.split(".")
    candidates = snapshot.by_name.get(wanted[-1], ())
    scored = [(_common_tail(_full_name(snapshot, symbol), wanted), symbol) for symbol in candidates]
    best = max((score for score, _ in scored), default=0)
    if best == 1 and len(wanted) > 1 and (owners := _classes(snapshot, wanted[-2])):
        return _inherited(snapshot, owners, wanted[-1])
    return [symbol for score, symbol in scored if score == best]


def _full_name(snapshot: Snapshot, symbol: Symbol) -> list[str]:
    """With the root's own name in front: a workspace that is itself a package is imported by that name."""
    return [snapshot.root_name, *module_of(symbol.path), *symbol.name.split(".")]


def _common_tail(left: list[str], right: list[str]) -> int:
    count = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        count += 1
    return count


def _classes(snapshot: Snapshot, name: str) -> list[Symbol]:
    return [symbol for symbol in snapshot.by_name.get(name, ()) if symbol.kind == "class"]


def _inherited(snapshot: Snapshot, owners: list[Symbol], member: str) -> list[Symbol]:
    """`member` in the nearest ancestors of `owners` that define it."""
    pending, seen = list(owners), set(owners)
    found: list[Symbol] = []
    while pending:
        owner = pending.pop(0)
        own = [s for s in snapshot.by_name[member] if s.path == owner.path and s.name == f"{owner.name}.{member}"]
        found += own
        parents = [] if own else parent_classes(snapshot, owner)
        fresh = [parent for parent in parents if parent not in seen]
        seen.update(fresh)
        pending += fresh
    return list(dict.fromkeys(found))


def parent_classes(snapshot: Snapshot, symbol: Symbol) -> list[Symbol]:
    """The classes of the workspace that `symbol` names as its bases."""
    facts = snapshot.files[symbol.path]
    return [parent for base in symbol.bases for parent in _base_classes(snapshot, facts, base)]


def _base_classes(snapshot: Snapshot, facts: Facts, base: str) -> list[Symbol]:
    named = _classes(snapshot, base.rpartition(".")[2])
    return [candidate for candidate in named if _may_be(snapshot, candidate, facts=facts, base=base)]


def _may_be(snapshot: Snapshot, candidate: Symbol, *, facts: Facts, base: str) -> bool:
    """Whether `base`, written in the file of `facts`, can name `candidate`.

    An imported name can be a re-export, so it is enough that the module it comes from encloses the candidate's.
    """
    source = base.split(".")[:-1]
    if not source:
        return candidate.path == facts.path or facts.has_star
    if candidate.path == facts.path and candidate.name.endswith(base):
        return True
    return _contains(_full_name(snapshot, candidate)[:-1], source)


def _contains(parts: list[str], run: list[str]) -> bool:
    width = len(run)
    return any(parts[start : start + width] == run for start in range(len(parts) - width + 1))


def heirs(snapshot: Snapshot, name: str) -> tuple[list[Symbol], list[Symbol]]:
    """Classes that name `name` as a base, and those that inherit through them; each sorted by path and line."""
    direct = _direct_heirs(snapshot, name)
    reached = set(direct)
    children = _children(snapshot)
    pending = list(direct)
    while pending:
        parent = pending.pop()
        for child in children.get(parent.last_name, ()):
            if child not in reached and parent in parent_classes(snapshot, child):
                reached.add(child)
                pending.append(child)
    return _in_order(direct), _in_order(reached.difference(direct))


def _direct_heirs(snapshot: Snapshot, name: str) -> list[Symbol]:
    last = name.rpartition(".")[2]
    matching = [
        (symbol, [base for base in symbol.bases if base.rpartition(".")[2] == last]) for symbol in snapshot.classes
    ]
    named = [(symbol, bases) for symbol, bases in matching if bases]
    if "." in name and (exact := [s for s, bases in named if any(f".{b}".endswith(f".{name}") for b in bases)]):
        return exact
    return [symbol for symbol, _ in named]


def _children(snapshot: Snapshot) -> dict[str, list[Symbol]]:
    children: dict[str, list[Symbol]] = {}
    for symbol in snapshot.classes:
        for base in symbol.bases:
            children.setdefault(base.rpartition(".")[2], []).append(symbol)
    return children


def _in_order(symbols: Iterable[Symbol]) -> list[Symbol]:
    return sorted(symbols, key=lambda symbol: (symbol.path, symbol.line))


def respelled(name: str, snapshot: Snapshot, *, others: Iterable[str] = ()) -> str:
    """The one known name that differs from an unknown one in upper and lower case only; "" if there is none.

    People type names in lower case, and small models change the first letter while copying. `others` are names known
    besides the definitions.
    """
    head, dot, last = name.rpartition(".")
    others = set(others)
    if last in snapshot.by_name or last in others:
        return ""
    same = {other for other in (*snapshot.by_name, *others) if other.casefold() == last.casefold()}
    return f"{head}{dot}{same.pop()}" if len(same) == 1 else ""


def case_note(name: str) -> str:
    """The line that says that a name was found by ignoring case."""
    return f"(there is no {clip(name)}: this is the name that differs in upper and lower case only)"


def nearest_line(name: str, names: Iterable[str]) -> list[str]:
    """`Nearest names: ...`, or nothing."""
    near = [other for other in nearest(name.rpartition(".")[2], names) if other != name]
    return [f"Nearest names: {', '.join(near)}"] if near else []
