"""Skills: where they are found, what is told of them, what loading one gives, and what becomes of broken ones."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic_ai import ModelRetry
from pydantic_ai.models.function import AgentInfo
from tests.agent.conftest import Local, prompts
from tests.stubs import scripted
from tokenizers import Tokenizer

from punie.agent import Event, Permissions, TurnEnded, create_agent, run_turn
from punie.agent.events import Notice
from punie.agent.memory import Memory
from punie.agent.permissions import hides
from punie.agent.skills import MAX_DESCRIPTION, MAX_LOADED, MAX_SKILLS, MOST_TOKENS, Skills, budget_for, find_skills
from punie.config import AgentConfig
from punie.tools import Workspace

NO_SKILL = "not used: a name is small letters, digits and single hyphens."


def text_of(name: str, description: str = "Sums numbers up.", body: str = "Add them.") -> str:
    return f"---\nname: {name}\ndescription: {description}\n---\n\n{body}\n"


@dataclass
class Tree:
    """A home, settings and a project, each of which may hold skills."""

    base: Path

    def __post_init__(self) -> None:
        self.root, self.home, self.user = (self.base / name for name in ("project", "home", "home/.config/punie"))
        for path in (self.root / "a", self.home, self.user):
            path.mkdir(parents=True)

    def skill(self, place: Path, name: str, text: str | bytes | None = None) -> Path:
        """A skill in a folder of that name below `place`."""
        folder = place / name
        folder.mkdir(parents=True)
        data = text_of(name) if text is None else text
        (folder / "SKILL.md").write_bytes(data.encode() if isinstance(data, str) else data)
        return folder

    @property
    def own(self) -> Path:
        return self.home / ".agents/skills"

    @property
    def of_project(self) -> Path:
        return self.root / ".agents/skills"

    def find(self, cwd: str = ".", *, trusted: bool = True, budget: int = 2000) -> Skills:
        hidden = hides(self.root, Permissions(home=self.home))
        project = self.root if trusted else None
        memory = Memory((self.root / cwd).resolve(), project=project, user=self.user, hidden=hidden)
        return find_skills(memory, home=self.home, budget_tokens=budget)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path.resolve())


def refused(load: Callable[[], str]) -> str:
    with pytest.raises(ModelRetry) as caught:
        load()
    return caught.value.message


# --- where they are found ---


def test_those_of_the_user_come_first_then_those_nearest_to_the_work(tree: Tree):
    places = {
        "settings": tree.user / "skills",
        "agents": tree.own,
        "claude": tree.home / ".claude/skills",
        "near": tree.root / "a/.claude/skills",
        "project": tree.of_project,
        "project-claude": tree.root / ".claude/skills",
    }
    for name, place in places.items():
        tree.skill(place, name)
    found = tree.find("a")
    assert list(found.found) == list(places)
    assert found.warnings == ()
    shown = {name: skill.shown for name, skill in found.found.items()}
    assert shown["near"] == ".claude/skills/near"
    assert shown["project"] == str(tree.of_project / "project")
    assert shown["agents"] == str(tree.own / "agents")
    assert tree.find().found["project"].shown == ".agents/skills/project"


def test_without_trust_nothing_of_the_project_is_looked_at(tree: Tree):
    tree.skill(tree.of_project, "theirs", text_of("theirs", "Obey."))
    tree.skill(tree.own, "mine")
    found = tree.find(trusted=False)
    assert list(found.found) == ["mine"]
    assert "Obey" not in found.text
    assert "There is no skill named theirs. There are: mine." in refused(lambda: found.load("theirs"))


def test_where_a_name_is_taken_the_first_one_counts_and_that_is_said(tree: Tree):
    tree.skill(tree.own, "sums", text_of("sums", "Mine."))
    tree.skill(tree.of_project, "sums", text_of("sums", "Theirs."))
    found = tree.find()
    assert found.found["sums"].description == "Mine."
    why = f"The skill in .agents/skills/sums is not used: that in {tree.own}/sums has its name."
    assert found.warnings == (why,)


def test_one_folder_under_two_names_by_a_link_is_one_skill(tree: Tree):
    tree.skill(tree.of_project, "sums")
    (tree.root / ".claude").mkdir()
    (tree.root / ".claude/skills").symlink_to("../.agents/skills")
    (tree.home / ".claude/skills").mkdir(parents=True)
    (tree.home / ".claude/skills/mine").symlink_to(tree.skill(tree.base / "dotfiles", "mine"))
    found = tree.find()
    assert list(found.found) == ["mine", "sums"]
    assert found.warnings == ()


def test_what_is_no_skill_is_passed_over(tree: Tree):
    tree.of_project.mkdir(parents=True)
    (tree.of_project / "README.md").write_text("x")
    (tree.of_project / "empty").mkdir()
    tree.skill(tree.of_project, ".hidden")
    tree.skill(tree.of_project / "deeper", "sums")
    assert (tree.find().found, tree.find().warnings) == ({}, ())


# --- what the model is told ---


def test_the_model_is_told_names_and_descriptions_and_nothing_of_the_rest(tree: Tree):
    tree.skill(tree.own, "sums", text_of("sums", '"Adds: numbers"', "Use an abacus."))
    tree.skill(tree.own, "letters", "---\nname: letters\ndescription: >\n  Writes\n  letters.\nlicense: MIT\n---\nx")
    found = tree.find()
    assert found.text.split("\n")[1:] == ["- letters: Writes letters.", "- sums: Adds: numbers"]
    assert found.tokens == -(-len(found.text) // 3)
    assert "abacus" not in found.text


def test_one_that_is_for_the_user_alone_is_not_told_of(tree: Tree):
    tree.skill(tree.own, "sums", "---\ndescription: x\ndisable-model-invocation: true\n---\nAdd.")
    found = tree.find()
    assert (found.text, bool(found)) == ("", True)
    assert found.prompt("sums", "1 + 1").endswith("\n\n1 + 1")


def test_descriptions_for_which_there_is_no_room_are_left_out(tree: Tree):
    for number in range(10):
        tree.skill(tree.own, f"s{number}", text_of(f"s{number}", "word " * 60))
    found = tree.find(budget=500)
    assert 1 <= len(found.told) < 10
    assert found.tokens <= 500
    assert len(found.found) == 10
    assert found.warnings[0].startswith("The model is not told of skills for want of room (skills_tokens): s")
    assert tree.find(budget=0) == Skills()


def test_the_room_follows_the_window(local: Local):
    def budget(window: int | None) -> int:
        model, _ = local(context_window=window or 1)
        model.profile["context_window"] = window
        return budget_for(model, tokens=None)

    assert [budget(window) for window in (None, 32_768, 1_000_000)] == [327, 655, MOST_TOKENS]
    assert budget_for(local()[0], tokens=7) == 7


def test_what_no_person_sees_the_model_does_not_see_either(tree: Tree):
    tag = "".join(chr(0xE0000 + ord(char)) for char in "curl")
    tree.skill(tree.own, "sums", text_of("sums", f"Adds\u202e up.{tag}\x1b[8m", f"Add\u200b them.{tag}"))
    found = tree.find()
    assert found.text.split("\n")[1] == "- sums: Adds up."
    assert "Add them.\n" in found.load("sums")


# --- loading one ---


def test_loading_gives_the_instructions_and_names_what_lies_beside_them(tree: Tree):
    folder = tree.skill(tree.of_project, "sums")
    for path in ("references/abacus.md", "scripts/add.py", ".git/config", "scripts/__pycache__/add.pyc"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"# {path}\n")
    found = tree.find()
    assert found.load("sums") == (
        '<skill name="sums">\nAdd them.\n</skill>\n'
        "The skill lies in .agents/skills/sums. `load_skill` reads these files of it, `run_command` runs scripts:\n"
        "- references/abacus.md\n- scripts/add.py"
    )
    assert found.load("sums", "references/abacus.md") == (
        "references/abacus.md of the skill sums\n# references/abacus.md"
    )


def test_one_that_changed_meanwhile_is_loaded_as_it_is_now(tree: Tree):
    folder = tree.skill(tree.own, "sums")
    found = tree.find()
    (folder / "SKILL.md").write_text(text_of("sums", body="Subtract."))
    assert "Subtract." in found.load("sums")
    (folder / "SKILL.md").unlink()
    assert "SKILL.md is not read: No such file or directory." in refused(lambda: found.load("sums"))


def test_a_long_one_is_cut_at_a_line(tree: Tree):
    tree.skill(tree.own, "sums", text_of("sums", body="".join(f"step {number}\n" for number in range(10_000))))
    loaded = tree.find().load("sums")
    assert len(loaded) < MAX_LOADED + 200
    assert "more lines)\n</skill>" in loaded


@pytest.mark.parametrize(
    "path", ["../mine/SKILL.md", "../../../secret", "/etc/passwd", "out", "up/SKILL.md", "a\0b", "", ".", "x" * 5000]
)
def test_no_file_outside_of_the_folder_is_read(tree: Tree, path: str):
    for place in (tree.of_project, tree.own):
        (place.parents[1] / "secret").write_text("SECRET")
        folder = tree.skill(place, "sums")
        tree.skill(place, "mine", text_of("mine", body="SECRET"))
        (folder / "out").symlink_to("../../../secret")
        (folder / "up").symlink_to("../mine")
    for trusted in (True, False):
        found = tree.find(trusted=trusted)
        said = refused(lambda found=found: found.load("sums", path))
        assert "is not read: " in said
        assert "SECRET" not in said
    # The project's own one, which the user's hides by its name:
    (tree.own / "sums/SKILL.md").unlink()
    assert "SECRET" not in refused(lambda: tree.find().load("sums", path))


def test_files_that_commonly_hold_keys_are_not_read(tree: Tree):
    for place in (tree.of_project, tree.own):
        folder = tree.skill(place, f"{place.parents[1].name}-sums")
        (folder / ".env").write_text("KEY=1")
    found = tree.find()
    for name in found.found:
        assert "it commonly holds keys" in refused(lambda name=name: found.load(name, ".env"))


# --- broken ones ---


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "SKILL.md")


def outside(folder: Path) -> None:
    (folder.parents[2] / "outside.md").write_text(text_of("sums"))
    (folder / "SKILL.md").symlink_to("../../../outside.md")


def written(text: str | bytes) -> Callable[[Path], None]:
    data = text.encode() if isinstance(text, str) else text

    def write(folder: Path) -> None:
        (folder / "SKILL.md").write_bytes(data)

    return write


BROKEN = {
    "no front matter": (written("Add them."), "it does not begin with a front matter between lines of `---`."),
    "no end": (written("---\nname: sums\ndescription: x\n"), "it does not begin with a front matter"),
    "huge front": (written(f"---\ndescription: {'x' * 20_000}\n---\n"), "it does not begin with a front matter"),
    "a list": (written("---\n- a\n---\n"), "its front matter is no table in YAML."),
    "no YAML": (written("---\n{[\n---\n"), "its front matter is no table in YAML."),
    "deep": (written(f"---\n{'[' * 5000}\n---\n"), "its front matter is no table in YAML."),
    "an object": (written("---\n!!python/object/apply:os.system [x]\n---\n"), "its front matter is no table in YAML."),
    "no description": (written("---\nname: sums\n---\nx"), "it has no description."),
    "empty description": (written("---\nname: sums\ndescription: ''\n---\nx"), "it has no description."),
    "a list of words": (written("---\nname: sums\ndescription: [a, b]\n---\nx"), "it has no description."),
    "binary": (written(b"---\nname: a\0b\n---\n"), "it is a binary file"),
    "not UTF-8": (written(b"---\ndescription: caf\xe9 \n---\n"), "it is not UTF-8 text"),
    "empty": (written(""), "it is empty"),
    "huge": (written("x\n" * 200_000), "it is larger than 256 KiB"),
    "FIFO": (fifo, "it is not a regular file"),
    "directory": (lambda folder: (folder / "SKILL.md").mkdir(), "it is not a regular file"),
    "nowhere": (lambda folder: (folder / "SKILL.md").symlink_to("gone"), "No such file or directory"),
    "loop": (lambda folder: (folder / "SKILL.md").symlink_to("SKILL.md"), "it leads out of the skill's folder"),
    "outside": (outside, "it leads out of the skill's folder"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_one_gives_one_line_and_is_left_out(tree: Tree, kind: str):
    make, why = BROKEN[kind]
    for place in (tree.own, tree.of_project):
        (place / "bad").mkdir(parents=True)
        make(place / "bad")
        tree.skill(place, f"good-{place.parents[1].name}")
        found = tree.find(trusted=place == tree.of_project)
        assert "bad" not in found.found
        assert f"good-{place.parents[1].name}" in found.found
        warning = found.warnings[-1]
        assert why in warning
        assert warning.startswith("The skill in ")
        assert "\n" not in warning
        assert len(warning) < 400
    assert len(found.warnings) == 2


@pytest.mark.parametrize(
    ("front", "name", "said"),
    [
        ("name: Sums Up\ndescription: x", "folder", "calls itself Sums Up: it is used as folder."),
        ("name: other\ndescription: x", "other", "calls itself other: it is used as other."),
        (f"name: {'x' * 65}\ndescription: x", "folder", "it is used as folder."),
        ("name: a\\x1b[2Jb\ndescription: x", "folder", "it is used as folder."),
        (f"description: {'x' * 2000}", "folder", f"is cut: it has more than {MAX_DESCRIPTION} characters."),
        ("name: folder\ndescription: Use it when: always", "folder", ""),
        ("description: 2026-99-99", "folder", ""),
        ("name: 12\ndescription: yes", "12", "calls itself 12"),
        ("description: &a x\nmetadata: {a: *a, b: [*a, *a]}", "folder", ""),
    ],
)
def test_an_odd_one_is_used_as_far_as_it_can_be(tree: Tree, front: str, name: str, said: str):
    tree.skill(tree.own, "folder", f"---\n{front}\n---\nAdd.")
    found = tree.find()
    assert list(found.found) == [name]
    assert [said in warning for warning in found.warnings] == ([True] if said else [])
    assert len(found.found[name].description) <= MAX_DESCRIPTION


def test_a_folder_whose_name_is_none(tree: Tree):
    tree.skill(tree.own, "Sums\x1b[2J", "---\ndescription: x\n---\n")
    assert NO_SKILL in tree.find().warnings[0]
    assert "\x1b" not in tree.find().warnings[0]


def test_links_out_of_a_project_are_not_followed(tree: Tree):
    theirs = tree.skill(tree.base / "elsewhere", "sums", text_of("sums", "Obey."))
    tree.of_project.mkdir(parents=True)
    (tree.of_project / "sums").symlink_to(theirs)
    (tree.root / ".claude").mkdir()
    (tree.root / ".claude/skills").symlink_to(theirs.parent)
    found = tree.find()
    assert found.found == {}
    assert found.warnings == (
        "The skill in .agents/skills/sums is not read: it leads out of the project.",
        "The skills in .claude/skills are not read: they lead out of the project.",
    )


def test_too_many_are_not_all_used(tree: Tree):
    for number in range(MAX_SKILLS + 5):
        tree.skill(tree.own, f"s{number:03}")
    found = tree.find()
    assert len(found.found) == MAX_SKILLS
    assert any("There are more than 100 skills" in warning for warning in found.warnings)


# --- in a conversation ---


async def ask(
    tree: Tree, *replies: object, model: object = None, config: AgentConfig | None = None
) -> tuple[list[Event], TurnEnded, list[AgentInfo]]:
    seen: list[AgentInfo] = []
    config = config or AgentConfig()
    chosen = model or scripted(*replies, seen=seen)  # type: ignore[arg-type]
    agent = create_agent(config, model=chosen, skills=tree.find(), permissions=Permissions("plan"))  # type: ignore[arg-type]
    stream = run_turn(agent, "Go.", workspace=Workspace(tree.root), config=config)
    events = [event async for event in stream]
    end = events[-1]
    assert isinstance(end, TurnEnded)
    return events, end, seen


async def test_the_model_loads_one_also_while_planning_and_nobody_is_asked(tree: Tree):
    tree.skill(tree.of_project, "sums", text_of("sums", body="\n".join(f"step {n}" for n in range(300))))
    tree.skill(tree.of_project, "bad", "no")
    calls = [("load_skill", {"name": "sums"}), ("load_skill", {"name": "sum"})]
    events, end, seen = await ask(tree, *calls, "Done.")
    assert [call.outcome for call in end.tool_calls] == ["ok", "error"]
    assert "step 299" in end.tool_calls[0].output
    assert "There is no skill named sum. There are: sums." in end.tool_calls[1].output
    assert str(seen[0].instructions).endswith("\n- sums: Sums numbers up.")
    assert [tool.name for tool in seen[0].function_tools][-2:] == ["write_todos", "load_skill"]
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert len([text for text in notices if "bad is not used" in text]) == 1


async def test_where_there_is_none_the_tool_is_not_offered(tree: Tree):
    _, _, seen = await ask(tree, "Done.")
    assert "load_skill" not in [tool.name for tool in seen[0].function_tools]
    assert "Skills" not in str(seen[0].instructions)


async def test_a_tool_that_was_taken_away_tells_of_no_skills(tree: Tree):
    tree.skill(tree.own, "sums")
    _, _, seen = await ask(tree, "Done.", config=AgentConfig(more_tools=("write_todos",)))
    assert "Sums numbers" not in str(seen[0].instructions)


async def test_a_small_model_is_told_of_none(tree: Tree, local: Local, tokenizer: Tokenizer):
    tree.skill(tree.own, "sums")
    for compact, spec, told in ((True, "local", False), (False, "local", False), (False, "gguf:some-7b.gguf", True)):
        model, engine = local("There.")
        model.compact = compact
        await ask(tree, model=model, config=AgentConfig(model=spec))
        assert ("Sums numbers up." in tokenizer.decode(prompts(engine)[0])) is told
