import pytest
from pydantic_ai.tools import ToolDefinition

from punie.agent._textgate import TextGate
from punie.agent.calls import signature
from punie.wire import parse

NAMES = ("read_file", "search")
CALL = '{"name": "read_file", "arguments": {"path": "a.py"}}'


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", ""),
        (f"I look.\n<tool_call>{CALL}", "I look."),
        (CALL, ""),
        (f"```json\n{CALL}\n```", ""),
        (f"I look:\n```json\n{CALL}\n```", "I look:"),
        ("<function=read_file><parameter=path>a.py</parameter></function>", ""),
        ('```\n{"name": "read_file", "parameters": {"path": "a.py"}}\n```', ""),
    ],
)
def test_calls_in_every_known_dialect_are_read(text: str, prose: str):
    reply = parse(text, names=NAMES)
    assert [(call.name, call.arguments) for call in reply.calls] == [("read_file", '{"path": "a.py"}')]
    assert reply.text == prose


def test_text_that_is_only_a_call_of_an_unknown_tool_is_a_call():
    assert [call.name for call in parse('{"name": "rm", "arguments": {}}', names=NAMES).calls] == ["rm"]


@pytest.mark.parametrize(
    "text", ["Use {x} here.", '{"name": "Ada", "age": 3}', "```json\n[1, 2]\n```", "read_file reads a file", ""]
)
def test_other_text_is_not_a_call(text: str):
    assert parse(text, names=NAMES).calls == ()


@pytest.mark.parametrize("text", ["<tool_call>", '<tool_call>\n{"na', " <function=", "<|tool_call|>x"])
def test_broken_calls_are_known_as_such(text: str):
    assert not parse(text, names=NAMES).calls
    assert parse(text, names=NAMES).broken


def shown(text: str, *, size: int = 3) -> tuple[str, str]:
    """What a gate shows while the text is written, and when it is closed."""
    gate = TextGate(NAMES)
    early = "".join(gate.feed(text[start : start + size]) for start in range(0, len(text), size))
    return early, early + gate.close()


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("call", [f"<tool_call>\n{CALL}\n</tool_call>", f"```json\n{CALL}\n```", CALL])
def test_a_call_is_never_shown(call: str, size: int):
    assert shown(f"I look.\n{call}", size=size)[1].strip() == "I look."


@pytest.mark.parametrize(
    "text",
    [
        "Plain words, a < b and `code`.",
        "Code:\n```python\nx = {}\n```\nDone.",
        "JSON:\n```json\n[1]\n```\nDone.",
        "Set:\n{1, 2}\nDone",
        "<b>bold</b>",
        "ends with <",
        "```\nplain\n```",
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_everything_else_is_shown_in_the_end(text: str, size: int):
    assert shown(text, size=size)[1] == text


def test_prose_and_other_code_are_shown_at_once():
    text = "Code:\n```python\nx = 1\n```\n[1] A note, `a < b` and a [link](x).\nDone."
    assert shown(text)[0] == text


def test_signature_marks_optional_arguments():
    schema = {"properties": {"path": {}, "start": {}}, "required": ["path"]}
    assert signature(ToolDefinition(name="read_file", parameters_json_schema=schema)) == "read_file(path, start?)"
