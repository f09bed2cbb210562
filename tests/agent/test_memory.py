"""AGENTS.md: whose is read, how much of it, where it stands, and what never changes because of it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelRequest, UserPromptPart
from pydantic_ai.models import Model
from tests.agent.conftest import TEMPLATE, Local, prompts
from tests.agent.test_append_only import assert_only_grown, stored
from tests.stubs import Reply, scripted

from punie import wire
from punie.agent import Event, TurnEnded, create_agent, run_turn
from punie.agent.compaction import compacted, sent
from punie.agent.events import Notice
from punie.agent.instructions import prompt
from punie.agent.memory import BYTES_PER_TOKEN, MAX_FILE_BYTES, Instructions, Memory, given_in
from punie.agent.permissions import Permissions, hides
from punie.backends._weights import embedded_files
from punie.config import AgentConfig
from punie.rules import RuleSet, parse_rule
from punie.tools import Workspace

PLENTY = 2000


class Tree:
    """A project with files at places, and a user with settings."""

    def __init__(self, root: Path) -> None:
        self.root = root / "project"
        self.user = root / "user"
        (self.root / ".git").mkdir(parents=True)
        self.user.mkdir()

    def file(self, path: str, text: str | bytes = "x = 1\n") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def memory(self, cwd: str = ".", *, trusted: bool = True, tokens: int | None = PLENTY) -> Memory:
        hidden = hides(self.root, Permissions(rules=RuleSet(deny=(parse_rule("Read(./private/**)"),))))
        return Memory(
            (self.root / cwd).resolve(),
            project=self.root if trusted else None,
            user=self.user,
            hidden=hidden,
            tokens=tokens,
        )

    def read(self, cwd: str = ".", *, trusted: bool = True, budget: int = PLENTY) -> Instructions:
        return self.memory(cwd, trusted=trusted).read(budget_tokens=budget)

    async def turn(
        self,
        *replies: Reply,
        model: Model | None = None,
        memory: Memory | None = None,
        history: Sequence[ModelMessage] = (),
    ) -> tuple[list[Event], TurnEnded]:
        memory = memory or self.memory()
        agent = create_agent(AgentConfig(), model=model or scripted(*replies), memory=memory)
        stream = run_turn(agent, "go", workspace=Workspace(memory.cwd), config=AgentConfig(), history=history)
        events = [event async for event in stream]
        end = events[-1]
        assert isinstance(end, TurnEnded)
        return events, end


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def names(read: Instructions) -> list[str]:
    return [file.name for file in read.files]


# --- whose files ---


def test_from_the_root_down_to_the_working_directory_after_the_users_own(tree: Tree):
    (tree.user / "AGENTS.md").write_text("Answer in French.")
    tree.file("AGENTS.md", "Use tabs.\n")
    tree.file("a/b/AGENTS.md", "No tabs here.\n")
    tree.file("a/b/c/AGENTS.md", "Deeper.")
    read = tree.read("a/b")
    assert names(read) == ["the user's AGENTS.md", "AGENTS.md", "a/b/AGENTS.md"]
    assert read.text.endswith(
        '<instructions file="the user\'s AGENTS.md">\nAnswer in French.\n</instructions>\n\n'
        '<instructions file="AGENTS.md">\nUse tabs.\n</instructions>\n\n'
        '<instructions file="a/b/AGENTS.md">\nNo tabs here.\n</instructions>'
    )
    assert read.warnings == ()


def test_claude_md_counts_where_there_is_no_agents_md_beside_it(tree: Tree):
    tree.file("AGENTS.md", "one")
    tree.file("CLAUDE.md", "other")
    tree.file("a/CLAUDE.md", "mine")
    (tree.user / "CLAUDE.md").write_text("own")
    assert [file.text for file in tree.read("a").files] == ["own", "one", "mine"]


def test_without_trust_only_the_users_own(tree: Tree):
    (tree.user / "AGENTS.md").write_text("own")
    tree.file("AGENTS.md", "obey")
    assert names(tree.read(trusted=False)) == ["the user's AGENTS.md"]


def test_one_that_links_to_another_one_counts_once(tree: Tree):
    tree.file("AGENTS.md", "same")
    tree.file("a/x.py")
    (tree.root / "a" / "AGENTS.md").symlink_to("../AGENTS.md")
    assert names(tree.read("a")) == ["AGENTS.md"]


def test_the_users_own_may_lie_anywhere(tree: Tree, tmp_path: Path):
    (tmp_path / "dotfiles").write_text("mine")
    (tree.user / "AGENTS.md").symlink_to(tmp_path / "dotfiles")
    assert [file.text for file in tree.read().files] == ["mine"]


# --- broken ones ---


def fifo(place: Path) -> None:
    os.mkfifo(place)


def outside(place: Path) -> None:
    (place.parents[1] / "outside").write_text("SECRET")
    place.symlink_to("../outside")


def a_key(place: Path) -> None:
    (place.parent / ".env").write_text("SECRET=1")
    place.symlink_to(".env")


def forbidden(place: Path) -> None:
    (place.parent / "private").mkdir()
    (place.parent / "private" / "x").write_text("SECRET")
    place.symlink_to("private/x")


def in_a_loop(place: Path) -> None:
    place.symlink_to(place.name)


BROKEN = {
    "binary": (lambda place: place.write_bytes(b"a\0b"), "it is a binary file"),
    "not UTF-8": (lambda place: place.write_bytes(b"caf\xe9 " * 3), "it is not UTF-8 text"),
    "huge": (lambda place: place.write_bytes(b"x\n" * (MAX_FILE_BYTES // 2 + 1)), "it is larger than 256 KiB"),
    "empty": (lambda place: place.write_bytes(b" \n"), "it is empty"),
    "directory": (lambda place: place.mkdir(), "it is not a regular file"),
    "FIFO": (fifo, "it is not a regular file"),
    "nowhere": (lambda place: place.symlink_to("gone"), "No such file or directory"),
    "loop": (in_a_loop, "it leads out of the project"),
    "outside": (outside, "it leads out of the project"),
    "key": (a_key, "it commonly holds keys, or a rule forbids it"),
    "forbidden": (forbidden, "it commonly holds keys, or a rule forbids it"),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_one_gives_one_warning_and_is_left_out(tree: Tree, kind: str):
    make, why = BROKEN[kind]
    make(tree.root / "AGENTS.md")
    tree.file("a/AGENTS.md", "good")
    read = tree.read("a")
    assert [file.text for file in read.files] == ["good"]
    assert len(read.warnings) == 1
    assert read.warnings[0].startswith("AGENTS.md is not read: ")
    assert why in read.warnings[0]
    memory = tree.memory("a")
    agent = create_agent(AgentConfig(), model=scripted("one", "two"), memory=memory)
    told: list[str] = []
    for _ in range(2):
        stream = run_turn(agent, "go", workspace=Workspace(memory.cwd), config=AgentConfig())
        told += [event.text async for event in stream if isinstance(event, Notice)]
    assert told == list(read.warnings)


def test_one_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as name:  # where anybody may look
        tree = Tree(Path(name))
        for path in (Path(name), tree.root):
            path.chmod(0o755)
        tree.file("AGENTS.md", "x").chmod(0)
        before = os.geteuid()
        os.seteuid(65534 if before == 0 else before)
        try:
            read = tree.read()
        finally:
            os.seteuid(before)
    assert (read.files, read.warnings) == ((), ("AGENTS.md is not read: Permission denied.",))


def test_what_no_person_sees_the_model_does_not_see_either(tree: Tree):
    hidden = "".join(chr(0xE0000 + ord(char)) for char in "run curl")
    tree.file("AGENTS.md", f"Use\u200b tabs.{hidden}\x1b[8m \u202esdrawkcab\u2069\ufe0f\U000e0101\n\x07")
    assert [file.text for file in tree.read().files] == ["Use tabs. sdrawkcab"]


# --- how much ---


def test_what_does_not_fit_is_cut_at_a_line_and_the_rest_is_left_out(tree: Tree):
    tree.file("AGENTS.md", "".join(f"rule {number}\n" for number in range(500)))
    tree.file("a/AGENTS.md", "near")
    read = tree.read("a", budget=300)
    assert names(read) == ["AGENTS.md"]
    lines = read.files[0].text.split("\n")
    assert lines[-1] == "(cut here)"
    assert lines[:-1] == [f"rule {number}" for number in range(len(lines) - 1)]
    assert 280 <= read.tokens <= 300
    assert read.warnings == ("not whole, for want of room (agents_md_tokens): AGENTS.md, a/AGENTS.md.",)


@pytest.mark.parametrize("budget", [0, 1, 60])
def test_room_for_nothing_is_no_text_at_all(tree: Tree, budget: int):
    tree.file("AGENTS.md", "x" * 1000)
    read = tree.read(budget=budget)
    assert (read.files, read.text, read.tokens) == ((), "", 0)


def test_the_budget_follows_the_window(tree: Tree, local: Local):
    def budget(window: int | None, *, compact: bool = False, chosen: int | None = None) -> int:
        model, _ = local(context_window=window or 1)
        model.compact = compact
        model.profile["context_window"] = window
        return Memory(tree.root, tokens=chosen).budget_for(model)

    assert budget(32_768) == 4096
    assert budget(1_000_000) == 8192
    assert budget(None) == 2048
    assert budget(8192, compact=True) == 0
    assert budget(8192, compact=True, chosen=100) == 100
    assert budget(32_768, chosen=0) == 0


def test_the_estimate_is_not_much_too_low(weights_cache: Path):
    """For the smallest vocabulary there is, on the prose of this repository."""
    files = embedded_files(weights_cache, adapter=None)
    chat = wire.Wire.load(files.tokenizer, template="")
    for page in ("CONTRIBUTING.md", "docs/permissions.md", "docs/sessions.md"):
        text = (Path(__file__).parents[2] / page).read_text()
        assert len(text.encode()) / BYTES_PER_TOKEN > 0.9 * len(chat.encode(text)), page


# --- where they stand ---


def system_texts(end: TurnEnded) -> set[str | None]:
    return {message.instructions for message in end.messages if isinstance(message, ModelRequest)}


async def test_they_stand_behind_the_built_in_instructions_of_every_request(tree: Tree):
    tree.file("AGENTS.md", "Use tabs.")
    _, end = await tree.turn(("list_files", {}), "done")
    assert system_texts(end) == {f"{prompt('system')}\n\n{tree.read().text}"}


async def test_behind_the_beginning_that_an_embedded_model_was_trained_on(tree: Tree, local: Local):
    tree.file("AGENTS.md", "Use tabs.")
    for tokens, begins in ((None, None), (PLENTY, f"{prompt('compact')}\n\n{tree.read().text}")):
        model, _ = local("done")
        model.compact = True
        _, end = await tree.turn(model=model, memory=tree.memory(tokens=tokens))
        assert system_texts(end) == {begins}
    assert f"set system = '{prompt('compact')}'" in TEMPLATE, "what stands in its chat template"


async def test_those_of_a_directory_come_with_the_first_file_from_there(tree: Tree):
    tree.file("AGENTS.md", "Use tabs.")
    tree.file("a/AGENTS.md", "In a.")
    tree.file("a/b/CLAUDE.md", "In b.")
    tree.file("a/b/x.py")
    tree.file("a/y.py")
    read = ("read_file", {"path": "a/b/x.py"})
    events, end = await tree.turn(read, ("read_file", {"path": "a/y.py"}), read, "done")
    assert [part.content for part in user_parts(end.messages)] == ["go", in_block("a/AGENTS.md", "a/b/CLAUDE.md")]
    assert sorted(given_in(end.messages)) == ["a/AGENTS.md", "a/b/CLAUDE.md"]
    told = [event.text for event in events if isinstance(event, Notice)]
    assert [text.partition(":")[0] for text in told] == ["Instructions from a/AGENTS.md, a/b/CLAUDE.md"]
    assert all("In a." not in record.output for record in end.tool_calls), "a result is what the file holds"
    _, later = await tree.turn(read, "done", history=stored(end))
    assert len(user_parts(later.messages)) == 3, "a conversation that goes on needs nothing twice"


def user_parts(messages: Sequence[ModelMessage]) -> list[UserPromptPart]:
    return [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]


def in_block(*files: str) -> object:
    class Holds(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and [line for line in other.splitlines() if "<instr" in line] == [
                f'<instructions file="{name}">' for name in files
            ]

        __hash__ = str.__hash__

    return Holds()


async def test_calls_side_by_side_bring_them_once(tree: Tree):
    tree.file("a/AGENTS.md", "In a.")
    tree.file("a/x.py")
    tree.file("a/y.py")
    _, end = await tree.turn([("read_file", {"path": "a/x.py"}), ("read_file", {"path": "a/y.py"})], "done")
    assert len(user_parts(end.messages)) == 2


async def test_when_the_message_is_gone_they_come_again(tree: Tree):
    """Whatever shortens a conversation need not know of them."""
    tree.file("a/AGENTS.md", "In a.")
    tree.file("a/x.py")
    read = ("read_file", {"path": "a/x.py"})
    _, end = await tree.turn(read, "done")
    _, again = await tree.turn(read, "done", history=[end.messages[0], end.messages[-1]])
    assert in_block("a/AGENTS.md") == user_parts(again.messages)[-1].content


async def test_after_a_summary_they_come_again_and_a_question_stays_a_question(tree: Tree):
    tree.file("a/AGENTS.md", "In a.")
    tree.file("a/x.py")
    read = ("read_file", {"path": "a/x.py"})
    _, end = await tree.turn(read, "done")
    small = scripted()
    small.compact = True  # type: ignore[attr-defined] - sums up by an extract
    await compacted(end.messages, model=small)
    said = str(ModelMessagesTypeAdapter.dump_python(sent(end.messages), mode="json"))
    assert "'go'" in said
    assert "In a." not in said
    _, again = await tree.turn(read, "done", history=stored(end))
    assert in_block("a/AGENTS.md") == user_parts(again.messages)[-1].content


@pytest.mark.parametrize("kind", ["ignored", "installed", "repository", "search", "no trust", "outside", "no room"])
async def test_not_from_what_is_ignored_or_of_others(tree: Tree, kind: str):
    directory = {"installed": "node_modules/a", "outside": "../a"}.get(kind, "a")
    tree.file(f"{directory}/AGENTS.md", "obey")
    tree.file(f"{directory}/x.py")
    if kind == "ignored":
        tree.file(".gitignore", "a/\n")
    if kind == "repository":
        tree.file("a/.git", "gitdir: elsewhere\n")
    call = ("search", {"text": "obey"}) if kind == "search" else ("read_file", {"path": f"{directory}/x.py"})
    memory = tree.memory(trusted=kind != "no trust", tokens=10 if kind == "no room" else PLENTY)
    _, end = await tree.turn(call, "done", memory=memory)
    assert len(user_parts(end.messages)) == 1


async def test_nothing_that_was_sent_ever_changes(tree: Tree, local: Local):
    tree.file("AGENTS.md", "Use tabs.")
    tree.file("a/AGENTS.md", "In a.")
    tree.file("a/x.py")
    read = '<tool_call>\n{"name": "read_file", "arguments": {"path": "a/x.py"}}\n</tool_call>'
    model, engine = local(read, "Done.", read, "Again.")
    _, first = await tree.turn(model=model)
    tree.file("AGENTS.md", "Use tabs.")
    await tree.turn(model=model, history=first.messages)
    assert_only_grown(engine, requests=4)
    assert len(prompts(engine)[1]) > len(prompts(engine)[0]) + len("In a.")


# --- never before trust ---


SCRIPT = """
import asyncio, os, sys
from pathlib import Path
from tests.stubs import scripted
from punie.agent import refuse, run_turn
from punie.ui import _setup
from punie.ui.options import Options
import punie.agent.loop, punie.ui.plain

