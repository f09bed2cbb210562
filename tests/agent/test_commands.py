"""What is read out of shell commands: what hides something is never let through, and no spelling hides a denied one."""

import random
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie.agent._dangers import Danger, dangers, losses
from punie.agent._safe import is_safe
from punie.agent._shell import analyse, hidden_in
from punie.agent.permissions import Call, Permissions, Verdict, authorize
from punie.config import PermissionMode
from punie.rules import RuleSet, parse_rule

ROOT = Path("/nowhere/project")
DENIED = (("curl", "http://example.org"), ("git", "push", "origin"), ("rm", "-rf", "build"))
RULES = RuleSet(
    deny=tuple(map(parse_rule, ("Bash(curl:*)", "Bash(git push:*)", "Bash(rm -rf:*)"))),
    allow=tuple(map(parse_rule, ("Bash", "Bash(echo:*)", "Bash(bash:*)", "Bash(env:*)", "Bash(git:*)"))),
)
MODES: tuple[PermissionMode, ...] = ("default", "acceptEdits", "auto", "bypassPermissions")


def judged(command: str, *, mode: PermissionMode = "auto", rules: RuleSet = RULES, root: Path = ROOT) -> Verdict:
    permissions = Permissions(mode, rules, uses_sandbox=True)
    return authorize(Call("run_command", {"command": command}), root=root, permissions=permissions, sandbox_works=True)


# --- what is plain ---


@pytest.mark.parametrize(
    "command",
    [
        "ls",
        "ls -la src/a.py",
        "git log --format=%h -n 3 HEAD~1",
        "a && b || c; d | e\nf",
        "grep -n 'a b*' \"c d\" x",
        "make 2>&1 | tail -n 3",
        "make >/dev/null 2>/dev/null",
        "test 1 -gt 2",
    ],
)
def test_plain_words_are_plain(command: str):
    assert analyse(command).plain


@pytest.mark.parametrize(
    "command",
    [
        "echo $HOME",
        'echo "$HOME"',
        "echo ${x@P}",
        "echo $((1+1))",
        "echo $(ls)",
        "echo `ls`",
        "cat <(ls)",
        "tee >(cat)",
        "ls > out",
        "ls >> out",
        "ls >| out",
        "ls &> out",
        "ls < in",
        "cat <<E\nx\nE",
        "cat <<< x",
        "ls *.py",
        "ls a?",
        "ls [ab]",
        "ls {a,b}",
        "ls ~",
        "ls ~/x",
        "A=1 ls",
        "A=1",
        "export A=1",
        "ls &",
        "ls |& cat",
        "(ls)",
        "{ ls; }",
        "! ls",
        "if ls; then ls; fi",
        "for x in a; do ls; done",
        "while ls; do ls; done",
        "case a in a) ls;; esac",
        "f() { ls; }",
        "[[ a == b ]]",
        "((x=1))",
        "ls # x",
        "l\\s",
        "l's'",
        'l"s"',
        "$'ls'",
        "ls \\\n-l",
        "env ls",
        "sudo ls",
        "nice ls",
        "timeout 5 ls",
        "xargs ls",
        "time ls",
        "nohup ls",
        "command ls",
        "exec ls",
        "eval ls",
        "source x",
        ". x",
        "bash -c ls",
        "sh -c ls",
        "coproc ls",
        "trap ls EXIT",
        "alias a=b",
        "find . -exec ls {} +",
        "git -c a=b log",
        "git submodule foreach ls",
        "ssh host ls",
    ],
)
def test_what_hides_a_program_or_an_effect_is_not_plain(command: str):
    assert not analyse(command).plain


@pytest.mark.parametrize(
    "command",
    [
        *("$x a", "$(x) a", "/bin/l?", "'", 'echo "', "ls )", "{ls,a}", "echo x | bash", "bash < f", "bash -c $x"),
        *("eval $x", "echo x | xargs bash -c", "l\\\ns", "a\u200bb", "a\u202eb", "a\xa0b", "a\rb", "nice -n 5 $x"),
        *(". ./x", "bash -s", "x" * 10_001, "; ".join(["a"] * 51)),
    ],
)
def test_where_the_programs_are_not_known_no_rule_of_a_whole_tool_helps(command: str):
    allowed = RuleSet(allow=(parse_rule("Bash"),))
    assert analyse(command).opaque
    assert judged(command, mode="default", rules=allowed).kind == "ask"
    assert judged(command, mode="auto", rules=allowed).kind == "ask"


