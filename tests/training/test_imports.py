"""Public tool-calling sets in the three common formats, in the words of their own authors."""

import copy
import io
import json
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.backends import tiny

from punie import wire
from punie.backends import _weights
from punie.errors import PunieError, UsageError
from punie_training import cli, examples
from punie_training.check import Settings, check
from punie_training.rows import Row, declarations, read
from punie_training.sources.imports import Format, Summary, Wanted, convert

RATE = {
    "name": "get_exchange_rate",
    "description": "Get the exchange rate between two currencies",
    "parameters": {
        "type": "object",
        "properties": {"base": {"type": "string"}, "target": {"type": "string"}},
        "required": ["base", "target"],
    },
}
ARGUMENTS = {"base": "USD", "target": "EUR"}
ASKED, RESULT, ANSWER = "What is a dollar in euros?", '{"rate": 0.92}', "One dollar is 0.92 euros."
DECLARED = {"type": "function", "function": RATE}


def glaive(call: str = f'<functioncall> {{"name": "get_exchange_rate", "arguments": \'{json.dumps(ARGUMENTS)}\'}}'):
    return {
        "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
        + json.dumps(RATE, indent=4),
        "chat": f"USER: {ASKED}\n\n\nASSISTANT: {call} <|endoftext|>\n\n\nFUNCTION RESPONSE: {RESULT}\n\n\n"
        f"ASSISTANT: {ANSWER} <|endoftext|>\n\n\n",
    }


def sharegpt(call: str | None = None) -> dict:
    call = json.dumps({"name": RATE["name"], "arguments": ARGUMENTS}) if call is None else call
    turns = [("human", ASKED), ("function_call", call), ("observation", RESULT), ("gpt", ANSWER)]
    return {"conversations": [{"from": who, "value": text} for who, text in turns], "tools": json.dumps([RATE])}


def openai(*ids: str) -> dict:
    calls = [
        {"id": i, "type": "function", "function": {"name": RATE["name"], "arguments": json.dumps(ARGUMENTS)}}
        for i in ids or ("call_1",)
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": RESULT} for call in calls]
    return {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": None, "tool_calls": calls},
            *results,
            {"role": "assistant", "content": ANSWER},
        ],
        "tools": [DECLARED],
    }


TALK = [
    {"role": "user", "content": ASKED, "calls": []},
    {"role": "assistant", "content": "", "calls": [{"name": "get_exchange_rate", "arguments": ARGUMENTS}]},
    {"role": "tool", "content": RESULT, "calls": []},
    {"role": "assistant", "content": ANSWER, "calls": []},
]


@pytest.fixture
def brought(tmp_path: Path):
    """Import records; gives the rows and the summary."""

    def run(*records: dict, wanted: Wanted | None = None) -> tuple[list[dict], Summary]:
        source, target = tmp_path / "public-set.jsonl", tmp_path / "out" / "rows.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        summary = convert(source, target, wanted)
        return [json.loads(line) for line in target.read_text().splitlines()], summary

    return run


FORMATS: dict[Format, dict] = {"glaive": glaive(), "sharegpt": sharegpt(), "openai": openai()}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("told", [True, False])
def test_each_format_gives_the_same_row(name: Format, told: bool, brought):
    rows, summary = brought(FORMATS[name], wanted=Wanted(name if told else "auto"))
    assert rows[0]["messages"] == TALK
    assert rows[0]["tools"] == [DECLARED]
    assert (rows[0]["project"], rows[0]["question"]) == ("public-set", ASKED)
    assert (summary.format, summary.kept, summary.tool_rows, summary.own_tools) == (name, 1, 1, 1)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_imported_passes_the_check_and_is_rendered_with_its_own_tools(name: Format, brought, tmp_path: Path):
    brought(FORMATS[name], wanted=Wanted(licence="Apache-2.0"))
    base = tiny.write_gguf(tmp_path / "tiny.gguf")
    report = check(tmp_path / "out" / "rows.jsonl", Settings(base=base, max_tokens=9000))
    assert {f.rule for f in report.findings} == {"few-rows", "mix"}
    (row,) = read(tmp_path / "out" / "rows.jsonl")
    renderer = examples.renderer_for(base, template=_weights.shipped_template())
    text = renderer.text([m.plain() for m in row.messages], row.offered(), prompt=False)
    assert "get_exchange_rate(base, target): Get the exchange rate" in text
    assert "read_file" not in text
    assert f'{{"name": "get_exchange_rate", "arguments": {json.dumps(ARGUMENTS)}}}' in text


def test_the_first_version_of_glaive_keeps_all_in_one_text(brought):
    whole = glaive()
    rows, _ = brought({"sample": whole["system"] + "\n" + whole["chat"]})
    assert rows[0]["messages"] == TALK


