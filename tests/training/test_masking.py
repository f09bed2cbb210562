import random

import pytest
from tests.backends import tiny

from punie.backends import _weights
from punie_training import examples, masking
from punie_training.recipe import Data, Recipe
from punie_training.rows import Row, declarations

NAMES = {tool["function"]["name"] for tool in declarations()}


def row(number: int = 0, tool: str = "search", **arguments) -> Row:
    talk = [
        {"role": "user", "content": f"Where does search or {tool} stand in the code ({number})?"},
        {"role": "assistant", "calls": [{"name": tool, "arguments": arguments or {"pattern": "search"}}]},
        {"role": "tool", "content": "1 match for search\na.py:1 def search(): ..."},
        {"role": "assistant", "content": "search stands here:\n[[result]]"},
    ]
    return Row.model_validate({"id": str(number), "family": "search", "project": "shop", "messages": talk})


def direct(number: int) -> Row:
    talk = [{"role": "user", "content": "What is search?"}, {"role": "assistant", "content": "Looking for a thing."}]
    return Row.model_validate({"id": f"d{number}", "family": "direct", "messages": talk})


def test_names_change_in_calls_and_declarations_and_nowhere_else():
    plain = row()
    other = masking.renamed(plain, random.Random(1))
    assert other.tools is not None
    names = [tool.function.name for tool in other.tools]
    assert len(set(names)) == 9
    assert not NAMES & set(names)
    assert [t.content for t in other.messages] == [t.content for t in plain.messages]
    call = other.messages[1].calls[0]
    assert call.arguments == {"pattern": "search"}
    (declared,) = [tool.function for tool in other.tools if tool.function.name == call.name]
    assert declared.description == "Search file contents for text or a regex."
    before = sorted(str(tool["function"]["parameters"]) for tool in declarations())
    assert sorted(str(tool.function.parameters) for tool in other.tools) == before


def test_the_place_of_a_declaration_says_nothing():
    places = set()
    for seed in range(20):
        other = masking.renamed(row(), random.Random(seed))
        names = [tool.function.name for tool in other.tools or ()]
        places.add(names.index(other.messages[1].calls[0].name))
    assert len(places) > 4


def test_a_neutral_name_is_never_a_word_of_the_conversation(monkeypatch):
    monkeypatch.setattr(masking, "_STEMS", ("fn",))
    monkeypatch.setattr(masking.string, "ascii_lowercase", "a")
    talk = [
        {"role": "user", "content": " ".join(f"fn_a{n}" for n in range(1, 90))},
        *row().model_dump()["messages"][1:],
    ]
    other = masking.renamed(
        row().model_copy(update={"messages": Row.model_validate({**row().model_dump(), "messages": talk}).messages}),
        random.Random(0),
    )
    assert {tool.function.name for tool in other.tools or ()} <= {f"fn_a{n}" for n in range(90, 100)}


@pytest.mark.parametrize("tool", sorted(NAMES))
def test_an_absent_tool_takes_what_could_stand_in_for_it_along(tool: str):
    other = masking.without_tool(row(tool=tool), random.Random(0))
    left = {t.function.name for t in other.tools or ()}
    assert left
    assert tool not in left
    assert tool == "run_command" or "run_command" not in left
    assert [t.role for t in other.messages] == ["user", "assistant"]
    assert other.messages[1].content in masking.REFUSALS
    assert not any(t.calls for t in other.messages)
    assert other.project == ""


def test_what_was_said_before_the_question_stays():
    talk = (*direct(0).messages, *row().messages)
    other = masking.without_tool(row().model_copy(update={"messages": talk}), random.Random(0))
    assert [t.role for t in other.messages] == ["user", "assistant", "user", "assistant"]


def test_own_tools_are_masked_as_well():
    weather = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": {}}}
    record = row(tool="get_weather", city="Rome").model_dump() | {"tools": [weather]}
    other = masking.renamed(Row.model_validate(record), random.Random(0))
    assert [tool.function.name for tool in other.tools or ()] == [other.messages[1].calls[0].name] != ["get_weather"]
    assert masking.without_tool(Row.model_validate(record), random.Random(0)).offered() == ()


def test_the_share_is_of_the_tool_rows_and_follows_the_seed():
    rows = [direct(n) if n % 4 == 0 else row(n) for n in range(400)]
    masks = masking.masked(rows, 0.5, seed=3)
    changed = [new for old, new in zip(rows, masks, strict=True) if new != old]
    assert len(changed) == 150
    assert not any(new.id.startswith("d") for new in changed)
    assert 20 <= sum(new.family == "absent" for new in changed) <= 55
    assert masks == masking.masked(rows, 0.5, seed=3)
    assert masks != masking.masked(rows, 0.5, seed=4)
    assert masking.masked(rows, 0.0, seed=3) == tuple(rows)


def test_masks_reach_the_tokens(tmp_path):
    """The system text of a renamed row declares the new names, and the call is supervised under one of them."""
    data = Data(mask_share=1.0)
    base = tiny.write_gguf(tmp_path / "tiny.gguf")
    renderer = examples.renderer_for(base, template=_weights.shipped_template())
    chosen = examples.choose([row(n) for n in range(12)], data, seed=0)
    for made in (m for m in chosen if m.family != "absent"):
        name = made.messages[1].calls[0].name
        text = renderer.tokenizer.decode(list(examples.example(made, renderer).tokens), skip_special_tokens=False)
        assert f"\n{name}(pattern, glob?): Search file contents" in text
        assert f'{{"name": "{name}", "arguments"' in text
        assert "\nsearch(" not in text


def test_a_recipe_without_masks_keeps_the_hash_it_had_before_there_were_any():
    assert Recipe().hash == "3d9f3070b650ce581307971003f70c32ee0a0d958e06997d9bd7e008c931fa89"
    assert Recipe(data=Data(mask_share=0.1)).hash != Recipe().hash
