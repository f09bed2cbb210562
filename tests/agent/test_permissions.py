"""What becomes of a call: modes, protected files, secrets, suggestions, and how the gate keeps what was granted."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.agent.conftest import Project
from tests.stubs import Reply

from punie.agent.approval import Decision, Request, always, approve_all, deny, once, session
from punie.agent.events import Notice
from punie.agent.permissions import Call, Permissions, Verdict, authorize, grant
from punie.config import PermissionMode
from punie.errors import ConfigError
from punie.rules import RuleSet, parse_rule

EDIT = Call("edit_file", {"path": "src/app.py", "old": "a", "new": "b"})
COMMAND = Call("run_command", {"command": "make all"})
LOOK = Call("run_command", {"command": "ls src"})
READ = Call("read_file", {"path": "src/app.py"})
OTHER = Call("mcp__docs__find", {"query": "x"})
ALLOWED = RuleSet(allow=tuple(map(parse_rule, ("Bash(make all)", "Edit(src/**)", "mcp__docs"))))


def judge(
    root: Path, call: Call, mode: PermissionMode = "default", rules: RuleSet | None = None, *, sandbox: bool = False
) -> Verdict:
    permissions = Permissions(mode, rules or RuleSet(), uses_sandbox=True, home=root.parent / "home")
    return authorize(call, root=root, permissions=permissions, sandbox_works=sandbox)


def edit(path: str) -> Call:
    return Call("edit_file", {"path": path, "old": "a", "new": "b"})


def run(command: str) -> Call:
    return Call("run_command", {"command": command})


# --- modes ---


@pytest.mark.parametrize(
    ("mode", "sandbox", "kinds"),
    [
        ("plan", False, ("allow", "deny", "deny", "deny", "deny")),
        ("plan", True, ("allow", "deny", "deny", "allow", "deny")),
        ("default", False, ("allow", "ask", "ask", "ask", "ask")),
        ("default", True, ("allow", "ask", "ask", "allow", "ask")),
        ("acceptEdits", False, ("allow", "allow", "ask", "ask", "ask")),
        ("acceptEdits", True, ("allow", "allow", "ask", "allow", "ask")),
        ("auto", False, ("allow", "allow", "ask", "ask", "ask")),
        ("auto", True, ("allow", "allow", "allow", "allow", "ask")),
        ("dontAsk", True, ("allow", "deny", "deny", "deny", "deny")),
        ("bypassPermissions", False, ("allow", "allow", "allow", "allow", "allow")),
    ],
)
def test_modes(tmp_path: Path, mode: PermissionMode, kinds: tuple[str, ...], *, sandbox: bool):
    judged = tuple(judge(tmp_path, c, mode, sandbox=sandbox).kind for c in (READ, EDIT, COMMAND, LOOK, OTHER))
    assert judged == kinds


@pytest.mark.parametrize(("mode", "kind"), [("plan", "deny"), ("default", "allow"), ("dontAsk", "allow")])
def test_rules_allow_in_every_mode_but_plan(tmp_path: Path, mode: PermissionMode, kind: str):
    assert {judge(tmp_path, call, mode, ALLOWED).kind for call in (EDIT, COMMAND, OTHER)} == {kind}


@pytest.mark.parametrize("mode", ["plan", "default", "acceptEdits", "auto", "dontAsk", "bypassPermissions"])
def test_what_is_denied_is_denied_in_every_mode(tmp_path: Path, mode: PermissionMode):
    denied = RuleSet(
        deny=tuple(map(parse_rule, ("Bash(make:*)", "Edit", "Read(src)", "mcp__docs"))), allow=ALLOWED.allow
    )
    for call in (READ, EDIT, COMMAND, OTHER):
        verdict = judge(tmp_path, call, mode, denied, sandbox=True)
        assert verdict.kind == "deny"
        assert verdict.reason.startswith("Not allowed: the rule ")


def test_a_denied_call_names_the_rule_and_where_it_stands(tmp_path: Path):
    rules = RuleSet(deny=(parse_rule("Bash(make:*)", source="/c/config.toml:3"),))
    assert judge(tmp_path, COMMAND, rules=rules).reason == (
        "Not allowed: the rule Bash(make:*) (/c/config.toml:3) denies it."
    )


def test_where_nobody_is_asked_the_rule_that_would_allow_it_is_named(tmp_path: Path):
    assert judge(tmp_path, COMMAND, "dontAsk").reason == (
        "run_command is not allowed here. The user can allow it with Bash(make all)."
    )
    assert judge(tmp_path, run("rm x"), "dontAsk").reason == "run_command is not allowed here: `rm` deletes files."


def test_bypassing_asks_where_a_denied_program_may_be_hidden(tmp_path: Path):
    rules = RuleSet(deny=(parse_rule("Bash(curl:*)"),))
    assert judge(tmp_path, run("$x y"), "bypassPermissions", rules).kind == "ask"
    assert judge(tmp_path, run("$x y"), "bypassPermissions").kind == "allow"


def test_an_unknown_tool_is_asked_about(tmp_path: Path):
    assert judge(tmp_path, Call("spawn", {}), "auto", sandbox=True).kind == "ask"


def test_a_grant_for_the_session_covers_the_tool_or_the_very_same_command(tmp_path: Path):
    granted = {grant(EDIT), grant(COMMAND)}
    calls = (EDIT, edit("other.py"), edit(".git/config"), COMMAND, run("make"), run("rm x"))
    kinds = [authorize(c, root=tmp_path, permissions=Permissions(), granted=granted).kind for c in calls]
    assert kinds == ["allow", "allow", "ask", "allow", "ask", "ask"]
    loses = run("rm x")
    assert authorize(loses, root=tmp_path, permissions=Permissions(), granted={grant(loses)}).kind == "ask"


# --- files that are more than files ---


@pytest.mark.parametrize(
    "path",
    [
        *(".git/hooks/pre-commit", ".GIT/config", ".git", "lib/.git/config", ".punie/config.toml", ".Punie/x"),
        *(
            ".mcp.json",
            ".vscode/tasks.json",
            ".idea/x",
            ".claude/settings.json",
            ".agents/skills/x/SKILL.md",
            ".cursor/mcp.json",
            ".codex/x",
        ),
        *(".envrc", ".gitmodules", ".gitattributes", ".gitconfig", ".pre-commit-config.yaml", ".bashrc", ".zshrc"),
        *(".github/workflows/ci.yml", "AGENTS.md", "docs/CLAUDE.md", ".git. /x", ".g\u200bit/config", "a/../.git/x"),
        *(".husky/pre-commit", ".devcontainer/devcontainer.json", "sub/.VimRC", ".bash_aliases", ".\u212aSHRC"),
        "link/config",
    ],
)
def test_what_others_take_for_instructions_is_never_let_through_unasked(tmp_path: Path, path: str):
    (tmp_path / ".git").mkdir()
    (tmp_path / "link").symlink_to(".git")
    everything = RuleSet(allow=(parse_rule("Edit"), parse_rule("Bash")))
    for mode in ("acceptEdits", "auto", "default"):
        verdict = judge(tmp_path, edit(path), mode, everything, sandbox=True)
        assert (verdict.kind, verdict.every_time, verdict.rules) == ("ask", True, ())
    assert judge(tmp_path, run(f"cp x '{path}'"), "auto", everything, sandbox=True).kind == "ask"
    assert judge(tmp_path, Call("read_file", {"path": path}), "default", everything).kind == "allow"


def test_files_that_hold_commands_among_other_things_need_a_rule(tmp_path: Path):
    assert judge(tmp_path, edit("package.json"), "acceptEdits").kind == "ask"
    assert judge(tmp_path, edit("package.json"), "acceptEdits", RuleSet(allow=(parse_rule("Edit"),))).kind == "allow"


def test_edits_that_reach_further_than_the_file_are_asked_about(tmp_path: Path):
    root = tmp_path / "project"
    root.mkdir()
    (tmp_path / "out").mkdir()
    (root / "link").symlink_to("../out")
    (tmp_path / "other").write_text("x")
    os.link(tmp_path / "other", root / "hard")
    for path in ("link/a.py", "../out/a.py", "/etc/passwd", "hard"):
        assert judge(root, edit(path), "acceptEdits", RuleSet(allow=(parse_rule("Edit"),))).kind == "ask"


@pytest.mark.parametrize(
    "path",
    [".env", ".env.local", "lib/.ENV", "id_ed25519", "../home/.ssh/config", "../home/.local/state/punie/x", "link"],
)
def test_what_commonly_holds_keys_is_asked_about(tmp_path: Path, path: str):
    root = tmp_path / "project"
    root.mkdir()
    (root / "link").symlink_to(".env")
    for call in (Call("read_file", {"path": path}), edit(path), run(f"cat {path}")):
        assert judge(root, call, "auto", RuleSet(allow=(parse_rule("Bash"),)), sandbox=True).kind == "ask"
    assert judge(root, edit(path), "auto").unseen
    assert judge(root, Call("read_file", {"path": ".env.example"})).kind == "allow"


def test_a_rule_about_the_file_lets_keys_be_read(tmp_path: Path):
    call = Call("read_file", {"path": ".env"})
    assert judge(tmp_path, call, rules=RuleSet(allow=(parse_rule("Read(./.env)"),))).kind == "allow"
    assert judge(tmp_path, call, rules=RuleSet(allow=(parse_rule("Read"),))).kind == "ask"


@pytest.mark.parametrize("mode", ["default", "plan"])
@pytest.mark.parametrize(
    "command",
    ["echo evil | uniq - AGENTS.md", "cat a.py | uniq -c - b", "sort --comp=./evil --buf=1k a.py", "file --comp -m a"],
)
def test_what_only_looks_like_reading_is_not_free(tmp_path: Path, command: str, mode: PermissionMode):
    verdict = judge(tmp_path, run(command), mode, sandbox=True)
    assert verdict.kind == ("deny" if mode == "plan" else "ask")


def test_reading_commands_are_free_in_a_sandbox_inside_the_workspace_only(tmp_path: Path):
    free = ["ls", "cat src/a.py | head -n 3", "grep -rn x src", "find . -name '*.py'"]
    asked = ["cat /etc/passwd", "grep -f/etc/passwd x", "grep --file=/etc/passwd x", "ls ..", "cat .env", "git log"]
    assert {judge(tmp_path, run(command), sandbox=True).kind for command in free} == {"allow"}
    assert {judge(tmp_path, run(command), sandbox=True).kind for command in asked} == {"ask"}
    assert {judge(tmp_path, run(command), sandbox=False).kind for command in free} == {"ask"}


# --- what "always" would allow ---


@pytest.mark.parametrize(
    ("command", "rules"),
    [
        ("npm run test", ("Bash(npm run test)",)),
        ("pytest -q tests", ("Bash(pytest -q tests)",)),
        ("ls -la src", ("Bash(ls:*)",)),
        ("grep -n 'a b' x | wc -l", ("Bash(grep:*)", "Bash(wc:*)")),
        ("make && make test", ("Bash(make)", "Bash(make test)")),
        ("python x.py", ("Bash(python x.py)",)),
        ("git status", ("Bash(git status)",)),
        ("find . -name x", ("Bash(find . -name x)",)),
        ("python -c 'print(1)'", ()),
        ("bash -c ls", ()),
        ("env ls", ()),
        ("echo $x", ()),
        ("ls *.py", ()),
        ("rm x", ()),
        ("a && b && c && d", ()),
        ("printf '%s' a*b", ()),
    ],
)
def test_what_is_offered_for_good_is_narrow(tmp_path: Path, command: str, rules: tuple[str, ...]):
    assert judge(tmp_path, run(command)).rules == rules


@pytest.mark.parametrize(
    "name", ["python", "bash", "node", "sudo", "env", "xargs", "find", "git", "npx", "uv", "make", "ssh"]
)
def test_no_prefix_is_offered_for_what_runs_other_programs(tmp_path: Path, name: str):
    assert not any(":*" in rule for rule in judge(tmp_path, run(f"{name} log")).rules)


def test_only_what_is_not_covered_yet_is_offered(tmp_path: Path):
    known = RuleSet(allow=(parse_rule("Bash(make:*)"),))
    assert judge(tmp_path, run("make && ls"), rules=known).rules == ("Bash(ls:*)",)


@pytest.mark.parametrize(
    ("path", "rules"),
    [
        ("src/app.py", ("Edit(./src/**)",)),
        ("app.py", ("Edit(./app.py)",)),
        ("a*b/x.py", ()),
        ("../x.py", ()),
        (".git/x", ()),
        ("web/package.json", ("Edit(./web/package.json)",)),
    ],
)
def test_what_is_offered_for_edits(tmp_path: Path, path: str, rules: tuple[str, ...]):
    assert judge(tmp_path, edit(path)).rules == rules


@pytest.mark.parametrize(
    "call", [EDIT, COMMAND, OTHER, run("grep -n 'a b' x | wc -l"), Call("read_file", {"path": ".env"})]
)
def test_what_is_offered_would_allow_the_call(tmp_path: Path, call: Call):
    verdict = judge(tmp_path, call)
    allowed = Permissions(home=tmp_path).with_allowed(verdict.rules)
    assert verdict.kind == "ask"
    assert authorize(call, root=tmp_path, permissions=allowed).kind == "allow"


# --- the gate ---


class Asking:
    """Gives the same answer to every request, and keeps the requests."""

    def __init__(self, answer: Decision) -> None:
        self.answer = answer
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Decision:
        self.requests.append(request)
        return self.answer


def commands(*texts: str) -> list[Reply]:
    return [*(("run_command", {"command": text}) for text in texts), "Done."]


async def test_always_takes_effect_at_once_and_is_kept(project: Project):
    kept: list[str] = []
    asking = Asking(always)
    replies = commands("echo one", "echo two", "echo one | cat", "make -v")
    _, end = await project.turn(*replies, approve=asking, permissions=Permissions(), remember=kept.extend)
    assert [(request.preview, request.rules) for request in asking.requests] == [
        ("echo one", ("Bash(echo:*)",)),
        ("echo one | cat", ("Bash(cat:*)",)),
        ("make -v", ("Bash(make -v)",)),
    ]
    assert kept == ["Bash(echo:*)", "Bash(cat:*)", "Bash(make -v)"]
    assert [call.outcome for call in end.tool_calls] == ["ok"] * 4


async def test_a_rule_that_cannot_be_kept_holds_for_the_session_and_that_is_told(project: Project):
    def full(rules: Sequence[str]) -> None:
        raise ConfigError(f"cannot be written: {rules[0]}.")

    asking = Asking(always)
    events, end = await project.turn(*commands("echo one", "echo two"), approve=asking, remember=full)
    assert len(asking.requests) == 1
    assert Notice("Allowed for this session only: cannot be written: Bash(echo:*).") in events
    assert end.stop_reason == "done"


async def test_what_loses_work_is_asked_about_every_time_and_says_what_is_lost(project: Project):
    asking = Asking(session)
    await project.turn(*commands("rm notes.md", "rm notes.md"), approve=asking)
    first, second = asking.requests
    assert first.warning == "`rm` deletes files: 1 file, 8 bytes."
    assert second.warning == "`rm` deletes files: nothing is there yet."
    assert first.every_time


async def test_a_question_shows_what_would_really_run(project: Project):
    asking = Asking(deny("no"))
    await project.turn(*commands("env A=1 bash -c $'\\x65cho hi'"), approve=asking)
    assert "echo hi" in asking.requests[0].resolved


async def test_a_denied_call_reaches_nobody_and_the_model_is_told(project: Project):
    asking = Asking(once)
    permissions = Permissions("default", RuleSet(deny=(parse_rule("Bash(echo:*)"),)))
    _, end = await project.turn(*commands("env 'echo' one"), approve=asking, permissions=permissions)
    assert asking.requests == []
    assert [(call.outcome, call.output) for call in end.tool_calls] == [
        ("denied", "Not allowed: the rule Bash(echo:*) denies it.")
    ]
    assert end.stop_reason == "done"


async def test_what_must_not_be_read_is_found_by_no_tool(project: Project):
    (project.root / "secrets").mkdir()
    (project.root / "secrets" / "key.py").write_text("class Hidden:\n    token = 'abc123'\n")
    (project.root / ".env").write_text("token=abc123\n")
    permissions = Permissions("bypassPermissions", RuleSet(deny=(parse_rule("Read(./secrets/**)"),)))
    calls = [
        ("search", {"pattern": "abc123"}),
        ("list_files", {}),
        ("find_symbol", {"name": "Hidden"}),
        ("read_file", {"path": "secrets/key.py"}),
        ("edit_file", {"path": "secrets/key.py", "old": "tokn", "new": "x"}),
        ("run_command", {"command": "cat secrets/key.py"}),
    ]
    replies: list[Reply] = [*calls, "Nothing."]
    _, end = await project.turn(*replies, approve=approve_all, permissions=permissions)
    outputs = [call.output for call in end.tool_calls]
    assert not any("abc123" in output for output in outputs[1:])
    assert "secrets" not in outputs[0]
    assert "key.py" not in outputs[1]
    assert [call.outcome for call in end.tool_calls[3:]] == ["denied", "denied", "denied"]


async def test_a_file_with_keys_is_not_quoted_before_anybody_agreed(project: Project):
    (project.root / ".env").write_text("TOKEN=abc123\n")
    asking = Asking(deny())
    call = ("edit_file", {"path": ".env", "old": "TOKN=abc", "new": "x"})
    _, end = await project.turn(call, "Done.", approve=asking)
    assert len(asking.requests) == 1
    assert "abc123" not in end.tool_calls[0].output


async def test_nobody_there_names_the_rule_to_add(project: Project):
    _, end = await project.turn(*commands("make all"))
    assert (end.stop_reason, end.exit_code) == ("denied", 3)
    assert end.error == (
        "run_command needs a permission and nobody is there to give it.\n"
        "Allow it with --allowed-tools 'Bash(make all)', or run without -p and answer."
    )
    _, end = await project.turn(*commands("rm notes.md"))
    assert end.error == (
        "run_command needs a permission and nobody is there to give it: `rm` deletes files: 1 file, 8 bytes.\n"
        "Run without -p and answer."
    )


# --- searching everything ---


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("grep -rn x src", "allow"),
        ("grep -rn x src docs", "allow"),
        ("grep -rn x src .", "ask"),
        ("grep -rn x", "ask"),
        ("grep -rn src", "ask"),
        ("grep --recursive x config", "ask"),
        ("grep -d recurse x config", "ask"),
        ("grep -rA 3 x src", "ask"),
        ("grep -Rn x src", "ask"),
        ("egrep -rn x .", "ask"),
        ("rg -n x src", "allow"),
        ("rg --hidden x", "ask"),
        ("rg -L x src", "ask"),
        ("grep -n x src/app.py config/plain", "allow"),
        ("grep -rn x vault", "ask"),
    ],
)
def test_a_search_of_everything_is_asked_about_where_that_holds_keys(tmp_path: Path, command: str, kind: str):
    for path in ("src/app.py", "docs/a.md", "config/plain", "config/.env.local", "vault/x"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("x")
    rules = RuleSet(deny=(parse_rule("Read(./vault/**)"),))
    verdict = judge(tmp_path, run(command), rules=rules, sandbox=True)
    assert verdict.kind in ({kind, "deny"} if "vault" in command else {kind})
    assert judge(tmp_path, run(command), "auto", sandbox=True).kind == "allow"
