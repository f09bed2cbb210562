import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from tests.tools.project import Project

from punie import tools
from punie.agent.approval import Gate, refuse
from punie.agent.permissions import Call, Permissions
from punie.tools import READ_ONLY, TOOLS, Workspace, preview, toolset


def test_a_workspace_needs_a_directory(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        Workspace(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        Workspace(tmp_path / "missing")


def test_a_linked_root_is_resolved_once(project: Project):
    project.write("a.txt", "x")
    link = project.root.parent / "link"
    link.symlink_to(project.root)
    assert Workspace(link).root == project.root


def test_a_workspace_lets_go_of_its_root_when_it_is_not_used_any_more(project: Project):
    project.write("a.py", "class One: ...\n")

    def open_directories() -> int:
        root, found = project.root.stat(), 0
        for path in list(Path("/dev/fd").iterdir()):
            with suppress(OSError):  # the one that listed them
                found += os.path.samestat(os.fstat(int(path.name)), root)
        return found

    gc.disable()
    try:
        other = Workspace(project.root)
        before = open_directories()
        other.index.refresh()
        list(other.files())
        del other
        assert open_directories() == before - 1
    finally:
        gc.enable()


def test_every_tool_file_is_in_the_table():
    files = {path.stem for path in Path(tools.__file__).parent.glob("[a-z]*.py")}
    assert files == set(TOOLS)
    assert set(TOOLS) >= READ_ONLY


def test_what_the_model_sees_of_the_tools():
    shown = {
        name: (list(tool.tool_def.parameters_json_schema["properties"]), tool.tool_def.description)
        for name, tool in toolset(TOOLS).tools.items()
    }
    assert shown == {
        "read_file": (["path", "start", "end"], "Read a file, or some of its lines."),
        "list_files": (["glob"], "List files, optionally those matching a glob."),
        "search": (["pattern", "glob"], "Search file contents for text or a regex."),
        "find_symbol": (["name"], "Find where a class, function or variable is defined."),
        "find_subclasses": (["name"], "Find the classes that inherit from a class."),
        "find_references": (["name"], "Find where a name is used or imported."),
        "edit_file": (["path", "old", "new"], "Replace exact text in a file."),
        "write_file": (["path", "content"], "Create a file or replace its content."),
        "run_command": (["command", "timeout"], "Run a shell command in the workspace."),
        "write_todos": (["todos"], "Keep a list of steps for longer work."),
        "load_skill": (["name", "file"], "Load the instructions of a skill before its task."),
    }
    assert all(len(str(description).split()) <= 9 for _, description in shown.values())


def test_only_the_named_tools_in_their_order():
    assert list(toolset(["search", "read_file"]).tools) == ["search", "read_file"]
    with pytest.raises(KeyError):
        toolset(["rm"])


def test_tools_that_change_something_do_not_run_side_by_side():
    sequential = {name for name, tool in toolset(TOOLS).tools.items() if tool.sequential}
    assert sequential == set(TOOLS) - READ_ONLY


async def test_an_agent_can_call_every_tool(project: Project):
    project.write("a.py", "class Widget: ...\n")
    agent = Agent(
        TestModel(call_tools=sorted(READ_ONLY - {"read_file", "load_skill"})),
        deps_type=Workspace,
        toolsets=[toolset(TOOLS)],
    )
    result = await agent.run("go", deps=project.workspace)
    assert "definitions of a" in result.output


def test_previews(project: Project):
    project.write("a.txt", "one\ntwo\n")
    diff = "--- a/a.txt\n+++ b/a.txt\n@@ -1,2 +1,2 @@\n one\n-two\n+2"
    assert preview(project.workspace, "edit_file", {"path": "a.txt", "old": "two", "new": "2"}) == diff
    new = "--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+x"
    assert preview(project.workspace, "write_file", {"path": "new.txt", "content": "x"}) == new
    assert preview(project.workspace, "run_command", {"command": "ls -l"}) == "ls -l"
    assert preview(project.workspace, "read_file", {"path": "a.txt"}) is None
    assert project.bytes_of("a.txt") == b"one\ntwo\n"
    assert not (project.root / "new.txt").exists()


def test_a_preview_says_why_there_will_be_no_change(project: Project):
    project.write("a.txt", "one\n")
    assert preview(project.workspace, "edit_file", {"path": "a.txt", "old": "two", "new": "2"}) == (
        "No change: old is not in a.txt. Read the file and copy the text exactly."
    )
    assert preview(project.workspace, "edit_file", {"path": "b", "old": "x"}) == "No change: No such file: b."
    assert str(preview(project.workspace, "write_file", {"path": "../b", "content": ""})).startswith(
        "No change: ../b is"
    )
    assert str(preview(project.workspace, "edit_file", {"path": 3})).startswith("No change: ")


def test_an_approved_edit_is_refused_if_the_file_changed_meanwhile(project: Project):
    project.write("a.txt", "one\n")
    preview(project.workspace, "edit_file", {"path": "a.txt", "old": "one", "new": "1"})
    project.write("a.txt", "one\nunseen\n")
    assert "changed since it was read" in project.refusal("edit_file", "a.txt", "one", "1")
    preview(project.workspace, "write_file", {"path": "a.txt", "content": "x"})
    assert "changed since it was read" in project.refusal("write_file", "a.txt", "x")


def test_a_link_that_leads_elsewhere_since_it_was_judged_is_not_followed(project: Project):
    project.write("a.txt", "one")
    project.write(".envrc", "one")
    project.write(".env", "TOKEN=one")
    link = project.root / "link"
    gate = Gate(refuse, Permissions("acceptEdits"))
    calls = (
        ("read_file", {"path": "link"}),
        ("edit_file", {"path": "link", "old": "one", "new": "two"}),
        ("write_file", {"path": "link", "content": "two"}),
    )
    for tool, arguments in calls:
        for target in (".envrc", ".env", ".envrc.new"):
            link.symlink_to("a.txt")
            project.call("read_file", "a.txt")
            assert gate.authorize(project.workspace, Call(tool, arguments)).kind == "allow"
            link.unlink()
            link.symlink_to(target)
            if tool == "write_file" or not target.endswith("new"):
                refusal = project.refusal(tool, **arguments)
                assert refusal == "link leads to another place than a moment ago. Try again."
            link.unlink()
    assert project.bytes_of(".envrc") == b"one"
    assert not (project.root / ".envrc.new").exists()
    link.symlink_to("a.txt")
    gate.authorize(project.workspace, Call("edit_file", calls[1][1]))
    assert project.call("edit_file", **calls[1][1]).startswith("edited a.txt")
    link.unlink()
    link.symlink_to(".envrc")
    assert gate.authorize(project.workspace, Call("edit_file", calls[1][1])).kind == "ask"
    assert project.call("edit_file", **calls[1][1]).startswith("edited .envrc"), "it was asked about where it leads now"
