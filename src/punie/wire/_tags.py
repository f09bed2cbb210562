"""Calls between the control tokens and tags that model families put around them.

The tokens are those of the families' own chat templates; a model writes them as text when nobody upstream reads them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from punie.wire._messages import CALL_OPEN, Call, Dialect
from punie.wire._tolerant import UnreadableError
from punie.wire._written import Parameters, calls_of


@dataclass(frozen=True)
class _Tag:
    """`opens` and `closes` are patterns; a tag that carries the name itself belongs to the call."""

    opens: str
    closes: str
    label: str
    is_call: bool = False


_TAGS = (
    _Tag(r"<tool_call>", r"</?tool_call>", CALL_OPEN),
    _Tag(r"<tools>\s*(?=[\[{])", r"</tools>", "<tools>"),
    _Tag(r"<\|?functions?_?calls?\|?>\s*(?=[\[{])", r"</?\|?/?functions?_?calls?\|?>", "<function_call>"),
    _Tag(r"<function(?:=|\s+name=)", r"(?<=</function>)", "<function=...>", is_call=True),
    _Tag(r"<invoke\s+name=", r"(?<=</invoke>)", "<invoke>", is_call=True),
    _Tag(r"\[TOOL_CALLS\]", r"(?=\[TOOL_CALLS\])|</s>", "[TOOL_CALLS]"),
    _Tag(r"<\|tool_calls?\|>", r"<\|/tool_calls?\|>|<tool_call\|>|(?=<\|tool_call\|>)", "<|tool_call|>"),
    _Tag(r"<\|python_tag\|>", r"<\|eom_id\|>|<\|eot_id\|>", "<|python_tag|>"),
    _Tag(
        r"<[|\uff5c]tool[_\u2581]call[_\u2581]begin[|\uff5c]>",
        r"<[|\uff5c]tool[_\u2581]call[_\u2581]end[|\uff5c]>",
        "tool_call_begin",
    ),
    _Tag(r"<\|channel\|>\w+ (?=to=functions\.)", r"<\|call\|>", "<|channel|>"),
    _Tag(r"<\|START_ACTION\|>", r"<\|END_ACTION\|>", "<|START_ACTION|>"),
    _Tag(r"<start_function_call>", r"<end_function_call>", "<start_function_call>"),
    _Tag(r"\bfunctools(?=\[)", r"\Z", "functools"),
)
_WRAPPERS = re.compile(
    r"</?(?:minimax:tool_call|function_calls|antml:function_calls)>"
    r"|<[|\uff5c]tool[_\u2581]calls(?:[_\u2581]section)?[_\u2581](?:begin|end)[|\uff5c]>"
)
_OPENING = re.compile("|".join(f"(?P<t{number}>{tag.opens})" for number, tag in enumerate(_TAGS)))
_CODE = re.compile(
    r"^[ \t]*(```++|~~~++)[^\n]*+\n.*?(?:^[ \t]*\1[ \t]*$|\Z)|(?<!`)(`++)[^`\n](?:[^\n]*?[^`\n])?\2(?!`)",
    re.DOTALL | re.MULTILINE,
)
_PAYLOAD = re.compile(r"\S+?[\]>]\s*(?:[\[{<]|\Z)")
_MOST_ENDS = 20
_MOST_BLOCKS = 50
"""More than that is a model that repeats itself."""
_OWN: Mapping[Dialect, str] = {"json": "JSON in <tool_call>", "xml": "<function=...>"}


@dataclass(frozen=True)
class Block:
    """A place in a text that says it is a call; `calls` is empty when it cannot be read."""

    start: int
    end: int
    calls: tuple[Call, ...]


def tagged(text: str, parameters: Parameters, *, dialect: Dialect) -> list[Block]:
    """Every tagged block, without those that are shown as code or in the middle of a sentence."""
    code = [match.span() for match in _CODE.finditer(text)]
    blocks = list(islice(_blocks(text, parameters, dialect), _MOST_BLOCKS))
    ends = [0, *(block.end for block in blocks)]
    starts = [*(block.start for block in blocks), len(text)]
    around = [(text[ends[n] : block.start], text[block.end : starts[n + 1]]) for n, block in enumerate(blocks)]
    return [block for block, sides in zip(blocks, around, strict=True) if not _is_shown(text, block, code, sides)]


def without_wrappers(text: str) -> str:
    """The text without tags that stand around a list of calls."""
    return _WRAPPERS.sub("", text)


def _blocks(text: str, parameters: Parameters, dialect: Dialect) -> Iterator[Block]:
    at = 0
    while match := _OPENING.search(text, at):
        tag = _TAGS[int((match.lastgroup or "t0")[1:])]
        block = _block(text, match, tag, parameters)
        yield replace(
            block, calls=tuple(_labelled(call, tag, text[block.start : block.end], dialect) for call in block.calls)
        )
        at = max(block.end, match.end())


def _block(text: str, opening: "re.Match[str]", tag: _Tag, parameters: Parameters) -> Block:
    """Up to the first end that makes it readable: what is written to a file may hold the closing tag itself."""
    begin = opening.start() if tag.is_call else opening.end()
    ends = [match.span() for match in islice(re.finditer(tag.closes, text[begin:]), _MOST_ENDS)]
    spans = [(begin + start, begin + end) for start, end in ends if end or start] + [(len(text), len(text))]
    for stop, end in spans:
        calls = _read(text[begin:stop], parameters)
        if calls:
            return Block(opening.start(), end, tuple(calls))
    first = spans[0]
    return Block(opening.start(), first[1], ())


def _read(body: str, parameters: Parameters) -> Sequence[Call]:
    try:
        return calls_of(body, parameters, tagged=True)
    except UnreadableError:
        return ()


def _labelled(call: Call, tag: _Tag, text: str, dialect: Dialect) -> Call:
    """Say what is unusual about a call that is not in the dialect the model was taught."""
    written = _kind(text) if tag.label == CALL_OPEN else tag.label
    if written == _OWN[dialect]:
        return call
    return replace(call, mended=", ".join(part for part in (f"written as {written}", call.mended) if part))


def _kind(text: str) -> str:
    body = text.removeprefix(CALL_OPEN).lstrip()
    if body.startswith("{"):
        return _OWN["json"]
    if body.startswith("<function="):
        return _OWN["xml"]
    return "a list" if body.startswith("[") else "a name and arguments"


def _is_shown(text: str, block: Block, code: Sequence[tuple[int, int]], sides: tuple[str, str]) -> bool:
    """Whether a block only shows what a call looks like: as code, or with words on both sides in its line."""
    if any(start <= block.start < end for start, end in code):
        return True
    before = re.search(r"\w", without_wrappers(sides[0]).rpartition("\n")[2])
    if not block.calls:  # where it would end is not known; a tag that is only mentioned holds no brackets
        return bool(before and not _PAYLOAD.match(text, block.start))
    return bool(before and re.search(r"\w", without_wrappers(sides[1]).partition("\n")[0]))
