"""Markdown that is printed while it arrives: finished blocks go to the scrollback, the unfinished one is redrawn.

Only the unfinished block is ever redrawn, and never more of it than the screen holds, so long answers neither
flicker nor get cut. Lines that a tool returned are printed as they are: a Markdown renderer would join them into
one paragraph and read `__init__` as bold type.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

Kind: TypeAlias = Literal["markdown", "lines"]

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_PLACE = re.compile(r"(?P<place>\s*[\w./@+~-]+\.\w+:\d+(?:-\d+)?)(?P<rest>(?:[ :].*)?)$")
_NUMBERED = re.compile(r"\s*\d+\t| {4}\d+$")
"""A line of a file as `read_file` gives it; of an empty one only the number is left."""
_LONGEST_LINES = 80
_LONGEST_CHARACTERS = 8_000
"""An unfinished block up to here is drawn as a whole."""
_EMPTY_CODE = re.compile(r"(`{3,}|~{3,})[^`\n]*\n\1\s*")
_CODE_SPAN = re.compile(r"(`+[^`]*`+)")


@dataclass(frozen=True)
class Block:
    """A run of lines that can be drawn on its own."""

    kind: Kind
    text: str
    gap: bool = False
    """Whether an empty line follows. A block without text is nothing but such a line."""


def split(text: str, *, verbatim: Collection[str] = ()) -> tuple[tuple[Block, ...], str]:
    """Return the finished blocks at the start of a growing text, and the rest that may still change."""
    blocks: list[Block] = []
    start = 0
    for end, kind in _boundaries(text, verbatim):
        _add(blocks, kind, piece=text[start:end])
        start = end
    return tuple(blocks), text[start:]


def split_long(text: str, *, verbatim: Collection[str] = (), opener: str = "") -> tuple[tuple[Block, ...], str, str]:
    """The same for a text that may go on for ever: what holds for long is taken apart, so that each step stays cheap.

    `opener` is the line that began the code in which the text begins; the third value is the one for what is left.
    """
    begun = f"{opener}\n" if opener else ""
    blocks, rest = split(begun + text, verbatim=verbatim)
    if len(rest) > len(text):
        rest = text
    elif blocks:
        opener = ""
    cut = _cut(rest)
    if not cut:
        return blocks, rest, opener
    first = rest.split("\n", 1)[0]
    opener = opener or (first if _FENCE.match(first) else "")
    piece = rest[:cut].strip("\n")
    if opener and not piece.rpartition("\n")[2].strip(" `~"):  # closed, or empty: what follows ends the block
        return blocks, rest, opener if begun and rest == text else ""
    if opener:
        fence = _FENCE.match(opener)
        head = "" if piece.startswith(opener) else f"{opener}\n"
        piece = f"{head}{piece}\n{fence[1] if fence else ''}"
    return (*blocks, Block("markdown", piece)), rest[cut:], opener


def _cut(rest: str) -> int:
    """Where to cut what is not finished; 0 while it is short, or a table, whose columns belong together."""
    if rest.count("\n") >= _LONGEST_LINES and not rest.startswith("|"):
        return rest.rindex("\n") + 1
    if len(rest) < _LONGEST_CHARACTERS:
        return 0
    return max(rest.rfind("\n"), rest.rfind(" "), 0) + 1 if rest.rfind(" ") > 0 else len(rest)


def _add(blocks: list[Block], kind: Kind, *, piece: str) -> None:
    if _EMPTY_CODE.fullmatch(piece):  # drawn, it would be an empty line
        piece = piece[len(piece.rstrip("\n")) :]
    last = blocks[-1] if blocks else None
    gap = piece.endswith("\n\n") or not piece.strip()
    if last and not piece.strip():
        blocks[-1] = replace(last, gap=True)
    elif last and last.kind == kind == "lines" and not last.gap:
        blocks[-1] = Block("lines", last.text + "\n" + piece.strip("\n"), gap=gap)
    else:
        blocks.append(Block(kind, piece.strip("\n"), gap=gap))


def split_all(text: str, *, verbatim: Collection[str] = ()) -> tuple[Block, ...]:
    """Return the blocks of a text that has ended."""
    blocks, rest = split(text.rstrip() + "\n", verbatim=verbatim)
    if not rest.strip() or _EMPTY_CODE.fullmatch(rest):
        return blocks
    return (*blocks, Block("markdown", rest.strip("\n")))


def _boundaries(text: str, verbatim: Collection[str]) -> Iterator[tuple[int, Kind]]:
    """Yield (offset, kind of what ends there). Only whole lines count."""
    fence = ""
    offset = 0
    kind: Kind = "markdown"
    blank = False
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        bare = line.rstrip("\n")
        opener = _FENCE.match(bare)
        goes_on = kind == "lines" and bare.startswith("    ")  # a diff has lines that stand nowhere else
        this: Kind = "lines" if not fence and (goes_on or _is_literal(bare, verbatim)) else "markdown"
        starts_new = this != kind or (blank and not bare.startswith((" ", "\t")))
        if offset and not fence and bare.strip() and starts_new:
            yield offset, kind
        if not fence and bare.strip():
            kind = this
        if opener and (not fence or (opener[1].startswith(fence) and not bare.strip(" `~"))):
            fence = "" if fence else opener[1]
        blank = not bare.strip() and not fence
        offset += len(line)
        if kind == "lines" and not fence and not blank:
            yield offset, kind


def _is_literal(line: str, verbatim: Collection[str]) -> bool:
    bare = line.strip()
    return bool(bare) and (line in verbatim or bare in verbatim or bool(_PLACE.match(line) or _NUMBERED.match(line)))


def draw(block: Block) -> RenderableType:
    """Return what rich prints for one block."""
    if block.kind == "markdown":
        return AnswerMarkdown(block.text)
    return Text("\n").join(map(place_line, block.text.splitlines()))


def place_line(line: str) -> Text:
    """A line as a tool returned it, with its `path:line` coloured."""
    match = _PLACE.match(line)
    return Text.assemble((match["place"], "cyan"), match["rest"]) if match else Text(line)


class _Heading(Heading):
    """A heading on the left, where the text is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble(("#" * int(self.tag[1:]) + " ", "dim"), self.text, style="bold")


