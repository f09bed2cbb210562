"""Plans, steps and skills in the chat and in one-shot runs of the installed program, against a scripted server."""

import json
from pathlib import Path

import pytest
from tests.ui.pseudo import Start, ready
from tests.ui.scripted_server import Call, ScriptedServer
from tests.ui.test_commands import Punie, punie

from punie.config import trust_store
from punie.ui._setup import prepare, skills_of
from punie.ui._skill_commands import folders
from punie.ui.options import Options

__all__ = ["punie"]

EDIT = Call("edit_file", {"path": "a.py", "old": "pass", "new": "wave = 1"})
TODOS = Call(
    "write_todos",
    {"todos": [{"content": "Find it", "status": "completed"}, {"content": "Mend it", "status": "pending"}]},
)
SKILL = "---\nname: sums\ndescription: Adds numbers.\n---\nUse the abacus.\n"


def write_skill(place: Path, name: str = "sums", text: str = SKILL) -> None:
    (place / name).mkdir(parents=True)
    (place / name / "SKILL.md").write_text(text)


def test_a_plan_is_made_agreed_to_and_carried_out(start: Start, server: ScriptedServer, project: Path) -> None:
    server.script = [[EDIT], [TODOS], ["This is the plan."], [EDIT], ["Carried out."]]
    terminal = ready(start("--permission-mode", "plan"))
    terminal.enter("/go")
    terminal.wait("There is no plan yet.")
    terminal.enter("let it wave")
    shown = terminal.wait("This is the plan.", "/go carries the plan out")
    assert "write_todos(todos=[2 items]) → 1 of 2 done" in shown
    assert "[x] Find it" in shown
    assert "[ ] Mend it" in shown
    assert "pass" in (project / "a.py").read_text()
    assert "Plan mode: you can look at everything" in json.dumps(server.requests[0]["messages"])
    terminal.enter("/go nowhere")
    terminal.wait("A plan cannot be carried out in mode 'nowhere'.")
    terminal.enter("/go acceptEdits")
    terminal.wait("Carried out.")
    assert "wave = 1" in (project / "a.py").read_text()
    assert "Plan mode is over" in json.dumps(server.requests[3]["messages"])
    terminal.enter("/todos")
    terminal.wait("1 of 2 done\n[x] Find it\n[ ] Mend it")
    terminal.enter("/go")
    terminal.wait("There is no plan to agree to: the mode is acceptEdits.")


def test_skills_are_listed_loaded_by_name_and_part_of_the_context(
    start: Start, server: ScriptedServer, project: Path, tmp_path: Path
) -> None:
    server.script = [["It is 2."], [Call("load_skill", {"name": "sums"})], ["It is 4."]]
    home = tmp_path / "home"
    write_skill(home / ".agents/skills")
    write_skill(home / ".agents/skills", "broken", "nothing")
    write_skill(project / ".agents/skills", "theirs")
    terminal = start(HOME=str(home))
    terminal.wait("is not trusted yet", ".agents/skills", "Trust this directory?")
    terminal.enter("n")
    terminal = ready(terminal)
    terminal.wait(".agents/skills is not read:")
    terminal.enter("/skills")
    terminal.wait(
        "/skill sums", "Adds numbers.", "tokens in every request", "used: it does not begin with a front matter"
    )
    assert "/skill theirs" not in terminal.text
    terminal.type("/su\t")
    terminal.wait("> /sums")
    terminal.enter(" what is 1 + 1?")
    terminal.wait("It is 2.")
    asked = json.dumps(server.requests[0]["messages"])
    assert "Use the abacus." in asked
    assert "what is 1 + 1?" in asked
    terminal.enter("/skill nothing")
    terminal.wait("There is no skill named nothing. There are: sums.")
    terminal.enter("what is 2 + 2?")
    terminal.wait("It is 4.")
    terminal.enter("/context")
    shown = terminal.wait("11 tools: read_file", "together")
    assert any(line.startswith("skills") for line in shown.splitlines())


def test_a_run_in_plan_mode_changes_nothing_and_shows_the_steps_as_ordinary_events(
    punie: Punie, server: ScriptedServer, project: Path
) -> None:
    server.script = [[TODOS], [EDIT], [Call("run_command", {"command": "touch made"})], ["A plan."]]
    flags = ("--permission-mode", "plan", "--allowed-tools", "Bash,Edit,Write", "--output-format", "stream-json")
    done = punie("-p", "plan it", "-m", server.spec, *flags)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    called = [event for event in events if event["type"] == "tool_call"]
    results = [event for event in events if event["type"] == "tool_result"]
    assert called[0]["arguments"] == TODOS.arguments
    assert [result["outcome"] for result in results] == ["ok", "denied", "denied"]
    assert results[0]["output"] == "1 of 2 done\n[x] Find it\n[ ] Mend it"
    assert "pass" in (project / "a.py").read_text()
    assert not (project / "made").exists()


def test_info_shows_the_tools_of_a_model(punie: Punie, tmp_path: Path) -> None:
    (tmp_path / "config/punie").mkdir(parents=True)
    (tmp_path / "config/punie/config.toml").write_text('[model_tools]\n"local:*30b" = ["search"]\n')
    shown = {
        name: next(line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("tools"))
        for name in ("smollm2-135m", "qwen2.5-coder-7b", "qwen3-coder-30b")
        if (done := punie("models", "info", name))
    }
    embedded = "read_file, list_files, search, find_symbol, find_subclasses, find_references"
    assert shown == {
        "smollm2-135m": f"{embedded}, edit_file, write_file, run_command",
        "qwen2.5-coder-7b": f"{embedded}, edit_file, write_file, run_command, write_todos, load_skill",
        "qwen3-coder-30b": "search",
    }


@pytest.mark.parametrize("trusted", [True, False])
def test_a_project_that_is_not_trusted_gives_nothing_but_a_line(tmp_path: Path, *, trusted: bool) -> None:
    from pydantic_ai.models.test import TestModel

    env = {"HOME": str(tmp_path / "home"), "PATH": ""}
    project = tmp_path.resolve() / "home/project"
    (project / ".git").mkdir(parents=True)
    write_skill(project / ".claude/skills")
    if trusted:
        trust_store(env).add(project)
    setup = prepare(Options(cwd=project, model="openai:x@http://127.0.0.1:1"), env=env)
    assert (setup.waiting == (project / ".claude/skills",)) is not trusted
    said = f".claude/skills is not read: {project} is not trusted."
    assert (said in setup.notices) is not trusted
    assert folders(setup) == (["sums"] if trusted else [])
    assert list(skills_of(setup, TestModel()).found) == (["sums"] if trusted else [])
    embedded = prepare(Options(cwd=project, model="local"), env=env)
    assert (embedded.waiting, embedded.notices) == ((), ())