def test_what_only_hides_arguments_is_let_through_by_a_rule_of_the_whole_tool():
    allowed = RuleSet(allow=(parse_rule("Bash"),))
    assert judged('for f in *.py; do wc -l "$f"; done', rules=allowed).kind == "allow"
    denying = RuleSet(deny=(parse_rule("Bash(wc -l x)"),), allow=(parse_rule("Bash"),))
    assert judged('for f in *.py; do wc -l "$f"; done', rules=denying).kind == "ask"


def test_nothing_to_run_is_asked_about():
    assert judged("", rules=RuleSet(allow=(parse_rule("Bash"),))).kind == "ask"


def test_characters_that_cannot_be_seen_are_found():
    assert not hidden_in("ls\n\tä 日本")
    assert all(hidden_in(char) for char in "\x00\x1b\x7f\u200b\u202e\u00a0\u2028\U000e0041\ufeff")


# --- no spelling hides a denied command ---


def spellings(char: str) -> list[str]:
    """Ways to write one character that bash takes for that character."""
    return [char, f"'{char}'", f'"{char}"', f"\\{char}", f"$'\\x{ord(char):02x}'", f"$'\\{ord(char):03o}'", f"''{char}"]


PREFIXES = [
    "{0}",
    "A=1 {0}",
    "env {0}",
    "env -u A B=1 {0}",
    "sudo -u nobody {0}",
    "nice -n 5 {0}",
    "timeout 5 {0}",
    "nohup {0}",
    "time {0}",
    "command {0}",
    "exec {0}",
    "xargs -n 1 {0}",
    "find . -exec {0} +",
    "stdbuf -oL {0}",
    "busybox {0}",
    "bash -c {1}",
    "sh -ec {1}",
    "bash --norc -c {1}",
    "eval {1}",
    "trap {1} EXIT",
    "watch {1}",
    "ssh host {1}",
    "su -c {1}",
]
WRAPS = [
    *PREFIXES,
    "true && {0}",
    "false || {0}",
    "true; {0}",
    "true\n{0}",
    "echo x | {0}",
    "{0} | cat",
    "{0} > out",
    "{0} 2>&1",
    "{0} &",
    "! {0}",
    "({0})",
    "{{ {0}; }}",
    "echo $({0})",
    'echo "$({0})"',
    "echo `{0}`",
    "cat <({0})",
    "if true; then {0}; fi",
    "for i in 1; do {0}; done",
    "while {0}; do true; done",
    "case a in a) {0};; esac",
    "f() {{ {0}; }}; f",
    "[[ -n $({0}) ]]",
    "x=$({0})",
    "export X=$({0})",
    "bash <<< {1}",
    "echo {1} | sh",
    "bash <<'E'\n{0}\nE",
]


def disguised(chance: random.Random) -> str:
    """A denied command, spelled in some way, inside up to three others."""
    command = " ".join(spelled(word, chance) for word in chance.choice(DENIED))
    for place, wraps in enumerate([PREFIXES, WRAPS, WRAPS]):
        wrap = chance.choice(wraps)
        if place == 2 and wrap in PREFIXES and "{0}" in wrap:
            continue  # a program cannot be put before what is no single command any more
        if wrap == "echo `{0}`" and ("\\" in command or "`" in command):
            continue  # backslashes lose a level inside backquotes, so that it would be another command
        command = wrap.format(command, shlex.quote(command))
    return command


def spelled(word: str, chance: random.Random) -> str:
    match chance.choice(["plain", "quoted", "letters"]):
        case "plain":
            return word
        case "quoted":
            return f"'{word}'"
        case _:
            return "".join(chance.choice(spellings(char)) for char in word)


PROPERTY = settings(deadline=None, derandomize=True, database=None)


@pytest.mark.timeout(1800)  # seconds of processor time, but a machine may have other things to do
@settings(PROPERTY, max_examples=10_000)
@given(st.randoms(use_true_random=True), st.sampled_from(MODES))
def test_no_spelling_and_no_wrapping_hides_a_denied_command(chance: random.Random, mode: PermissionMode):
    command = disguised(chance)
    assert (judged(command, mode=mode).kind, command) == ("deny", command)


EXPANSIONS = [
    "${{e}}{0}",
    "{0}$e",
    "$(echo {0})",
    "`echo {0}`",
    "{{{0},}}",
    "{0}*",
    "[{1}]{2}",
    "${{x:-{0}}}",
    "$x",
    '"$x"',
]


