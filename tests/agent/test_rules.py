"""What rules mean: their grammar, and what each of them covers."""

import re
from pathlib import Path

import pytest

from punie.agent.permissions import Call, Permissions, authorize, hides
from punie.config import MORE_TOOLS, TOOL_NAMES
from punie.rules import COMMANDS, EDITS, NOTES, READS, RuleSet, parse_rule, split_rules


def rules(*, deny: tuple[str, ...] = (), ask: tuple[str, ...] = (), allow: tuple[str, ...] = ()) -> RuleSet:
    return RuleSet(*(tuple(map(parse_rule, texts)) for texts in (deny, ask, allow)))


def test_every_tool_is_a_tool_of_rules():
    assert {*TOOL_NAMES} == READS | EDITS | COMMANDS
    assert {*MORE_TOOLS} == NOTES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Bsh(ls)", "there is no tool named 'Bsh'. Did you mean 'Bash'?"),
        ("edit_fil", "there is no tool named 'edit_fil'. Did you mean 'edit_file'?"),
        ("zzz", "there is no tool named 'zzz'. There are Read, Edit, Write, Bash and the tools' own names."),
        ("Bash(ls", "the parentheses of 'Bash(ls' do not match."),
        ("Bash(ls))", "the parentheses of 'Bash(ls))' do not match."),
        ("Bash)ls(", "the parentheses of 'Bash)ls(' do not match."),
        ("Bash)", "there is no tool named 'Bash)'."),
        ("Bash(ls) x", "the parentheses of 'Bash(ls) x' do not match."),
        ("Bash()", "'Bash()' has nothing between its parentheses."),
        ("Bash(:*)", "'Bash(:*)' names no command."),
        ("Bash(echo 'a)", "'echo 'a': no closing quotation."),
        ("Read(/etc/passwd)", "is ambiguous: write //etc/passwd for the whole disk or ./etc/passwd for the project."),
        ("Read(../x)", "'Read(../x)': a path rule cannot hold '..'."),
        ("Read(!x)", "'Read(!x)': a path rule cannot be negated."),
        ("search(./x)", "'search(./x)': a path can only be given to Read."),
        ("mcp__a__b(x)", "a rule about an MCP tool is its name alone."),
        ("", "there is no tool named ''."),
    ],
)
def test_wrong_rules_are_refused_in_words(text: str, said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_rule(text)


def test_rules_of_a_flag_are_split_outside_parentheses():
    text = "edit_file, Bash(git log:*) read_file,Bash(npm run a,b)"
    assert list(split_rules(text)) == ["edit_file", "Bash(git log:*)", "read_file", "Bash(npm run a,b)"]


def kind(root: Path, tool: str, given: str, ruleset: RuleSet) -> str:
    key = "command" if tool == "run_command" else "path"
    permissions = Permissions("default", ruleset, home=root.parent / "home")
    return authorize(Call(tool, {key: given}), root=root, permissions=permissions).kind


@pytest.mark.parametrize(
    ("rule", "command", "allowed"),
    [
        ("Bash(git log:*)", "git log", True),
        ("Bash(git log:*)", "git log --stat -n 3", True),
        ("Bash(git log:*)", "git logout", False),
        ("Bash(git log:*)", "git", False),
        ("Bash(git log:*)", "/usr/bin/git log", False),
        ("Bash(git log:*)", "./git log", False),
        ("Bash(git log:*)", "git -C x log", False),
        ("Bash(npm run test)", "npm run test", True),
        ("Bash(npm run test)", "npm  run   test", True),
        ("Bash(npm run test)", "npm run test -- -u", False),
        ("Bash(pytest *)", "pytest", True),
        ("Bash(pytest *)", "pytest -q tests", True),
        ("Bash(pytest *)", "pytester", False),
        ("Bash(npm run test-*)", "npm run test-unit", True),
        ("Bash(npm * test)", "npm run test", True),
        ("Bash(grep 'a b' x)", "grep 'a b' x", True),
        ("Bash(grep 'a b' x)", "grep a b x", False),
        ("Bash", "make", True),
        ("run_command", "make", True),
        ("edit_file", "make", False),
        ("Bash(ls:*)", "ls && make", False),
        ("Bash(ls:*)", "ls && ls -l; ls | ls", True),
        ("Bash(ls:*)", "ls &", False),
    ],
)
def test_what_a_command_rule_allows(tmp_path: Path, rule: str, command: str, *, allowed: bool):
    assert (kind(tmp_path, "run_command", command, rules(allow=(rule,))) == "allow") is allowed


@pytest.mark.parametrize(
    ("rule", "command"),
    [
        ("Bash(curl:*)", "curl"),
        ("Bash(curl:*)", "/usr/bin/curl x"),
        ("Bash(curl:*)", "CURL x"),
        ("Bash(curl:*)", "ls && curl x"),
        ("Bash(curl:*)", "ls | xargs curl"),
        ("Bash(git push:*)", "git -C x push"),
        ("Bash(git push:*)", "git --git-dir x -c a=b push origin"),
        ("Bash(git push)", "git push"),
        ("Bash", "ls"),
        ("Read(./secrets/**)", "cat secrets/key"),
        ("Read(./secrets/**)", "cd secrets; cat key"),
        ("Read(./secrets/**)", "grep -r x secrets"),
        ("Read(./secrets/**)", "wc < secrets/key"),
        ("Read(./secrets/**)", "cat lib/../secrets/key"),
        ("Read(./secrets/**)", "dd if=secrets/key"),
        ("Edit(prod/**)", "echo x > prod/a"),
        ("Edit(prod/**)", "cp a prod/a"),
    ],
)
def test_what_a_rule_denies_of_commands(tmp_path: Path, rule: str, command: str):
    assert kind(tmp_path, "run_command", command, rules(deny=(rule,), allow=("Bash",))) == "deny"


def test_a_denied_prefix_ends_with_a_word(tmp_path: Path):
    denied = rules(deny=("Bash(git push)", "Bash(rm:*)"), allow=("Bash(git push:*)", "Bash(rmlint:*)"))
    assert kind(tmp_path, "run_command", "git push origin", denied) == "allow"
    assert kind(tmp_path, "run_command", "rmlint .", denied) == "allow"


@pytest.mark.parametrize(
    ("rule", "path", "denied"),
    [
        ("Read(./secrets/**)", "secrets/key", True),
        ("Read(./secrets/**)", "./lib/../secrets/key", True),
        ("Read(./secrets/**)", "SECRETS/key", True),
        ("Read(./secrets/**)", "link/key", True),
        ("Read(./secrets/**)", "lib/secrets/key", False),
        ("Read(secrets)", "lib/secrets/key", True),
        ("Read(*.pem)", "a/b/c.pem", True),
        ("Read(./*.pem)", "a/b/c.pem", False),
        ("Read(//etc/**)", "/etc/passwd", True),
        ("Read(~/.ssh/**)", "../home/.ssh/id", True),
        ("Read", "a.py", True),
        ("read_file", "a.py", True),
        ("Edit(a.py)", "a.py", False),
        ("search", "a.py", False),
    ],
)
def test_what_a_path_rule_denies(tmp_path: Path, rule: str, path: str, *, denied: bool):
    root = tmp_path / "project"
    (root / "secrets").mkdir(parents=True)
    (root / "link").symlink_to("secrets")
    assert (kind(root, "read_file", path, rules(deny=(rule,))) == "deny") is denied


def test_an_allowed_path_has_to_be_inside_in_both_readings(tmp_path: Path):
    (tmp_path / "src").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "src" / "link").symlink_to("../lib")
    allowed = rules(allow=("Edit(src/**)",))
    assert kind(tmp_path, "edit_file", "src/a.py", allowed) == "allow"
    assert kind(tmp_path, "write_file", "src/a.py", allowed) == "allow"
    assert kind(tmp_path, "edit_file", "src/link/a.py", allowed) == "ask"
    assert kind(tmp_path, "edit_file", "src/../lib/a.py", allowed) == "ask"


