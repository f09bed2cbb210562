"""Whether an answer is what the second method comes to.

What is looked for is taken from the calls and must stand in the question; the results of the calls are not looked at.
"""

import hashlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from punie_training.second.project import Project
from punie_training.second.source import Definition, dotted

_KIND_WORDS = {
    "*.py": r"python|\.py\b",
    "test_*.py": "test",
    "*.md": r"markdown|\.md\b",
    "*.rst": r"restructuredtext|rst",
    "*.toml": "toml",
    "*.json": "json",
    "*.txt": "text|txt",
    "*.pyi": "pyi",
    "README*": "readme",
    "*.yml": "yaml",
    "*.c": r"\bC\b",
    "*.js": "javascript",
    "*config*": "config",
}
_ALSO = {"test_*.py": "*_test.py", "*.yml": "*.yaml", "*.c": "*.h"}
"""What people count as of the same kind though the glob does not find it."""


_NONE = re.compile(r"No |There (is|are) no |\S+ is not |\S+ defines no ")


class Doubt(Exception):  # noqa: N818 - says what was found
    """The answer is not what this method comes to; the text says why."""


class Unknown(Exception):  # noqa: N818 - as above
    """There is no second method for such a question."""


@dataclass
class Turn:
    """One question, what was called for it, and the answer with result lines in place."""

    question: str
    calls: list[tuple[str, dict[str, object]]]
    answer: str
    before: "Turn | None" = None
    file: tuple[str, ...] = ()
    """The path and hash of a file as it must be in the end."""

    @property
    def head(self) -> str:
        """The first line of the answer."""
        return self.answer.split("\n")[0]

    @property
    def places(self) -> list[str]:
        """The `path:line` that each further line begins with."""
        found = (re.match(r"\s*(\S+?):(\d+)", line) for line in self.answer.split("\n")[1:])
        return [f"{m[1]}:{m[2]}" for m in found if m]

    @property
    def talk(self) -> str:
        """All that the user has said so far."""
        return (self.before.talk + "\n" if self.before else "") + self.question


def judge(here: Project, turn: Turn) -> str:
    """Say how the answer was confirmed. Raises Doubt, or Unknown."""
    if not turn.calls:
        return _from_context(turn)
    name, arguments = turn.calls[-1]
    text = {k: str(v) for k, v in arguments.items() if v is not None}
    for key in ("name", "content", "old", "new"):
        if key in text and text[key] not in turn.talk:
            raise Doubt(f"{key} {text[key]!r} stands in no question")
    match name:
        case "find_subclasses":
            return _listed(turn, here.subclasses(text["name"]), of="class statements")
        case "find_references":
            return _used(here, turn, text["name"].rpartition(".")[2])
        case "find_symbol":
            return _symbol(here, turn, text["name"])
        case "read_file":
            return _read(here, turn, text)
        case "search":
            return _searched(here, turn, text["pattern"], text.get("glob", ""))
        case "list_files":
            return _files(here, turn, text.get("glob", ""))
        case "run_command":
            return _ran(here, turn, text["command"])
        case "edit_file":
            return _edited(here, turn, text)
        case "write_file":
            return _hashed(text["path"], text["content"], turn)
        case _:
            raise Unknown(f"no second method for {name}")


def _from_context(turn: Turn) -> str:
    if turn.before is None or not turn.before.calls:
        raise Unknown("a general question")
    known = turn.before.places
    if number := re.match(r"\d+", turn.answer):
        return _same({number[0]}, {str(len(known))}, "places shown before")
    if first := re.fullmatch(r"The first one is (\S+)\.", turn.answer):
        return _same({first[1]}, {min(known, key=_order)}, "the first place by path and line")
    if turn.answer == "You're welcome.":
        return "thanks"
    raise Unknown("a general question")


def _order(place: str) -> tuple[str, int]:
    path, _, line = place.rpartition(":")
    return path, int(line)


