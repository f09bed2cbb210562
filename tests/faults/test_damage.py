"""Damaged settings, trust, rules, sessions and history: said in plain words, or gone on without; never waited for."""

from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory
from tests.faults.damage import DAMAGES
from tests.faults.programs import program

from punie.ui._input import history_in


def test_damaged_files_are_named_or_gone_on_without():
    some = ("noise", "fifo", "huge", "directory")
    found = program("damage", *some)
    assert found["faults"] == []
    assert [*found["exit codes"]] == ["config", "trust", "rules", "sessions"]
    assert all([*codes] == [*some] for codes in found["exit codes"].values())
    assert set(found["exit codes"]["config"].values()) == set(found["exit codes"]["rules"].values()) == {2}
    assert set(found["exit codes"]["trust"].values()) == {0}


@pytest.mark.parametrize("damage", ["fifo", "directory", "link to itself", "dangling link"])
async def test_what_is_no_history_is_not_read(tmp_path: Path, damage: str):
    (tmp_path / "history").write_text("")
    DAMAGES[damage](tmp_path / "history")
    assert isinstance(history_in(tmp_path, redact=str), InMemoryHistory)


@pytest.mark.parametrize("damage", ["noise", "zeros", "cut off", "empty"])
async def test_a_damaged_history_takes_new_lines(tmp_path: Path, damage: str):
    history = history_in(tmp_path, redact=str)
    history.append_string("hello")
    DAMAGES[damage](tmp_path / "history")
    again = history_in(tmp_path, redact=str)
    again.append_string("new")
    assert "new" in [line async for line in history_in(tmp_path, redact=str).load()]
