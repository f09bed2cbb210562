"""Calls in texts that were cut or damaged anywhere: nothing crashes, and nothing half-read becomes an argument."""

import json
import random
import tomllib
from pathlib import Path

import pytest

from punie import wire
from punie.wire import Dialect, Message, Thoughts

CORPUS = Path(__file__).parent / "agent" / "malformed"
TOOLS = {
    "read_file": ("path", "start", "end"),
    "list_files": ("glob",),
    "search": ("pattern", "glob"),
    "run_command": ("command", "timeout"),
}
WORDS = {"@tool": "run_command", "@Tool": "RunCommand", "@key": "command", "@value": "touch ran"}


VALUES = ("touch ran", "notes.md", "utf-8")


def corpus(*, without: str = "") -> list[str]:
    """The texts of the corpus; `without` leaves out those of one outcome."""
    texts = []
    for file in sorted(CORPUS.glob("*.toml")):
        for row in tomllib.loads(file.read_text("utf-8"))["case"]:
            text = row.get("text", "") if row["outcome"] != without else ""
            for word, meant in WORDS.items():
                text = text.replace(word, meant)
            texts.append(text)
    return [text for text in texts if text.strip()]


def calls(text: str) -> list[tuple[str, bool]]:
    """Arguments of each call, and whether it was mended."""
    found = wire.parse(text, names=TOOLS).calls
    return [(json.dumps(json.loads(call.arguments), sort_keys=True), bool(call.mended)) for call in found]


@pytest.mark.parametrize("text", corpus(without="text"))
def test_no_cut_makes_an_argument_out_of_half_of_one(text: str):
    """A reply that ends anywhere gives calls of the whole reply, or mended ones, never with half a value in them."""
    whole = [arguments for arguments, _ in calls(text)]
    for end in range(len(text)):
        for arguments, mended in calls(text[:end]):
            assert mended or arguments in whole, text[:end]
            assert not any(f'"{value[:size]}"' in arguments for value in VALUES for size in range(1, len(value)))


def test_damage_anywhere_never_crashes():
    chance = random.Random(7)
    for text in corpus():
        for _ in range(15):
            at = chance.randrange(len(text))
            damaged = text[:at] + chance.choice("\"'{}[]<>|\\,:`\n\x00\ud800e") + text[at + chance.randrange(3) :]
            reply = wire.parse(damaged, names=TOOLS)
            assert all(isinstance(json.loads(call.arguments), dict) for call in reply.calls)


RUNS = ["[", '{"a":', "<tool_call>", "`", "<think>", "f(", "\n", " ", "<|im_end|>", "<function=f><parameter=a>", "'"]


@pytest.mark.parametrize("piece", RUNS)
def test_a_model_that_says_one_thing_for_ever_is_read_to_its_end(piece: str):
    """Nothing nests too deeply, and no pattern begins anew at every character: that would take hours."""
    text = piece * (60_000 // len(piece))
    assert wire.parse(text, names=TOOLS).calls == ()
    assert wire.parse(f"<tool_call>{text}", names=TOOLS).calls == ()


@pytest.mark.parametrize(
    ("text", "value", "flaw"),
    [
        ('{"a": 1,}', {"a": 1}, "a trailing comma"),
        ("{'a': 'it\\'s'}", {"a": "it's"}, "single quotes"),
        ("{'a': \"it's\"}", {"a": "it's"}, "single quotes"),
        ('{"a": True, "b": None}', {"a": True, "b": None}, "Python's constants"),
        ("{a: 1}", {"a": 1}, "names without quotes"),
        ('{"a": "x\ny"}', {"a": "x\ny"}, "line breaks in a string"),
        ('{"a": "\\d+\\.py"}', {"a": "\\d+\\.py"}, None),
        ('{"a": """x "y" z"""}', {"a": 'x "y" z'}, "triple quotes"),
        ('{"a": [1, 2', {"a": [1, 2]}, "brackets missing at the end"),
        ('{"a": 1}}', {"a": 1}, "brackets too many"),
        ('{"a": 1 // one\n}', {"a": 1}, None),
        ('"{\\"a\\": 1}"', {"a": 1}, "an object written as a string"),
    ],
)
def test_nearly_json_is_read_and_what_is_wrong_is_named(text: str, value: object, flaw: str | None):
    found = wire.read_object(text)
    assert found
    assert found.value == value
    assert flaw is None or flaw in found.flaws


@pytest.mark.parametrize(
    "text", ['{"a": "x', '{"a": 1 "b": 2}', '{"a"}', "{1: 2}", "", "x", '{"a": b}', '{"a": 1} x', "[1]"]
)
def test_what_cannot_be_known_is_not_guessed(text: str):
    assert wire.read_object(text) is None


def test_a_value_keeps_its_line_breaks_and_spaces_in_xml():
    text = "<tool_call>\n<function=f>\n<parameter=a>\n  x\n\n  y\n\n</parameter>\n</function>\n</tool_call>"
    (call,) = wire.parse(text, names=("f",), dialect="xml").calls
    assert json.loads(call.arguments) == {"a": "  x\n\n  y\n"}
    assert call.mended == ""
    assert call.render("xml") == text


@pytest.mark.parametrize(("own", "other"), [("json", "xml"), ("xml", "json")])
def test_each_dialect_is_a_repair_in_the_other(own: Dialect, other: Dialect):
    call = wire.call("f", {"a": "x", "b": {"c": 1}})
    (found,) = wire.parse(call.render(own), names=("f",), dialect=own).calls
    assert (found.name, found.mended) == ("f", "")
    (found,) = wire.parse(call.render(own), names=("f",), dialect=other).calls
    assert found.mended


def test_a_turn_in_xml_stands_as_qwen_writes_it():
    message = Message("assistant", "I look.", (wire.call("f", {"a": "x"}), wire.call("g", {})))
    assert message.written("xml") == (
        "I look.\n\n<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=g>\n</function>\n</tool_call>"
    )


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>\na < b\n</think>\n\nYes.", "\na < b\n", "Yes."),
        ("Yes <think> no.", "", "Yes <think> no."),
        ("<th", "", "<th"),
        ("<think>only", "only", ""),
        ("<thinking>x</thinking>y", "x", "y"),
        ("[THINK]x[1][/THINK]y", "x[1]", "y"),
    ],
)
def test_thinking_is_parted_from_a_stream(text: str, thought: str, said: str, size: int):
    thoughts = Thoughts()
    pieces = [thoughts.feed(text[start : start + size]) for start in range(0, len(text), size)] + [thoughts.flush()]
    assert ("".join(t for t, _ in pieces), "".join(s for _, s in pieces)) == (thought, said)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Read_File", "read_file"),
        ("readFile", "read_file"),
        ("functions.read_file:0", "read_file"),
        ("default_api.list_files", "list_files"),
        ("read", None),
        ("", None),
    ],
)
def test_names_are_known_whatever_their_case_and_joints(name: str, meant: str | None):
    assert wire.known_name(name, TOOLS) == meant
