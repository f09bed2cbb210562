"""One piece of text that should be calls and nothing else: as JSON, as XML, as Python, or as a name and JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from punie.wire._messages import Call
from punie.wire._names import known_name
from punie.wire._tolerant import Read, UnreadableError, read, read_object

Parameters = Mapping[str, Sequence[str]]
"""The tools there are: name -> its parameters in order."""

_NAMES = ("name", "tool_name", "tool", "function_name", "function", "action", "recipient_name")
_ARGUMENTS = ("arguments", "parameters", "args", "input", "tool_input", "action_input", "params", "kwargs")
_ABOUT = ("type", "id", "call_id", "tool_call_id")
_LONGEST_NAME = 80
_BETWEEN = re.compile(r"[\s,;]*")

_FUNCTION = re.compile(r"<(?:function|invoke)(?:=|\s+name=)[\"']?(?P<name>[\w.:/-]+)[\"']?\s*>")
_PARAMETER = re.compile(r"\s*<parameter(?:=|\s+name=)[\"']?(?P<key>[\w.-]+)[\"']?[^>\n]*>")
_PARAMETER_END = re.compile(r"</parameter>|(?=\n[ \t]*<parameter[=\s])|(?=\n[ \t]*</(?:function|invoke)>)")
_FUNCTION_END = re.compile(r"\s*</(?:function|invoke)>\s*")
_PAIRS = re.compile(r"\s*<arg_key>\s*(.*?)\s*</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_NAMED = re.compile(r"(?:function\s+|call:)?(?P<name>[A-Za-z_][\w.:/-]*?)(?::\d+)?")
_NOISE = re.compile(
    r"<[|\uff5c]tool[_\u2581]sep[|\uff5c]>|<\|tool_call_argument_begin\|>|<\|constrain\|>\w*|<\|message\|>|<\|channel\|>\w*"
    r"|\[CALL_ID\]\w*|\[ARGS\]|```\w*|\bto="
)
_PYTHON = re.compile(r"(?:\w+\s*=\s*)?(?:await\s+)?(?:print\(\s*)?(?P<name>[A-Za-z_][\w.]*?)(?:\.call)?\(")
_KEYWORD = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)\s*")
_MARKED = re.compile(r"<escape>(.*?)<escape>", re.DOTALL)


def calls_of(text: str, parameters: Parameters, *, tagged: bool) -> list[Call]:
    """The calls a text consists of. Raises UnreadableError when it is anything else.

    Inside tags that say "this is a call" more is understood as one: arguments beside the name, none at all.
    """
    text = text.strip()
    if _FUNCTION.match(text):
        return _xml_calls(text)
    if text[:1] in {"{", "["} and not _looks_like_python(text):
        return _json_calls(text, tagged=tagged)
    if tagged and "<arg_key>" in text:
        return [_pairs_call(text)]
    if tagged and (found := _named_calls(_MARKED.sub(r'"\1"', text), parameters)):
        return found
    return _python_calls(text, parameters)


def _looks_like_python(text: str) -> bool:
    return bool(re.match(r"\[\s*[A-Za-z_][\w.]*\(", text))


# --- JSON ---


def _json_calls(text: str, *, tagged: bool) -> list[Call]:
    calls: list[Call] = []
    at, flaws = 0, ()
    while at < len(text):
        found = read(text, at)
        calls += _calls_in(found.value, found.flaws, tagged=tagged)
        between = _BETWEEN.match(text, found.end)
        at, flaws = (between.end() if between else found.end), found.flaws
        if re.fullmatch(r"[}\]\s]+", text[at:]):  # more brackets than were opened
            calls[-1] = Call(calls[-1].name, calls[-1].arguments, _joined(*flaws, "brackets too many"))
            break
    return calls


def _calls_in(value: Any, flaws: Sequence[str], *, tagged: bool) -> list[Call]:
    if isinstance(value, list) and value:
        return [call for item in value for call in _calls_in(item, flaws, tagged=tagged)]
    if not isinstance(value, dict):
        raise UnreadableError("no call")
    if isinstance(several := value.get("tool_calls", value.get("tool_uses")), list):
        return _calls_in(several, flaws, tagged=tagged)
    if isinstance(inner := value.get("function"), dict):
        return _calls_in(inner, flaws, tagged=tagged)
    return [_json_call(value, flaws, tagged=tagged)]


def _json_call(value: Mapping[str, Any], flaws: Sequence[str], *, tagged: bool) -> Call:
    name_key = next((key for key in _NAMES if isinstance(value.get(key), str)), None)
    if name_key is None:
        raise UnreadableError("no name")
    key = next((key for key in _ARGUMENTS if key in value), None)
    found = [*flaws, *([f"the name under `{name_key}`"] if name_key != "name" else [])]
    if key is not None:
        arguments, more = _arguments(value[key])
        renamed = [f"the arguments under `{key}`"] if key not in {"arguments", "parameters"} else []
        return _made(value[name_key], arguments, [*found, *renamed, *more])
    rest = {k: v for k, v in value.items() if k not in {name_key, *_ABOUT}}
    if rest and not tagged:
        raise UnreadableError("no arguments")
    return _made(value[name_key], rest, [*found, "arguments beside the name" if rest else "no arguments"])


def _arguments(value: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    if value is None or value == "":
        return {}, ("no arguments",)
    if isinstance(value, str):
        found = read_object(value)
        if found is None:
            raise UnreadableError("the arguments are no object")
        return found.value, (*found.flaws, "the arguments written as a string")
    if not isinstance(value, dict):
        raise UnreadableError("the arguments are no object")
    return value, ()


def _made(name: str, arguments: Mapping[str, Any], flaws: Sequence[str]) -> Call:
    return Call(name, json.dumps(arguments, ensure_ascii=False), _joined(*flaws))


def _joined(*flaws: str) -> str:
    return ", ".join(dict.fromkeys(flaws))


# --- XML ---


def _xml_calls(text: str) -> list[Call]:
    calls: list[Call] = []
    while match := _FUNCTION.match(text):
        call, end = _xml_call(text, match)
        calls.append(call)
        text = text[end:].lstrip()
    if text:
        raise UnreadableError("more text after the call")
    return calls


def _xml_call(text: str, match: "re.Match[str]") -> tuple[Call, int]:
    at, found = match.end(), {}
    while begin := _PARAMETER.match(text, at):
        end = _PARAMETER_END.search(text, begin.end())
        if end is None:
            raise UnreadableError("a parameter does not end")
        found[begin["key"]] = _parameter(text[begin.end() : end.start()])
        at = end.end()
    if end := _FUNCTION_END.match(text, at):
        return _made(match["name"], found, ()), end.end()
    if found and not text[at:].strip():
        return _made(match["name"], found, ["no end of the call"]), len(text)
    return _call_with_json(text, match["name"], at)


def _call_with_json(text: str, name: str, at: int) -> tuple[Call, int]:
    """`<function=NAME>{...}</function>`, as some Llama models write it."""
    arguments = read(text, at)
    end = _FUNCTION_END.match(text, arguments.end)
    if not isinstance(arguments.value, dict) or end is None:
        raise UnreadableError("no arguments")
    return _made(name, arguments.value, arguments.flaws), end.end()


def _parameter(text: str) -> str:
    """A value on lines of its own loses those line breaks and nothing else."""
    if text.startswith("\n"):
        return text[1:].removesuffix("\n")
    return text.strip()


def _pairs_call(text: str) -> Call:
    name, _, rest = text.partition("<arg_key>")
    rest = "<arg_key>" + rest
    pairs = _PAIRS.findall(rest)
    if not name.strip() or _PAIRS.sub("", rest).strip():
        raise UnreadableError("no pairs of names and values")
    return _made(name.strip(), {key: _parameter(value) for key, value in pairs}, ())


# --- a name and JSON ---


def _named_calls(text: str, parameters: Parameters) -> list[Call]:
    """`NAME {...}` once or more, or a tool's name alone; empty when the text is something else."""
    if len(text) <= _LONGEST_NAME and known_name(text, parameters):
        return [_made(text, {}, ["no arguments"])]
    calls: list[Call] = []
    while (brace := text.find("{")) >= 0 and (name := _NAMED.fullmatch(_NOISE.sub(" ", text[:brace]).strip())):
        found = read(text, brace)
        if not isinstance(found.value, dict):
            break
        calls.append(_made(name["name"], found.value, found.flaws))
        text = text[found.end :].lstrip(" \t\r\n,;`")
    if text and calls:
        raise UnreadableError("more text after the call")
    return calls


