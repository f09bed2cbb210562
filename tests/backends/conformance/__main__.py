"""`just conformance`: run the suite and write its table into the docs."""

import sys

import pytest
from tests.backends.conformance import table


class Outcomes:
    """A pytest plugin that keeps how each cell came out."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure anywhere, or that the test itself passed."""
        name, bracket, backend = report.nodeid.rpartition("::")[2].removesuffix("]").partition("[")
        cell = (backend, name.removeprefix("test_").replace("_", "-"))
        if bracket and (report.failed or (report.when == "call" and self.found.get(cell) != "failed")):
            self.found[cell] = report.outcome


def main() -> int:
    """Write the page whatever came out; the exit status is that of the tests."""
    seen = Outcomes()
    status = pytest.main([str(table.PAGE.parents[1] / "tests/backends/conformance"), *sys.argv[1:]], plugins=[seen])
    table.PAGE.parent.mkdir(exist_ok=True)
    table.PAGE.write_text(table.render(seen.found), "utf-8")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
