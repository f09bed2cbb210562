"""The grammar of tool calls in llama.cpp's own notation (GBNF), written for the calls of one set of tools.

llama.cpp can turn a JSON schema into a grammar too, but this build does so for llguidance, whose tokenizer it keeps
at the address of a vocabulary: a second model at the same address would get the first one's.

What a schema says beyond types, names, choices and required properties is not expressed: the grammar then allows
more than the schema, and the arguments are checked against the schema before anything runs.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from punie.backends._engine import LINE_START, CallGrammar

_ANY_ORDER = 5
"""Properties whose every order is allowed; it takes a rule for each subset of them."""
_MOST_REPEATS = 64
"""llama.cpp writes repetitions out: a grammar with thousands would be slow."""
_GAP = r"[ \t\r\n]{0,4}"
_BASE = (
    r'char ::= [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    r'string ::= "\"" char* "\""',
    r'integer ::= "-"? ("0" | [1-9] [0-9]{0,15})',
    r'number ::= integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,4})?',
    r'boolean ::= "true" | "false"',
    r'null ::= "null"',
    r'pair ::= string ": " value',
    r'object ::= "{" (pair (", " pair)*)? "}"',
    r'array ::= "[" (value (", " value)*)? "]"',
    "value ::= object | array | string | number | boolean | null",
)
_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})


@lru_cache(maxsize=8)
def gbnf(grammar: CallGrammar) -> str:
    """The grammar of everything from the opening of a call on: calls one after the other, then the end of the turn.

    JSON is written with ", " and ": " as chat templates write it. Properties come in any order if there are few.
    """
    rules = _Rules()
    calls = " | ".join(rules.call(name, json.loads(schema)) for name, schema in grammar.tools)
    call = f"{_text(grammar.opening)} gap ({calls}) gap {_text(grammar.closing)}"
    return "\n".join(["root ::= call (gap call)* gap", f"call ::= {call}", f"gap ::= {_GAP}", *rules.lines, *_BASE])


def trigger(grammar: CallGrammar) -> str:
    """The regular expression at whose match the grammar begins: an opening that stands at the start of a line.

    In the middle of a line it is prose about calls. What the last token brings along beyond the opening must be
    something the grammar accepts, or llama.cpp gives up.
    """
    return f'{LINE_START}({re.escape(grammar.opening)}{_GAP}(?:\\{{"?)?)$'


class _Rules:
    """Collects the rules of schemas; each method returns the expression for its part."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._definitions: Mapping[str, Any] = {}
        self._referred: dict[str, str] = {}

    def call(self, name: str, schema: Mapping[str, Any]) -> str:
        """A call of one tool."""
        self._definitions, self._referred = schema, {}
        beginning = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        return self.rule(f"{_text(beginning)} {self._value({'type': 'object', **schema})} {_text('}')}")

    def rule(self, expression: str) -> str:
        """Add a rule; returns its name."""
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name} ::= {expression}")
        return name

    def _value(self, schema: Any) -> str:
        if not isinstance(schema, Mapping):
            return "value"
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]))
        for key in ("anyOf", "oneOf"):
            if schema.get(key):
                return f"({' | '.join(self._value(one) for one in schema[key])})"
        if "const" in schema:
            return _literal(schema["const"])
        if schema.get("enum"):
            return f"({' | '.join(_literal(value) for value in schema['enum'])})"
        return self._typed(schema)

    def _typed(self, schema: Mapping[str, Any]) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            return f"({' | '.join(self._typed({**schema, 'type': one}) for one in kind)})"
        more = schema.get("additionalProperties")
        if kind == "object" and schema.get("properties") and not more:
            return self._object(schema["properties"], frozenset(schema.get("required", ())))
        if kind == "object" and more is False:
            return _text("{}")
        if kind == "array" and isinstance(schema.get("items"), Mapping):
            return self._array(schema)
        return kind if kind in _TYPES else "value"

    def _reference(self, path: str) -> str:
        """A definition by its place in the schema; the rule comes before its own text, which may refer to it."""
        if path not in self._referred:
            found: Any = self._definitions
            for part in path.removeprefix("#/").split("/"):
                found = found.get(part) if isinstance(found, Mapping) else None
            name = self._referred[path] = self.rule("value")
            self.lines[int(name[1:])] = f"{name} ::= {self._value(found)}"
        return self._referred[path]

    def _array(self, schema: Mapping[str, Any]) -> str:
        item = self.rule(self._value(schema["items"]))
        least, most = schema.get("minItems", 0), schema.get("maxItems", _MOST_REPEATS + 1)
        if most == 0:
            return _text("[]")
        upper = "" if most > _MOST_REPEATS else max(most - 1, 0)
        more = f'{item} (", " {item}){{{max(min(least, _MOST_REPEATS) - 1, 0)},{upper}}}'
        return f'"[" {more} "]"' if least else f'"[" ({more})? "]"'

    def _object(self, properties: Mapping[str, Any], required: frozenset[str]) -> str:
        pairs = {
            name: self.rule(f"{_text(json.dumps(name, ensure_ascii=False) + ': ')} {self._value(schema)}")
            for name, schema in properties.items()
        }
        rest = _Rest(self, pairs, required=required)
        return f'"{{" {rest.after(tuple(pairs), begun=False)} "}}"'


class _Rest:
    """What may follow in an object of which some properties are written; one rule for each set that is left."""

    def __init__(self, rules: _Rules, pairs: Mapping[str, str], *, required: frozenset[str]) -> None:
        self._rules = rules
        self._pairs = pairs
        self._required = required
        self._any_order = len(pairs) <= _ANY_ORDER
        self._known: dict[tuple[tuple[str, ...], bool], str] = {}

    def after(self, left: tuple[str, ...], *, begun: bool) -> str:
        """The expression for the properties that are left and the end of the object."""
        if not left:
            return '""'
        if (left, begun) not in self._known:
            self._known[left, begun] = self._rules.rule(" | ".join(self._choices(left, begun=begun)))
        return self._known[left, begun]

    def _choices(self, left: tuple[str, ...], *, begun: bool) -> Iterator[str]:
        separator = '", " ' if begun else ""
        for i, name in enumerate(left):
            rest = (*left[:i], *left[i + 1 :]) if self._any_order else left[i + 1 :]
            yield f"{separator}{self._pairs[name]} {self.after(rest, begun=True)}"
            if not self._any_order and name in self._required:
                return  # it cannot be passed over
        if not self._required.intersection(left):
            yield '""'


def _literal(value: object) -> str:
    return _text(json.dumps(value, ensure_ascii=False))


def _text(literal: str) -> str:
    """A literal of the notation."""
    return json.dumps(literal, ensure_ascii=False)
