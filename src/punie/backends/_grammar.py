"""The grammar of tool calls for engines without one of their own: which tokens a call that was begun leaves open.

The text before a call is free, so it costs nothing there: the grammar comes into force when the opening has been
written and ends with the closing. Masks are computed by llguidance on the CPU. No model library is imported here.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from punie.backends._engine import LINE_START, CallGrammar
from punie.errors import EngineMissing

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from tokenizers import Tokenizer

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
"""How Python's `json.dumps` separates, which is what models were trained on."""
_KINDS_OF_RULE = frozenset({"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "if", "not"})
_MOST_PROPERTIES = 64
"""A rule's parameter has this many bits."""


class Grammars:
    """Compiles grammars for one tokenizer, each once."""

    def __init__(self, tokenizer: "Tokenizer", *, end: frozenset[int], width: int) -> None:
        """`width`: numbers in a row of logits, which may be more than the tokenizer has tokens."""
        self._tokenizer = tokenizer
        self._end = end
        self._width = width
        self._vocabulary: LLTokenizer | None = None
        self._matchers: dict[CallGrammar, LLMatcher] = {}

    def guide(self, grammar: CallGrammar) -> "Guide":
        """A guide for one generation. Raises EngineMissing without llguidance."""
        vocabulary = self._vocabulary = self._vocabulary or self._read()
        matcher = self._matchers.get(grammar)
        if matcher is None:
            closing = self._tokenizer.token_to_id(grammar.closing)
            matcher = self._matchers[grammar] = _compiled(grammar, vocabulary, closing_token=closing)
        return Guide(matcher, vocabulary, tokenizer=self._tokenizer, opening=grammar.opening, width=self._width)

    def _read(self) -> "LLTokenizer":
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise EngineMissing(
                f"Tool calls cannot be constrained ({error}).",
                "pip install 'punie[mlx]', or set engine.grammar = false",
            ) from error
        return LLTokenizer(self._tokenizer.to_str(), eos_token=sorted(self._end) or None)


class Guide:
    """Follows one generation, token by token."""

    def __init__(
        self, matcher: "LLMatcher", vocabulary: "LLTokenizer", *, tokenizer: "Tokenizer", opening: str, width: int
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        # In the middle of a line it is prose about calls, not a call.
        self._opening = re.compile(LINE_START + re.escape(opening))
        self._width = width
        self.active = False
        """Whether a call has been begun and not ended: only then is anything forbidden."""
        self._watch()

    def feed(self, token: int) -> None:
        """Take note of the next token."""
        if self.active:
            self._matcher.consume_token(token)
            if self._matcher.is_error() or self._matcher.is_accepting():
                self._watch()
            return
        text = self._line + (self._decoder.step(self._tokenizer, token) or "")
        found = self._opening.search(text)
        if found:
            self._begin(text[found.end() :])
        else:
            self._line = text.rpartition("\n")[2]

    def allowed(self) -> np.ndarray:
        """Which tokens may come next in the call, as booleans of the width of the logits."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, count=self._width, bitorder="little").view(bool)
        # A matcher that ran into a limit allows nothing: then the rest of this call is free.
        return found if found.any() else ~found

    def forced(self) -> Sequence[int]:
        """Tokens that the grammar leaves no choice about."""
        return self._matcher.compute_ff_tokens()

    def _watch(self) -> None:
        from tokenizers.decoders import DecodeStream

        self.active = False
        self._line = ""
        self._decoder = DecodeStream(skip_special_tokens=False)

    def _begin(self, begun: str) -> None:
        """Enter the call; `begun` is what the token that completed the opening has brought along."""
        self._matcher.reset()
        tokens = self._vocabulary.tokenize_str(begun) if begun else []
        self._watch()
        self.active = self._matcher.try_consume_tokens(tokens) == len(tokens)


def _compiled(grammar: CallGrammar, vocabulary: "LLTokenizer", *, closing_token: int | None) -> "LLMatcher":
    from llguidance import LLMatcher

    def text_of(tools: Sequence[tuple[str, str]]) -> str:
        return lark(replace(grammar, tools=tuple(tools)), closing_token=closing_token)

    def is_readable(text: str) -> bool:
        return not LLMatcher.validate_grammar_with_warnings(text, vocabulary)[0]

    text = text_of(grammar.tools)
    if not is_readable(text):
        # One strange schema must not cost the other tools their grammar.
        text = text_of([tool if is_readable(text_of([tool])) else (tool[0], "{}") for tool in grammar.tools])
    return LLMatcher(vocabulary, text, log_level=0)


# --- text of a grammar ---------------------------------------------------------------------------------------------


def lark(grammar: CallGrammar, *, closing_token: int | None = None) -> str:
    """What may stand behind the opening, in llguidance's dialect of Lark.

    One object with `name` and `arguments` as the chat template writes it, then the closing. The arguments come in any
    order, each at most once, the required ones always. `closing_token`: the closing, where it is a token of its own;
    such tokens have no text for llguidance.
    """
    return "\n".join(_rules(grammar, closing_token))


def _rules(grammar: CallGrammar, closing_token: int | None) -> Iterator[str]:
    calls = " | ".join(f"call{i}" for i in range(len(grammar.tools)))
    yield "%llguidance {}"
    yield f"start: GAP ({calls}) GAP closing GAP"
    yield f"closing: {_text(grammar.closing)}" + (f" | <[{closing_token}]>" if closing_token is not None else "")
    yield r"GAP: /[ \t\r\n]{0,4}/"
    for i, (name, schema) in enumerate(grammar.tools):
        yield f"call{i}: {_text(_beginning(name))} arguments{i} {_text('}')}"
        yield from _arguments(i, json.loads(schema))


def _beginning(name: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


def _arguments(i: int, schema: Mapping[str, Any]) -> Iterator[str]:
    properties: Mapping[str, Any] = schema.get("properties") or {}
    if _KINDS_OF_RULE & schema.keys() or len(properties) > _MOST_PROPERTIES:
        yield f"arguments{i}: {_json({'type': 'object', **schema})}"
        return
    if not properties:
        free = schema.get("additionalProperties", True)
        yield f"arguments{i}: " + (_json({"type": "object", **schema}) if free else _text("{}"))
        return
    required = [name for name in properties if name in schema.get("required", ())]
    names = [*required, *(name for name in properties if name not in required)]
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    yield f'arguments{i}: "{{" first{i}::0x0 "}}"'
    yield from _in_any_order(i, names, required=len(required))
    for k, name in enumerate(names):
        value = properties[name]
        yield f"value{i}_{k}: {_json({**shared, **value} if isinstance(value, dict) else shared)}"


def _in_any_order(i: int, names: Sequence[str], *, required: int) -> Iterator[str]:
    """Rules whose parameter has a bit for each argument that was written, those of the required ones first."""
    complete = f" %if is_ones([0:{required}])" if required else ""
    for rule, separator in ((f"first{i}", ""), (f"rest{i}", ", ")):
        yield f'{rule}::_: ""{complete}'
        for k, name in enumerate(names):
            key = _text(f"{separator}{json.dumps(name, ensure_ascii=False)}: ")
            yield f"  | {key} value{i}_{k} rest{i}::set_bit({k}) %if bit_clear({k})"


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({'x-guidance': _STYLE, **schema})}"


def _text(literal: str) -> str:
    return json.dumps(literal, ensure_ascii=False)
