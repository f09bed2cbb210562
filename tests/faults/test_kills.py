"""kill -9 at any operation on files: nothing is torn, what was broken off can be finished or taken back."""

from tests.faults.programs import program


def test_kills_in_the_middle_of_undo_redo_and_turns_leave_old_or_new():
    found = program("kills", 16, 16, 100)
    assert found["faults"] == []
    assert found["kills"]["undo"] >= 8
    assert found["kills"]["redo"] >= 8
    assert found["kills"]["turn"] >= 3
