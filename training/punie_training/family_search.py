"""Questions about the text of files: messages, comments, imports, decorators, notes; and texts that stand nowhere."""

import ast
import re
import warnings
from collections.abc import Iterator, Sequence

from punie_training.family_files import text_files
from punie_training.family_symbols import MOST_ITEMS
from punie_training.tasks import Expect, Step, Subject, Turn, several, with_result

ABSENT_MODULES = (
    *("numpy", "pandas", "django", "sqlalchemy", "redis", "boto3", "yaml"),
    *("toml", "tkinter", "sqlite3", "smtplib", "curses", "telnetlib"),
)
NOTES = ("TODO", "FIXME", "XXX", "NOTE", "HACK")


def search(subject: Subject) -> Iterator[Turn]:
    """Where a text stands: messages, comments, imports, decorators, notes."""
    streams = [_texts(subject), _texts(subject), _errors(subject), _imports(subject), _notes(subject), _marks(subject)]
    yield from subject.dealt(streams)


def _texts(subject: Subject) -> Iterator[Turn]:
    for path, line in _some_lines(subject):
        text = _phrase_of(subject, line)
        if not text:
            continue
        if subject.rng.random() < 0.3:
            yield from searched(subject, "search_in", text, path=path)
        else:
            yield from searched(subject, "search", text)


def _some_lines(subject: Subject) -> Iterator[tuple[str, str]]:
    for path in subject.shuffled(text_files(subject)):
        lines = [line for line in subject.oracle.lines(path) if 12 < len(line.strip()) <= 120]
        for line in subject.rng.sample(lines, min(2, len(lines))):
            yield path, line.strip()


def _phrase_of(subject: Subject, line: str) -> str:
    """Return a few whole words of a line, or all of it."""
    words = line.split(" ")
    size = subject.rng.randint(1, 5)
    first = subject.rng.randint(0, max(0, len(words) - size))
    text = " ".join(words[first : first + size]).strip("\"',:;.()[]{}#*`\\ ")
    return text if 5 <= len(text) <= 50 and '"' not in text and text.isprintable() and text.isascii() else ""


def _errors(subject: Subject) -> Iterator[Turn]:
    texts = [
        text
        for tree in subject.oracle.trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        for text in _strings(node)
    ]
    for text in subject.shuffled(sorted(set(texts))):
        yield from searched(subject, "search_error", text)


def _strings(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            text = child.value.strip()
            if 8 <= len(text) <= 60 and " " in text and '"' not in text and text.isprintable() and text.isascii():
                yield text


def _imports(subject: Subject) -> Iterator[Turn]:
    """Imports of a whole module, in both forms."""
    imported: dict[str, set[str]] = {}
    for path, tree in subject.oracle.trees.items():
        for module, line in _imported_modules(tree):
            imported.setdefault(module, set()).add(f"{path}:{line}")
    for module in subject.shuffled(sorted(imported)):
        pattern = f"(import|from) {module}"
        if len(imported[module]) <= MOST_ITEMS and subject.oracle.matching(re.compile(pattern)) == imported[module]:
            template, question = subject.voice.put("search_import", m=subject.voice.name(module))
            expect = Expect("places", tuple(sorted(imported[module])))
            step = Step("search", {"pattern": pattern})
            yield Turn(template, question, (step,), with_result(f"{module} is imported here"), expect, module)


def _imported_modules(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


def _notes(subject: Subject) -> Iterator[Turn]:
    for note in subject.shuffled(NOTES):
        yield from searched(subject, "search_todo", note)


def _marks(subject: Subject) -> Iterator[Turn]:
    marks = {m for d in subject.oracle.definitions for m in d.decorators if "(" not in m and len(m) <= 40}
    for mark in subject.shuffled(sorted(marks)):
        if subject.oracle.matches(f"@{mark}") == _decorated(subject, mark):
            yield from searched(subject, "search_decorator", f"@{mark}", m=mark)


def _decorated(subject: Subject, mark: str) -> frozenset[str]:
    """Lines that decorate with this name, with arguments or without."""
    return frozenset(
        f"{place.rpartition(':')[0]}:{decorator.lineno}"
        for place, node in subject.oracle.nodes.items()
        for decorator in node.decorator_list
        if ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator) == mark
    )


def searched(subject: Subject, kind: str, text: str, *, path: str | None = None, m: str = "") -> Iterator[Turn]:
    """Yield one search if reading the text as a pattern changes nothing."""
    paths = (path,) if path else None
    found = subject.oracle.matches(text, paths=paths)
    if len(found) > MOST_ITEMS or not _means_itself(subject, text, paths):
        return
    template, question = subject.voice.put(kind, t=text, p=path or "", m=m)
    step = Step("search", {"pattern": text, "glob": path} if path else {"pattern": text})
    answer = with_result(matches(len(found), text)) if found else f"No line matches {text}."
    expect = Expect("places", tuple(sorted(found))) if found else Expect("nothing")
    yield Turn(template, question, (step,), answer, expect, text)


def matches(total: int, text: str) -> str:
    """Say how many lines match, as the tool's header does."""
    return f"{several(total, 'match', 'matches')} for {text}"


def _means_itself(subject: Subject, text: str, paths: Sequence[str] | None) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pattern = re.compile(text)
    except re.error:
        return True
    except FutureWarning:  # `[[` may mean something else one day
        return False
    chosen = tuple(paths) if paths else None
    return subject.oracle.matching(pattern, paths=chosen) == subject.oracle.matches(text, paths=chosen)


def count_matches(subject: Subject) -> Iterator[Turn]:
    """How many lines hold a text."""
    for _, line in _some_lines(subject):
        text = _phrase_of(subject, line)
        found = subject.oracle.matches(text) if text else frozenset()
        if found and _means_itself(subject, text, None):
            template, question = subject.voice.put("count_matches", t=text)
            answer = f"{matches(len(found), text)}."
            expect = Expect("count", total=len(found))
            yield Turn(template, question, (Step("search", {"pattern": text}),), answer, expect, text)


def no_match(subject: Subject) -> Iterator[Turn]:
    """Texts that stand nowhere."""
    verbs = ("cannot open", "failed to load", "missing", "unexpected", "please install", "deprecated:")
    for name in subject.shuffled(subject.strangers):
        text = subject.rng.choice((name, f"{subject.rng.choice(verbs)} {name}"))
        if not subject.oracle.matches(text):
            yield from searched(subject, subject.rng.choice(("search", "search_error")), text)


def no_import(subject: Subject) -> Iterator[Turn]:
    """Modules that nothing imports."""
    for module in subject.shuffled(ABSENT_MODULES):
        pattern = f"(import|from) {module}"
        if not subject.oracle.matching(re.compile(pattern)):
            template, question = subject.voice.put("search_import", m=subject.voice.name(module))
            answer = f"{module} is not imported in this project."
            yield Turn(template, question, (Step("search", {"pattern": pattern}),), answer, Expect("nothing"), module)