def test_a_conversation_without_functions_is_a_direct_row(brought):
    talk = "USER: What is a closure?\n\n\nASSISTANT: A function with its variables. <|endoftext|>\n\n\n"
    rows, summary = brought(
        {"system": "SYSTEM: You are a helpful assistant, with no access to functions.\n", "chat": talk}
    )
    assert (rows[0]["family"], rows[0]["project"]) == ("direct", "")
    assert "tools" not in rows[0]
    assert summary.tool_rows == 0


def test_calls_and_results_in_chatml_tags(brought):
    body = json.dumps({"name": RATE["name"], "arguments": ARGUMENTS})
    turns = [
        ("system", f"You may call functions. <tools>{json.dumps(DECLARED)}</tools>"),
        ("human", ASKED),
        ("gpt", f"<tool_call>\n{body}\n</tool_call>"),
        ("tool", f"<tool_response>\n{RESULT}\n</tool_response>"),
        ("gpt", ANSWER),
    ]
    rows, _ = brought({"conversations": [{"from": who, "value": text} for who, text in turns]})
    assert rows[0]["messages"] == TALK
    assert rows[0]["tools"] == [DECLARED]


def test_results_are_put_in_the_order_of_their_calls(brought):
    record = openai("a", "b")
    first, second = record["messages"][3:5]
    first["content"], second["content"] = "of a", "of b"
    record["messages"][3:5] = [second, first]
    rows, _ = brought(record)
    assert [m["content"] for m in rows[0]["messages"] if m["role"] == "tool"] == ["of a", "of b"]


def test_the_older_function_call_of_openai(brought):
    record = openai()
    record["messages"][2] = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": RATE["name"], "arguments": json.dumps(ARGUMENTS)},
    }
    record["messages"][3] = {"role": "function", "name": RATE["name"], "content": RESULT}
    record["functions"] = [record.pop("tools")[0]["function"]]
    rows, _ = brought(record)
    assert rows[0]["messages"] == TALK
    assert rows[0]["tools"] == [DECLARED]


def test_punies_own_tools_are_not_repeated(brought):
    record = openai()
    record["messages"][2]["tool_calls"][0]["function"] = {"name": "run_command", "arguments": '{"command": "pytest"}'}
    record["tools"] = list(declarations())
    rows, summary = brought(record)
    assert "tools" not in rows[0]
    assert summary.own_tools == 0


def test_a_system_text_is_kept_only_when_asked_for(brought):
    assert brought(openai())[0][0]["messages"][0]["role"] == "user"
    kept = brought(openai(), wanted=Wanted(keep_system=True))[0][0]
    assert kept["messages"][0] == {"role": "system", "content": "You are a helpful assistant.", "calls": []}


def broken(**changes) -> dict:
    record = openai()
    for place, value in changes.items():
        number = int(place[1:])
        if value is None:
            del record["messages"][number]
        else:
            record["messages"][number] |= value
    return record


def calling(name: str, arguments: str) -> dict:
    return {"tool_calls": [{"id": "call_1", "function": {"name": name, "arguments": arguments}}]}


REJECTED = [
    ("a call cannot be read", broken(m2=calling("get_exchange_rate", "{base:: USD"))),
    ("a call of a tool that is not declared", broken(m2=calling("get_rate", "{}"))),
    ("arguments that do not fit the declaration", broken(m2=calling("get_exchange_rate", '{"base": "USD"}'))),
    ("a placeholder in place of a result or answer", broken(m3={"content": "[Tool execution completed]"})),
    ("a call without a result", broken(m3=None)),
    ("a result without a call", broken(m3={"tool_call_id": "call_9"})),
    ("no final answer", broken(m4=None)),
    ("no question", broken(m1=None)),
    ("a content that is not text", broken(m1={"content": [{"type": "image_url", "image_url": {"url": "x"}}]})),
    ("a turn from 'narrator'", broken(m1={"role": "narrator"})),
    ("a key or token", broken(m4={"content": "Use AKIA" + "Q7X2MZ4KD6PLT3NV."})),
    ("a call cannot be read", glaive("<functioncall> get_exchange_rate of USD")),
    ("a call cannot be read", sharegpt("get_exchange_rate of USD")),
    ("the declarations are no JSON", {**sharegpt(), "tools": "[{"}),
    ("the same conversation again", openai()),
]


@pytest.mark.parametrize(("reason", "record"), REJECTED, ids=[f"{n}-{r}" for n, (r, _) in enumerate(REJECTED)])
def test_what_cannot_be_used_is_counted_by_reason(reason: str, record: dict, brought):
    rows, summary = brought(openai(), record)
    assert len(rows) == 1
    assert summary.rejected == {reason: 1}
    assert f"      1 rejected: {reason}" in summary.render()


def test_the_card_says_what_was_taken(brought, tmp_path: Path):
    brought(openai(), openai(), REJECTED[0][1], wanted=Wanted(licence="CC-BY-4.0"))
    card = json.loads((tmp_path / "out" / "rows.card.json").read_text())
    assert (card["read"], card["rows"]) == (3, 1)
    assert card["rejected"] == {"the same conversation again": 1, "a call cannot be read": 1}
    assert card["licences"]["public-set"] == "CC-BY-4.0"


