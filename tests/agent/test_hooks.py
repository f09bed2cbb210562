"""Hooks: what the commands of the user are told about calls, what they may stop, and who agreed to them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.agent.conftest import Project
from tests.stubs import Reply, scripted

from punie.agent import Event, Permissions, TurnEnded, create_agent, run_turn
from punie.agent._pins import Pins
from punie.agent.approval import Decision, Request, deny, once, refuse
from punie.agent.events import Notice
from punie.agent.hooks import HookRunner
from punie.config import AgentConfig, PermissionMode, SandboxOptions, load_settings
from punie.errors import ConfigError
from punie.extensions import Hook, Hooks
from punie.rules import RuleSet, parse_rule
from punie.tools import Workspace

WRITE = ("write_file", {"path": "new.txt", "content": "x\n"})
READ = ("read_file", {"path": "notes.md"})
OFF = SandboxOptions(mode="off")


@dataclass
class Turns:
    """Turns of a scripted model whose calls are seen by hooks."""

    root: Path
    own: Hooks = Hooks()  # noqa: RUF009 - a frozen value
    project: Hooks = Hooks()  # noqa: RUF009
    asked: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pins = Pins(self.root.parent / f"{self.root.name}-state", self.root)
        self.runner = self.make()

    def make(self) -> HookRunner:
        return HookRunner(self.own, self.project, pins=self.pins)

    async def turn(
        self,
        *replies: Reply,
        decision: Decision | None = once,
        mode: PermissionMode = "default",
        sandbox: SandboxOptions = OFF,
        **rules: Sequence[str],
    ) -> tuple[list[Event], TurnEnded]:
        async def approve(request: Request) -> Decision:
            self.asked.append(request)
            return await refuse(request) if decision is None else decision

        parsed = {name: tuple(map(parse_rule, texts)) for name, texts in rules.items()}
        permissions = Permissions(mode, RuleSet(**parsed), uses_sandbox=sandbox is not OFF)
        config = AgentConfig()
        agent = create_agent(
            config, model=scripted(*replies), approve=approve, permissions=permissions, hooks=self.runner
        )
        workspace = Workspace(self.root, sandbox=sandbox)
        events = [event async for event in run_turn(agent, "Do it.", workspace=workspace, config=config)]
        end = events[-1]
        assert isinstance(end, TurnEnded)
        return events, end


def before(command: str, **fields: Any) -> Hooks:
    return Hooks(before_tool=(Hook(command=command, **fields),))


def notices(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Notice))


async def test_hooks_are_told_the_call_and_its_result(project: Project):
    hooks = Hooks(
        before_tool=(Hook(command="cat > before.json"),),
        after_tool=(Hook(command="cat > after.json"),),
        turn_end=(Hook(command="cat > end.json"),),
    )
    _, end = await Turns(project.root, hooks).turn(WRITE, "Done.")
    told = {name: json.loads((project.root / f"{name}.json").read_text()) for name in ("before", "after", "end")}
    call = {"cwd": str(project.root), "tool_name": WRITE[0], "tool_input": WRITE[1]}
    assert told["before"] == {"hook_event_name": "before_tool", **call}
    assert told["after"] == {"hook_event_name": "after_tool", **call, "tool_response": end.tool_calls[0].output}
    assert told["end"] == {"hook_event_name": "turn_end", "cwd": str(project.root)}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo out; echo 'not on fridays' >&2; exit 2", "Not run: a hook of the user refused it: not on fridays"),
        ("exit 2", "Not run: a hook of the user refused it: it gave no reason"),
        ("echo oops >&2; exit 1", "failed with exit status 1. oops"),
        ("no-such-program", "failed with exit status 127"),
        ("sleep 60", "was stopped (timeout)"),
    ],
)
async def test_a_hook_that_says_no_or_fails_stops_the_call(project: Project, command: str, said: str):
    chat = Turns(project.root, before(command, timeout_s=1 if "sleep" in command else 30))
    _, end = await chat.turn(WRITE, "I see.")
    assert not (project.root / "new.txt").exists()
    assert (end.answer, end.tool_calls[0].outcome) == ("I see.", "error")
    assert said in end.tool_calls[0].output
    assert "out" not in end.tool_calls[0].output.split()


async def test_what_a_hook_says_is_cleaned(project: Project):
    chat = Turns(project.root, before(r"printf 'no\033[2J\342\200\256' >&2; exit 2"))
    _, end = await chat.turn(WRITE, "I see.")
    assert end.tool_calls[0].output.endswith("refused it: no<U+202E>")


async def test_a_hook_never_loosens_a_decision(project: Project):
    mark = project.root / "ran"
    chat = Turns(project.root, before(f"touch {mark}"))
    ways: list[dict[str, Any]] = [{"deny": ["Edit"]}, {"mode": "plan"}, {"decision": deny()}, {"decision": None}]
    for how in ways:
        _, end = await chat.turn(WRITE, "I see.", **how)
        assert end.tool_calls[0].outcome == "denied"
    assert not mark.exists()
    assert not (project.root / "new.txt").exists()


async def test_rules_that_deny_commands_hold_for_hooks(project: Project):
    mark = project.root / "ran"
    chat = Turns(project.root, before(f"touch {mark}"))
    for mode in ("default", "bypassPermissions"):
        _, end = await chat.turn(WRITE, "I see.", deny=["Bash(touch:*)"], mode=mode)
        assert "may not run. Not allowed: the rule Bash(touch:*)" in end.tool_calls[0].output
    assert not mark.exists()
    assert not (project.root / "new.txt").exists()


async def test_hooks_run_in_every_mode_and_for_the_calls_they_match(project: Project):
    log = project.root / "log"
    hooks = Hooks(
        before_tool=(
            Hook(command=f"echo all >> {log}"),
            Hook(command=f"echo edit >> {log}", match="Edit(*.txt)"),
            Hook(command=f"echo push >> {log}", match="Bash(git push:*)"),
            Hook(command=f"echo server >> {log}", match="mcp__docs"),
        )
    )
    await Turns(project.root, hooks).turn(READ, "Read.", mode="plan")
    assert log.read_text() == "all\n"
    await Turns(project.root, hooks).turn(WRITE, "Written.")
    assert log.read_text() == "all\nall\nedit\n"
    await Turns(project.root, hooks).turn(("run_command", {"command": "git push; true"}), "Pushed.")
    assert log.read_text() == "all\nall\nedit\nall\npush\n"


async def test_what_comes_after_can_add_to_a_result_but_not_undo_it(project: Project):
    hooks = Hooks(after_tool=(Hook(command="echo 'lint: x' >&2; exit 2"), Hook(command="echo hm >&2; exit 3")))
    events, end = await Turns(project.root, hooks).turn(WRITE, "Done.")
    assert (project.root / "new.txt").read_text() == "x\n"
    assert end.tool_calls[0].outcome == "ok"
    assert end.tool_calls[0].output.endswith("\nA hook of the user says: lint: x")
    assert "failed with exit status 3. hm" in notices(events)


async def test_the_end_of_a_turn_is_told_to_the_user(project: Project):
    hooks = Hooks(turn_end=(Hook(command="echo 'tests fail' >&2; exit 2"),))
    events, end = await Turns(project.root, hooks).turn("Done.")
    assert (end.answer, end.exit_code) == ("Done.", 0)
    assert "says: tests fail" in notices(events)
    events, end = await Turns(project.root, hooks).turn(WRITE, decision=None)
    assert end.exit_code == 3
    assert "says: tests fail" in notices(events)


async def test_hooks_run_in_the_sandbox(project: Project):
    outside = project.root.parent / "outside.txt"
    hooks = before(f"echo in > inside.txt; echo out > {outside}; exit 0")
    await Turns(project.root, hooks).turn(READ, "Read.", sandbox=SandboxOptions(mode="required"))
    assert (project.root / "inside.txt").exists()
    assert not outside.exists()


# --- projects ---


async def test_hooks_of_a_project_wait_for_agreement_to_their_very_content(project: Project):
    mark = project.root / "ran"

    def chat(command: str) -> Turns:
        return Turns(project.root, project=before(command))

    for decision in (None, deny()):
        events, end = await chat(f"touch {mark}").turn(READ, "Read.", decision=decision)
        assert end.tool_calls[0].outcome == "ok"  # what nobody agreed to has no vote
        assert "nobody agreed to it" in notices(events)
        assert not mark.exists()
    await chat(f"touch {mark}").turn(READ, "Read.", mode="dontAsk")
    assert not mark.exists()
    agreeing = chat(f"touch {mark}")
    await agreeing.turn(READ, READ, "Read.")
    assert mark.exists()
    assert [request.preview for request in agreeing.asked] == [f"touch {mark}"]
    mark.unlink()
    again = chat(f"touch {mark}")
    await again.turn(READ, "Read.", decision=None)
    assert mark.exists()
    assert again.asked == []
    mark.unlink()
    changed = chat(f"touch {mark} ")
    await changed.turn(READ, "Read.", decision=None)
    assert not mark.exists()
    assert len(changed.asked) == 1


def test_hooks_stand_in_the_settings_and_a_projects_come_besides_the_users(tmp_path: Path):
    root = tmp_path / "project"
    (root / ".punie").mkdir(parents=True)
    user = tmp_path / "config" / "punie" / "config.toml"
    user.parent.mkdir(parents=True)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": "/nowhere"}
    own = '[hooks]\nbefore_tool = [{command = "mine", match = "Edit"}]\nturn_end = [{command = "end"}]\n'
    user.write_text(f'trusted_projects = ["{root}"]\n{own}')
    (root / ".punie" / "config.toml").write_text('[hooks]\nbefore_tool = [{command = "theirs", timeout_s = 5}]\n')
    resolved = load_settings(cwd=root, env=env, flags={})
    assert resolved.settings.hooks.before_tool == (Hook(command="mine", match="Edit"),)
    assert resolved.settings.hooks.turn_end == (Hook(command="end"),)
    assert resolved.project_hooks == Hooks(before_tool=(Hook(command="theirs", timeout_s=5),))
    user.write_text(own)  # not trusted any more
    assert not load_settings(cwd=root, env=env, flags={}).project_hooks
    for wrong in (
        'before_tool = ["x"]',
        'before_tool = [{command = "x", match = "Bsh"}]',
        'before = [{command = "x"}]',
    ):
        user.write_text(f"[hooks]\n{wrong}\n")
        with pytest.raises(ConfigError, match=f"{os.path.basename(user)}:2"):  # noqa: PTH119
            load_settings(cwd=root, env=env, flags={})
