import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from punie import cli
from punie.errors import UsageError
from punie.ui.options import Options

PUNIE = Path(sys.executable).with_name("punie")
HEAVY = ("pydantic_ai", "pydantic", "mlx", "xllamacpp", "numpy", "rich", "prompt_toolkit", "typer", "punie_training")


def punie(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PUNIE, *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def parsed(*arguments: str) -> Options:
    return cli._options(cli._root_parser().parse_intermixed_args(list(arguments)))


# --- help and version ---


def test_help_names_every_command_flag_and_exit_code() -> None:
    done = punie("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in (*cli.COMMANDS, "--print", "--model", "--cwd", "--yolo", "--permission-mode", "--allowed-tools"):
        assert word in done.stdout
    for word in ("--disallowed-tools", "--max-turns", "--output-format", "--no-session", "--verbose", "--version"):
        assert word in done.stdout
    assert "130 interrupted" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from punie.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_help_takes_at_most_six_python_starts() -> None:
    """Processor time, because what else the machine does must not decide."""

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(seconds(str(PUNIE), "--help"), seconds(sys.executable, "-c", "pass")) for _ in range(10)]
    assert min(helping for helping, _ in pairs) <= 6 * min(bare for _, bare in pairs)


def test_version() -> None:
    done = punie("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("punie ")
    assert done.stdout.strip().split()[1][0].isdigit()


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "train"])
def test_every_command_but_the_forwarded_one_explains_itself(command: str) -> None:
    done = punie(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")


# --- prompt or command ---


@pytest.mark.parametrize(
    ("arguments", "position"),
    [
        (["models"], 0),
        (["models", "list"], 0),
        (["-C", "/tmp", "doctor"], 2),
        (["--model", "models", "doctor"], 2),
        (["-v", "config"], 1),
        (["where is models?"], None),
        (["where", "models"], None),
        (["-p", "models"], None),
        (["--print", "doctor"], None),
        (["--", "models"], None),
        (["-m", "models"], None),
        ([], None),
    ],
)
def test_a_command_is_only_the_first_word(arguments: list[str], position: int | None) -> None:
    assert cli._command_position(arguments) == position


def test_every_flag_before_a_command_that_takes_a_value_is_known() -> None:
    """`_command_position` must skip the value of each flag a command takes, or the value would be the command."""
    parser = cli._command_parser("doctor", "")
    takes_value = [action for action in parser._actions if action.option_strings and action.nargs is None]
    for option in (name for action in takes_value for name in action.option_strings):
        assert cli._command_position([option, "models", "doctor"]) == 2


def test_words_without_quotes_are_one_prompt(tmp_path: Path) -> None:
    assert parsed("where", "is", "Flask", "-m", "claude").prompt == "where is Flask"
    assert parsed("-p", "-C", str(tmp_path), "question").cwd == tmp_path.resolve()


def test_tool_lists_take_commas_and_repetition() -> None:
    options = parsed("--allowed-tools", "edit_file,write_file", "--allowed-tools", "run_command")
    assert options.allowed_tools == ("edit_file", "write_file", "run_command")
    assert parsed("--allowed-tools", "Bash(git log:*), Edit").allowed_tools == ("Bash(git log:*)", "Edit")


def test_yolo_is_a_permission_mode() -> None:
    assert parsed("--yolo").permission_mode == "bypassPermissions"
    with pytest.raises(UsageError, match="contradict"):
        parsed("--yolo", "--permission-mode", "plan")


def test_flags_that_were_not_given_override_nothing() -> None:
    assert set(parsed().flags().values()) == {None}


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bogus"], "--bogus"),
        (["-p"], "nothing to answer"),
        (["-p", "   "], "nothing to answer"),
        (["-p", "hi", "--output-format", "xml"], "xml"),
        (["-p", "hi", "--permission-mode", "automatic"], "automatic"),
        (["-p", "hi", "--allowed-tools", "Bash(ls"], "the parentheses of 'Bash(ls' do not match"),
        (["-p", "hi", "--max-turns", "0"], "max-turns"),
        (["-p", "hi", "--max-turns", "many"], "many"),
        (["-p", "hi", "-C", "/no/such/directory"], "/no/such/directory"),
        (["-p", "hi", "-C", "/etc/passwd"], "Not a directory"),
        (["-p", "hi", "--allowed-tools", "edit_fil"], "Did you mean 'edit_file'?"),
        (["-p", "hi", "--model", "nonsense:model"], "nonsense"),
        (["-p", "hi", "--model", "local:nonsense"], "nonsense"),
        (["hi", "--output-format", "json"], "-p"),
        (["hi"], "terminal"),
        (["models", "fetch"], "fetch"),
        (["config", "set", "seed"], "key and a value"),
        (["config", "set", "sead", "1"], "Did you mean 'seed'?"),
    ],
)
def test_mistakes_of_the_user_are_told_in_three_lines(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = punie(*arguments, XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("punie: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_auto_needs_a_sandbox(tmp_path: Path) -> None:
    arguments = ("-p", "hi", "--permission-mode", "auto")
    done = punie(*arguments, XDG_CONFIG_HOME=str(tmp_path), PUNIE_SANDBOX__MODE="off")
    assert done.returncode == 2
    assert "'auto' needs a sandbox, and none works here" in done.stderr


def test_an_unknown_key_in_the_settings_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "punie" / "config.toml"
    file.parent.mkdir()
    file.write_text('modell = "local"\n')
    done = punie("-p", "hi", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 2
    assert f"{file}:1" in done.stderr
    assert "modell" in done.stderr


def test_a_directory_that_was_deleted_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec "{PUNIE}" -p hi </dev/null'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no longer exists" in done.stderr


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError(str(arguments))

    monkeypatch.setattr(cli, "COMMANDS", {"doctor": cli.Command("", broken)})
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    script = f'"{PUNIE}" config show | head -n 1 >/dev/null; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


def test_the_module_does_not_import_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit('imported from the repository')\n")
    done = subprocess.run(
        [sys.executable, "-m", "punie", "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("punie ")
