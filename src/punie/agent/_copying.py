"""Names and paths that a small model copied with a slip: the user's own spelling, where it can only be meant.

A model of some hundred million parameters knows a question's name by its pieces and writes a neighbour now and then:
`marshallallow` for `marshmallow`. What it wrote stands nowhere, what was meant stands in the question.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher

COPIED = ("name", "path", "glob")
"""The arguments that hold one name or path."""
_SHORTEST = 5
_ALIKE = 0.75
_TOKEN = re.compile(r"[\w./-]*\w")

Known = Callable[[str, str], bool]


def respelled(
    args: str | Mapping[str, object] | None, *, question: str, seen: Iterable[str], known: Known
) -> dict[str, str]:
    """The arguments that the question spells otherwise, by name, with that spelling; empty if none was miscopied.

    `question` is what the user asked last, `seen` every text the model may have copied from; `known(argument, value)`
    says whether the workspace has such a thing after all.
    """
    values = args if isinstance(args, Mapping) else _object(args)
    text = "\n".join([question, *seen]).casefold()
    written = dict.fromkeys(_TOKEN.findall(question))
    found: dict[str, str] = {}
    for key in COPIED:
        value = values.get(key)
        copied = value.strip("*") if isinstance(value, str) else ""
        if len(copied) < _SHORTEST or not _TOKEN.fullmatch(copied) or copied.casefold() in text:
            continue
        if (meant := _meant(copied, written)) and not known(key, copied):
            found[key] = str(value).replace(copied, meant)
    return found


def _object(args: object) -> Mapping[str, object]:
    try:
        found = json.loads(args) if isinstance(args, str) else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _meant(value: str, written: Iterable[str]) -> str:
    """The one word of the question that is written nearly like this; empty if there is none, or more than one."""
    near = [word for word in written if ("/" in word) == ("/" in value) and _likeness(value, word) >= _ALIKE]
    return near[0] if len(near) == 1 else ""


def _likeness(left: str, right: str) -> float:
    return SequenceMatcher(None, left, right, autojunk=False).ratio()
