"""What the documents promise is tied to what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
TEST = r"`(tests/[\w/]+\.py::test_\w+)`"


def test_every_test_that_the_security_page_names_is_collected():
    named = sorted({*re.findall(TEST, PAGE)})
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *named]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert [name for name in named if name not in done.stdout] == []


def test_every_promise_of_the_security_page_names_a_test():
    table = PAGE.split("## What is promised")[1].split("## What holds")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 15
    assert [row for row in rows if not re.search(TEST, row)] == []


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str):
    text = (ROOT / "docs" / page).read_text("utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