def test_what_must_not_be_read_must_not_be_edited_because_a_failing_edit_quotes_it(tmp_path: Path):
    assert kind(tmp_path, "edit_file", "secrets/key", rules(deny=("Read(./secrets/**)",), allow=("Edit",))) == "deny"


def test_deny_wins_over_ask_and_ask_over_allow_however_narrow_they_are(tmp_path: Path):
    both = rules(deny=("Bash(git:*)",), ask=("Bash(git status)",), allow=("Bash(git status -s)",))
    assert kind(tmp_path, "run_command", "git status -s", both) == "deny"
    both = rules(ask=("Bash(git:*)",), allow=("Bash(git status -s)",))
    assert kind(tmp_path, "run_command", "git status -s", both) == "ask"


@pytest.mark.parametrize(
    ("rule", "tool", "covered"),
    [
        ("mcp__docs", "mcp__docs__find", True),
        ("mcp__docs__*", "mcp__docs__find", True),
        ("mcp__docs__find", "mcp__docs__find", True),
        ("mcp__docs__find", "mcp__docs__find_all", False),
        ("mcp__doc", "mcp__docs__find", False),
    ],
)
def test_rules_about_tools_of_servers(tmp_path: Path, rule: str, tool: str, *, covered: bool):
    def verdict(ruleset: RuleSet) -> str:
        return authorize(Call(tool, {"path": "x"}), root=tmp_path, permissions=Permissions("default", ruleset)).kind

    assert (verdict(rules(allow=(rule,))) == "allow") is covered
    assert (verdict(rules(deny=(rule,))) == "deny") is covered


