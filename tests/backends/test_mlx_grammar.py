"""What a call may be once it is begun, with the live tools and with random weights."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer
from tests.backends import families, tiny
from tests.backends.test_mlx import an_opening, model_directory, open_engine, pieces, text

from punie import tools, wire
from punie.backends._engine import CallGrammar
from punie.backends._grammar import Grammars, lark

SCHEMA = {
    "additionalProperties": False,
    "properties": {
        "path": {"type": "string"},
        "first": {"default": 1, "type": "integer"},
        "last": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
    },
    "required": ["path"],
    "type": "object",
}
READ = ("read", json.dumps(SCHEMA))

CALL = wire.call("read", {"path": "src/a b.py"}).render()


def live_tools() -> tuple[tuple[str, str], ...]:
    found = tools.toolset(tools.TOOLS).tools.values()
    return tuple((tool.tool_def.name, json.dumps(tool.tool_def.parameters_json_schema)) for tool in found)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def guide_for(tokenizer):
    grammars = Grammars(tokenizer, end=frozenset({2}), width=len(tiny.vocabulary()) + 3)
    return lambda grammar: grammars.guide(grammar)


def follow(guide, tokenizer, said: str) -> str:
    """What is left of the text once a token is not allowed; "" if all of it is."""
    ids = tokenizer.encode(said, add_special_tokens=False).ids
    for at, token in enumerate(ids):
        if guide.active and not guide.allowed()[token]:
            return tokenizer.decode(ids[at:], skip_special_tokens=False)
        guide.feed(token)
    return ""


# --- the text behind the opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        '{"path": "a.py"}',
        '{"path": "a.py", "first": 3, "last": null}',
        '{"last": -4, "path": "\\"\u00e9\\n\\\\", "first": 10}',
        '{"path": ""}',
    ],
)
def test_what_training_writes_is_allowed(guide_for, tokenizer, arguments):
    call = f"\n{wire.Call('read', arguments).render()}\n"
    guide = guide_for(CallGrammar((READ, ("wait", "{}"))))
    assert follow(guide, tokenizer, f"I look.{call}") == ""
    assert not guide.active
    assert follow(guide, tokenizer, f"{call}<|im_end|>") == "", "and another one behind it"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ('{"name": "write', "write"),
        ('{"name": "read", "arguments": {}', "}"),
        ('{"name": "read", "arguments": {"first": 3}', "}"),
        ('{"name": "read", "arguments": {"first": 3.5', ".5"),
        ('{"name": "read", "arguments": {"path": 3', "3"),
        ('{"name": "read", "arguments": {"path": "a", "path"', 'path"'),
        ('{"name": "read", "arguments": {"path": "a", "colour"', 'colour"'),
        ('{"name":"read"', '"read"'),
        ('{"arguments": {', 'arguments": {'),
        ('{"name": "read", "arguments": {"path": "a"}}</tool_calls>', "s>"),
        ('{"name": "read", "arguments": {"path": "a"}} I think', "I think"),
        ("[1]", "[1]"),
        ("<|im_end|>", "<|im_end|>"),
        ("\n\n\n\n\n\n", "\n\n"),
    ],
)
def test_what_is_no_call_is_not(guide_for, tokenizer, said, left):
    assert follow(guide_for(CallGrammar((READ,))), tokenizer, f"<tool_call>{said}") == left


def test_text_is_free(guide_for, tokenizer):
    guide = guide_for(CallGrammar((READ,)))
    for said in ('{"name": 3} <tool_call', "Write it as <tool_call>{}</tool_call>, in tags.", "a\n  b <tool_call>\n["):
        assert follow(guide, tokenizer, said + "\n") == ""
        assert not guide.active
    guide.feed(tokenizer.encode("<tool_call>").ids[0])


def test_a_token_that_holds_more_than_the_opening(guide_for, tokenizer):
    assert len(tokenizer.encode("hello").ids) == 1
    guide = guide_for(CallGrammar((READ,), opening="hell"))
    assert follow(guide, tokenizer, "hello") == ""
    assert not guide.active, "no call begins with an o"
    guide = guide_for(CallGrammar((READ,), opening=" t"))
    assert follow(guide, tokenizer, " t ") == ""
    assert guide.active


def test_a_closing_that_is_one_token(tmp_path):
    """As in Qwen's tokenizers, where the tags are no control tokens but not ordinary text either."""
    said = f"I look.\n{CALL}"
    tokenizer = families.write_tokenizer(tmp_path / "tokenizer.json", texts=[said] * 3)
    assert len(tokenizer.encode("</tool_call>").ids) == 1
    grammars = Grammars(tokenizer, end=frozenset(), width=tokenizer.get_vocab_size())
    guide = grammars.guide(CallGrammar((READ,)))
    assert follow(guide, tokenizer, f"{said}\n{CALL}<|im_end|>") == ""
    assert follow(guide, tokenizer, f"\n{CALL[:-12]}<|im_end|>") == "<|im_end|>"


def test_forced_text_is_known(guide_for, tokenizer):
    guide = guide_for(CallGrammar((READ,)))
    follow(guide, tokenizer, '<tool_call>\n{"na')
    assert tokenizer.decode(guide.forced()).startswith('me": "read", "arguments": {"')


