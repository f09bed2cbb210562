"""Names of tools, as models misspell them."""

import re
from collections.abc import Iterable

_PREFIX = re.compile(r"\A(?:functions?|tools?|default_api|api|punie)[.:/]", re.IGNORECASE)
_INDEX = re.compile(r":\d+\Z")


def known_name(name: str, known: Iterable[str]) -> str | None:
    """The known tool with the same letters, whatever their case, joints and prefix; None when there is none."""
    names = tuple(known)
    if name in names:
        return name
    wanted = _letters(_INDEX.sub("", _PREFIX.sub("", name.strip())))
    meant = [candidate for candidate in names if _letters(candidate) == wanted]
    return meant[0] if len(meant) == 1 else None


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()