def _same(said: set[str], found: set[str], of: str, *, perhaps: set[str] | None = None) -> str:
    missing, extra = found - said, said - found - (perhaps or set())
    if missing or extra:
        raise Doubt(f"by {of}: missing {sorted(missing)[:5]}, too much {sorted(extra)[:5]}")
    return f"{len(found)} by {of}"


def _listed(turn: Turn, found: set[str], *, of: str, perhaps: set[str] | None = None) -> str:
    """A list of places, a number of them, or a no; a number before a list must be that of the list."""
    number = re.match(r"(\d+) ", turn.head)
    if turn.places:
        if number and int(number[1]) != len(turn.places):
            raise Doubt(f"says {number[1]} and shows {len(turn.places)}")
        return _same(set(turn.places), found, of, perhaps=perhaps)
    said = int(number[1]) if number else 0 if _NONE.match(turn.head) else -1
    if not len(found) <= said <= len(found | (perhaps or set())):
        raise Doubt(f"by {of}: {len(found)} {sorted(found)[:5]}, answered {turn.head!r}")
    return f"{said} by {of}"


def _used(here: Project, turn: Turn, name: str) -> str:
    sure, perhaps = here.uses(name)
    shown = _listed(turn, sure, perhaps=perhaps, of="tokens")
    if re.search(r"\b(call(s|ed|ers?|ing)?|invoke[sd]?|invocations?)\b", turn.question, re.IGNORECASE):
        called = here.grep(rf"(^|[^A-Za-z0-9_]){name} *\(", literal=False)
        if other := sure - called:
            raise Doubt(f"asked for calls, and {sorted(other)[:5]} of {len(sure)} hold none")
    return shown


def _symbol(here: Project, turn: Turn, name: str) -> str:
    found = here.defined(name)
    if not found or not turn.places:
        return _listed(turn, {d.place for d in found}, of="def, class and assignment tokens")
    shown = _same(set(turn.places), {d.place for d in found}, "def, class and assignment tokens")
    head, one = turn.head, found[0]
    facts = (
        (r"It returns (.+):", [one.returns]),
        (r"(\S+) has no return annotation", [name] if not one.returns else []),
        (r"Its decorators? (?:is|are) (.+):", [", ".join(_mark(d) for d in one.decorators)]),
        (r"(\S+) has no decorators", [name] if not one.decorators else []),
        (r"\S+ inherits from (.+):", [", ".join(_bases(one))]),
        (r"(\S+) has no base class", [name] if not _bases(one) else []),
        (r"Yes, (\S+) is async", [name] if one.is_async else []),
        (r"No, (\S+) is not async", [name] if not one.is_async else []),
    )
    for pattern, wanted in facts:
        if said := re.match(pattern, head):
            if [_plain(said[1])] != [_plain(w) for w in wanted]:
                raise Doubt(f"{head!r}, but the tokens say {wanted}")
            return f"{shown}, and {said[1]}"
    if "signature" in head:
        return f"{shown}, {_signature(turn, one)}"
    if default := re.match(r"The default of (\S+) is (.+):|(\S+) has no default", head):
        return f"{shown}, {_default(turn, one, default[1] or default[3], default[2] or '')}"
    if not re.search(r"is defined here|definitions? of", head):
        raise Unknown(f"no second method for {head!r}")
    return shown


def _plain(text: str) -> str:
    return re.sub(r"\s|,(?=[)\]}]|$)", "", text).replace('"', "'")


def _mark(decorator: str) -> str:
    return f"@{_plain(decorator.split('(')[0])}" + "(...)" * ("(" in decorator)


def _bases(one: Definition) -> list[str]:
    return [item for item in one.items if not re.match(r"\w+ = |\*\*", item)] if one.kind == "class" else []


def _signature(turn: Turn, one: Definition) -> str:
    line = _plain(turn.answer)
    missing = [item for item in one.items if _plain(item) not in line]
    names = [item for item in missing if not re.search(rf"\b{re.escape(item.split()[0].lstrip('*'))}\b", turn.answer)]
    if names:
        raise Doubt(f"the signature lacks {names}")
    return f"{len(one.items)} parameters"


