"""`punie init`: the file it writes sets nothing, names everything, and is never written over another one."""

import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from tests.ui.pseudo import PUNIE

from punie.config import PROJECT_KEYS, Settings, load_settings, setting_keys, value_of
from punie.errors import ConfigError, UsageError
from punie.ui.init import create, settings_file


def uncommented(text: str) -> str:
    """The file with the # taken away from every setting."""
    return re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def init(home: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"HOME": str(home), "PATH": os.environ["PATH"]}
    return subprocess.run([PUNIE, "init", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("project", [False, True], ids=["user", "project"])
def test_every_setting_stands_there_and_every_line_loads(tmp_path: Path, project: bool):
    text = settings_file(project=project)
    wanted = {key for key in setting_keys() if not project or key.split(".")[0] in PROJECT_KEYS}
    tables = tomllib.loads(uncommented(text))
    named = {f"{head}.{name}" for head, value in tables.items() if head in heads() for name in value}
    named |= {head for head in tables if head not in heads()}
    assert named == wanted
    home = tmp_path / "home"
    root = home / "project"
    place = root / ".punie" if project else home / ".config" / "punie"
    place.mkdir(parents=True)
    root.mkdir(exist_ok=True)
    (place / "config.toml").write_text(uncommented(text))
    if project:
        (home / ".config" / "punie").mkdir(parents=True)
        (home / ".config" / "punie" / "config.toml").write_text(f'trusted_projects = ["{root}"]\n')
    resolved = load_settings(cwd=root, env={"HOME": str(home)}, flags={})
    for key in wanted:
        default = value_of(Settings(), key)
        if default is not None and key != "trusted_projects":
            assert value_of(resolved.settings, key) == default, key
        if not project and not (isinstance(default, dict) or key.startswith("hooks.")):
            assert resolved.sources[key].startswith(f"{place}/config.toml:")


def heads() -> set[str]:
    return {key.split(".")[0] for key in setting_keys() if "." in key}


def test_nothing_is_set_until_a_line_is_uncommented(tmp_path: Path):
    text = settings_file(project=False)
    assert all(not value for value in tomllib.loads(text).values())
    assert max(map(len, text.splitlines())) <= 200
    assert "# One of plan, default, acceptEdits, auto, dontAsk. What is free" in text
    assert "bypassPermissions" in text  # it is explained, but not offered
    explained = text.split("#max_turns = 12")[0].splitlines()[-1]
    assert explained == "# Requests to the model in one turn."


def test_the_users_file_is_for_the_user_alone_and_never_written_over(tmp_path: Path):
    done = init(tmp_path, tmp_path)
    file = tmp_path / ".config" / "punie" / "config.toml"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(f"{file} is written")
    assert "/init in the chat writes one" in done.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert names_in(file.parent) == ["config.toml"]
    file.write_text('model = "claude"\n')
    done = init(tmp_path, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{file} is there already" in done.stderr
    assert file.read_text() == 'model = "claude"\n'


def test_the_projects_file_stands_at_its_root_and_waits_for_trust(tmp_path: Path):
    root = tmp_path / "project"
    (root / ".git").mkdir(parents=True)
    (root / "below").mkdir()
    (root / "AGENTS.md").write_text("Be brief.\n")
    done = init(tmp_path, root / "below", "--project")
    file = root / ".punie" / "config.toml"
    assert done.returncode == 0
    assert "punie trust" in done.stdout
    assert "/init" not in done.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert not (tmp_path / ".config").exists()
    assert init(tmp_path, root, "--project").returncode == 2


def test_no_project_file_is_written_where_no_project_is_or_through_a_link(tmp_path: Path):
    assert "is not a project" in init(tmp_path, tmp_path, "--project").stderr
    root, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / ".punie").symlink_to(elsewhere)
    done = init(tmp_path, root, "--project")
    assert (done.returncode, names_in(elsewhere)) == (2, [])
    assert "is a link" in done.stderr


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        create(tmp_path / "file" / "config.toml", "x", mode=0o600)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is there already"):
        create(tmp_path / "link", "x", mode=0o600)
    assert names_in(tmp_path) == ["file", "link"]
