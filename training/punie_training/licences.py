"""Which licences a training set may come under."""

import re

PERMISSIVE = frozenset(
    {
        *("0BSD", "AFL-3.0", "Apache-2.0", "BlueOak-1.0.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
        *("CC-BY-4.0", "CC0-1.0", "CDLA-Permissive-2.0", "ISC", "MIT", "MIT-0", "MIT-CMU", "ODC-By-1.0"),
        *("PSF-2.0", "Python-2.0", "Unlicense", "UPL-1.0", "Zlib", "ZPL-2.1"),
    }
)
"""SPDX identifiers of licences that ask for no more than attribution."""
_SAME = {name.casefold() for name in PERMISSIVE}


def is_permissive(expression: str) -> bool:
    """Whether an SPDX expression lets the data be used on such terms; of licences joined by OR one is enough."""
    choices = re.split(r"\s+OR\s+", expression.strip().strip("()"))
    return any(all(part.strip("() ").casefold() in _SAME for part in re.split(r"\s+AND\s+", c)) for c in choices)