def _default(turn: Turn, one: Definition, parameter: str, value: str) -> str:
    if parameter not in turn.question:
        raise Doubt(f"the question does not name {parameter}")
    for item in one.items:
        said = re.fullmatch(rf"{re.escape(parameter)}(?: : .+?)?(?: = (.+))?", item)
        if said:
            if _plain(said[1] or "") != _plain(value):
                raise Doubt(f"{item!r} in the tokens")
            return item
    raise Doubt(f"no parameter {parameter} in {one.items}")


def _read(here: Project, turn: Turn, text: dict[str, str]) -> str:
    path = text["path"]
    if not (here.root / path).is_file():
        raise Doubt(f"{path} is no file")
    data = (here.root / path).read_bytes()
    total = int(here.output("wc", "-l", path)[0].split()[0]) + (not data.endswith(b"\n"))
    if said := re.fullmatch(r"(\S+) has (\d+) lines?\.", turn.answer):
        return _same({said[2]}, {str(total)}, "wc -l")
    start, end = int(text.get("start", 1)), int(text.get("end", total))
    found = (re.match(r"    (\d+)(?:\t(.*))?$", line) for line in turn.answer.split("\n")[1:])
    shown = {int(m[1]): m[2] or "" for m in found if m}
    last = max(shown, default=0)
    if last != min(end, total) and "more; read on" not in turn.answer:
        raise Doubt(f"ends at {last}, the question and the file at {min(end, total)}")
    lines = here.output("sed", "-n", f"{start},{last}p", path)
    wanted = {n: line.rstrip() for n, line in enumerate(lines, start=start)}
    if {n: line.rstrip() for n, line in shown.items()} != wanted:
        raise Doubt("the lines differ from those of sed")
    return f"{len(wanted)} lines by sed{_meant(here, turn, start=start, end=end, whole='end' not in text)}"


def _meant(here: Project, turn: Turn, *, start: int, end: int, whole: bool) -> str:
    """Whether the lines are those asked for: by numbers, or as the code of a name."""
    path = str(turn.calls[0][1].get("path", ""))
    before = turn.calls[:-1] or (turn.before.calls if turn.before else [])
    name = next((str(a["name"]) for tool, a in before if tool == "find_symbol"), "")
    if name:
        extents = [(d.line, d.end) for d in here.defined(name)]
        if (start, end) not in extents:
            raise Doubt(f"{name} reaches over {extents}, shown are {start}-{end}")
        return f", the extent of {name}"
    if path not in turn.talk:
        raise Doubt(f"{path} stands in no question")
    numbers = {int(n) for n in re.findall(r"\d+", turn.question.replace(path, ""))}
    if not whole and not {start, end} - {1} <= numbers:
        raise Doubt(f"the question names {sorted(numbers)}, shown are {start}-{end}")
    return ""


def _searched(here: Project, turn: Turn, pattern: str, glob: str) -> str:
    if glob and glob not in turn.talk:
        raise Doubt(f"{glob} stands in no question")
    if pattern.startswith("^(class|def"):
        return _outline(here, turn, glob)
    if imported := re.fullmatch(r"\(import\|from\) (\S+)", pattern):
        module = imported[1]
        found = {
            f"{s.path}:{line}" for s in here.sources for m, _, _, line in s.imports if re.match(rf"{module}(\.|$)", m)
        }
        return _listed(turn, found, of="import statements")
    if pattern not in turn.talk and pattern.removeprefix("@") not in turn.talk:
        raise Doubt(f"{pattern!r} stands in no question")
    if pattern in {"TODO", "FIXME", "XXX", "NOTE", "HACK"}:
        return _listed(turn, here.grep(pattern, "-w"), of="grep -Fw")
    if re.fullmatch(r"@[\w.]+", pattern) and not glob:
        wanted = pattern.removeprefix("@")
        found = {
            f"{s.path}:{items[0].start[0]}"
            for s in here.sources
            for items, _ in s.statements
            if items[0].string == "@" and dotted(items[1:]) == wanted
        }
        return _listed(turn, found, of="decorator statements")
    return _listed(turn, here.grep(pattern, path=glob), of="grep -F")