class _Code(CodeBlock):
    """Code without the empty lines above and below it: blocks are set apart already."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, padding=(0, 1))


class AnswerMarkdown(Markdown):
    """Markdown the way a model writes it: line breaks stay, `__dunder__` names stay, nothing becomes a link."""

    elements: ClassVar = Markdown.elements | {"heading_open": _Heading, "fence": _Code, "code_block": _Code}

    def __init__(self, text: str) -> None:
        super().__init__(keep_names(text), hyperlinks=False, code_theme="ansi_dark")
        _keep_line_breaks(self.parsed)


def _keep_line_breaks(tokens: list[Token]) -> None:
    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
        _keep_line_breaks(token.children or [])


def keep_names(text: str) -> str:
    """Escape the underscores of `__init__` outside code, where Markdown would take them for bold type."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= bool(_FENCE.match(line))
        lines.append(line if fenced else _escape_dunders(line))
    return "\n".join(lines)


def _escape_dunders(line: str) -> str:
    parts = _CODE_SPAN.split(line)
    parts[::2] = [re.sub(r"__(?=\w)(\w*?)__", r"\\_\\_\1\\_\\_", part) for part in parts[::2]]
    return "".join(parts)


class Tail:
    """The last screenful of a renderable; the rest is not lost, it is printed once it is finished."""

    def __init__(self, inner: RenderableType, *, height: int) -> None:
        self._inner = inner
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        for line in lines[-self._height :]:
            yield from line
            yield Segment.line()


def tail(text: str, *, height: int) -> RenderableType:
    """Draw the unfinished end of an answer, within `height` lines."""
    lines = text.splitlines()
    lines = [*lines[:-1], lines[-1][-_LONGEST_CHARACTERS // 4 :]] if lines else []
    fence = next((line for line in lines if _FENCE.match(line)), "")
    shown = lines[-3 * height :]
    if fence and fence not in shown:
        shown.insert(0, fence)
    return Tail(AnswerMarkdown("\n".join(shown)), height=height)
