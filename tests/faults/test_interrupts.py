"""Ctrl-C in every state: the partial answer is kept, the exit code is right, the session goes on, nothing is left."""

from tests.faults.programs import program


def test_an_interrupt_in_any_state_keeps_what_there_is_and_leaves_nothing():
    found = program("interrupts", 3)
    assert found["faults"] == []
    assert found["commits"] >= 3
    assert {"loading", "reading ahead", "local prefill", "decode", "between result and request", "tool"} <= {
        *found["seconds"]
    }