@pytest.mark.timeout(1800)
@settings(PROPERTY, max_examples=2_000)
@given(st.sampled_from(DENIED), st.sampled_from(EXPANSIONS), st.integers(0, 1), st.sampled_from(WRAPS), st.booleans())
def test_no_expansion_gets_a_denied_command_through(
    words: tuple[str, ...], how: str, place: int, wrap: str, assigned: bool
):
    word = words[place]
    expanded = [*words[:place], how.format(word, word[0], word[1:]), *words[place + 1 :]]
    command = " ".join(expanded)
    command = wrap.format(f"x={word}; {command}" if assigned else command, shlex.quote(command))
    assert judged(command, mode="auto").kind != "allow"


def test_the_spellings_are_what_bash_takes_for_the_words():
    chance = random.Random(1)
    words = [word for argv in DENIED for word in argv] * 20
    texts = ["".join(chance.choice(spellings(char)) for char in word) for word in words]
    script = "printf '%s\\n' " + " ".join(texts)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == words
    assert [analyse(f"{text} x").commands[0][0] for text in texts] == words


def test_a_command_that_no_rule_is_about_is_never_judged_more_mildly_in_disguise():
    plain = RuleSet(allow=(parse_rule("Bash(echo:*)"),))
    assert judged("make all", mode="default", rules=plain).kind == "ask"
    for wrap in WRAPS:
        assert judged(wrap.format("make all", "'make all'"), mode="default", rules=plain).kind == "ask"


# --- commands that only read ---


@pytest.mark.parametrize(
    ("command", "safe"),
    [
        ("ls -la", True),
        ("grep -rn x src", True),
        ("sed -n 1,5p a", True),
        ("sed -n 1,5p -i a", False),
        ("sed -i s/a/b/ a", False),
        ("sed -n 'w x' a", False),
        ("sort a", True),
        ("sort -o a a", False),
        ("sort -uo a a", False),
        ("sort --output=a a", False),
        ("sort --compress-program=x a", False),
        ("find . -name a", True),
        ("find . -delete", False),
        ("find . -fprintf a b", False),
        ("rg x", True),
        ("rg --pre ./x y", False),
        ("rg --pre=./x y", False),
        ("rg -z x", False),
        ("rg --hostname-bin x y", False),
        ("uniq a", True),
        ("uniq a b", False),
        ("uniq -c", True),
        ("uniq - b", False),
        ("uniq -- -a b", False),
        ("uniq -f 1 a", False),
        ("sort -t : -k 2,2nr a", True),
        ("sort --unique --reverse -- a", False),
        ("sort --comp=./x --buf=1k a", False),
        ("sort --tem=. a", False),
        ("sort --fi=x", False),
        ("sort --ou=a a", False),
        ("file -b --mime a", True),
        ("file --unc a", False),
        ("file --mag=x a", False),
        ("find -L . -name a", False),
        ("find -files0-from a", False),
        ("rg --pre-g x y", False),
        ("git status", False),
        ("env", False),
        ("printenv", False),
        ("./ls", False),
        ("/bin/ls", False),
        ("python x", False),
    ],
)
def test_which_commands_only_read(command: str, *, safe: bool):
    analysis = analyse(command)
    assert (analysis.plain and all(map(is_safe, analysis.commands))) is safe


# --- commands that lose work ---


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "build").mkdir()
    for number in range(3):
        (tmp_path / "build" / f"{number}.o").write_text("x" * 100)
    (tmp_path / "a.py").write_text("a\n")
    (tmp_path / "b.py").write_text("b\n")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf build",
        "rm a.py",
        "git reset --hard",
        "git reset --hard HEAD~1",
        "git -C . reset --hard",
        "git clean -fd",
        "git checkout -- .",
        "git checkout .",
        "git checkout a.py",
        "git checkout -f main",
        "git switch --discard-changes main",
        "git restore .",
        "git restore --staged --worktree a.py",
        "git stash drop",
        "git branch -D x",
        "git push --force",
        "git push origin +main",
        "git push origin --delete x",
        "git rm a.py",
        "git worktree remove x",
        "> a.py",
        "echo x > a.py",
        "echo x >| a.py",
        "truncate -s 0 a.py",
        "dd if=/dev/zero of=a.py",
        "mkfs.ext4 /dev/sda",
        "find . -name x -delete",
        "find . -exec rm {} +",
        "shred a.py",
        "mv a.py b.py",
        "mv a.py build/0.o",
        "cp a.py b.py",
        "echo x | tee a.py",
        "rsync -a --delete x/ build/",
        "xargs rm",
        "sudo rm -rf build",
        "bash -c 'rm -rf build'",
        "for f in *; do rm $f; done",
        "crontab -r",
    ],
)
def test_what_loses_work_is_asked_about_whatever_a_rule_or_the_mode_says(project: Path, command: str):
    allowed = RuleSet(allow=(parse_rule("Bash"), parse_rule("Bash(rm:*)"), parse_rule("Bash(git:*)")))
    verdict = judged(command, mode="auto", rules=allowed, root=project)
    assert (verdict.kind, verdict.every_time) == ("ask", True)
    assert verdict.dangers
    assert verdict.rules == ()
    assert judged(command, mode="bypassPermissions", rules=allowed, root=project).kind == "allow"


