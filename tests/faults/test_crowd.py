"""Many processes that store at once."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.faults.programs import program

from punie.agent import SessionStore, _database
from punie.errors import SessionError


def test_eight_processes_lose_nothing_and_hear_of_no_lock():
    found = program("crowd", 4, 8)
    assert found["turns"] >= 8
    assert (found["lost"], found["errors"], found["faults"]) == (0, {}, [])


def test_one_that_waits_too_long_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_database, "BUSY_S", 0.05)
    with SessionStore(tmp_path) as store, closing(sqlite3.connect(tmp_path / "sessions.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SessionError, match="other processes have been writing to it") as caught:
            store.create(tmp_path).begin(model="m", title="t")
        assert "locked" not in str(caught.value)
        other.execute("ROLLBACK")
        store.create(tmp_path).begin(model="m", title="t")
