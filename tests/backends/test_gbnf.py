"""The notation itself is checked by llama.cpp, which reads it: see test_llamacpp."""

import json
import re

import pytest

from punie.backends._engine import CallGrammar
from punie.backends._gbnf import gbnf, trigger


def grammar(**schemas: dict) -> CallGrammar:
    return CallGrammar(tuple((name, json.dumps(schema)) for name, schema in schemas.items()))


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        ("<tool_call>", True),
        ("Let me look.\n<tool_call>", True),
        ("Let me look.\n<tool_call>\n", True),
        ("Let me look.\n  <tool_call>", True),
        ('<tool_call>\n{"', True),
        ("Calls are written <tool_call>", False),
        ("`<tool_call>", False),
        ("<tool_call>, then", False),
        ("<tool_cal", False),
    ],
)
def test_a_call_begins_at_the_start_of_a_line(said, begins):
    assert bool(re.search(trigger(grammar(look={})), said)) == begins


def test_the_group_of_the_trigger_is_what_the_grammar_reads():
    found = re.search(trigger(grammar(look={})), "Well.\n<tool_call>\n")
    assert found
    assert found[1] == "<tool_call>\n"


def test_every_tool_is_named_and_one_text_is_made_of_the_same_tools_once():
    one, two = grammar(look={}, find={"properties": {"q": {"type": "string"}}}), grammar(look={}, find={})
    assert gbnf(one) is gbnf(grammar(look={}, find={"properties": {"q": {"type": "string"}}}))
    assert gbnf(one) != gbnf(two)
    for name in ("look", "find"):
        assert f'\\"name\\": \\"{name}\\"' in gbnf(one)


def test_the_grammar_of_many_properties_stays_small():
    schema = {"properties": {f"p{n}": {"type": "string"} for n in range(30)}, "required": ["p3"]}
    assert len(gbnf(grammar(much=schema)).splitlines()) < 100
