"""Questions about classes, functions and names: who defines, inherits, uses; signatures; code."""

import ast
from collections.abc import Iterator, Sequence

from punie_training.oracle import Definition
from punie_training.tasks import Expect, Step, Subject, Turn, several, with_result

MOST_ITEMS = 150
MODULES = {"Protocol": "typing", "NamedTuple": "typing", "TypedDict": "typing", "Enum": "enum", "ABC": "abc"}
LONGEST_CODE = 400
LONGEST_RESULT = 200
LONGEST_SIGNATURE = 130
LONGEST_DEFAULT = 24
SHORTEST_NAME = 3


def find(tool: str, name: str) -> tuple[Step, ...]:
    """Return the one-call plan of the three name tools."""
    return (Step(tool, {"name": name}),)


def places(definitions: Sequence[Definition]) -> Expect:
    """Expect exactly these definitions."""
    return Expect("places", tuple(sorted(d.place for d in definitions)))


# --- who inherits --------------------------------------------------------------------------------------------------


def subclasses(subject: Subject) -> Iterator[Turn]:
    """Which classes inherit from a name; project classes and the standard library's."""
    for name in _bases(subject):
        dotted = f"{MODULES[name]}.{name}" if name in MODULES and subject.rng.random() < 0.2 else name
        yield subclasses_of(subject, dotted)


def subclasses_of(subject: Subject, name: str) -> Turn:
    """Ask about one base class."""
    found = subject.oracle.subclasses(name)
    template, question = subject.voice.put("subclasses", n=subject.voice.name(name))
    head = inherit(len(found), name)
    return Turn(template, question, find("find_subclasses", name), with_result(head), places(found), name)


def inherit(total: int, name: str) -> str:
    """Say how many classes inherit, as the tool's header does."""
    return f"{several(total, 'class inherits', 'classes inherit')} from {name}"


def count_subclasses(subject: Subject) -> Iterator[Turn]:
    """How many classes inherit from a name."""
    for name in _bases(subject):
        total = len(subject.oracle.subclasses(name))
        template, question = subject.voice.put("count_subclasses", n=subject.voice.name(name))
        answer = f"{inherit(total, name)}."
        yield Turn(template, question, find("find_subclasses", name), answer, Expect("count", total=total), name)


def _bases(subject: Subject) -> list[str]:
    names = [n for n in subject.oracle.bases if 0 < len(subject.oracle.subclasses(n)) <= MOST_ITEMS]
    return subject.shuffled([n for n in names if len(n) >= SHORTEST_NAME])


# --- where it is ---------------------------------------------------------------------------------------------------


def definition(subject: Subject) -> Iterator[Turn]:
    """Where a class, function, method or constant is defined."""
    for name in _names(subject):
        found = subject.oracle.by_name[name]
        with_module = len(found) == 1 and found[0].kind != "method" and subject.rng.random() < 0.08
        yield definition_of(subject, name, spelled=f"{_module(found[0].path)}.{name}" if with_module else name)


def _module(path: str) -> str:
    parts = path.removeprefix("src/").removesuffix("i").removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def definition_of(subject: Subject, name: str, *, spelled: str = "") -> Turn:
    """Ask for one name, sometimes by its kind; `spelled` is the name with its module."""
    written = spelled or name
    found = subject.oracle.by_name[name]
    kind = found[0].kind if len({d.kind for d in found}) == 1 else ""
    by_kind = f"definition_{kind}" if kind in {"class", "function"} and subject.rng.random() < 0.2 else "definition"
    template, question = subject.voice.put(by_kind, n=subject.voice.name(written))
    head = f"{written} is defined here" if len(found) == 1 else f"{len(found)} definitions of {written}"
    return Turn(template, question, find("find_symbol", written), with_result(head), places(found), name)


def _names(subject: Subject) -> list[str]:
    """Names worth asking about: each kind, methods mostly with their class, few of the test functions."""
    oracle, rng = subject.oracle, subject.rng
    chosen: set[str] = set()
    for found in oracle.definitions:
        if found.nested or len(found.name) < SHORTEST_NAME:
            continue
        if found.kind == "method" and (rng.random() < 0.75 or found.name.startswith("__")):
            chosen.add(found.qualname)
        elif not found.name.startswith("__") and (not found.name.startswith("test_") or rng.random() < 0.1):
            chosen.add(found.name)
    return subject.shuffled([n for n in sorted(chosen) if len(oracle.by_name[n]) <= 8])


