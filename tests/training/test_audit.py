import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from punie.cli import main
from punie.errors import UsageError
from punie_training import audit
from punie_training.audit import AuditRow, Judged, Read, draw, judge, load, page, rate, record, verdicts
from punie_training.families import FAMILIES
from punie_training.generate import Rejected, Row, Studio, subjects, write_rows
from punie_training.measures import Rate
from punie_training.second import questions
from punie_training.second.project import Project
from punie_training.second.questions import Doubt, Turn
from punie_training.second.source import Source

CODE = '''\
from typing import Protocol as P, overload
import os.path

limit: int = 3
(first, last) = limit, 2


class Base(P):
    limit = 1


class Middle(Base, metaclass=type):
    def run(self, *, limit: int = 5) -> "dict[str, int]":
        """A text.

class Fake(Base): in a text
        """
        for limit in range(limit):
            self.limit = limit
        return {f"{limit}": lambda limit: limit}


if limit > 2:
    class Leaf(Middle[int]): pass
'''


@pytest.fixture
def home(tmp_path: Path) -> Project:
    (tmp_path / "code.py").write_text(CODE)
    return Project(str(tmp_path))


@pytest.fixture
async def made(project: Path) -> list[Row]:
    """Rows of every family about the small project, from the real pipeline."""
    studio = Studio("shop", project)
    (subject,) = subjects((studio,), split="train", seed=3)
    found: list[Row] = []
    for kind in FAMILIES:
        tasks = kind.tasks(subject)
        outcomes = [await studio.run(task, changes=kind.changes) for task, _ in zip(tasks, range(4), strict=False)]
        found += [row for row in outcomes if not isinstance(row, Rejected)]
    return found


def judged(rows: Sequence[Row], root: Path, directory: Path, **read: str) -> list[Judged]:
    write_rows(rows, directory / "rows.jsonl")
    known = {name: Read(id=name, verdict="right", why=why) for name, why in read.items()}
    return list(judge(load(directory / "rows.jsonl"), roots={"shop": root}, read=known))


def test_tokens_know_what_is_defined(home: Project) -> None:
    found = {d.qualname: (d.line, d.end, d.kind) for d in home.definitions}
    assert found == {
        "limit": (4, 4, "constant"),
        "first": (5, 5, "constant"),
        "last": (5, 5, "constant"),
        "Base": (8, 9, "class"),
        "Middle": (12, 20, "class"),
        "Middle.run": (13, 20, "method"),
        "Leaf": (24, 24, "class"),
    }
    assert [d.place for d in home.defined("code.Base")] == ["code.py:8"]


def test_tokens_know_who_inherits_under_which_name(home: Project) -> None:
    assert home.subclasses("Base") == {"code.py:12", "code.py:24"}
    assert home.subclasses("typing.Protocol") == {"code.py:8", "code.py:12", "code.py:24"}
    assert home.subclasses("Leaf") == set()


def test_tokens_tell_uses_from_names_that_are_defined_or_assigned(home: Project) -> None:
    certain, perhaps = home.uses("limit")
    assert sorted(certain) == ["code.py:18", "code.py:19", "code.py:20", "code.py:23", "code.py:5"]
    assert perhaps == {"code.py:20"}
    assert home.uses("Protocol") == ({"code.py:1"}, set())
    assert home.uses("path") == ({"code.py:2"}, set())
    assert home.uses("P")[0] == {"code.py:1", "code.py:8"}


def test_a_name_in_an_annotation_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import x\nvalue: x = x()\nvalue += 1\n")
    assert Source(tmp_path, "a.py").uses("x") == ({1, 2}, set())
    assert Source(tmp_path, "a.py").uses("value") == (set(), {3})


async def test_every_family_is_confirmed_by_the_second_method(made: list[Row], project: Path, tmp_path: Path) -> None:
    found = judged(made, project, tmp_path)
    assert {j.row.family for j in found} == {row.family for row in made}
    assert len({j.row.family for j in found}) >= 15
    assert [(j.row.messages[0].content, j.reason) for j in found if j.automatic != "agrees"] == []


def _spoiled(row: Row, root: Path) -> AuditRow | None:
    """The row with its places, lines and numbers moved; None where that changes no answer."""
    line = json.loads(row.line())
    for message in line["messages"]:
        if message["role"] == "tool":
            moved = re.sub(r"(\.\w+):(?=\d)", r"\1:9", message["content"])
            message["content"] = re.sub(r"^(?=\d+\t)", "9", moved, flags=re.MULTILINE)
        elif message["role"] == "assistant":
            message["content"] = re.sub(r"^(?=\d)|(?<=has )(?=\d)", "9", message["content"])
    before, after = AuditRow.model_validate(json.loads(row.line())), AuditRow.model_validate(line)
    return after if _answers(after, root) != _answers(before, root) else None


def _answers(row: AuditRow, root: Path) -> Sequence[object]:
    return [turn["answer"] for turn in audit.question(row, root)["turns"]]


async def test_a_wrong_place_number_or_line_is_noticed(made: list[Row], project: Path, tmp_path: Path) -> None:
    shown = {"subclasses", "definition", "references", "search", "signature", "outline", "count", "two_hop"}
    spoiled = [other for row in made if row.family in shown and (other := _spoiled(row, project))]
    assert {row.family for row in spoiled} == shown
    found = list(judge(spoiled, roots={"shop": project}, read={}))
    assert [(j.row.family, j.row.messages[0].content) for j in found if j.automatic == "agrees"] == []


