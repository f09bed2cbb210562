"""The table of the contract as Markdown: a row for each case, a column for each backend."""

from collections.abc import Mapping
from pathlib import Path

from tests.backends.conformance.cases import BACKENDS, CASES, LACKS

PAGE = Path(__file__).parents[3] / "docs" / "conformance.md"
HEAD = """\
# What every backend does

Written by `just conformance` from the outcome of the tests in `tests/backends/conformance`; do not edit.

Every ✓ is a test that passed, named `test_CASE[BACKEND]`; a ? is one that was not run. A number stands for something
that the backend cannot have and leads to the reason. The engines and servers run weights that were built to say certain
texts and calls, and in the last row the embedded model; the services are played byte for byte on the loopback address,
in the form that each of them documents.
"""
MARKS: Mapping[str, str] = {"passed": "✓", "failed": "✗"}
Outcomes = Mapping[tuple[str, str], str]
"""(backend, case) -> passed or failed."""


def render(outcomes: Outcomes) -> str:
    """The page. A cell that was not run is a question mark."""
    reasons = list(dict.fromkeys(LACKS.values()))
    names = [f"| `{name}` | {title} |" for name, title in BACKENDS.items()]
    rows = [
        f"| `{case}` | {title} | " + " | ".join(_cell(outcomes, name, case, reasons) for name in BACKENDS) + " |"
        for case, title in CASES.items()
    ]
    lines = [
        HEAD,
        "| Backend | |\n|---|---|",
        *names,
        "",
        "| Case | | " + " | ".join(f"`{name}`" for name in BACKENDS) + " |",
        "|---|---|" + ":-:|" * len(BACKENDS),
        *rows,
        "",
        *(f"({number}) {reason}  " for number, reason in enumerate(reasons, start=1)),
        "",
    ]
    return "\n".join(lines)


def _cell(outcomes: Outcomes, name: str, case: str, reasons: list[str]) -> str:
    if (reason := LACKS.get((name, case))) is not None:
        return f"({reasons.index(reason) + 1})"
    return MARKS.get(outcomes.get((name, case), ""), "?")


def all_passed() -> Outcomes:
    """How the suite has to come out."""
    return {(name, case): "passed" for name in BACKENDS for case in CASES if (name, case) not in LACKS}