@pytest.mark.parametrize(
    "command",
    [
        "git status",
        "git checkout main",
        "git restore --staged a.py",
        "git clean -n",
        "git rm --cached a.py",
        "git branch",
        "git push",
        "echo x > new.txt",
        "echo x >> a.py",
        "mv a.py c.py",
        "mv -n a.py b.py",
        "cp a.py c.py",
        "echo x | tee -a a.py",
        "ls build",
        "rmdir empty",
    ],
)
def test_what_loses_nothing_is_no_danger(project: Path, command: str):
    assert dangers(analyse(command), root=project) == ()


def said(command: str, root: Path, *, trusted: bool = False) -> str:
    return losses(dangers(analyse(command), root=root), root=root, trusted=trusted)


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True, timeout=30)


def test_what_would_be_lost_is_counted(project: Path):
    assert said("rm -rf build", project) == "`rm` deletes files: 3 files, 300 bytes."
    assert said("rm gone", project) == "`rm` deletes files: nothing is there yet."
    assert said("mv a.py b.py", project) == "`mv` writes over what is in a file: 1 file, 2 bytes."
    assert said("rm $x", project) == "`rm` deletes files: which files is only known when it runs."
    assert said("git reset --hard", project) == "`git reset --hard` throws away changes that are not committed."


def test_in_a_trusted_project_git_says_what_is_not_committed(project: Path):
    git(project, "init", "-q")
    git(project, "add", "a.py", "b.py")
    git(project, "commit", "-qm", "x")
    clean = "`git reset --hard` throws away changes that are not committed: nothing in it is uncommitted."
    assert said("git reset --hard", project, trusted=True) == clean
    (project / "a.py").write_text("changed\n")
    assert said("git reset --hard", project, trusted=True).endswith(": not committed: 1 changed.")
    assert said("git clean -fd", project, trusted=True).endswith(": not committed: 3 untracked.")
    assert said("rm -rf build a.py", project, trusted=True).endswith("; not committed: 1 changed, 3 untracked.")
    assert "not committed:" not in said("rm a.py", project, trusted=False)


def test_asking_git_runs_nothing_that_the_repository_brings(project: Path):
    git(project, "init", "-q")
    git(project, "config", "core.fsmonitor", f"touch {project}/executed; true")
    git(project, "config", "core.hooksPath", str(project))
    assert "untracked" in said("git clean -fd", project, trusted=True)
    assert not (project / "executed").exists()


def test_a_filter_of_the_repository_is_not_run_to_compare_a_file(project: Path):
    executed = project / "executed"
    git(project, "init", "-q")
    (project / ".gitattributes").write_text("*.py filter=odd.name=x\n*.o filter=p\n")
    git(project, "add", ".")
    git(project, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    for key in ("filter.odd.name=x.clean", "filter.p.process"):
        git(project, "config", key, f"touch {executed}; cat")
    git(project, "config", "filter.odd.name=x.required", "true")
    (project / "a.py").write_text("changed\n")
    (project / "build" / "1.o").write_text("changed\n")
    assert said("git reset --hard", project, trusted=True).endswith("not committed: 2 changed.")
    assert not executed.exists()
    git(project, "status")
    assert executed.exists(), "the attack is real"


def test_counting_stops(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("punie.agent._dangers.MAX_COUNTED", 2)
    assert said("rm -rf build", project) == "`rm` deletes files: more than 2 files, 200 bytes and more."


def test_a_danger_is_named_once():
    twice = dangers(analyse("sudo nice rm a"), root=ROOT)
    assert twice == (Danger("rm", "files", ("a",)),)
