"""Commands that only read: by their words, with the options that make some of them do more."""

import re

from punie.agent._shell import Argv, program
from punie.tools._programs import READERS

_RECURSIVE = re.compile(r"-[a-zA-Z]*[rd].*|--(recursive|directories).*|--rec.*|--dir.*")
_NO_VALUE = re.compile(r"-[rnHhiIlLcvwxEFGPqso]+|--(recursive|include=.*|exclude=.*|exclude-dir=.*)")
_WITH_ANY_OPTION = READERS - {"find", "rg", "sed", "sort", "uniq", "test", "file"}
_GREPS = ("grep", "egrep", "fgrep")
_DENIED = {
    "find": re.compile(r"-(exec|execdir|ok|okdir|delete|fprint.*|fls|files0-from|follow|L)"),
    "rg": re.compile(r"--(pre|host|search-z|fol).*|-[a-zA-Z]*[zL][a-zA-Z]*"),
    **dict.fromkeys(_GREPS, re.compile(r"-[a-zA-Z]*[R].*|--dereference-recursive|--deref.*")),
}
# Of these a long option may be cut short anywhere, so what they may be told is listed.
_ALLOWED = {
    "sort": re.compile(
        r"-[bcdfghiMmnRrsuVz]+|-[kt].*|--(check|dictionary-order|field-separator=.*|general-numeric-sort"
        r"|human-numeric-sort|ignore-case|ignore-leading-blanks|key=.*|merge|month-sort|numeric-sort|reverse|stable"
        r"|unique|version-sort|zero-terminated)"
    ),
    "file": re.compile(r"-[bhiklLNnprv0]+|--(brief|dereference|mime|mime-encoding|mime-type|no-dereference|print0)"),
    "uniq": re.compile(r"-[cdDiuz]+|-[fsw]\d+|--(count|ignore-case|repeated|unique|zero-terminated)"),
}
_WRITES = frozenset({"file", "find", "sed", "sort", "uniq"})
"""Readers that an option, or a word more, makes write."""
_PRINTS_LINES = re.compile(r"\d+(,(\d+|\$))?p")


def operands_of(argv: Argv) -> list[str]:
    """The words that may name files, also those that stand in an option."""
    words = [word for word in argv[1:] if word is not None]
    return [re.sub(r"^--?[\w-]+?=|^-[a-zA-Z](?=[./])", "", word) for word in words]


def is_reader(name: str) -> bool:
    """Whether a program only reads the files its words name, whatever it is told to do besides."""
    return name in READERS - _WRITES or name == "<"


def searched_by(argv: Argv) -> tuple[str, ...]:
    """The directories whose every file a plain search reads; none if it reads only the files that it names."""
    name, words = argv[0], [word for word in argv[1:] if word is not None]
    options = [word for word in words if word.startswith("-")]
    if name != "rg" and not (name in _GREPS and any(map(_RECURSIVE.match, options))):
        return ()
    named = [word for word in words if not word.startswith("-")][1:]
    # A value that stands apart from its option would be taken for the pattern, and the pattern for a place.
    return tuple(named) if named and all(map(_NO_VALUE.fullmatch, options)) else (".",)


def is_safe(argv: Argv) -> bool:
    """Whether a plain command changes nothing and runs nothing else. The program must stand there by its name alone."""
    name = argv[0] if argv else None
    if name is None or name not in READERS:
        return False
    if name == "sed":
        return _only_prints(argv)
    if name in _ALLOWED:
        return _only_told(argv[1:], _ALLOWED[name]) and (name != "uniq" or _operands(argv[1:]) <= 1)
    pattern = _DENIED.get(name)
    return pattern is None or not any(word is None or pattern.fullmatch(word) for word in argv[1:])


def _only_told(words: Argv, allowed: re.Pattern[str]) -> bool:
    """Whether all options are known ones; what follows `--` is taken for one as well."""
    return all(
        word is not None and (word == "-" or not word.startswith(("-", "+")) or allowed.fullmatch(word))
        for word in words
    )


def _operands(words: Argv) -> int:
    """How many words are no options. `uniq` writes to the second."""
    return sum(word is None or word == "-" or not word.startswith("-") for word in words)


def _only_prints(argv: Argv) -> bool:
    words = [word for word in argv[1:] if word is not None]
    if len(words) != len(argv) - 1 or words[:1] != ["-n"] or len(words) < 2:
        return False
    return bool(_PRINTS_LINES.fullmatch(words[1])) and not any(word.startswith("-") for word in words[2:])


def has_safe_prefix(argv: Argv) -> bool:
    """Whether a program stays safe whatever words follow its name."""
    return program(argv) == argv[0] and argv[0] in _WITH_ANY_OPTION
