"""Requests that change or run something: commands, replacements, new files. The work is done on a copy."""

import hashlib
import keyword
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from punie_training.corpora import scratch_copy
from punie_training.tasks import Expect, Step, Subject, Turn, with_result

LONGEST_LINE = 48
WORDS = ("value", "result", "item", "target", "source", "data", "options", "entry", "limit", "old_name", "total")
TEXTS = (
    "hello",
    "Hello, world!",
    "print('hello')",
    "# Notes",
    "import sys",
    "build/",
    "TODO: write this",
    "x = 1",
    "name,value",
    "All rights reserved.",
    "flask==3.1.3",
    "*.pyc",
    "def main(): ...",
    "DEBUG = True",
    "See the README.",
    "print(1 + 1)",
    "version: 1",
    "# Changelog",
    "pytest>=9",
    "*.log",
    "1.0.0",
    "from pathlib import Path",
    "[tool]",
    "key = value",
    '{"a": 1}',
    "root = true",
    "def test_nothing(): assert True",
    "node_modules/",
    "print(sum(range(10)))",
    "export LEVEL=3",
    "a,b,c",
    "class Empty: pass",
    "Nothing to see here.",
    "name: ci",
)
FILES = (
    "notes.txt",
    "hello.py",
    "docs/notes.md",
    "scripts/run.py",
    ".gitignore",
    "requirements.txt",
    "TODO.md",
    "data/table.csv",
    "settings.py",
    "CHANGES.md",
    "tests/test_new.py",
    "config/local.toml",
    "example.py",
    "docs/index.md",
    ".env.example",
    ".editorconfig",
    ".dockerignore",
    "Dockerfile",
    "Makefile",
    "NOTICE",
    "setup.cfg",
    "tox.ini",
    "conf/app.yaml",
    "data/items.json",
    "scripts/build.sh",
    "tests/fixtures/empty.txt",
    "docs/guide/start.rst",
    "examples/basic_use.py",
    "tools/check_all.py",
    "CODEOWNERS",
    ".github/workflows/ci.yml",
    "assets/style.css",
    "static/index.html",
    "benchmarks/run_bench.py",
    "requirements-dev.txt",
    "py.typed",
    "VERSION",
    "robots.txt",
)
COMMANDS = (
    "ls",
    "echo hello",
    "echo one two three",
    "ls {d}",
    "wc -l {p}",
    "head -n 3 {p}",
    "tail -n 2 {p}",
    "grep -c import {p}",
    "grep -n class {p}",
    "cat missing.txt",
    "false",
    "true",
    "ls nowhere",
    "find . -name '*.md'",
    "expr 6 '*' 7",
    "basename {p}",
    "grep -rl TODO {d}",
    "sort {p} | head -n 2",
    "test -f {p}",
    "dirname {p}",
    "uname",
    "head -c 60 {p}",
    "mkdir -p build",
    "touch new.txt",
    "cp {p} copy.txt",
    "test -d {d}",
    "grep -q import {p}",
    "echo done > out.txt",
    "rm -f old.txt",
    "python -c 'print(6 * 7)'",
    "grep -c class {p}",
    "cat {p} | head -n 2",
    "wc -c {p}",
    "ls -1 {d}",
    "sh -c 'exit 3'",
    "echo $((2 + 3))",
    "printf 'a\\nb\\n'",
    "seq 3",
    "tail -c 40 {p}",
    "cut -c 1-10 {p} | head -n 3",
    "python missing_script.py",
    "cmp {p} {p}",
)


# --- run -----------------------------------------------------------------------------------------------------------


def command(subject: Subject) -> Iterator[Turn]:
    """Run a command the user names."""
    folders = sorted({str(Path(p).parent) for p in subject.oracle.files if "/" in p})
    for pattern in subject.shuffled(COMMANDS):
        path = subject.rng.choice(subject.oracle.files)
        text = pattern.format(p=path, d=subject.rng.choice(folders))
        template, question = subject.voice.put("command", c=text)
        yield ran(subject, text, template=template, question=question)


def known_command(subject: Subject) -> Iterator[Turn]:
    """Ask for something that a well-known command tells."""
    for name, text in subject.shuffled(
        (("command_python", "python --version"), ("command_tests", "python -m pytest -q"))
    ):
        # Starting pytest takes a second, so only some projects are asked to run their tests.
        if name == "command_tests" and subject.rng.random() < 0.6:
            continue
        if name == "command_tests" and any("test" in p for p in subject.oracle.files):
            continue  # the run would take minutes
        template, question = subject.voice.put(name)
        turn = ran(subject, text, template=template, question=question)
        # The output of a test run holds its duration, which is never the same.
        yield replace(turn, expect=Expect("words", says=turn.expect.says)) if name == "command_tests" else turn