def test_a_limit_stops_early(brought):
    records = [broken(m1={"content": f"question {n}"}) for n in range(9)]
    assert brought(*records, wanted=Wanted(limit=2))[1].read == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "x"}\n', "set.jsonl:1: neither `conversations`, nor `messages`"),
        (json.dumps(openai()) + '\n{"messages": [\n', "set.jsonl:2: not valid JSON"),
        ("", "holds no row"),
        (json.dumps(REJECTED[0][1]) + "\n", "No row of"),
    ],
)
def test_a_set_that_cannot_be_used_leaves_what_was_there(text: str, said: str, tmp_path: Path):
    source, target = tmp_path / "set.jsonl", tmp_path / "rows.jsonl"
    source.write_text(text)
    target.write_text("what was there\n")
    with pytest.raises(UsageError) as caught:
        convert(source, target)
    assert said in str(caught.value)
    assert target.read_text() == "what was there\n"
    assert not target.with_suffix(".part").exists()


def test_a_set_is_not_written_over_itself(tmp_path: Path):
    source = tmp_path / "set.jsonl"
    source.write_text(json.dumps(openai()) + "\n")
    with pytest.raises(UsageError, match="the set itself"):
        convert(source, source)
    assert json.loads(source.read_text()) == openai()


def test_a_place_that_cannot_be_written(tmp_path: Path):
    source = tmp_path / "set.jsonl"
    source.write_text(json.dumps(openai()) + "\n")
    with pytest.raises(PunieError, match="cannot be written"):
        convert(source, source / "rows.jsonl")


ODD = (
    *(None, True, 0, -1.5, "", "\ud800", [], {}, [[]], [None], {"name": []}, {"a": {"b": 1}}, "<functioncall> {"),
    *("<tool_call>", '```json\n{"name": 1}', {"properties": 5}, {"properties": [1], "required": [[]]}, {"type": [[]]}),
)


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def spoilt(value: dict, rng: random.Random) -> dict:
    """The value with something odd in one or two places."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 2)):
        *path, last = rng.choice(list(places(value)) or [("x",)])
        inner: Any = value
        for key in path:
            inner = inner[key]
        inner[last] = copy.deepcopy(rng.choice(ODD))
    return value


@pytest.mark.parametrize("seed", range(6))
def test_spoilt_records_end_in_a_finding_or_a_reason(seed: int, tmp_path: Path):
    rng = random.Random(seed)
    base = tiny.write_gguf(tmp_path / "tiny.gguf")
    sound = [*FORMATS.values(), {"id": "a", "family": "f", "project": "p", "messages": TALK, "tools": [DECLARED]}]
    source = tmp_path / "set.jsonl"
    source.write_text("".join(json.dumps(spoilt(rng.choice(sound), rng)) + "\n" for _ in range(60)))
    assert check(source, Settings(base=base, max_tokens=9000)).findings
    for wanted in ("glaive", "sharegpt", "openai"):
        with suppress(UsageError):
            summary = convert(source, tmp_path / "rows.jsonl", Wanted(wanted))
            assert summary.kept + summary.rejected.total() == summary.read == 60
            assert not check(tmp_path / "rows.jsonl", Settings(base=base, max_tokens=9000)).errors


def test_a_large_array_is_streamed(tmp_path: Path):
    source, target = tmp_path / "set.json", tmp_path / "rows.jsonl"
    padding = "x" * 20_000
    records = [broken(m3={"content": f"{n} {padding}"}) for n in range(80)]
    source.write_text(json.dumps(records, indent=1))
    del records
    convert(source, tmp_path / "warm.jsonl", Wanted(limit=1))
    tracemalloc.start()
    summary = convert(source, target, stream=io.StringIO())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.kept == 80
    assert peak < source.stat().st_size / 3


def test_rows_without_tools_of_their_own_are_rendered_as_before(tmp_path: Path):
    """With the nine declarations of the agent, as they are when the model is served."""
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    row = Row.model_validate({"id": "1", "family": "direct", "messages": talk})
    base = tiny.write_gguf(tmp_path / "tiny.gguf")
    renderer = examples.renderer_for(base, template=_weights.shipped_template())
    plain = [wire.Message("user", "Hi"), wire.Message("assistant", "Hello.")]
    assert examples.example(row, renderer) == renderer.example(plain, declarations())
    assert len(declarations()) == 9


def test_the_command(tmp_path: Path, capsys):
    source, target = tmp_path / "set.jsonl", tmp_path / "rows.jsonl"
    source.write_text(json.dumps(sharegpt()) + "\n")
    assert cli.main(["data", "import", str(source), "--out", str(target), "--licence", "MIT"]) == 0
    assert "set.jsonl (sharegpt): 1 of 1 rows kept, 1 with tools" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "import", str(source), "--out", str(target), "--format", "alpaca"])
    assert caught.value.code == 2
