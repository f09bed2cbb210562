"""The page about troubles quotes what Punie really says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
TABLE = PAGE.partition("| what you see |")[2].partition("\n\n")[0]
QUOTED = [words for row in TABLE.splitlines()[2:] for words in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.fixture(scope="module")
def said() -> str:
    """Every text of the program, pieces of one string put together."""
    text = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    return re.sub(r"\"\s*\n\s*f?\"", "", text)


def test_there_is_something_to_check() -> None:
    assert len(QUOTED) >= 15


@pytest.mark.parametrize("words", QUOTED)
def test_every_symptom_is_one_that_can_be_seen(words: str, said: str) -> None:
    assert words in said