def test_logits_beyond_the_vocabulary_are_never_allowed(guide_for, tokenizer):
    guide = guide_for(CallGrammar((READ,)))
    follow(guide, tokenizer, "<tool_call>")
    allowed = guide.allowed()
    assert len(allowed) == len(tiny.vocabulary()) + 3
    assert not allowed[-3:].any()
    assert not allowed[: len(tiny.SPECIALS)].any()


def test_a_grammar_is_compiled_once(tokenizer):
    grammars = Grammars(tokenizer, end=frozenset({2}), width=len(tiny.vocabulary()))
    for grammar in (CallGrammar((READ,)), CallGrammar((READ,)), CallGrammar((("wait", "{}"),))):
        grammars.guide(grammar)
    assert len(grammars._matchers) == 2


# --- schemas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({}, '{"any": [1, {"b": null}]}', "[]"),
        ({"type": "object", "properties": {}, "additionalProperties": False}, "{}", '{"a": 1}'),
        ({"properties": {"a": True}}, '{"a": [1, 2]}', '{"b": 1}'),
        ({"properties": {"a": {"enum": ["x", 3]}}, "required": ["a"]}, '{"a": 3}', '{"a": "y"}'),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/A"}},
                "$defs": {"A": {"type": "array", "items": {"type": "number"}}},
            },
            '{"a": [1.5, 2e3]}',
            '{"a": ["x"]}',
        ),
        ({"anyOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}]}, '{"a": null}', '{"a": 1}'),
        ({"properties": {"a": {"type": "string", "format": "no such format"}}}, '{"a": "x"}', '{"a": 1}'),
        ({"properties": {f"p{i}": {"type": "integer"} for i in range(70)}}, '{"p0": 1, "p69": 2}', '{"p0": "x"}'),
    ],
)
def test_schemas_of_all_kinds(guide_for, tokenizer, schema, good, bad):
    grammar = CallGrammar((("act", json.dumps(schema)),))
    beginning = '<tool_call>\n{"name": "act", "arguments": '
    assert follow(guide_for(grammar), tokenizer, f"{beginning}{good}}}\n</tool_call>") == ""
    assert follow(guide_for(grammar), tokenizer, f"{beginning}{bad}}}\n</tool_call>") != ""


def test_a_schema_that_cannot_be_read_costs_the_other_tools_nothing(guide_for, tokenizer):
    strange = ("odd", json.dumps({"properties": {"a": {"type": "string", "pattern": "(?=lookahead)"}}}))
    grammar = CallGrammar((strange, READ))
    assert follow(guide_for(grammar), tokenizer, '<tool_call>{"name": "odd", "arguments": {"a": 1}}</tool_call>') == ""
    assert follow(guide_for(grammar), tokenizer, '<tool_call>{"name": "read", "arguments": {"a') == "a"


def test_the_live_tools(guide_for, tokenizer):
    grammar = CallGrammar(live_tools())
    assert not LLMatcher.validate_grammar(lark(grammar), LLTokenizer(tokenizer.to_str()))
    for call in (
        wire.call("find_symbol", {"name": "Flask.run"}),
        wire.call("list_files", {}),
        wire.call("search", {"glob": "*.py", "pattern": r"\bdef \w+\("}),
        wire.call("edit_file", {"path": "a.py", "old": "x = 1\n", "new": 'x = "\u00fc"\n\t'}),
        wire.call("run_command", {"command": "ls -l", "timeout": 2.5}),
    ):
        assert follow(guide_for(grammar), tokenizer, call.render()) == "", call


# --- random weights ------------------------------------------------------------------------------------------------

WAYS = json.dumps({"properties": {"way": {"enum": ["there", "back"]}, "on": {"type": "boolean"}}, "required": ["way"]})


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_random_weights_can_only_make_valid_calls(tmp_path, seed, temperature):
    engine = open_engine(model_directory(tmp_path, seed=seed))
    prompt, opening = an_opening(engine)
    grammar = CallGrammar((("walk", WAYS), ("wait", "{}")), opening=opening, closing="</tool_call>")
    asked = {"max_tokens": 160, "temperature": temperature, "seed": seed, "grammar": grammar}
    found = text(pieces(engine, prompt=prompt, **asked))
    assert text(pieces(engine, prompt=prompt, **asked)) == found
    if temperature:
        return
    body, closing, _ = found.removeprefix(opening).partition("</tool_call>")
    assert closing or len(body) > 100
    if closing:
        call = json.loads(body)
        assert call["name"] in {"walk", "wait"}
        assert call["name"] == "wait" or call["arguments"]["way"] in {"there", "back"}


def test_without_an_opening_nothing_changes(tmp_path):
    engine = open_engine(model_directory(tmp_path))
    wanted = text(pieces(engine, max_tokens=60))
    assert text(pieces(engine, max_tokens=60, grammar=CallGrammar(live_tools()))) == wanted
    assert text(pieces(engine, max_tokens=60, grammar=CallGrammar(()))) == wanted