def test_lists_and_searches_leave_out_what_must_not_be_read(tmp_path: Path):
    hidden = hides(tmp_path, Permissions("default", rules(deny=("Read(./secrets/**)",), allow=("Read(./.env.ci)",))))
    assert [path for path in ("a.py", "secrets/key", ".env", ".env.example", ".env.ci") if hidden(path)] == [
        "secrets/key",
        ".env",
    ]


def test_keys_of_the_home_directory_are_left_out_where_it_is_the_workspace(tmp_path: Path):
    for root, path in ((tmp_path, ".ssh/config"), (tmp_path / ".aws", "config")):
        assert hides(root, Permissions(home=tmp_path))(path)
    assert not hides(tmp_path / "project", Permissions(home=tmp_path))(".ssh/config")


def test_denied_directories_elsewhere_and_whole_tools_are_left_out(tmp_path: Path):
    assert hides(tmp_path, Permissions("default", rules(deny=(f"Read(/{tmp_path}/a/**)",))))("a/b")
    assert (
        hides(tmp_path, Permissions("default", rules(deny=("Read(~/project/a/**)",)), home=tmp_path.parent))("x")
        is False
    )
    assert hides(tmp_path, Permissions("default", rules(deny=("Read",))))("x")


def test_a_long_word_does_not_keep_a_rule_with_stars_busy(tmp_path: Path):
    """The word is the model's: each star of the rule used to be tried at every letter for every other star."""
    rules = RuleSet(deny=tuple(map(parse_rule, ("Bash(echo *a*a*a*a*a*a*b)", "Read(*a*a*a*a*a*a*b)"))))
    assert kind(tmp_path, "run_command", f"echo {'a' * 9_000}", rules) == "ask"
    assert kind(tmp_path, "read_file", "a" * 3_000, rules) == "allow"
    assert kind(tmp_path, "run_command", f"echo {'a' * 900}b", rules) == "deny"
    assert kind(tmp_path, "read_file", f"{'a' * 200}b", rules) == "deny"
    odd = RuleSet(deny=(parse_rule("Bash(echo [x]?*)"),))
    assert kind(tmp_path, "run_command", "echo '[x]?y'", odd) == "deny"
    assert kind(tmp_path, "run_command", "echo xxy", odd) == "ask"
