"""The published table is the one of the suite, and every cell of it a test."""

import re

from tests.backends.conformance import table, test_conformance
from tests.backends.conformance.cases import BACKENDS, CASES, LACKS, having


def test_the_published_table_is_that_of_the_suite_and_nothing_in_it_failed():
    published = table.PAGE.read_text("utf-8")
    assert "✗" not in published
    expected = table.render(table.all_passed())
    assert published.replace("?", "✓") == expected.replace("?", "✓"), "`just conformance` writes it"


def test_every_case_has_its_test_for_every_backend_that_can_have_it():
    for case in CASES:
        function = getattr(test_conformance, "test_" + case.replace("-", "_"))
        (mark,) = [mark for mark in function.pytestmark if mark.name == "parametrize"]
        assert list(mark.args[1]) == having(case)
    assert not [
        name for name in vars(test_conformance) if name.startswith("test_") and name[5:].replace("_", "-") not in CASES
    ]


def test_what_is_lacking_is_a_cell_and_has_a_reason():
    for (name, case), reason in LACKS.items():
        assert name in BACKENDS
        assert case in CASES
        assert re.fullmatch(r"[A-Z].+\.", reason)


def test_a_failed_cell_and_one_that_did_not_run_show():
    page = table.render({("mlx", "plain"): "failed", ("claude", "plain"): "passed"})
    (row,) = [line for line in page.splitlines() if line.startswith("| `plain`")]
    assert row.endswith("| ? | ✗ | ? | ? | ? | ? | ? | ? | ✓ |")
