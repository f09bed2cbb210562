"""Turn after turn in one process."""

from tests.faults.programs import program


def test_many_turns_leave_no_file_open_and_no_fault():
    found = program("soak", 100, 10)
    assert found["faults"] == []
    assert (found["turns"], found["sessions"]) == (100, 10)
    assert found["last"]["files"] == found["middle"]["files"]
    assert found["last"]["threads"] < 40  # the pool of the event loop grows to 32 at most
    assert found["last"]["kb"] - found["middle"]["kb"] < 10_000
    assert found["bytes a turn"] < 30_000
    assert found["database with one session left"] < found["database in bytes"] / 5