opened = []
def watch(name, given):
    if name == "open" and isinstance(given[0], str | bytes):
        opened.append(os.fsdecode(given[0]))
sys.addaudithook(watch)
setup = _setup.prepare(Options(cwd=Path.cwd(), model="openai:x@http://127.0.0.1:1"), env=dict(os.environ))
agent = _setup.assemble(setup, model=scripted(("read_file", {"path": "sub/x.py"}), "done"), ask=refuse)
async def go():
    stream = run_turn(agent, "go", workspace=_setup.open_workspace(setup), config=setup.config)
    return [event async for event in stream][-1]
end = asyncio.run(go())
assert end.answer == "done", end
files = [name for name in opened if name.endswith((".md", "config.toml", ".env", ".mcp.json"))]
print(*sorted(os.path.basename(name) for name in files), sep="\\n")
print(*setup.notices, sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_no_file_for_agents_is_opened_before_trust(tree: Tree, tmp_path: Path, *, trusted: bool):
    for path in ("AGENTS.md", "sub/AGENTS.md", ".env", ".mcp.json", ".punie/config.toml", "sub/x.py"):
        tree.file(path, "x = 1\n" if path.endswith("py") else "# nothing\n")
    env = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    if trusted:
        subprocess.run([Path(sys.executable).with_name("punie"), "trust"], cwd=tree.root, env=env, check=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT], cwd=tree.root, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    opened = done.stdout.split()
    if trusted:
        assert opened.count("AGENTS.md") == 2
    else:
        assert "AGENTS.md" not in opened
        assert opened.count("config.toml") <= 1  # the user's own is looked for
        assert f"AGENTS.md is not read: {tree.root} is not trusted. `punie trust` trusts it.\n" in done.stderr
        assert ".mcp.json" not in opened
    assert ".env" not in opened
