"""`just record`: what a terminal shows while somebody asks Punie about a real project, as text and as pictures.

The installed `punie` runs in a pseudo-terminal, with an empty configuration, in a copy of the installed package `rich`.
Nothing is edited afterwards: what `docs/images` holds is what was on the screen, times and all.
"""

import argparse
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, DIMMED_MONOKAI
from rich.text import Text
from tests.ui.pseudo import Terminal, ready

from punie.backends._weights import default_cache_dir

README = Path(__file__).parents[2] / "README.md"
IMAGES = README.parent / "docs" / "images"
LIGHT = copy(DEFAULT_TERMINAL_THEME)
LIGHT.background_color = ColorTriplet(246, 248, 250)  # on a white page, white would have no edge
THEMES = {"light": LIGHT, "dark": DIMMED_MONOKAI}
# A picture in a page must not fetch anything, so it goes without the fonts of another site.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
_COLOURS = {"brown": "yellow", "brightbrown": "bright_yellow"}
"""What pyte calls colours that have other names everywhere else."""

ASKED = "Find all classes that inherit from Protocol"
CHAT = (ASKED, "Create a file called notes.txt with the text: buy milk")


@dataclass(frozen=True)
class Recorded:
    """What was on the screen: the text, and a picture for each theme as SVG."""

    text: str
    pictures: dict[str, str]


def record_print(question: str, *, project: Path, env: dict[str, str], flags: Sequence[str] = ()) -> Recorded:
    """`punie -p QUESTION` with what it prints."""
    terminal = Terminal("-p", question, *flags, cwd=project, env=env, rows=30, columns=100)
    try:
        if terminal.exit_code() != 0:
            raise AssertionError(terminal.text)
        return Recorded(f'$ punie -p "{question}"\n{terminal.text.strip()}\n', {})
    finally:
        terminal.kill()


def record_chat(questions: Sequence[str], *, project: Path, env: dict[str, str], flags: Sequence[str] = ()) -> Recorded:
    """A chat in which these questions are typed, each when the one before has its answer; what is asked gets a yes."""
    terminal = ready(Terminal(*flags, cwd=project, env=env, rows=36, columns=84))
    try:
        for question in questions:
            terminal.type(question)
            terminal.wait(question)
            terminal.enter()
            if _end(terminal) != ">":
                terminal.enter("y")
                terminal.until(lambda _: _prompt(terminal.screen) == ">", "no answer")
        terminal.settle()
        lines = _lines(terminal.screen)
        text = "\n".join(line.plain.rstrip() for line in lines) + "\n"
        return Recorded(text, {name: _picture(lines, name, terminal.screen.columns) for name in THEMES})
    finally:
        terminal.kill()


def _end(terminal: Terminal) -> str:
    """Let an answer come to its end, or to a question about a change, and return the line of the prompt."""
    terminal.until(lambda _: _prompt(terminal.screen) == ">" or _prompt(terminal.screen)[:5] == "Allow", "no answer")
    return _prompt(terminal.screen)


def _prompt(screen: pyte.Screen) -> str:
    """The last line with a prompt; while an answer is drawn, that of its question."""
    return next((line.rstrip() for line in reversed(screen.display) if line.startswith((">", "Allow this?"))), "")


def _lines(screen: pyte.Screen) -> list[Text]:
    """The lines of the screen with their colours, without empty ones at the end."""
    lines = [_line(screen, y) for y in range(screen.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return lines


def _line(screen: pyte.Screen, y: int) -> Text:
    cells = [screen.buffer[y][x] for x in range(screen.columns)]
    runs = groupby(cells, key=lambda cell: cell._replace(data=""))
    return Text.assemble(*(("".join(cell.data for cell in run), _style(look)) for look, run in runs))


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return _COLOURS.get(name, name.replace("bright", "bright_"))


def _picture(lines: Sequence[Text], theme: str, columns: int) -> str:
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    return console.export_svg(title="punie", theme=THEMES[theme], code_format=FORMAT, unique_id=f"punie-{theme}")


def environment(home: Path) -> dict[str, str]:
    """The variables of a user with this home directory, no settings, and weights where they are kept here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PUNIE_", "XDG_", "NO_COLOR"))}
    cache = os.environ.get("PUNIE_CACHE_DIR") or str(default_cache_dir())
    return {**kept, "HOME": str(home), "PUNIE_CACHE_DIR": cache, "TERM": "xterm-256color"}


def copy_of_rich(place: Path) -> Path:
    """A project with the package in it that draws Punie's tables, as it is installed here."""
    spec = find_spec("rich")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(spec.submodule_search_locations[0], place / "rich" / "rich", ignore=ignored)
    return place / "rich"


def save(name: str, recorded: Recorded, directory: Path) -> None:
    """NAME.txt, and NAME-THEME.svg for each picture."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.txt").write_text(recorded.text, "utf-8")
    for theme, picture in recorded.pictures.items():
        (directory / f"{name}-{theme}.svg").write_text(picture, "utf-8")


def page_with(page: str, name: str, text: str) -> str:
    """A page with another text in the blocks that show this recording."""
    return re.sub(rf"(?<=```console recorded={name}\n).*?(?=```)", lambda _: text, page, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Record everything that README.md shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES)
    out = parser.parse_args(argv).out
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory).resolve()
        project, env = copy_of_rich(home), environment(home)
        save("ask", asked := record_print(ASKED, project=project, env=env), out)
        save("chat", record_chat(CHAT, project=project, env=env), out)
    if out == IMAGES:
        README.write_text(page_with(README.read_text("utf-8"), "ask", asked.text), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
