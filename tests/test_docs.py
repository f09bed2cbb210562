"""What the documents promise is tied to what is there: every block of code in them is run, loaded or read."""

import dataclasses
import doctest
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from tests.docs import record, settings
from tests.docs.blocks import PAGES, Block, blocks
from tests.docs.commands import commands_in, refuse_unknown
from tests.ui.scripted_server import Call, serving

from punie.agent import events
from punie.backends._weights import default_cache_dir
from punie.config import load_settings
from punie.errors import UsageError
from punie.extensions import read_servers
from punie.ui.plain import About, StreamShow, result
from punie_training.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
TEST = r"`(tests/[\w/]+\.py::test_\w+)`"
ALL = [block for page in PAGES for block in blocks(page)]
NOT_RUN: set[tuple[str, str]] = set()
"""Every block that cannot be run or checked here: its page, and why."""


def of_kind(*kinds: str) -> Any:
    """One case for each block of these kinds that is checked."""
    found = [block for block in ALL if block.kind in kinds and "not-run" not in block.marks]
    return pytest.mark.parametrize("block", found, ids=str)


# --- pages -----------------------------------------------------------------------------------------------------------


def test_every_test_that_the_security_page_names_is_collected():
    named = sorted({*re.findall(TEST, PAGE)})
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *named]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert [name for name in named if name not in done.stdout] == []


def test_every_promise_of_the_security_page_names_a_test():
    table = PAGE.split("## What is promised")[1].split("## What holds")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 15
    assert [row for row in rows if not re.search(TEST, row)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str):
    directory = (ROOT / page).parent
    targets = re.findall(r"\]\((?!https?://)([^)\s]+)", (ROOT / page).read_text("utf-8"))
    assert [target for target in targets if not leads(directory, ROOT / page, target)] == []


def leads(directory: Path, page: Path, target: str) -> bool:
    """Whether there is the file, and in it the heading."""
    name, _, heading = target.partition("#")
    file = directory / name if name else page
    return file.exists() and (not heading or heading in headings(file.read_text("utf-8")))


