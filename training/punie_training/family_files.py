"""Questions about files and their text: read, outline, list, search; and what to do when a path is wrong."""

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from punie_training.family_symbols import LONGEST_RESULT, MOST_ITEMS, numbered
from punie_training.tasks import Expect, Step, Subject, Turn, several, with_result

OUTLINE = "^(class|def|async def) "
LONGEST_READ = 800
KINDS = {
    "Python": "*.py",
    "python": "*.py",
    "test": "test_*.py",
    "markdown": "*.md",
    "Markdown": "*.md",
    "reStructuredText": "*.rst",
    "rst": "*.rst",
    "TOML": "*.toml",
    "JSON": "*.json",
    "text": "*.txt",
    "txt": "*.txt",
    "pyi": "*.pyi",
    ".py": "*.py",
    ".md": "*.md",
    "__init__.py": "__init__.py",
    "__main__.py": "__main__.py",
    "README": "README*",
    "YAML": "*.yml",
    "C": "*.c",
    "JavaScript": "*.js",
    "conftest.py": "conftest.py",
    "config": "*config*",
}
ABSENT_MODULES = (
    *("numpy", "pandas", "django", "sqlalchemy", "redis", "boto3", "yaml"),
    *("toml", "tkinter", "sqlite3", "smtplib", "curses", "telnetlib"),
)
NOTES = ("TODO", "FIXME", "XXX", "NOTE", "HACK")


# --- read ----------------------------------------------------------------------------------------------------------


def read(subject: Subject) -> Iterator[Turn]:
    """Show a file or a part of it."""
    for path in subject.shuffled(_text_files(subject)):
        size = len(subject.oracle.lines(path))
        kind = subject.rng.choice(
            ("read_file", "read_file", "read_file", "read_range", "read_range", "read_line", "read_first")
        )
        if kind == "read_file" and size <= LONGEST_READ:
            yield _read(subject, kind, path)
        elif kind != "read_file" and size > 8:
            start, end = _range(subject, kind, size)
            if kind != "read_line" or subject.oracle.lines(path)[start - 1].strip():
                yield _read(subject, kind, path, start=start, end=end)


def _range(subject: Subject, kind: str, size: int) -> tuple[int, int]:
    rng = subject.rng
    if kind == "read_first":
        return 1, min(rng.choice((3, 5, 8, 10, 12, 15, 20, 25, 30, 40, 50)), size)
    start = rng.randint(1, size - 2)
    return (start, start) if kind == "read_line" else (start, min(size, start + rng.randint(1, 40)))


def _read(subject: Subject, kind: str, path: str, *, start: int = 1, end: int | None = None) -> Turn:
    template, question = subject.voice.put(kind, p=path, a=start, b=end or "")
    arguments = {"path": path} if end is None else {"path": path, "start": start, "end": end}
    last = min(len(subject.oracle.lines(path)), LONGEST_RESULT) if end is None else end
    answer = with_result(reading(path, start=start, end=end))
    return Turn(template, question, (Step("read_file", arguments),), answer, numbered(subject, path, start, last), path)


def reading(path: str, *, start: int, end: int | None) -> str:
    """Name what is shown."""
    if end is None:
        return f"Here is {path}"
    return f"Line {start} of {path}" if start == end else f"Lines {start} to {end} of {path}"


def _text_files(subject: Subject) -> list[str]:
    return [p for p in subject.oracle.files if subject.oracle.lines(p) and not p.endswith(".typed")]


def line_count(subject: Subject) -> Iterator[Turn]:
    """How many lines a file has: the header of read_file says it."""
    for path in subject.shuffled(_text_files(subject)):
        total = len(subject.oracle.lines(path))
        template, question = subject.voice.put("command_lines", p=path)
        step = Step("read_file", {"path": path, "start": 1, "end": 1})
        answer = f"{path} has {several(total, 'line', 'lines')}."
        yield Turn(template, question, (step,), answer, Expect("words", says=(several(total, "line", "lines"),)), path)