_KINDS = {"class": r"\bclass(es)?\b", "function": r"\b(function|func|def)s?\b"}


def _outline(here: Project, turn: Turn, path: str) -> str:
    made = [d for s in here.sources if s.path == path for d in s.definitions if "." not in d.qualname]
    asked = turn.question.lower().replace(path.lower(), "")
    named = [kind for kind, words in _KINDS.items() if re.search(words, asked)]
    if len(named) == 1 and any(d.kind in _KINDS and d.kind != named[0] for d in made):
        raise Doubt(f"asked for a {named[0]} only, and something else is among what is shown")
    return _listed(turn, {d.place for d in made if d.kind != "constant"}, of="top-level class and def tokens")


def _files(here: Project, turn: Turn, glob: str) -> str:
    said = {line.strip() for line in turn.answer.split("\n")[1:] if line.strip()}
    found = _found(here, turn, glob)
    number = re.match(r"(\d+) ", turn.head)
    if not said:
        count = int(number[1]) if number else 0
        return _same({str(count)}, {str(len(found))}, "find")
    if number and int(number[1]) != len(said):
        raise Doubt(f"says {number[1]} and shows {len(said)}")
    return _same(said, found, "find")


def _found(here: Project, turn: Turn, glob: str) -> set[str]:
    if not glob:
        return here.find()
    if glob.startswith("*") and glob.endswith("*") and glob not in _KIND_WORDS:
        word = glob.strip("*")
    elif glob in _KIND_WORDS:
        if not re.search(_KIND_WORDS[glob], turn.question, re.IGNORECASE):
            raise Doubt(f"the question does not ask for {glob}")
        also = here.find("-name", _ALSO[glob]) if glob in _ALSO else set[str]()
        return here.find("-name", glob) | also
    else:
        word = glob.removesuffix("/**/*.py")
    if word not in turn.talk:
        raise Doubt(f"{word!r} stands in no question")
    if glob.endswith("/**/*.py"):
        return here.find("-name", "*.py", folder=word)
    if (here.root / glob).is_dir():
        return here.find(folder=glob)
    return here.find("-name", glob)


def _ran(here: Project, turn: Turn, command: str) -> str:
    if command not in turn.question and not command.startswith("python "):
        raise Doubt(f"{command!r} stands in no question")
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, here.root.name)
        shutil.copytree(here.root, copy)
        done = subprocess.run(command, shell=True, cwd=copy, capture_output=True, text=True, check=False)  # noqa: S602
    code = re.search(r"exit code (\d+)", turn.head)
    _same({code[1] if code else "0"}, {str(done.returncode)}, "the exit code")
    if "pytest" in command:
        return f"exit code {done.returncode} again; the output holds a duration"
    lines = {line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()}
    return _same({line.strip() for line in turn.answer.split("\n")[1:] if line.strip()}, lines, "a second run")


def _edited(here: Project, turn: Turn, text: dict[str, str]) -> str:
    before = (here.root / text["path"]).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    if before.count(text["old"]) != 1:
        raise Doubt(f"{text['old']!r} stands {before.count(text['old'])} times in {text['path']}")
    start, _, rest = before.partition(text["old"])
    return _hashed(text["path"], start + text["new"] + rest, turn)


def _hashed(path: str, content: str, turn: Turn) -> str:
    if path not in turn.question or path not in turn.head:
        raise Doubt(f"{path} is not in question and answer")
    digest = hashlib.sha256(content.rstrip("\n").encode()).hexdigest()
    if not turn.file:
        raise Unknown("the row does not keep what the file must hold")
    _same(set(turn.file), {path, digest}, "the file made anew")
    return "the file made anew"
