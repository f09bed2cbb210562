"""Answers that break off, and services that refuse: no partial call, bounded tries, and the next question works."""

import pytest
from tests.faults.programs import program


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, int]]:
    return program("streams", 61)


def test_after_any_break_and_any_refusal_the_next_question_works(found: dict[str, dict[str, int]]):
    assert found["faults"] == []


@pytest.mark.parametrize("kind", ["claude", "openai"])
def test_tries_are_bounded(found: dict[str, dict[str, int]], kind: str):
    assert found[kind]["cuts"] >= 90
    assert 5 <= found[kind]["most requests"] <= 6