def outline(subject: Subject) -> Iterator[Turn]:
    """What a module defines at its top level."""
    for path in subject.shuffled([p for p in subject.oracle.trees if subject.oracle.lines(p)]):
        found = subject.oracle.matching(re.compile(OUTLINE), paths=(path,))
        template, question = subject.voice.put("outline", p=path)
        step = Step("search", {"pattern": OUTLINE, "glob": path})
        if len(found) <= MOST_ITEMS and (found or subject.rng.random() < 0.3):
            answer = with_result(f"{path} defines") if found else f"{path} defines no classes or functions."
            expect = Expect("places", tuple(sorted(found))) if found else Expect("nothing")
            yield Turn(template, question, (step,), answer, expect, path)


# --- a path that is wrong ------------------------------------------------------------------------------------------


def recovery(subject: Subject) -> Iterator[Turn]:
    """Read a file by a wrong path: the tool names the nearest, the second call reads it."""
    names = [PurePosixPath(p).name for p in subject.oracle.files]
    for path in subject.shuffled(_text_files(subject)):
        pure = PurePosixPath(path)
        if names.count(pure.name) > 1 or len(pure.parts) < 2 or len(subject.oracle.lines(path)) < 12:
            continue
        wrong = subject.rng.choice(_wrong_paths(pure))
        if wrong not in subject.oracle.files:
            yield _recovered(subject, wrong, path)


def _wrong_paths(path: PurePosixPath) -> list[str]:
    doubled = path.stem[:-1] + path.suffix if len(path.stem) > 4 else "x" + path.name
    return [path.name, path.name, "/".join(path.parts[1:]), f"lib/{path.name}", (path.parent / doubled).as_posix()]


def _recovered(subject: Subject, wrong: str, path: str) -> Turn:
    size = len(subject.oracle.lines(path))
    kind = subject.rng.choice(("read_range", "read_first", "read_line"))
    start, end = _range(subject, kind, size)
    while not subject.oracle.lines(path)[start - 1].strip():
        start, end = _range(subject, kind, size)
    template, question = subject.voice.put(kind, p=wrong, a=start, b=end)
    steps = tuple(Step("read_file", {"path": p, "start": start, "end": end}) for p in (wrong, path))
    answer = with_result(reading(path, start=start, end=end))
    return Turn(template, question, steps, answer, numbered(subject, path, start, end), path)


# --- list ----------------------------------------------------------------------------------------------------------


def list_files(subject: Subject) -> Iterator[Turn]:
    """Which files there are, by kind, by directory, by name."""
    turns = [*_kinds(subject), *_directories(subject), *_file_names(subject), *_everything(subject)]
    yield from subject.shuffled(turns)


