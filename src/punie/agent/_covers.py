"""Which calls a rule covers.

A rule that denies or asks covers a call if any part of it matches in any reading; a rule that allows covers it only if
the whole of it is plain and every part matches in every reading.
"""

import fnmatch
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from pathspec import GitIgnoreSpec

from punie.agent._effects import Effects, Place, words_as_places
from punie.agent._safe import is_reader
from punie.agent._shell import Analysis, Argv, Word, prefixes, program, raw_words, without_options
from punie.rules import EDITS, READS, Rule, is_prefix, words_of
from punie.tools._walk import QuickPattern


def forbids(rule: Rule, effects: Effects, *, root: Path, home: Path | None) -> bool:
    """Whether a rule of `deny` or `ask` covers a call, or a part of it."""
    if effects.kind == "other":
        return _names(rule, effects.tool)
    if effects.analysis is None:
        # An edit that fails quotes the file, so what must not be read must not be edited either.
        unread = effects.kind == "edit" and "read_file" in rule.tools and rule.spec is not None
        if effects.tool not in rule.tools and not unread:
            return False
        return rule.spec is None or any(_matches(rule.spec, place, root, home=home) for place in effects.places)
    if effects.tool in rule.tools:
        return rule.spec is None or _runs(rule.spec, effects.analysis)
    return rule.spec is not None and _touches(rule, effects.analysis, root, home=home)


def allows(rule: Rule, effects: Effects, *, root: Path, home: Path | None) -> bool:
    """Whether a rule of `allow` covers the whole of a call of a file tool or another tool."""
    if effects.kind == "other":
        return _names(rule, effects.tool)
    if effects.tool not in rule.tools:
        return False
    if rule.spec is None:
        return True
    return bool(effects.places) and all(_covers(rule.spec, place, root, home=home) for place in effects.places)


def allows_command(rule: Rule, argv: Argv) -> bool:
    """Whether a rule of `allow` covers one plain command."""
    if "run_command" not in rule.tools or rule.spec is None:
        return rule.spec is None and "run_command" in rule.tools
    words = words_of(rule.spec)
    return prefixes(argv, words) and (is_prefix(rule.spec) or len(argv) == len(words))


def _names(rule: Rule, tool: str) -> bool:
    if rule.tools or rule.spec is not None:
        return False
    return fnmatch.fnmatchcase(tool, rule.name) or tool.startswith(f"{rule.name}__")


# --- commands ---


def _runs(spec: str, analysis: Analysis) -> bool:
    words = words_of(spec)
    if not words:
        return False
    wanted = (_program_name(words[0]), *words[1:])
    variants = (variant for argv in analysis.commands for variant in _readings(argv))
    exactly = None if is_prefix(spec) else len(wanted)
    if any(prefixes(argv, wanted) and exactly in {None, len(argv)} for argv in variants):
        return True
    return bool(analysis.opaque) and _stands_in(analysis.text, wanted)


def _readings(argv: Argv) -> tuple[Argv, ...]:
    """A command as it is, and without its options, each with the bare name of its program."""
    name: Word = program(argv) or None
    return ((name, *argv[1:]), (name, *without_options(argv)[1:]))


def _program_name(word: str) -> str:
    return word.rstrip("/").rpartition("/")[2].casefold()


def _stands_in(text: str, wanted: tuple[str, ...]) -> bool:
    """Whether the words stand one after the other in a text of which the programs are not known."""
    return any(
        prefixes((_program_name(words[place]), *words[place + 1 : place + len(wanted)]), wanted)
        for words in raw_words(text)
        for place in range(len(words))
    )


def _touches(rule: Rule, analysis: Analysis, root: Path, *, home: Path | None) -> bool:
    """Whether a command names a file that a rule about reading or editing is about."""
    spec = rule.spec
    reads = bool(rule.tools & READS)
    if spec is None or not (reads or rule.tools & EDITS):
        return False
    return any(
        (reads or not is_reader(name)) and _matches(spec, place, root, home=home)
        for name, place in words_as_places(analysis, root=root)
    )


# --- paths ---


def files_of(rules: Sequence[Rule], *, root: Path, home: Path | None) -> Callable[[str], bool]:
    """Whether one of these rules covers a file, by its path from the root; quick for many files."""
    everything = any(rule.spec is None for rule in rules)
    inside = [spec for rule in rules if (spec := rule.spec) and not spec.startswith(("//", "~/"))]
    outside = [spec for rule in rules if (spec := rule.spec) and spec.startswith(("//", "~/"))]
    patterns = [_based(spec, root, home)[1] for spec in inside]
    exact = GitIgnoreSpec.from_lines(patterns, QuickPattern)
    folded = GitIgnoreSpec.from_lines((pattern.casefold() for pattern in patterns), QuickPattern)

    def covered(relative: str) -> bool:
        if everything or (patterns and (exact.match_file(relative) or folded.match_file(relative.casefold()))):
            return True
        place = Place(f"{root}/{relative}", f"{root}/{relative}") if outside else None
        return place is not None and any(_matches(spec, place, root, home=home) for spec in outside)

    return covered


def _matches(spec: str, place: Place, root: Path, *, home: Path | None) -> bool:
    """Whether either reading of a path is covered, in any case of its letters, itself or as a directory."""
    return any(
        _is_covered(spec, path, root, home=home, fold=fold)
        or _is_covered(spec, f"{path}/_", root, home=home, fold=fold)
        for path in place.both
        for fold in (False, True)
    )


def _covers(spec: str, place: Place, root: Path, *, home: Path | None) -> bool:
    return all(_is_covered(spec, path, root, home=home, fold=False) for path in place.both)


def _is_covered(spec: str, path: str, root: Path, *, home: Path | None, fold: bool) -> bool:
    base, pattern = _based(spec, root, home)
    if base is None or not path.startswith(base):
        return False
    relative = path[len(base) :].lstrip("/")
    if fold:
        relative, pattern = relative.casefold(), pattern.casefold()
    return bool(relative) and _compiled(pattern).match_file(relative)


def _based(spec: str, root: Path, home: Path | None) -> tuple[str | None, str]:
    """Where a pattern starts, with a slash at the end, and the pattern from there on."""
    if spec.startswith("//"):
        return "/", "/" + spec.lstrip("/")
    if spec.startswith("~/"):
        return (f"{home}/" if home else None), spec[1:]
    base = f"{root}/".replace("//", "/")
    return base, spec[1:] if spec.startswith("./") else spec


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines([pattern], QuickPattern)