@pytest.mark.parametrize(
    ("question", "call", "answer", "why"),
    [
        (
            "Who inherits?",
            ("find_subclasses", {"name": "Base"}),
            "No class inherits from Base.",
            "stands in no question",
        ),
        ("Who inherits from Base?", ("find_subclasses", {"name": "Base"}), "1 class inherits from Base.", "2 "),
        (
            "Does Middle.run take `limit`?",
            ("find_symbol", {"name": "Middle.run"}),
            "The default of limit is 4:\n    code.py:13-20 def",
            "= 5",
        ),
        (
            "Is Middle.run async?",
            ("find_symbol", {"name": "Middle.run"}),
            "Yes, Middle.run is async:\n    code.py:13 def",
            "tokens say",
        ),
        (
            "Show lines 2 to 3 of code.py",
            ("read_file", {"path": "code.py", "start": 1, "end": 3}),
            "Lines:\n    1\tx",
            "ends at 1",
        ),
        (
            "Which functions has code.py?",
            ("search", {"pattern": "^(class|def) ", "glob": "code.py"}),
            "code.py defines:\n    code.py:8",
            "asked for a function only",
        ),
        (
            "Where is grep?",
            ("search", {"pattern": "text"}),
            "2 matches for text:\n    code.py:14\n    code.py:16",
            "no question",
        ),
        ("List the JSON files", ("list_files", {"glob": "*.py"}), "1 file:\n    code.py", "does not ask for"),
        (
            "Where are the Python files?",
            ("list_files", {"glob": "*.py"}),
            "2 files:\n    code.py",
            "says 2 and shows 1",
        ),
        (
            "Change `Protocol` to `X` in code.py",
            ("edit_file", {"path": "code.py", "old": "limit", "new": "X"}),
            "Done, code.py is changed.",
            "stands in no question",
        ),
    ],
)
def test_what_does_not_fit_is_told(
    home: Project, question: str, call: tuple[str, dict[str, object]], answer: str, why: str
) -> None:
    with pytest.raises(Doubt, match=why):
        questions.judge(home, Turn(question, [call], answer))


def test_the_second_method_shares_no_code_with_the_first() -> None:
    listing = "import sys, punie_training.second.questions; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", listing]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.startswith("punie") and ".second" not in name] == ["punie_training"]


def test_every_family_is_drawn_by_its_share() -> None:
    call = {"role": "assistant", "calls": [{"name": "search", "arguments": {}}]}
    rows = [
        AuditRow.model_validate({"id": f"{family}{number}", "family": family, "messages": [call]})
        for family, count in (("a", 60), ("b", 30), ("c", 9))
        for number in range(count)
    ]
    drawn = draw(rows, count=33, seed=1)
    assert Counter(row.family for row in drawn) == {"a": 20, "b": 10, "c": 3}
    assert drawn == draw(rows, count=33, seed=1) != draw(rows, count=33, seed=2)
    assert len(draw(rows, count=1000, seed=1)) == 99


async def test_a_person_has_the_last_word(made: list[Row], project: Path, tmp_path: Path) -> None:
    rows = [row for row in made if row.family in {"subclasses", "search"}]
    found = judged(rows, project, tmp_path)
    wrong = Read(id="x", verdict="wrong", why="it is another class")
    right = Read(id="x", verdict="right", why="the script cannot read this")
    cases = [
        Judged(found[0].row, "agrees", "", None),
        Judged(found[0].row, "agrees", "", wrong),
        Judged(found[0].row, "differs", "", right),
        Judged(found[0].row, "differs", "", None),
        Judged(found[0].row, "unknown", "", None),
    ]
    assert rate(cases) == Rate(3, 5)
    assert record(cases, data=tmp_path, seed=0)["read"] == {"agrees, wrong": 1, "differs, right": 1}
    text = page(cases, data=tmp_path, seed=0)
    assert "wrong answers: 60.0%" in text
    assert "- read: wrong, it is another class" in text
    assert text.index(": differs") < text.index(": unknown") < text.index(": agrees")


def test_what_people_have_read_must_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.toml"
    assert verdicts(path) == {}
    path.write_text('[[row]]\nid = "a"\nverdict = "wrong"\nwhy = "b"\n')
    assert verdicts(path)["a"].verdict == "wrong"
    for broken in ('[[row]]\nid = "a"\nverdict = "maybe"\nwhy = "b"\n', "[[row", '[[row]]\nid = "a"\n'):
        path.write_text(broken)
        with pytest.raises(UsageError, match=r"audit\.toml"):
            verdicts(path)


async def test_the_command_line_writes_page_and_figures(
    made: list[Row], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit.corpora, "workspaces", lambda projects, cache_dir: {"shop": project})
    write_rows(made, tmp_path / "rows.jsonl")
    options = [str(tmp_path / "rows.jsonl"), "--rows", "10", "--seed", "4", "--out", str(tmp_path / "out")]
    assert main(["train", "data", "audit", *options, "--read", str(tmp_path / "audit.toml")]) == 0
    assert "wrong answers: 0.0% (0.0% to 27.8%, n=10)" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (found["seed"], found["automatic"], len(found["rows"])) == (4, {"agrees": 10}, 10)
    other = tmp_path / "other.jsonl"
    other.write_text((tmp_path / "rows.jsonl").read_text().replace('"project": "shop"', '"project": "elsewhere"'))
    assert main(["train", "data", "audit", str(other), "--out", str(tmp_path / "none")]) == 2
    assert "rows about elsewhere" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