def headings(text: str) -> set[str]:
    """The names under which GitHub shows headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - {*re.findall(r"\]\(([\w-]+\.md)\)", index)} == set()


def test_the_page_of_the_library_names_every_event_with_its_fields():
    text = (ROOT / "docs" / "library.md").read_text("utf-8")
    table = text.split("| event | says |")[1].split("\n\n")[0]
    shown = {name: fields.split(", ") for name, fields in re.findall(r"`([A-Z]\w+)\(([^)]*)\)`", table)}
    real = {event.__name__: [field.name for field in dataclasses.fields(event)] for event in get_args(events.Event)}
    assert shown.keys() == real.keys()
    for name, fields in shown.items():
        assert set(fields) - {"..."} <= set(real[name])
        assert "..." in fields or fields == real[name]


def test_the_page_of_the_library_names_every_example():
    text = (ROOT / "docs" / "library.md").read_text("utf-8")
    assert {path.name for path in (ROOT / "examples").iterdir() if path.is_file()} == {
        *re.findall(r"\(\.\./examples/([\w.]+)\)", text)
    }


# --- blocks ----------------------------------------------------------------------------------------------------------

MARKS = {
    "python": {"file", "not-run"},
    "toml": {"project", "recipe", "not-run"},
    "json": {"mcp", "result", "not-run"},
    "jsonl": {"event", "not-run"},
    "sh": {"not-run"},
    "bash": {"not-run"},
    "console": {"run", "recorded", "not-run"},
    "text": {"output"},
}


@pytest.mark.parametrize("block", ALL, ids=str)
def test_every_block_is_of_a_kind_that_is_checked(block: Block):
    assert block.kind in MARKS, "tests/docs/blocks.py says which kinds there are; an indented block needs a fence"
    assert set(block.marks) <= MARKS[block.kind]
    if block.kind in {"json", "jsonl", "text"}:
        assert block.marks, "the fence does not say what this is"
    if block.kind == "console":
        assert block.text.startswith("$ "), "what is typed stands after `$ `"


@pytest.mark.parametrize(
    "script",
    [
        "punie --modle local",
        "punie -p hello --max-turns none",
        "git diff | punie -p 'what?' --output-format yaml",
        "punie mcp add docs",
        "punie models fetch qwen",
        "punie train walk recipe.toml",
        "punie train run recipe.toml --bases x",
        "just nothing",
        ".venv/bin/pip install '.[nothing]'",
        "python3 -m venv .venv && curl https://example.com",
    ],
)
def test_a_wrong_command_is_found(script: str, monkeypatch: pytest.MonkeyPatch):
    *_, last = commands_in(script)
    with pytest.raises((UsageError, SystemExit, AssertionError)):
        refuse_unknown(last, monkeypatch)


def test_blocks_are_read_with_their_marks(tmp_path: Path):
    page = tmp_path / "page.md"
    fenced = '1. a\n\n   ```console run not-run="no Mac"\n   $ one \\\n   two\n   out\n   $ three\n   ```\n'
    page.write_text(f"{fenced}\nText.\n\n    code\n")
    console, indented = blocks(str(page))
    assert (console.line, console.kind, dict(console.marks)) == (3, "console", {"run": "", "not-run": "no Mac"})
    assert list(console.commands()) == [("one \\\ntwo\n", "out\n"), ("three\n", "")]
    assert console.script == "one \\\ntwo\nthree\n"
    assert indented.kind == "indented"


def test_only_what_cannot_be_run_here_is_not_run():
    assert {(block.page, block.marks["not-run"]) for block in ALL if "not-run" in block.marks} == NOT_RUN


@of_kind("sh", "bash", "console")
def test_every_command_is_one(block: Block, monkeypatch: pytest.MonkeyPatch):
    commands = list(commands_in(block.script))
    assert commands
    for words in commands:
        refuse_unknown(words, monkeypatch)


@of_kind("toml")
def test_every_toml_block_loads(block: Block, tmp_path: Path):
    if "recipe" in block.marks:
        assert Recipe.model_validate(tomllib.loads(block.text))
        return
    own, project = tmp_path / "config" / "punie" / "config.toml", tmp_path / "project" / ".punie" / "config.toml"
    for file in (own, project):
        file.parent.mkdir(parents=True)
    own.write_text(f'trusted_projects = ["{tmp_path.resolve() / "project"}"]\n')
    written = project if "project" in block.marks else own
    written.write_text(block.text)
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    resolved = load_settings(cwd=tmp_path / "project", env=env, flags={})
    assert any(str(written) in source for source in resolved.sources.values())
    resolved.settings.agent_config()


# --- JSON ------------------------------------------------------------------------------------------------------------

ABOUT = About("local", "smollm2-135m", "1", "/work")
USAGE = events.UsageUpdated(1, 1, 1)
CALLS = (events.ToolRecord("search", {}, "ok", "", 0.1),)
ENDED = events.TurnEnded("done", "", (), 1, events.Timing(), USAGE, CALLS)


def a_server_file(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(block.text)
    assert read_servers(file, "user")[0]


def what_a_run_prints(block: Block, _: Path) -> None:
    assert same_keys(json.loads(block.text), json.loads(json.dumps(result(ABOUT, ENDED))))


def events_of_a_run(block: Block, _: Path) -> None:
    out = io.StringIO()
    show = StreamShow(out, io.StringIO(), about=ABOUT)
    happened = (
        events.Text(""),
        events.Thinking(""),
        events.ToolCalled("1", "search", {}),
        events.ToolReturned("1", "search", "ok", "", 0.1),
        USAGE,
        ENDED,
    )
    for event in happened:
        show.take(event)
    real = {event["type"]: event for event in map(json.loads, out.getvalue().splitlines())}
    for line in block.text.splitlines():
        shown = json.loads(line)
        assert same_keys(shown, real[shown["type"]]), shown


SHAPES = {"mcp": a_server_file, "result": what_a_run_prints, "event": events_of_a_run}


def same_keys(shown: Any, real: Any) -> bool:
    """Whether both have the same keys at every depth; arguments of tools are free."""
    if isinstance(real, list) and isinstance(shown, list):
        return all(same_keys(item, real[0]) for item in shown)
    if not isinstance(real, dict) or not real:
        return True
    return shown.keys() == real.keys() and all(same_keys(shown[key], real[key]) for key in real)


def test_a_key_that_is_not_written_is_found():
    real = json.loads(json.dumps(result(ABOUT, ENDED)))
    assert same_keys(real, real)
    assert not same_keys({**real, "anwser": ""}, real)
    assert not same_keys({**real, "usage": {"input": 1}}, real)
    assert not same_keys({**real, "tool_calls": [{"tool": "search"}]}, real)


@of_kind("json", "jsonl")
def test_every_json_block_has_the_shape_that_is_read_or_written(block: Block, tmp_path: Path):
    (shape,) = block.marks
    SHAPES[shape](block, tmp_path)


# --- what is run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, weights_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, and a home with nothing in it but the weights."""
    root = tmp_path / "project"
    root.mkdir()
    for name in [name for name in os.environ if name.startswith(("PUNIE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(root)
    cache = default_cache_dir()
    cache.parent.mkdir(parents=True)
    cache.symlink_to(weights_cache)
    return root


def pages_with(kind: str, *marks: str) -> Any:
    """One case for each page with such a block."""
    runs = {b.page for b in ALL if b.kind == kind and {*marks} <= {*b.marks} and not {"file", "not-run"} & {*b.marks}}
    return pytest.mark.parametrize("page", sorted(runs))


def alike(wanted: str, got: str) -> bool:
    """Whether a text is the other one, but for times and the width of columns; `...` stands for anything."""
    return doctest.OutputChecker().check_output(_evened(wanted), _evened(got), doctest.ELLIPSIS)


def _evened(text: str) -> str:
    text = re.sub(r"\b\d+(\.\d+)? m?s\b", "0 s", text.strip().replace(str(Path.home()), "~"))
    return re.sub(r"(?<=\S) +", " ", text) + "\n"


@pytest.mark.parametrize(
    ("wanted", "got"), [("a (2 ms)", "a (1.4 s)"), ("x ... z\n", "x y z"), ("a\n...\n", "a\nb\nc")]
)
def test_times_and_what_is_left_out_are_alike(wanted: str, got: str):
    assert alike(wanted, got)
    assert not alike(wanted, got.replace("a", "b").replace("x", "b"))


def printed_by(*command: str) -> str:
    """What a command prints on both streams."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, timeout=240, check=False
    ).stdout


def write_files(page: str, workspace: Path) -> None:
    for block in blocks(page):
        if name := block.marks.get("file"):
            (workspace / name).write_text(block.text, "utf-8")
            compile(block.text, str(block), "exec")


BLOCK_ENDS = "-- the block ends here --"


def program(page: str) -> str:
    """The Python blocks of a page, each on the lines where it stands there."""
    lines = [""] * (len((ROOT / page).read_text("utf-8").splitlines()) + 1)
    for block in blocks(page):
        if block.kind == "python" and not {"file", "not-run"} & {*block.marks}:
            code = block.text.splitlines()
            lines[block.line : block.line + len(code) + 1] = [*code, f"print({BLOCK_ENDS!r}, flush=True)"]
    return "\n".join(lines)


@pages_with("python")
def test_every_python_block_runs(page: str, workspace: Path):
    write_files(page, workspace)
    (script := workspace.parent / "page.py").write_text(program(page), "utf-8")
    *printed, rest = printed_by(sys.executable, str(script)).split(BLOCK_ENDS)
    assert rest.strip() == "", rest
    said = ""
    for block in blocks(page):
        if block.kind == "python" and not {"file", "not-run"} & {*block.marks}:
            said = printed.pop(0)
        elif "output" in block.marks:
            assert alike(block.text, said), f"{block} shows something else than:\n{said}"


@pages_with("console", "run")
def test_every_console_block_that_says_so_prints_this(page: str, workspace: Path):
    write_files(page, workspace)
    for block in blocks(page):
        for command, wanted in block.commands() if "run" in block.marks else ():
            said = printed_by("bash", "-c", command)
            assert alike(wanted, said), f"{block}: {command} prints\n{said}"


@of_kind("console")
def test_every_recorded_block_is_the_recording(block: Block):
    if name := block.marks.get("recorded"):
        assert block.text == (ROOT / "docs" / "images" / f"{name}.txt").read_text("utf-8"), (
            "`just record` wrote another"
        )
    else:
        assert "run" in block.marks, "a console block is run or recorded; sh is for commands alone"


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_table_of_settings_is_the_one_of_the_program():
    text = settings.PAGE.read_text("utf-8")
    assert settings.page(text) == text, "`just settings` writes it anew"


def test_every_setting_can_come_from_the_environment(tmp_path: Path):
    (tmp_path / "project").mkdir()
    given = {settings.variable(key): settings.as_text(key) for key in settings.setting_keys()}
    sources = settings.loaded(tmp_path.resolve(), given).sources
    assert {key: source for key, source in sources.items() if source != settings.variable(key)} == {}


def test_every_flag_that_sets_something_is_named():
    text = settings.PAGE.read_text("utf-8")
    assert [flag for flag in settings.flags().values() if f"`{flag}`" not in text] == []


# --- what was recorded -----------------------------------------------------------------------------------------------


def test_a_recording_is_what_is_on_the_screen(tmp_path: Path):
    (tmp_path / "project").mkdir()
    env = record.environment(tmp_path)
    write = Call("write_file", {"path": "a.txt", "content": "one\n"})
    with serving() as server:
        server.script = [["**Bold** & plain."], [write], ["Done."]]
        flags = ("--model", server.spec)
        chat = record.record_chat(("What is it?", "Write it"), project=tmp_path / "project", env=env, flags=flags)
        server.script = [["Forty-two."]]
        printed = record.record_print("How many?", project=tmp_path / "project", env=env, flags=flags)
    record.save("ask", printed, tmp_path)
    page = "a\n```console recorded=ask\nold\n```\n```console run\n$ b\n```\n"
    assert record.page_with(page, "ask", printed.text) == page.replace("old\n", printed.text)
    record.save("chat", chat, tmp_path)
    assert (tmp_path / "ask.txt").read_text("utf-8") == '$ punie -p "How many?"\nForty-two.\n'
    assert (tmp_path / "project" / "a.txt").exists()
    shown = (tmp_path / "chat.txt").read_text("utf-8")
    assert [line for line in ("> What is it?", "Bold & plain.", "+one", "Done.") if line not in shown] == []
    for theme in record.THEMES:
        same_picture((tmp_path / f"chat-{theme}.svg"), shown)


@pytest.mark.parametrize("theme", record.THEMES)
def test_the_pictures_are_small_and_show_what_was_recorded(theme: str):
    shown = (record.IMAGES / "chat.txt").read_text("utf-8")
    same_picture(record.IMAGES / f"chat-{theme}.svg", shown)
    assert f"images/chat-{theme}.svg" in (ROOT / "README.md").read_text("utf-8")


def same_picture(file: Path, text: str) -> None:
    """Raises unless the picture says the text, is small, and fetches nothing."""
    assert file.stat().st_size < 60_000
    picture = ElementTree.parse(file)  # noqa: S314 - we wrote it
    words = "".join("".join(node.itertext()) for node in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert [line for line in text.splitlines() if "".join(line.split()) not in "".join(words.split())] == []
    assert not re.search(r"(url\(|href=\"|@import \")https?:", file.read_text("utf-8"))
