"""The code blocks of README.md and docs/, and what the words after a fence say about them.

The first word is the kind; the others say how the block is held to the truth:

    python           is run, after the Python blocks above it on the page
    python file=PATH is a file that the commands below it on the page find
    toml             loads as the user's config.toml; `toml project` as that of a trusted project, `toml recipe` as a
                     training recipe
    json SHAPE       fits the shape: SHAPES in tests/test_docs.py names them; `jsonl` the same, line by line
    sh, bash         commands, which have to be ones; console has them after `$ ` and what they print between
    console run      is run, and prints this; times and the width of columns may differ
    console recorded is what `just record` wrote down
    text output      is what the Python block above prints
    KIND not-run=WHY cannot be run or checked here; NOT_RUN in tests/test_docs.py names every one
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PROMPT = "$ "


@dataclass(frozen=True)
class Block:
    """One code block. `line` is that of its fence, counted from one."""

    page: str
    line: int
    kind: str
    marks: Mapping[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[tuple[str, str]]:
        """Each command of a console block with what stands below it."""
        command, printed = "", ""
        for line in self.text.splitlines(keepends=True):
            if line.startswith(PROMPT):
                if command:
                    yield command, printed
                command, printed = line.removeprefix(PROMPT), ""
            elif command.endswith("\\\n"):
                command += line
            else:
                printed += line
        if command:
            yield command, printed

    @property
    def script(self) -> str:
        """The commands alone."""
        return "".join(command for command, _ in self.commands()) if self.kind == "console" else self.text


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order; one that is only indented is of the kind "indented"."""
    tokens = MarkdownIt("commonmark").parse((ROOT / page).read_text("utf-8"))
    found: list[Block] = []
    for token in tokens:
        if token.type in {"fence", "code_block"}:
            kind, *words = shlex.split(token.info) or [""]
            marks = {name: value for name, _, value in (word.partition("=") for word in words)}
            line = (token.map or [0])[0] + 1
            found.append(Block(page, line, kind if token.type == "fence" else "indented", marks, token.content))
    return found