def _files(subject: Subject, glob: str) -> tuple[str, ...]:
    pattern = glob_pattern(glob)
    return tuple(p for p in subject.oracle.files if pattern.fullmatch(p))


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Translate the globs used here: a directory, a name at any depth, `**/` any directories, `*` within one name."""
    if "*" not in glob:
        return re.compile(rf"(?:.*/)?{re.escape(glob)}(?:/.*)?" if "/" not in glob else rf"{re.escape(glob)}(?:/.*)?")
    known = {"**/": "(?:.*/)?", "*": "[^/]*"}
    body = "".join(known.get(p, re.escape(p)) for p in re.split(r"(\*\*/|\*)", glob))
    return re.compile(body if "/" in glob else f"(?:.*/)?{body}")


def _listed(subject: Subject, wording: tuple[str, str], glob: str, *, head: str, none: str) -> Turn:
    found = _files(subject, glob)
    template, question = wording
    answer = with_result(head) if found else none
    expect = Expect("paths", found) if found else Expect("nothing")
    return Turn(template, question, (Step("list_files", {"glob": glob}),), answer, expect, glob)


def _kinds(subject: Subject) -> Iterator[Turn]:
    for kind, glob in KINDS.items():
        total = len(_files(subject, glob))
        if total <= MOST_ITEMS and (total or subject.rng.random() < 0.25):
            head = (
                _found(total)
                if kind.endswith(".py") and kind != ".py"
                else several(total, f"{kind} file", f"{kind} files")
            )
            wording = subject.voice.put("list_kind", k=kind)
            yield _listed(subject, wording, glob, head=head, none=f"There are no {kind} files.")


def _directories(subject: Subject) -> Iterator[Turn]:
    folders = {str(parent) for p in subject.oracle.files for parent in PurePosixPath(p).parents if str(parent) != "."}
    for folder in subject.shuffled(sorted(folders)):
        python = subject.rng.random() < 0.5
        glob = f"{folder}/**/*.py" if python else folder
        total = len(_files(subject, glob))
        wording = subject.voice.put(
            "list_dir_python" if python else "list_dir", d=folder + subject.rng.choice(("", "/"))
        )
        word = "Python file" if python else "file"
        if 0 < total <= MOST_ITEMS:
            yield _listed(subject, wording, glob, head=f"{several(total, word, word + 's')} in {folder}", none="")


def _file_names(subject: Subject) -> Iterator[Turn]:
    names = sorted({PurePosixPath(p).name for p in subject.oracle.files})
    for name in subject.rng.sample(names, min(len(names), 14)):
        glob = name
        wording = subject.voice.put("find_file", f=name)
        yield _listed(subject, wording, glob, head=_found(len(_files(subject, glob))), none="")
    words = sorted({w for n in names for w in re.findall(r"[a-z]{4,}", n)})
    for word in subject.rng.sample(words, min(len(words), 14)):
        glob = f"*{word}*"
        wording = subject.voice.put("find_file_like", w=subject.rng.choice((word, f'"{word}"', f"`{word}`")))
        yield _listed(subject, wording, glob, head=_found(len(_files(subject, glob))), none="")


def _found(total: int) -> str:
    return f"{several(total, 'file', 'files')} found"


def _everything(subject: Subject) -> Iterator[Turn]:
    total = len(subject.oracle.files)
    if total <= MOST_ITEMS:
        for _ in range(3):
            template, question = subject.voice.put("list_all")
            expect = Expect("paths", subject.oracle.files)
            yield Turn(
                template, question, (Step("list_files", {}),), with_result(several(total, "file", "files")), expect
            )


def count_files(subject: Subject) -> Iterator[Turn]:
    """How many files of a kind there are."""
    for kind, glob in subject.shuffled(list(KINDS.items())):
        total = len(_files(subject, glob))
        if total or subject.rng.random() < 0.2:
            template, question = subject.voice.put("count_files", k=kind)
            answer = f"{several(total, f'{kind} file', f'{kind} files')}." if total else f"There are no {kind} files."
            step = Step("list_files", {"glob": glob})
            yield Turn(template, question, (step,), answer, Expect("count", total=total), glob)


def no_file(subject: Subject) -> Iterator[Turn]:
    """Files that do not exist."""
    names = [f"{n.lower()}{suffix}" for n in subject.strangers[:40] for suffix in (".py", ".md", ".toml")]
    taken = {PurePosixPath(p).name for p in subject.oracle.files}
    for name in subject.rng.sample(names, min(12, len(names))):
        if name not in taken:
            wording = subject.voice.put("find_file", f=name)
            yield _listed(subject, wording, name, head="", none=f"There is no file called {name}.")


# --- search --------------------------------------------------------------------------------------------------------


def search(subject: Subject) -> Iterator[Turn]:
    """Where a text stands: messages, comments, imports, decorators, notes."""
    streams = [_texts(subject), _texts(subject), _errors(subject), _imports(subject), _notes(subject), _marks(subject)]
    while streams:
        stream = subject.rng.choice(streams)
        turn = next(stream, None)
        if turn is None:
            streams.remove(stream)
        else:
            yield turn


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
    for path in subject.shuffled(_text_files(subject)):
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
        yield from searched(subject, "search_decorator", f"@{mark}", m=mark)


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
