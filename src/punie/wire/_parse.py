"""A finished model text as prose and calls, in whatever dialect they are written."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import islice

from punie.wire._messages import Call, Dialect, Reply
from punie.wire._names import known_name
from punie.wire._tags import tagged, without_wrappers
from punie.wire._thinking import without_thinking
from punie.wire._tolerant import UnreadableError
from punie.wire._written import Parameters, calls_of

_FENCE = re.compile(
    r"^[ \t]*```(?P<kind>[\w-]*)[ \t]*\n?(?P<body>.*?)(?:\n?[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_CALL_FENCES = frozenset({"", "json", "json5", "tool_call", "tool_calls", "tool_code", "tool", "xml", "python", "py"})
_ACTION = re.compile(r"^Action:\s*(?P<name>[\w.-]+)\s*\n\s*Action Input:\s*(?P<input>\{.*)\Z", re.MULTILINE | re.DOTALL)
_LINE_START = re.compile(r"^[ \t]*(?=[\[{]|[A-Za-z_][\w.]*\()", re.MULTILINE)
_EXPLAINS = re.compile(
    r"\b(?:examples?|e\.g|instance|such as|like this|looks? like|format|syntax|schema|would"
    r"|you (?:can|could|may|should)|written as|is called|to call|means|equivalent)\b",
    re.IGNORECASE,
)
_ENDS = (
    r"(?:<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<\|eom_id\|>|<\|end\|>|<\|return\|>|</s>"
    r"|<\uff5cend\u2581of\u2581sentence\uff5c>|<end_of_turn>)"
)
_TURN = r"(?:<\|im_start\|>|<\|start_header_id\|>|<\|start\|>|<start_of_turn>|\[INST\]|<\|(?:user|assistant|system)\|>)"
_AT_START = re.compile(rf"\A\s*(?:{_TURN}\s*(?:assistant|model)?(?:<\|end_header_id\|>|<\|message\|>)?\s*)+")
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final<\|message\|>")
_AT_END = re.compile(rf"{_ENDS}\s*(?:\Z|{_TURN}.*\Z|{_ENDS}.*\Z)", re.DOTALL)
_MOST_STARTS = 40


def parse(text: str, *, names: Collection[str] | Parameters = (), dialect: Dialect = "json") -> Reply:
    """Split a finished model text into prose and calls.

    Tagged blocks are always calls. If there is none, a call in another dialect is looked for (fenced or bare JSON, or
    Python), but only for a tool in `names`, where nothing follows it and nothing says that it is an example; a text
    that is a JSON call and nothing else is one for any tool. What was thought is dropped, and so are control tokens
    around the text. A call that is not quite as the model was taught says in `mended` what it took to read it.
    """
    parameters: Parameters = names if isinstance(names, Mapping) else dict.fromkeys(names, ())
    said = without_control_tokens(without_thinking(text)[1])
    reply = _tagged(said, parameters, dialect) or _untagged(said, parameters)
    if reply is None:
        return Reply(said)
    return replace(reply, calls=tuple(_named(call, parameters) for call in reply.calls))


def without_control_tokens(text: str) -> str:
    """The text without the tokens of a turn around it, and without a next turn the model made up."""
    text = _FINAL_CHANNEL.sub("", _AT_START.sub("", text))
    end = _AT_END.search(text)
    return text[: end.start()].rstrip() if end else text


def _named(call: Call, parameters: Parameters) -> Call:
    """The call under the tool's real name."""
    name = known_name(call.name, parameters)
    if name is None or name == call.name:
        return call
    return Call(name, call.arguments, ", ".join(part for part in (f"named {call.name}", call.mended) if part))


def _tagged(text: str, parameters: Parameters, dialect: Dialect) -> Reply | None:
    blocks = tagged(text, parameters, dialect=dialect)
    if not blocks:
        return None
    calls = tuple(call for block in blocks for call in block.calls)
    broken = next((text[block.start : block.end] for block in blocks if not block.calls), "")
    if not calls:
        return Reply(text, broken=broken)
    return Reply(without_wrappers(text[: blocks[0].start]).strip(), calls, broken=broken)


def _untagged(text: str, parameters: Parameters) -> Reply | None:
    whole = _whole(text, parameters)
    if whole:
        return Reply("", tuple(whole))
    return _fenced(text, parameters) or _action(text, parameters) or _trailing(text, parameters)


def _whole(text: str, parameters: Parameters) -> list[Call] | None:
    """The calls of a text that is nothing else, fence or not; as JSON with arguments for any tool."""
    fence = _FENCE.fullmatch(text.strip())
    body = fence["body"] if fence else text
    calls = _read(body, parameters)
    if not calls or (not body.lstrip().startswith(("{", "[{")) and not _all_known(calls, parameters)):
        return None
    bare = any(call.mended.endswith("no arguments") for call in calls)
    if bare and not _all_known(calls, parameters):
        return None
    return _labelled(calls, "written in a code fence" if fence else "written as plain text")


def _fenced(text: str, parameters: Parameters) -> Reply | None:
    """Fences that hold calls: at the end of the reply, or at its very beginning."""
    found = [(fence, calls) for fence in _FENCE.finditer(text) if (calls := _in_fence(fence, parameters))]
    if not found:
        return None
    first, last = found[0][0], found[-1][0]
    before = text[: first.start()]
    if (text[last.end() :].strip() and before.strip()) or _explains(before):
        return None
    calls = [call for _, calls in found for call in calls]
    return Reply(before.strip(), tuple(_labelled(calls, "written in a code fence")))


def _in_fence(fence: "re.Match[str]", parameters: Parameters) -> list[Call] | None:
    if fence["kind"].lower() not in _CALL_FENCES:
        return None
    blocks = tagged(fence["body"], parameters, dialect="json")
    calls = [call for block in blocks for call in block.calls] or _read(fence["body"], parameters)
    return calls if calls and _all_known(calls, parameters) else None


def _action(text: str, parameters: Parameters) -> Reply | None:
    """`Action: NAME` and `Action Input: {...}`, as ReAct prompts teach it; what is observed after it is made up."""
    match = _ACTION.search(text)
    if not match or known_name(match["name"], parameters) is None:
        return None
    body = match["input"].split("\nObservation", 1)[0]
    calls = _read(f'{{"name": "{match["name"]}", "arguments": {body.strip()}}}', parameters)
    if not calls:
        return None
    before = text[: match.start()].strip().removeprefix("Thought:").strip()
    return Reply(before, tuple(_labelled(calls, "written as Action")))


def _trailing(text: str, parameters: Parameters) -> Reply | None:
    """Lines that are a call, at the end of the reply and with nothing after them."""
    for match in islice(_LINE_START.finditer(text), _MOST_STARTS):
        calls = _read(text[match.start() :], parameters)
        if calls and _all_known(calls, parameters):
            before = text[: match.start()]
            return (
                None if _explains(before) else Reply(before.strip(), tuple(_labelled(calls, "written as plain text")))
            )
    return None


def _read(text: str, parameters: Parameters) -> list[Call]:
    try:
        return calls_of(text, parameters, tagged=False)
    except UnreadableError:
        return []


def _all_known(calls: list[Call], parameters: Parameters) -> bool:
    return all(known_name(call.name, parameters) for call in calls)


def _explains(before: str) -> bool:
    """Whether the line that leads to a call presents it as an example."""
    lines = before.strip().splitlines()
    return bool(lines and _EXPLAINS.search(lines[-1]))


def _labelled(calls: list[Call], label: str) -> list[Call]:
    return [replace(call, mended=", ".join(part for part in (label, call.mended) if part)) for call in calls]
