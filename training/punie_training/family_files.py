"""Questions about files: read, outline, list; and what to do when a path is wrong."""

import re
from collections.abc import Iterator
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


# --- read ----------------------------------------------------------------------------------------------------------


def read(subject: Subject) -> Iterator[Turn]:
    """Show a file or a part of it."""
    for path in subject.shuffled(text_files(subject)):
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


def text_files(subject: Subject) -> list[str]:
    """Every file with text in it."""
    return [p for p in subject.oracle.files if subject.oracle.lines(p) and not p.endswith(".typed")]


def line_count(subject: Subject) -> Iterator[Turn]:
    """How many lines a file has: the header of read_file says it."""
    for path in subject.shuffled(text_files(subject)):
        total = len(subject.oracle.lines(path))
        template, question = subject.voice.put("command_lines", p=path)
        step = Step("read_file", {"path": path, "start": 1, "end": 1})
        answer = f"{path} has {several(total, 'line', 'lines')}."
        yield Turn(template, question, (step,), answer, Expect("words", says=(several(total, "line", "lines"),)), path)


def outline(subject: Subject) -> Iterator[Turn]:
    """What a module defines at its top level."""
    for path in subject.shuffled([p for p in subject.oracle.trees if subject.oracle.lines(p)]):
        found = subject.oracle.matching(re.compile(OUTLINE), paths=(path,))
        if found != subject.oracle.top_level(path):
            continue  # definitions below an `if`, or a docstring that reads like one: the search would mislead
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
    for path in subject.shuffled(text_files(subject)):
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
