import pytest

from punie.agent.approval import (
    Approver,
    Decision,
    Request,
    allowing,
    approve_all,
    approver_for,
    nobody,
    once,
    refuse,
    session,
)
from punie.config import PermissionMode


async def ask(request: Request) -> Decision:
    return session


async def answers(approve: Approver) -> dict[str, str]:
    names = ("edit_file", "write_file", "run_command")
    return {name: (await approve(Request(name, {}, None))).kind for name in names}


async def test_by_default_nobody_is_there():
    assert await refuse(Request("edit_file", {}, None)) == nobody


async def test_everything_may_be_allowed():
    assert await approve_all(Request("run_command", {}, None)) == once


async def test_named_tools_are_allowed_and_the_rest_is_asked():
    assert await answers(allowing(["edit_file"], otherwise=ask)) == {
        "edit_file": "once",
        "write_file": "session",
        "run_command": "session",
    }


@pytest.mark.parametrize(
    ("mode", "edit", "write", "run"),
    [
        ("default", "session", "session", "once"),
        ("acceptEdits", "once", "once", "once"),
        ("auto", "once", "once", "once"),
        ("plan", "deny", "deny", "deny"),
        ("dontAsk", "deny", "deny", "once"),
        ("bypassPermissions", "once", "once", "once"),
    ],
)
async def test_permission_modes(mode: PermissionMode, edit: str, write: str, run: str):
    approve = approver_for(mode, allowed=["run_command"], ask=ask)
    assert await answers(approve) == {"edit_file": edit, "write_file": write, "run_command": run}


async def test_headless_default_mode_allows_nothing_by_itself():
    assert await answers(approver_for("default")) == dict.fromkeys(("edit_file", "write_file", "run_command"), "nobody")
