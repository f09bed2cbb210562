"""The environment commands get: variables of a short list, and never one that looks like a secret."""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from punie.redaction import looks_secret

_PASSED = re.compile(r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_[A-Z]+|TZ|TMPDIR|VIRTUAL_ENV")
# No pager may wait for a key, and nothing may ask for a password.
_SET = {"TERM": "dumb", "NO_COLOR": "1", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"}


def child_environment(source: Mapping[str, str], *, more: Collection[str] = ()) -> dict[str, str]:
    """The variables a command gets; `more` are names and patterns that the user wants to pass as well.

    What looks like a secret by its name or its value is left out, unless `more` has its exact name.
    """
    return {name: value for name, value in source.items() if _is_passed(name, value, more)} | _SET


def _is_passed(name: str, value: str, more: Collection[str]) -> bool:
    if name in more:
        return True
    wanted = _PASSED.fullmatch(name) or any(fnmatchcase(name, pattern) for pattern in more)
    return bool(wanted) and not looks_secret(name, value)
