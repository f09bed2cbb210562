from punie.agent.approval import Approver, Decision, Request, allowing, approve_all, nobody, once, refuse, session


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