# --- who uses it ---------------------------------------------------------------------------------------------------


def references(subject: Subject) -> Iterator[Turn]:
    """Where a name is used: the project's own and imported ones."""
    for name in _used(subject):
        yield references_of(subject, name)


def references_of(subject: Subject, name: str) -> Turn:
    """Ask for the uses of one name."""
    found = subject.oracle.references(name)
    is_function = name.islower() and all(_is_callable(d) for d in subject.oracle.by_name.get(name, ()))
    only_calls = is_function and not found & subject.oracle.imports(name)
    by_kind = "references_function" if only_calls and subject.rng.random() < 0.5 else "references"
    template, question = subject.voice.put(by_kind, n=subject.voice.name(name))
    expect = Expect("places", tuple(sorted(found)))
    return Turn(template, question, find("find_references", name), with_result(refer(len(found), name)), expect, name)


def _is_callable(found: Definition) -> bool:
    return found.kind in {"function", "method"} and not any("property" in d or "." in d for d in found.decorators)


def refer(total: int, name: str) -> str:
    """Say how many references there are, as the tool's header does."""
    return f"{several(total, 'reference', 'references')} to {name}"


def count_references(subject: Subject) -> Iterator[Turn]:
    """How often a name is used."""
    for name in _used(subject):
        total = len(subject.oracle.references(name))
        template, question = subject.voice.put("count_references", n=subject.voice.name(name))
        answer = f"{refer(total, name)}."
        yield Turn(template, question, find("find_references", name), answer, Expect("count", total=total), name)


def _used(subject: Subject) -> list[str]:
    oracle = subject.oracle
    own = [d.name for d in oracle.definitions if not d.nested and len(d.name) >= SHORTEST_NAME]
    imported = ["Path", "dataclass", "partial", "Protocol", "Iterator", "contextmanager", "TypeVar", "Any", "Callable"]
    names = {n for n in (*own, *imported) if not n.startswith("__")}
    return subject.shuffled([n for n in sorted(names) if 0 < len(oracle.references(n)) <= MOST_ITEMS])


# --- signatures ----------------------------------------------------------------------------------------------------


def arguments(subject: Subject) -> Iterator[Turn]:
    """What a function takes; the signature in the tool's line is the answer."""
    for found in _functions(subject):
        if set(found.parameters) - {"self", "cls"} and "property" not in found.decorators:
            yield _fact(subject, "arguments", found, head="Here is its signature", says=_plain(found.parameters))


def is_async(subject: Subject) -> Iterator[Turn]:
    """Whether a function is async, in equal parts yes and no."""
    yes = [d for d in _functions(subject) if d.is_async]
    no = [d for d in _functions(subject) if not d.is_async]
    for pair in zip(yes, no, strict=False):
        for found in subject.shuffled(pair):
            head = f"Yes, {_asked(found)} is async" if found.is_async else f"No, {_asked(found)} is not async"
            yield _fact(subject, "is_async", found, head=head, says=("Yes" if found.is_async else "No",))


