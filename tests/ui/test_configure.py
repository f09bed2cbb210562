import tomllib
from pathlib import Path

import pytest

from punie.errors import ConfigError, UsageError
from punie.ui import configure
from punie.ui.options import Options


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "punie" / "config.toml"


def change(key: str, value: str, tmp_path: Path) -> int:
    return configure.run("set", options=Options(cwd=tmp_path), key=key, value=value)


def test_set_writes_a_file_that_only_the_user_can_read(user_file: Path, tmp_path: Path) -> None:
    assert change("max_tokens", "64", tmp_path) == 0
    assert tomllib.loads(user_file.read_text())["max_tokens"] == 64
    assert user_file.stat().st_mode & 0o777 == 0o600


def test_set_keeps_comments_order_and_other_tables(user_file: Path, tmp_path: Path) -> None:
    user_file.parent.mkdir(parents=True)
    user_file.write_text('# mine\nmodel = "local" # why\n\n[limits]\nmax_turns = 3\n\n[aliases]\nfast = "claude"\n')
    change("limits.max_turns", "5", tmp_path)
    change("seed", "7", tmp_path)
    change("aliases.slow", "local:smollm2-135m", tmp_path)
    text = user_file.read_text()
    assert text.startswith('# mine\nmodel = "local" # why\n')
    assert tomllib.loads(text) == {
        "model": "local",
        "seed": 7,
        "limits": {"max_turns": 5},
        "aliases": {"fast": "claude", "slow": "local:smollm2-135m"},
    }


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model", "openai:qwen@http://127.0.0.1:8080/v1", "openai:qwen@http://127.0.0.1:8080/v1"),
        ("allowed_tools", "edit_file,write_file", ["edit_file", "write_file"]),
        ("permissions.deny", "Bash(git push:*), Read(./a b/**)", ["Bash(git push:*)", "Read(./a b/**)"]),
        ("stop_sequences", '["<|im_end|>"]', ["<|im_end|>"]),
        ("save_sessions", "false", False),
        ("temperature", "0.5", 0.5),
        ("limits.max_turns", "3", 3),
    ],
)
def test_values_are_read_as_what_the_setting_takes(
    key: str, text: str, value: object, user_file: Path, tmp_path: Path
) -> None:
    change(key, text, tmp_path)
    found: object = tomllib.loads(user_file.read_text())
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_tokns", "1"), ("max_tokens", "many"), ("limits.max_turns", "0"), ("permissions.deny", "Bash(ls")],
)
def test_what_cannot_be_set_leaves_the_file_alone(key: str, value: str, user_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=key):
        change(key, value, tmp_path)
    assert not user_file.exists()


def test_bypassing_cannot_be_set_for_good(user_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only be chosen on the command line"):
        change("permission_mode", "bypassPermissions", tmp_path)
    assert not user_file.exists()


def test_a_file_that_is_no_toml_is_not_made_worse(user_file: Path, tmp_path: Path) -> None:
    user_file.parent.mkdir(parents=True)
    user_file.write_text("model = \n")
    with pytest.raises(ConfigError, match="does not follow"):
        change("seed", "1", tmp_path)
    assert user_file.read_text() == "model = \n"


def test_show_names_the_source_of_every_value(
    user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change("max_tokens", "64", tmp_path)
    monkeypatch.setenv("PUNIE_SEED", "9")
    capsys.readouterr()
    assert configure.run("show", options=Options(cwd=tmp_path, model="claude")) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["max_tokens"].split() == ["max_tokens", "64", f"{user_file}:2"]
    assert rows["seed"].split() == ["seed", "9", "PUNIE_SEED"]
    assert rows["model"].split() == ["model", '"claude"', "--model"]
    assert rows["temperature"].endswith("default")


def test_edit_starts_the_editor_on_the_file(user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'seed = 4\\n' >> \"$1\"\n")
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    assert configure.run("edit", options=Options(cwd=tmp_path)) == 0
    assert tomllib.loads(user_file.read_text()) == {"seed": 4}


def test_edit_reports_what_the_editor_left_wrong(
    user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'sed = 4\\n' >> \"$1\"\n")
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    with pytest.raises(ConfigError, match="unknown setting 'sed'"):
        configure.run("edit", options=Options(cwd=tmp_path))
    assert user_file.exists()