# --- Python ---


def _python_calls(text: str, parameters: Parameters) -> list[Call]:
    calls: list[Call] = []
    at = 1 if text.startswith("[") else 0
    while match := _PYTHON.match(text, _skipped(text, at)):
        call, at = _python_call(text, match, parameters)
        calls.append(call)
        at = _skipped(text, at)
    if not calls or text[at:].strip("] \t\r\n"):
        raise UnreadableError("no call")
    return calls


def _skipped(text: str, at: int) -> int:
    match = _BETWEEN.match(text, at)
    return match.end() if match else at


def _python_call(text: str, match: "re.Match[str]", parameters: Parameters) -> tuple[Call, int]:
    at, found, position = match.end(), {}, 0
    while (at := _skipped(text, at)) < len(text) and text[at] != ")":
        keyword = _KEYWORD.match(text, at)
        key = keyword[1] if keyword else _positional(match["name"], position, parameters)
        value = _python_value(text, keyword.end() if keyword else at)
        found[key], at, position = value.value, value.end, position + 1
    if at >= len(text):
        raise UnreadableError("a bracket does not close")
    closed = at + 1
    if "print(" in match[0]:
        closed += len(text[closed:]) - len(text[closed:].lstrip())
        if text[closed : closed + 1] != ")":
            raise UnreadableError("a bracket does not close")
        closed += 1
    return _made(match["name"], found, ["written as Python"]), closed


def _positional(name: str, position: int, parameters: Parameters) -> str:
    known = parameters.get(name, ())
    if position >= len(known):
        raise UnreadableError("an argument without a name")
    return known[position]


def _python_value(text: str, at: int) -> Read:
    if re.match(r"[rR][\"']", text[at : at + 2]):
        end = re.compile(re.escape(text[at + 1])).search(text, at + 2)
        if end is None:
            raise UnreadableError("a string does not end")
        return Read(text[at + 2 : end.start()], end.end())
    return read(text, at)
