"""The lines of a tool's result that an answer copies, named by the marker: `wire.expand` turned round.

The embedded model never copies a list, it writes `[[result]]`. A teacher that does not know the marker copies. Its copy
is replaced only where nothing that it said gets lost: every line of the result is there, in order, with no other line
among them, and each says no more than the line it stands for.
"""

import re
from collections.abc import Sequence

from punie.wire import RESULT, Message, result_lines
from punie_training.score import places

_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})[\w+-]*\s*")
_NUMBERED = re.compile(r" *(?P<number>\d+)\t(?P<text>.*)")
_BULLET = re.compile(r"\s*(?:[-*+\u2022]|\d+[.)])\s+")
_JOINTS = frozenset({"at", "in", "is"})
_Placed = tuple[int, str]
"""A line that is neither blank nor a fence, and where it stands."""


def abbreviated(answer: str, earlier: Sequence[Message]) -> str:
    """Return the answer with its copy of the last tool result as `[[result]]`, or as it is if it holds no whole copy.

    `earlier` is the conversation before the answer.
    """
    wanted = [line for line in _items(earlier) if _text(line)]
    lines = answer.splitlines()
    said = [(at, line) for at, line in enumerate(lines) if line.strip() and not _FENCE.fullmatch(line)]
    if not wanted or RESULT in answer:
        return answer
    for start in range(len(said) - len(wanted) + 1):
        window = said[start : start + len(wanted)]
        if all(_copies(line, item) for (_, line), item in zip(window, wanted, strict=True)):
            return _replaced(lines, window)
    return answer


def _items(earlier: Sequence[Message]) -> Sequence[str]:
    """The lines the marker stands for; a result of one line is a sentence, which answers may well repeat."""
    last = next((m.content for m in reversed(earlier) if m.role == "tool"), "")
    return result_lines(earlier) if len(last.splitlines()) > 1 else ()


def _text(line: str) -> str:
    numbered = _NUMBERED.fullmatch(line)
    return (numbered["text"] if numbered else line).strip()


def _copies(line: str, item: str) -> bool:
    """Whether a line of an answer is a line of the result, its number or some of its words left out."""
    if line.strip() == item.strip():
        return True
    if numbered := _NUMBERED.fullmatch(item):
        without = re.sub(rf"^\s*{numbered['number']}\b[:|.]?", "", line)
        return numbered["text"].strip() in {line.strip(), without.strip()}
    bare = _BULLET.sub("", line, count=1).strip().strip("`")
    if bare == item.strip():
        return True
    place = places(item)
    return bool(place) and places(bare) == place and _words(bare) - _JOINTS <= _words(item)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _replaced(lines: Sequence[str], window: Sequence[_Placed]) -> str:
    """The answer with the marker in place of the window, and of the fence around it."""
    first, last = window[0][0], window[-1][0] + 1
    head, tail = _without_blanks(lines[:first]), _without_blanks(lines[last:][::-1])[::-1]
    if head and tail and _FENCE.fullmatch(head[-1]) and _FENCE.fullmatch(tail[0]):
        head, tail = _without_blanks(head[:-1]), tail[1:]
    if any(_FENCE.fullmatch(line) for line in (*head, *lines[first:last], *tail)):
        return "\n".join(lines)  # the copy is a part of a block only, or there is another one
    after = "\n".join(tail).strip()
    return "\n".join([*head, RESULT]) + (f"\n\n{after}" if after else "")


def _without_blanks(lines: Sequence[str]) -> list[str]:
    """The lines without blank ones at the end."""
    kept = list(lines)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept
