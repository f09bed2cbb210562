"""`punie completion`: Tab in a real shell; bash in any case, zsh and fish where they are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart
from tests.ui.pseudo import PUNIE

from punie import cli
from punie.agent import SessionStore
from punie.config import setting_keys
from punie.ui.options import MODES

SHELLS = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]
BREAKS = " \t\n\"'><=;|&(:"  # what bash breaks words at unless told otherwise


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with settings and two stored conversations about one directory."""
    home = tmp_path_factory.mktemp("home")
    (home / ".config" / "punie").mkdir(parents=True)
    (home / ".config" / "punie" / "config.toml").write_text('[aliases]\nquick = "local:smollm2-135m"\n')
    (home / "work").mkdir()
    (home / "notes").mkdir()
    with SessionStore(home / ".local" / "state" / "punie" / "sessions") as store:
        for name, title in (("a" * 32, "first\tone"), ("b" * 32, "second \x1b[31mone")):
            session = store.create(home / "work", id=name)
            session.begin(model="local", title=title)
            session.sync([ModelRequest([UserPromptPart(title)]), ModelResponse([TextPart("yes")])])
            session.close()
    return home


@pytest.fixture(scope="module")
def env(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": f"{PUNIE.parent}:{os.environ['PATH']}", "TERM": "dumb", "LANG": "C.UTF-8"}


def words(line: str, env: dict[str, str], home: Path, shell: str = "fish") -> dict[str, str]:
    """What can stand at the end of a line, with its meaning."""
    command = [PUNIE, "completion", shell, "--line", line]
    done = subprocess.run(command, cwd=home / "work", env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    pairs = (found.partition("\t") for found in done.stdout.splitlines())
    return {word: meaning for word, _, meaning in pairs}


def test_every_command_is_completed_and_knows_its_flags(env: dict[str, str], home: Path):
    found = words("punie ", env, home)
    assert found == {name: command.summary[:59] + "…" if len(command.summary) > 60 else command.summary
                     for name, command in cli.COMMANDS.items()}  # fmt: skip
    assert [name for name in cli.COMMANDS if cli._described(name) is None] == ["train"]
    assert set(words("punie -", env, home)) == set(cli._root_parser()._option_string_actions)
    assert {"--quick", "--bundle", "--help"} <= words("punie doctor --", env, home).keys()


def test_flags_and_operands_have_their_values(env: dict[str, str], home: Path):
    assert set(words("punie --permission-mode ", env, home)) == set(MODES)
    assert set(words("punie --output-format=st", env, home)) == {"--output-format=stream-json"}
    assert set(words("punie config set ", env, home)) == set(setting_keys())
    assert set(words("punie models p", env, home)) == {"pull"}
    assert words("punie -m qui", env, home) == {"quick": "local:smollm2-135m"}
    assert "smollm2-135m" in words("punie models info ", env, home)
    assert "local:smollm2-135m" in words("punie -v --model ", env, home)
    assert set(words("punie completion ", env, home)) == {"bash", "zsh", "fish"}


def test_sessions_of_this_directory_are_completed_the_last_one_first(env: dict[str, str], home: Path):
    wanted = {"b" * 8: "second one", "a" * 8: "first one"}
    for line in ("punie --resume ", "punie -r ", "punie sessions show ", "punie sessions rm aaaa "):
        found = words(line, env, home)
        assert {word: found[word] for word in wanted} == wanted
        assert list(found)[:2] == list(wanted)
    done = subprocess.run(
        [PUNIE, "completion", "fish", "--line", "punie -r a"], cwd=home / "notes", env=env, capture_output=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_where_nothing_is_known_nothing_is_said(env: dict[str, str], home: Path):
    for line in ("punie -p ", "punie 'an open", "punie where is ", "punie -C ", "punie sessions import ", "", "punie"):
        assert words(line, env, home) == {}
    assert words("punie mcp add x -- ", env, home) == {}
    assert words("punie train ", env, home) == {}
    (home / ".config" / "punie" / "config.toml").rename(home / "aside")
    (home / ".config" / "punie" / "config.toml").write_text("not toml [")
    try:
        assert words("punie -m ", env, home) == {}
    finally:
        (home / "aside").rename(home / ".config" / "punie" / "config.toml")


def test_no_such_shell_is_a_usage_error(env: dict[str, str]):
    for arguments in ([], ["tcsh"]):
        done = subprocess.run([PUNIE, "completion", *arguments], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_for_its_shell(shell: str, env: dict[str, str], tmp_path: Path):
    script = subprocess.run([PUNIE, "completion", shell], env=env, capture_output=True, text=True, check=True).stdout
    (tmp_path / "script").write_text(script)
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert script.endswith("\n")


# --- Tab ---

CASES = {
    "punie mod": "punie models",
    "punie models inf": "punie models info",
    "true; punie --permission-mode=pl": "true; punie --permission-mode=plan",
    "punie --permission-mode acc": "punie --permission-mode acceptEdits",
    "punie -m local:smol": "punie -m local:smollm2-135m",
    "punie --model=local:smol": "punie --model=local:smollm2-135m",
    "punie config set limits.max_tur": "punie config set limits.max_turns",
    "punie --resume aa": "punie --resume aaaaaaaa",
    "punie -C ../not": "punie -C ../notes/",
}


# Ctrl-T prints the line as it stands.
STARTS = {
    "bash": (
        ["--norc", "--noprofile", "-i"],
        "bind 'set enable-bracketed-paste off'; bind -x '\"\\C-t\": echo \"<$READLINE_LINE>\"'; PS1='ready> '",
    ),
    "zsh": (
        ["-f", "-i"],
        "autoload -Uz compinit; compinit -D; show() { print -r -- \"<$BUFFER>\"; }; zle -N show; bindkey '^T' show;"
        " PS1='ready> '",
    ),
}


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shell in STARTS])
def test_tab(shell: str, env: dict[str, str], home: Path):
    arguments, begin = STARTS[shell]
    with pexpect.spawn(
        shell, arguments, cwd=str(home / "work"), env=env, encoding="utf-8", dimensions=(24, 200), timeout=60
    ) as child:
        child.delaybeforesend = None
        child.send(f'{begin}; eval "$(punie completion {shell})"\r')
        child.expect(r"[\r\n]ready> ")
        for typed, completed in CASES.items():
            child.send(f"{typed}\t\x14\x15")
            child.expect(r"<([^>\r]+)>\r?\n")
            assert child.match[1].rstrip() == completed
        child.send("exit\r")
        child.expect(pexpect.EOF)


def test_words_in_fish_where_it_is(env: dict[str, str], home: Path):
    for typed, completed in CASES.items():
        if "fish" in SHELLS and typed.startswith("punie") and "../" not in typed:
            command = ["fish", "--no-config", "-c", 'punie completion fish | source; complete -C "$argv[1]"', typed]
            done = subprocess.run(command, cwd=home / "work", env=env, capture_output=True, text=True, check=True)
            assert completed.rpartition(" ")[2] in done.stdout


def bash_words(line: str, env: dict[str, str], home: Path) -> list[str]:
    """What the function of the script puts into COMPREPLY."""
    script = (
        'eval "$(punie completion bash)"; COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDBREAKS=$2; _punie punie;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "--noprofile", "-c", script, "bash", line, BREAKS]
    done = subprocess.run(command, cwd=home / "work", env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_bash_gets_only_what_follows_the_last_break(env: dict[str, str], home: Path):
    assert bash_words("punie -m local:smol", env, home) == ["smollm2-135m"]
    assert bash_words("punie --permission-mode=a", env, home) == ["acceptEdits", "auto"]
    assert bash_words("punie co", env, home) == ["config", "completion"]


def test_help_and_the_script_import_nothing_heavy():
    code = (
        "import sys; from punie.cli import main; main(['completion', 'bash', '--line', 'punie -'])\n"
        "print(sorted({'pydantic', 'pydantic_ai', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"