def ran(subject: Subject, text: str, *, template: str, question: str) -> Turn:
    """Plan one command; its own run here says what to expect."""
    with scratch_copy(subject.oracle.root) as root:
        done = subprocess.run(  # noqa: S602 - the commands are the ones above, run in a copy of a public project
            text, shell=True, cwd=root, capture_output=True, text=True, check=False, timeout=100
        )
    lines = tuple(line.rstrip() for line in (done.stdout + done.stderr).splitlines())
    failed = f"It failed with exit code {done.returncode}"
    answer = with_result(failed if done.returncode else "It printed")
    if not lines:
        answer = f"{failed if done.returncode else 'It succeeded'} and printed nothing."
    says = (str(done.returncode),) if done.returncode else () if lines else ("nothing",)
    expect = Expect("output", lines, says=says)
    return Turn(template, question, (Step("run_command", {"command": text}),), answer, expect, text)


# --- change --------------------------------------------------------------------------------------------------------


def edit(subject: Subject) -> Iterator[Turn]:
    """Replace a short text that stands once in a file."""
    for path in subject.shuffled([p for p in subject.oracle.files if p.endswith((".py", ".md", ".rst"))]):
        text = "\n".join(subject.oracle.lines(path))
        lines = [line.strip() for line in subject.oracle.lines(path)]
        fit = [x for x in lines if 8 <= len(x) <= LONGEST_LINE and text.count(x) == 1 and "`" not in x and x.isascii()]
        for old in subject.rng.sample(fit, min(2, len(fit))):
            new = _changed(subject, old)
            is_code = path.endswith(".py") and re.search(r"[A-Za-z]{3}", old)
            if new and new != old and (is_code or "  # " not in new):
                yield _replaced(subject, path, old=old, new=new)


def _changed(subject: Subject, old: str) -> str:
    """Return the line with a number, a constant or a word changed; "" if it offers nothing."""
    options = [
        re.sub(r"\b\d+\b", lambda m: str(int(m[0]) + subject.rng.choice((1, 2, 10))), old, count=1),
        re.sub(r"\b(True|False)\b", lambda m: "False" if m[1] == "True" else "True", old, count=1),
        re.sub(r"\bNone\b", "False", old, count=1),
        re.sub(r"'([a-z ]+)'", lambda m: f"'new {m[1]}'", old, count=1),
        re.sub(r'"([a-z ]+)"', lambda m: f'"{m[1]}s"', old, count=1),
        re.sub(r"^(\w+) = ", lambda m: f"{m[1]}_value = ", old),
        re.sub(r"^def (\w+)\(", lambda m: f"def {m[1]}_now(", old),
        re.sub(r"^return (\w+)$", lambda m: f"return not {m[1]}", old),
        re.sub(r"\bself\.(\w+)", lambda m: f"self.new_{m[1]}", old, count=1),
        re.sub(r"^class (\w+)", lambda m: f"class My{m[1]}", old),
    ]
    words = [w for w in re.findall(r"\b[a-z_]{4,}\b", old) if not keyword.iskeyword(w) and w not in {"self", "None"}]
    if words:
        word = subject.rng.choice(words)
        options.append(re.sub(rf"\b{word}\b", subject.rng.choice(WORDS), old, count=1))
    real = [o for o in options if o != old] or [f"{old}  # {note}" for note in ("checked", "see above", "noqa")]
    return subject.rng.choice(real) if real else ""


def _replaced(subject: Subject, path: str, *, old: str, new: str) -> Turn:
    template, question = subject.voice.put("edit", p=path, old=old, new=new)
    after = "\n".join(subject.oracle.lines(path)).replace(old, new)
    step = Step("edit_file", {"path": path, "old": old, "new": new})
    return Turn(template, question, (step,), with_result(f"Done, {path} is changed"), _file(path, after), path)


def write(subject: Subject) -> Iterator[Turn]:
    """Create a small file."""
    for path in subject.shuffled([f for f in FILES if f not in subject.oracle.files]):
        text = subject.rng.choice(TEXTS)
        template, question = subject.voice.put("write", p=path, t=text)
        step = Step("write_file", {"path": path, "content": text})
        yield Turn(template, question, (step,), f"Done, {path} is written.", _file(path, text), path)


def _file(path: str, text: str) -> Expect:
    """Expect the file to hold this text; the newline at its end does not count."""
    digest = hashlib.sha256(text.rstrip("\n").encode()).hexdigest()
    return Expect("file", (path, digest), says=(path,))
