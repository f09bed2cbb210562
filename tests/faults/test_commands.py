"""Commands that will not end, and one that says too much, run by the whole of punie."""

from tests.faults.programs import program

SOME = ("python fork bomb", "deaf python", "holds the pipes deaf", "daemon forked twice", "everything killed")


def test_nothing_is_left_of_commands_that_will_not_end():
    found = program("commands", *SOME)
    assert found["faults"] == []
    assert [*found["seconds"]] == [*SOME]


def test_output_without_end_costs_no_memory_and_is_kept_within_bounds():
    found = program("output", 70_000_000)
    assert found["more in kB"] < 50_000
    assert found["head and tail"]
    assert found["file named"]
    assert found["file begins as the output"]
    assert found["bytes in the file"] == 64 << 20
    assert found["faults"] == []
