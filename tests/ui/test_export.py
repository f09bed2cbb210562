"""Conversations as files: one JSON document, JSON lines, or text; said by a flag or by the name of the file."""

import json
import os
from pathlib import Path

import pytest
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart

from punie.agent.session import SessionStore
from punie.errors import UsageError
from punie.ui import sessions
from punie.ui._kept import open_store
from punie.ui.options import EXPORT_FORMATS, Options

TOKEN = "ghp_a7QJBd0Kh8oOOL8dKLzdocJ2isAjIhKtJ0Rl12"


@pytest.fixture
def session(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stored conversation with a call in it, in the state directory of this test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    call = ToolCallPart("read_file", {"path": "a.py"}, "c1")
    messages = [
        ModelRequest(parts=[UserPromptPart("what is in a.py?")]),
        ModelResponse(parts=[call]),
        ModelRequest(parts=[ToolReturnPart("read_file", "class Greeter", "c1")]),
        ModelResponse(parts=[TextPart(f"A class, and {TOKEN}.")]),
    ]
    with open_store(os.environ) as store:
        made = store.create(project)
        made.begin(model="m", title="what is in a.py?")
        made.finish(
            made.intend(messages[:2], call="c1", tool="read_file", arguments={"path": "a.py"}),
            outcome="ok",
            output="class Greeter",
        )
        made.sync(messages)
        made.close()
    return made.id


def exported(project: Path, session: str, **how: str | None) -> None:
    sessions.run("export", [session], options=Options(cwd=project), **how)  # type: ignore[arg-type]


def test_the_name_of_the_file_says_how_it_is_written(
    project: Path, session: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {}
    for name in ("talk.json", "talk.JSON", "talk.jsonl", "talk.md", "talk"):
        exported(project, session, output=str(tmp_path / name))
        texts[name] = (tmp_path / name).read_text()
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert texts["talk.json"] == texts["talk.JSON"]
    assert texts["talk"] == texts["talk.jsonl"]
    assert texts["talk.md"].startswith("# what is in a.py?")
    for form in EXPORT_FORMATS:
        exported(project, session, form=form)
        ending = {"markdown": "md"}.get(form, form)
        assert capsys.readouterr().out == texts[f"talk.{ending}"]
    assert not any(TOKEN in text for text in texts.values())


def test_a_document_holds_what_the_lines_hold(project: Path, session: str, tmp_path: Path) -> None:
    exported(project, session, output=str(tmp_path / "talk.json"))
    exported(project, session, output=str(tmp_path / "talk.jsonl"))
    document = json.loads((tmp_path / "talk.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert document["messages"] == [line["message"] for line in lines if line["type"] == "message"]
    assert [call["tool"] for call in document["calls"]] == ["read_file"]
    assert {name: document[name] for name in ("version", "id", "title")} == {
        name: lines[0][name] for name in ("version", "id", "title")
    }


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_what_was_exported_can_be_imported(
    project: Path, session: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(project, session, output=str(tmp_path / name))
    sessions.run("import", [str(tmp_path / name)], options=Options(cwd=project))
    told = capsys.readouterr()
    assert told.err == ""
    with open_store(os.environ) as store:
        assert store.messages(told.out.strip()) == store.messages(session)
        assert _calls(store, told.out.strip()) == 1


def _calls(store: SessionStore, id: str) -> int:  # noqa: A002 - the field's name
    return sum(part.part_kind == "tool-call" for message in store.messages(id) for part in message.parts)


@pytest.mark.parametrize("text", ["[]", "{}", '{"messages": []}', '{"messages": 3}', "hello", '{"type": "session"}'])
def test_other_files_are_refused(project: Path, session: str, tmp_path: Path, text: str) -> None:
    del session
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UsageError, match="This is no exported session"):
        sessions.run("import", [str(tmp_path / "other.json")], options=Options(cwd=project))


def test_a_file_that_is_there_stays(project: Path, session: str, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("mine")
    with pytest.raises(UsageError, match="Cannot write"):
        exported(project, session, output=str(tmp_path / "talk.json"))
    assert (tmp_path / "talk.json").read_text() == "mine"
