"""The environment commands get: variables of a short list, and never one that looks like a secret."""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

_PASSED = re.compile(r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_[A-Z]+|TZ|TMPDIR|VIRTUAL_ENV")
# No pager may wait for a key, and nothing may ask for a password.
_SET = {"TERM": "dumb", "NO_COLOR": "1", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"}

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|AUTH|CRED|PRIVATE|CERT", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]+:[^/\s@]+@"
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|sk-|sk_live_|rk_live_|xox[abeoprs]-|npm_|pypi-|hf_)[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\."
)


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


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable, or a header, is likely to hold a key or a password."""
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))