def decorators(subject: Subject) -> Iterator[Turn]:
    """What a function or class is decorated with; one in four has none."""
    found = [d for d in (*_functions(subject), *_classes(subject)) if _is_short(d)]
    with_some = [
        d for d in found if d.decorators and all(len(x.split("(")[0]) <= LONGEST_DEFAULT for x in d.decorators)
    ]
    without = [d for d in found if not d.decorators][: len(with_some) // 3]
    for chosen in subject.shuffled(with_some + without):
        marks = tuple(f"@{d.split('(')[0]}" + "(...)" * ("(" in d) for d in chosen.decorators)
        head = f"Its decorators are {', '.join(marks)}" if len(marks) > 1 else f"Its decorator is {', '.join(marks)}"
        head = head if marks else f"{_asked(chosen)} has no decorators"
        yield _fact(subject, "decorators", chosen, head=head, says=marks or ("no decorators",))


def bases(subject: Subject) -> Iterator[Turn]:
    """What a class inherits from; one in five inherits from nothing."""
    with_some = [d for d in _classes(subject) if d.bases and sum(map(len, _written_bases(subject, d))) <= 60]
    without = [d for d in _classes(subject) if not _written_bases(subject, d)][: len(with_some) // 5]
    for found in subject.shuffled(with_some + without):
        written = _written_bases(subject, found)
        head = (
            f"{_asked(found)} inherits from {', '.join(written)}" if written else f"{_asked(found)} has no base class"
        )
        yield _fact(subject, "bases", found, head=head, says=written or ("no base class",))


def returns(subject: Subject) -> Iterator[Turn]:
    """The return annotation; a few functions have none."""
    found = [(d, _node(subject, d)) for d in _functions(subject)]
    typed = [(d, ast.unparse(n.returns)) for d, n in found if n and n.returns]
    untyped = [(d, "") for d, n in found if n and not n.returns][: len(typed) // 6]
    for chosen, annotation in subject.shuffled([*typed, *untyped]):
        if len(annotation) <= LONGEST_DEFAULT:
            head = f"It returns {annotation}" if annotation else f"{_asked(chosen)} has no return annotation"
            yield _fact(subject, "returns", chosen, head=head, says=(annotation or "no return annotation",))


def default(subject: Subject) -> Iterator[Turn]:
    """The default of one parameter, or that it has none."""
    for found in _functions(subject):
        options = _defaults(subject, found)
        if not any(value for _, value in options):
            continue
        name, value = subject.rng.choice([o for o in options if o[1] or subject.rng.random() < 0.3] or options)
        head = f"The default of {name} is {value}" if value else f"{name} has no default"
        yield _fact(subject, "default", found, head=head, says=(value or "no default",), a=subject.voice.name(name))


def _fact(
    subject: Subject, template: str, found: Definition, *, head: str, says: tuple[str, ...], **values: str
) -> Turn:
    """Ask find_symbol for one definition whose line shows the fact."""
    name = _asked(found)
    wording, question = subject.voice.put(template, n=subject.voice.name(name), **values)
    expect = Expect("places", (found.place,), says=says)
    return Turn(wording, question, find("find_symbol", name), with_result(head), expect, name)


def _asked(found: Definition) -> str:
    return found.qualname if found.kind == "method" else found.name


def _plain(parameters: Sequence[str]) -> tuple[str, ...]:
    return tuple(p.lstrip("*") for p in parameters)


def _is_alone(subject: Subject, found: Definition) -> bool:
    return len(subject.oracle.by_name[_asked(found)]) == 1 and not found.nested and len(found.name) >= SHORTEST_NAME


def _is_short(found: Definition) -> bool:
    return len(found.qualname) <= 60


def _functions(subject: Subject) -> list[Definition]:
    """Functions and methods that one name stands for, with signatures that no tool clips."""
    kinds = {"function", "method"}
    found = [d for d in subject.oracle.definitions if d.kind in kinds and _is_alone(subject, d)]
    return subject.shuffled([d for d in found if _signature_length(subject, d) <= LONGEST_SIGNATURE and _is_short(d)])


def _classes(subject: Subject) -> list[Definition]:
    return subject.shuffled([d for d in subject.oracle.definitions if d.kind == "class" and _is_alone(subject, d)])


def _node(subject: Subject, found: Definition) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    node = subject.oracle.nodes.get(found.place)
    return None if isinstance(node, ast.ClassDef) else node


def _signature_length(subject: Subject, found: Definition) -> int:
    node = _node(subject, found)
    if node is None:
        return LONGEST_SIGNATURE + 1
    marks = sum(len(ast.unparse(d)) + 2 for d in node.decorator_list)
    result = len(ast.unparse(node.returns)) if node.returns else 0
    return marks + len(found.qualname) + len(ast.unparse(node.args)) + result


def _written_bases(subject: Subject, found: Definition) -> tuple[str, ...]:
    node = subject.oracle.nodes[found.place]
    return tuple(ast.unparse(b) for b in node.bases) if isinstance(node, ast.ClassDef) else ()


def _defaults(subject: Subject, found: Definition) -> list[tuple[str, str]]:
    """Return (parameter, default) with "" where it has none; long defaults are left out."""
    node = _node(subject, found)
    if node is None:
        return []
    plain = [*node.args.posonlyargs, *node.args.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(node.args.defaults))
    values = [*missing, *node.args.defaults, *node.args.kw_defaults]
    pairs = zip([*plain, *node.args.kwonlyargs], values, strict=True)
    written = [(a.arg, ast.unparse(v) if v else "") for a, v in pairs if a.arg not in {"self", "cls"}]
    return [(name, value) for name, value in written if len(value) <= LONGEST_DEFAULT]


# --- code ----------------------------------------------------------------------------------------------------------


def two_hop(subject: Subject) -> Iterator[Turn]:
    """The code of a name: find it, then read those lines."""
    kinds = {"function", "method", "class"}
    fit = [d for d in subject.oracle.definitions if d.kind in kinds and _is_short(d) and d.length <= LONGEST_CODE]
    alone = [d for d in fit if _is_alone(subject, d)]
    for found in subject.shuffled(alone):
        name = _asked(found)
        template, question = subject.voice.put("two_hop", n=subject.voice.name(name))
        steps = (*find("find_symbol", name), read_code(found))
        yield Turn(template, question, steps, with_result(f"The code of {name}"), code(subject, found), name)


def read_code(found: Definition) -> Step:
    """Read exactly the lines that find_symbol names: a small model copies well and counts badly."""
    return Step("read_file", {"path": found.path, "start": found.line, "end": found.end})


def code(subject: Subject, found: Definition) -> Expect:
    """Expect those lines, as many as one result holds."""
    return numbered(subject, found.path, found.line, min(found.end, found.line + LONGEST_RESULT - 1))


def numbered(subject: Subject, path: str, start: int, end: int) -> Expect:
    """Expect `number<TAB>text` of a range of lines, as far as the file goes."""
    lines = subject.oracle.lines(path)[start - 1 : end]
    return Expect("lines", tuple(f"{n}\t{line}" for n, line in enumerate(lines, start=start)))


# --- nothing there -------------------------------------------------------------------------------------------------


def no_subclasses(subject: Subject) -> Iterator[Turn]:
    """Classes that nothing inherits from, and names that do not exist."""
    oracle = subject.oracle
    leaves = [d.name for d in oracle.definitions if d.kind == "class" and not oracle.subclasses(d.name)]
    for name in _mixed(subject, leaves, [n for n in subject.strangers if n[0].isupper() and not n.isupper()]):
        if not oracle.subclasses(name):
            yield _nothing(
                subject, "subclasses", name, tool="find_subclasses", answer=f"No class inherits from {name}."
            )


def no_definition(subject: Subject) -> Iterator[Turn]:
    """Names that the project does not define."""
    for name in subject.shuffled(subject.strangers):
        if name not in subject.oracle.by_name:
            answer = f"{name} is not defined in this project."
            yield _nothing(subject, "definition", name, tool="find_symbol", answer=answer)


def no_references(subject: Subject) -> Iterator[Turn]:
    """Names that nothing uses."""
    oracle = subject.oracle
    unused = [d.name for d in oracle.definitions if not oracle.references(d.name) and not d.name.startswith("__")]
    for name in _mixed(subject, unused, subject.strangers):
        if not oracle.references(name):
            answer = f"{name} is not used in this project."
            yield _nothing(subject, "references", name, tool="find_references", answer=answer)


def no_code(subject: Subject) -> Iterator[Turn]:
    """The code or signature of a name that does not exist: one look, then the plain answer."""
    for name in subject.shuffled(subject.strangers):
        if name not in subject.oracle.by_name:
            template = subject.rng.choice(("two_hop", "arguments", "returns"))
            answer = f"{name} is not defined in this project."
            yield _nothing(subject, template, name, tool="find_symbol", answer=answer)


def _nothing(subject: Subject, template: str, name: str, *, tool: str, answer: str) -> Turn:
    wording, question = subject.voice.put(template, n=subject.voice.name(name))
    return Turn(wording, question, find(tool, name), answer, Expect("nothing"), name)


def _mixed(subject: Subject, own: Sequence[str], strange: Sequence[str]) -> list[str]:
    own = [n for n in dict.fromkeys(own) if len(n) >= SHORTEST_NAME]
    strange = list(dict.fromkeys(strange))
    size = min(len(own), len(strange), 20)
    return subject.shuffled(subject.rng.sample(own, size) + subject.rng.sample(strange, size))
