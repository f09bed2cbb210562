"""Commands that the documentation tells people to type, put to the parsers that would read them."""

import pkgutil
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest

import punie.ui
from punie import cli
from punie.agent._shell import analyse
from punie_training import cli as training
from punie_training import trainer
from punie_training.recipe import Recipe

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"].keys()
RECIPES = re.findall(r"^(\w[\w-]*)(?: [^:=]*)?:(?!=)", (ROOT / "justfile").read_text("utf-8"), re.MULTILINE)

OTHERS = frozenset({"activate", "echo", "git", "grep", "head", "python3", "source"})
"""Programs that are not ours. A new one is put here by somebody who has looked at how it is used."""


class Understood(Exception):  # noqa: N818 - it is no error
    """The arguments were taken."""


def taken(*_: object, **__: object) -> int:
    raise Understood


def commands_in(script: str) -> Iterator[list[str]]:
    """The words of every command in a script; an expansion stands as one word. Raises if it cannot be read."""
    analysis = analyse(script)
    if analysis.opaque and not analysis.commands:
        raise AssertionError(f"not a shell script ({analysis.opaque}): {script}")
    for argv in analysis.commands:
        yield [word if word is not None else "expanded" for word in argv]


def refuse_unknown(argv: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Raises for a command that is none: by the real parsers for ours, by name for the others."""
    program, words = argv[0].rpartition("/")[2], list(argv[1:])
    if program == "punie":
        refuse_wrong_arguments(words, patch)
    elif program == "just":
        assert set(words[:1]) <= {*RECIPES}, f"there is no recipe {words[0]}"
    elif program == "pip":
        named = re.findall(r"(?:\.|punie)\[([\w,-]+)\]", " ".join(words))
        assert {extra for names in named for extra in names.split(",")} <= EXTRAS, words
    else:
        assert program in OTHERS, f"{program} is not in OTHERS of {Path(__file__).name}"


def refuse_wrong_arguments(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Have the real parser read the arguments of `punie`; nothing is done. Raises UsageError or SystemExit."""
    for module in pkgutil.iter_modules(punie.ui.__path__):
        if module.name[0] != "_" and hasattr(found := import_module(f"punie.ui.{module.name}"), "run"):
            patch.setattr(found, "run", taken)
    patch.setattr(training, "main", _trained)
    patch.setattr(cli, "_print_version", taken)
    patch.setattr(sys, "stdin", None)
    with pytest.raises(Understood):
        cli._run(words)


def _trained(words: list[str]) -> int:
    given = training._parser().parse_args(words)
    if words[0] == "run":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recipe, "load", taken)
            trainer.main([str(given.recipe), *given.rest])
    return taken()
