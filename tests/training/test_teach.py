"""A teacher is a real server on the loopback address that speaks Chat Completions and knows the tasks."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.models import override_allow_model_requests
from tests.ui.scripted_server import Call, Reply, events

from punie.errors import ConfigError, ModelError, PermissionNeeded, UsageError
from punie.wire import RESULT, Message, expand
from punie_training import check, corpora, data_command
from punie_training.cli import main
from punie_training.generate import Studio
from punie_training.rows import read
from punie_training.rules import OF_ONE_ROW, Subject
from punie_training.sources import cost
from punie_training.sources.copied import abbreviated
from punie_training.sources.cost import Tokens
from punie_training.sources.course import Asked, Course, Plan, prepare
from punie_training.sources.teach import Summary, teach
from punie_training.tasks import Turn

QUICK = ("subclasses", "definition", "references", "signature", "read", "two_hop", "empty", "followup")
Talk = Sequence[Mapping[str, Any]]


@dataclass
class Teacher:
    """Follows the plan of each question, and copies what the tools gave as services do: as a list with bullets."""

    url: str = ""
    plans: dict[str, Turn] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    """Questions that it answers without having looked at everything."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    status: Callable[[dict[str, Any]], int] = lambda request: 200
    reply: Callable[[dict[str, Any]], Reply | None] = lambda request: None
    """Said in place of the plan, unless it is None."""
    pause_s: float = 0.0

    @property
    def spec(self) -> str:
        return f"openai:some-teacher@{self.url}/v1"

    @property
    def questions(self) -> list[str]:
        """The last question of each request."""
        return [_question(request["messages"])[0] for request in self.requests]

    def knows(self, asked: Sequence[Asked]) -> None:
        self.plans.update({turn.question: turn for each in asked for turn in each.task.turns})

    def says(self, request: dict[str, Any]) -> Reply:
        said = self.reply(request)
        return self._planned(request["messages"]) if said is None else said

    def _planned(self, talk: Talk) -> Reply:
        question, since = _question(talk)
        turn = self.plans[question]
        results = [m["content"] for m in talk if m["role"] == "tool"]
        done = sum(m["role"] == "tool" for m in since)
        if done < len(turn.steps):
            return [Call(turn.steps[done].tool, turn.steps[done].arguments)]
        if question in self.wrong:
            return ["It is in src/shop/basket.py."]
        return [_listed(turn.answer, results[-1] if results else "")]


def _question(talk: Talk) -> tuple[str, Talk]:
    last = max(at for at, m in enumerate(talk) if m["role"] == "user")
    return talk[last]["content"], talk[last + 1 :]


def _listed(answer: str, result: str) -> str:
    if RESULT not in answer:
        return answer
    head, lines = answer.split(RESULT)[0], result.splitlines()[1:]
    if lines and re.match(r"\d+\t", lines[0]):  # code, which is shown without its numbers
        code = [line.partition("\t")[2] for line in lines]
        return "\n".join([f"{head}```python", *code, "```"])
    return head + "\n" + "\n".join(f"- `{line.strip()}`" for line in lines if line.strip())


@contextmanager
def _serving(teacher: Teacher) -> Iterator[Teacher]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.path.endswith("/chat/completions"):
                return self.send_error(404)
            teacher.requests.append(request)
            time.sleep(teacher.pause_s)
            status = teacher.status(request)
            said = [json.dumps(event) for event in events(teacher.says(request))] if status == 200 else []
            body = "".join(f"data: {line}\n\n" for line in (*said, "[DONE]")).encode()
            if status != 200:
                body = json.dumps({"error": {"message": "no, thank you"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream" if status == 200 else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return None

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
            del format, args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    teacher.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    with override_allow_model_requests(True):
        yield teacher
    http.shutdown()
    http.server_close()


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with _serving(Teacher()) as serving:
        yield serving


@pytest.fixture
def opened(project: Path) -> list[Studio]:
    """One project under several names, so that none of them has more than its share."""
    return [Studio(p.name, project) for p in corpora.manifest() if p.split == "train"][:16]


@pytest.fixture
def cache(tmp_path: Path, project: Path) -> Path:
    """A cache whose train projects are all the small one."""
    for each in corpora.manifest():
        if each.split == "train":
            shutil.copytree(project, tmp_path / "cache" / "corpora" / each.directory)
    return tmp_path / "cache"


async def _course(teacher: Teacher, opened: Sequence[Studio], tmp_path: Path, **given: Any) -> Course:
    settings = {"families": QUICK, "limit": 12, "out": tmp_path / "rows" / "taught.jsonl", **given}
    plan = Plan(spec=teacher.spec, cache_dir=tmp_path, **settings)
    course = await prepare(plan, env={}, opened=opened)
    teacher.knows(course.asked)
    return course


async def _taught(course: Course) -> Summary:
    return await teach(course, say=lambda text: None)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _contents(root: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


# --- what is kept ----------------------------------------------------------------------------------------------------


async def test_a_teacher_who_follows_the_plans_gives_the_oracles_own_rows(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    everything = (*QUICK, "count", "search", "list_files", "outline", "recovery", "edit", "write")
    course = await _course(teacher, opened, tmp_path, families=everything, limit=30)
    before = _contents(opened[0].root)
    summary = await _taught(course)
    own = {json.loads(asked.own.line())["id"]: json.loads(asked.own.line()) for asked in course.asked}
    rows = _records(course.out)
    assert len(course.asked) == 30
    assert summary.reasons == {}
    assert {row["id"] for row in rows} <= own.keys()
    assert len(rows) + sum(json.loads(course.out.with_suffix(".card.json").read_text())["dropped"].values()) == 30
    for row in rows:
        assert row == {**own[row["id"]], "source": "teacher:some-teacher"}
    assert _contents(opened[0].root) == before
    assert {row.family for row in read(course.out)} >= {"edit", "write", "followup", "recovery"}


async def test_what_the_oracle_does_not_confirm_is_counted_and_left_out(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    course = await _course(teacher, opened, tmp_path, families=("subclasses", "read"), limit=10)
    teacher.wrong = {course.asked[0].task.turns[-1].question, course.asked[3].task.turns[-1].question}
    missed = {asked.task.id for asked in course.asked if asked.task.turns[-1].question in teacher.wrong}
    summary = await _taught(course)
    assert (summary.tasks, summary.rows) == (10, 10 - len(missed))
    assert missed.isdisjoint(row["id"] for row in _records(course.out))
    card = json.loads(course.out.with_suffix(".card.json").read_text())
    assert sum(card["rejected"].values()) == len(missed)
    assert sum(y["run"] for y in card["yields"].values()) == 10
    assert card["teacher"]["model"] == "some-teacher"
    assert card["teacher"]["input_tokens"] == 100 * len(teacher.requests)
    assert card["teacher"]["rejected_attempts"] == {"answer differs: precision 0.0 recall 0.0": len(missed)}
    page = course.out.with_suffix(".card.md").read_text()
    assert "some-teacher: 8 rows from 10 tasks" in page
    assert teacher.url not in page + course.out.read_text()
    assert check.card_of(course.out) == course.out.with_suffix(".card.json")
    assert [rule for row in _records(course.out) for rule, find in OF_ONE_ROW.items() if any(find(Subject(row)))] == []


async def test_a_guess_without_a_call_is_no_row(teacher: Teacher, opened: list[Studio], tmp_path: Path) -> None:
    course = await _course(teacher, opened, tmp_path, families=("empty",), limit=3)
    teacher.reply = lambda request: ["There is none, no."]
    assert (await _taught(course)).reasons == {"no tool was called": 3}
    assert not course.out.exists()


async def test_calls_side_by_side_are_put_one_after_the_other(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    course = await _course(teacher, opened, tmp_path, families=("subclasses",), limit=1)
    turn = course.asked[0].task.turns[0]

    def both(request: dict[str, Any]) -> Reply | None:
        first = not any(m["role"] == "tool" for m in request["messages"])
        planned = [Call(step.tool, step.arguments) for step in turn.steps]
        return ["Let me look.", Call("list_files", {"glob": "README.md"}), *planned] if first else None

    teacher.reply = both
    assert (await _taught(course)).rows == 1
    messages = _records(course.out)[0]["messages"]
    assert [m["role"] for m in messages] == ["user", *["assistant", "tool"] * 2, "assistant"]
    assert [[c["name"] for c in m["calls"]] for m in messages if m["role"] == "assistant"] == [
        ["list_files"],
        ["find_subclasses"],
        [],
    ]
    assert messages[1]["content"] == ""
    assert messages[2]["content"].endswith("README.md")
    assert messages[-1]["content"].endswith(f":\n{RESULT}")


async def test_of_several_attempts_the_shortest_right_one_stays(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    course = await _course(teacher, opened, tmp_path, families=("empty",), limit=2, attempts=3)
    words = {0: "No, there is nothing of that name anywhere in here.", 1: "No, none.", 2: "Yes: src/shop/basket.py:3."}

    def varied(request: dict[str, Any]) -> Reply | None:
        return [words[request["seed"]]] if any(m["role"] == "tool" for m in request["messages"]) else None

    teacher.reply = varied
    await _taught(course)
    assert [row["messages"][-1]["content"] for row in _records(course.out)] == ["No, none."] * 2
    assert {request["temperature"] for request in teacher.requests} == {0.7}
    assert (
        sum(json.loads(course.out.with_suffix(".card.json").read_text())["teacher"]["rejected_attempts"].values()) == 2
    )


async def test_a_teacher_may_run_what_the_task_names_and_nothing_else(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    course = await _course(teacher, opened, tmp_path, families=("command", "edit", "read"), limit=4)
    written = tmp_path / "written"

    def dangerous(request: dict[str, Any]) -> Reply | None:
        return (
            [Call("run_command", {"command": f"touch {written}"})]
            if request["messages"][-1]["role"] == "user"
            else ["Done."]
        )

    teacher.reply = dangerous
    summary = await _taught(course)
    assert not written.exists()
    assert set(summary.reasons) == {"a tool refused the call", "ended by denied"}
    teacher.reply = lambda request: None
    course.store.unlink()
    assert (await _taught(course)).reasons == {}
    assert "command" in {row["family"] for row in _records(course.out)}


# --- going on --------------------------------------------------------------------------------------------------------


async def test_a_refused_key_ends_the_run_and_what_was_said_is_kept(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    course = await _course(teacher, opened, tmp_path, families=("subclasses", "read"), limit=6)
    teacher.status = lambda request: 200 if len(teacher.requests) <= 6 else 401
    told: list[str] = []
    with pytest.raises(ModelError, match="wants a key"):
        await teach(course, say=told.append)
    assert len(_records(course.out)) == len(_records(course.store)) == 3
    assert told[-1] == "3 attempts are left: the same command goes on with them."
    before = set(teacher.questions[:6])
    teacher.status, teacher.requests = lambda request: 200, []
    assert (await _taught(course)).rows == 6
    assert before.isdisjoint(teacher.questions)


async def test_a_server_that_is_down_ends_the_run(teacher: Teacher, opened: list[Studio], tmp_path: Path) -> None:
    course = await _course(teacher, opened, tmp_path, limit=2)
    teacher.status = lambda request: 403
    with pytest.raises(ModelError, match="status 403"):
        await _taught(course)
    assert not course.store.exists()


async def test_one_conversation_that_the_server_refuses_is_a_lost_task_two_in_a_row_are_an_error(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    course = await _course(teacher, opened, tmp_path, families=("subclasses",), limit=4)
    disliked = {course.asked[1].task.turns[-1].question}
    teacher.status = lambda request: 400 if teacher.questions[-1] in disliked else 200
    assert (await _taught(course)).reasons == {"the server refused it: status 400": 1}
    course.store.unlink()
    disliked.update(teacher.questions)
    with pytest.raises(ModelError, match="status 400"):
        await _taught(course)
    assert not course.store.exists()


async def test_more_tasks_or_attempts_are_added_to_what_was_asked(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    small = await _course(teacher, opened, tmp_path, limit=6)
    await _taught(small)
    large = await _course(teacher, opened, tmp_path, limit=12)
    again = {asked.plan for asked in small.asked} & {asked.plan for asked in large.asked}
    assert len(again) >= 5
    assert len(large.open()) == 12 - len(again)


async def test_other_settings_and_other_models_share_nothing(
    teacher: Teacher, opened: list[Studio], tmp_path: Path
) -> None:
    course = await _course(teacher, opened, tmp_path, limit=3)
    await _taught(course)
    assert course.open() == []
    assert len((await _course(teacher, opened, tmp_path, limit=3, temperature=0.5)).open()) == 3


def test_killed_and_torn_it_goes_on_with_at_most_one_conversation_lost(
    teacher: Teacher, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "taught.jsonl"
    command = [sys.executable, "-m", "punie", "train", "--cache-dir", str(cache), "data", "teach"]
    command += ["--model", teacher.spec, "--out", str(out), "--limit", "8", "--families", "subclasses,read,two_hop"]
    plan = Plan(spec=teacher.spec, cache_dir=cache, limit=8, families=("subclasses", "read", "two_hop"), out=out)
    teacher.knows(asyncio.run(prepare(plan, env={})).asked)
    store = out.with_suffix(".attempts.jsonl")
    teacher.pause_s = 0.1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (store.exists() and store.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    finished = _records(store)
    assert 3 <= len(finished) < 8
    with store.open("ab") as file:
        file.write(b'{"key": "torn')
    asked_before = len(dict.fromkeys(teacher.questions))
    assert asked_before - len(finished) <= 1
    teacher.requests, teacher.pause_s = [], 0.0
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{8 - len(finished)} to make, {len(finished)} made before" in done.stdout
    assert {asked["row"]["question"] for asked in finished if asked["row"]}.isdisjoint(teacher.questions)
    assert len(_records(out)) == 8
    assert len(dict.fromkeys(teacher.questions)) == 8 - len(finished)


# --- before it starts ------------------------------------------------------------------------------------------------


def test_what_costs_money_is_not_asked_without_a_yes(
    teacher: Teacher, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", teacher.url)
    command = ["--cache-dir", str(cache), "data", "teach", "--model", "claude", "--limit", "4", "--families", "read"]
    with pytest.raises(PermissionNeeded, match=r"Asking claude-sonnet-5-5 costs about \$\d+\.\d\d, and nobody") as no:
        main(command)
    assert no.value.exit_code == 3
    shown = capsys.readouterr().out
    assert "tasks     4, 1 attempt each: 4 to make, 0 made before" in shown
    assert "price     about $" in shown
    assert teacher.requests == []


def test_another_machine_needs_a_yes_too_and_this_one_does_not(teacher: Teacher) -> None:
    @dataclass
    class Named:
        base_url: str
        model_name: str = "some-model"

    far, near, tokens = Named("https://models.example.org/v1"), Named(teacher.url), Tokens(1000, 1000)
    assert cost.needs_consent(tokens, spec="openai:x@...", model=far) == "goes to models.example.org"  # type: ignore[arg-type]
    assert cost.needs_consent(tokens, spec="openai:x@...", model=near) == ""  # type: ignore[arg-type]
    assert cost.shown(cost.price(tokens, spec="openai:x@...", model=near)) == "no price known"  # type: ignore[arg-type]
    assert cost.price(tokens, spec="local", model=near) == Decimal(0)  # type: ignore[arg-type]


async def test_the_estimate_becomes_what_was_measured(teacher: Teacher, opened: list[Studio], tmp_path: Path) -> None:
    course = await _course(teacher, opened, tmp_path, families=("subclasses",), limit=6)
    guess = course.estimate()
    assert guess.read > 6 * 2 * 1000  # each of two requests carries instructions and tools
    teacher.status = lambda request: 200 if len(teacher.requests) <= 6 else 401
    with pytest.raises(ModelError):
        await _taught(course)
    left = course.estimate()
    assert left.read == pytest.approx(100 * 2 * 3, rel=0.1)
    assert left.written == pytest.approx(10 * 2 * 3, rel=0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"families": ("subclass",)}, "There is no family subclass."),
        ({"limit": 0}, "at least 1"),
        ({"attempts": 0}, "at least 1"),
        ({"temperature": 3.0}, "from 0 to 2"),
        ({"temperature": 0.0, "attempts": 2}, "all the same"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(given: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Plan(spec="claude", cache_dir=Path(), **given)


async def test_other_rows_are_never_overwritten(teacher: Teacher, opened: list[Studio], tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"id": "1"}\n')
    with pytest.raises(UsageError, match="no teacher gave"):
        await _course(teacher, opened, tmp_path, out=file)
    assert file.read_text() == '{"id": "1"}\n'


async def test_without_a_key_nothing_is_drawn(opened: list[Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="needs a key"):
        await prepare(Plan(spec="claude", cache_dir=Path()), env={}, opened=opened)


def test_an_answer_at_the_terminal_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main_end, side = os.openpty()
    with os.fdopen(side, "r+b", buffering=0) as terminal:
        reader = open(terminal.fileno(), closefd=False)  # noqa: SIM115 - closed with the terminal
        monkeypatch.setattr(sys, "stdin", reader)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        os.write(main_end, b"y\nn\n")
        data_command._ask_consent("Asking x costs much")
        with pytest.raises(PermissionNeeded, match="Nothing was asked"):
            data_command._ask_consent("Asking x costs much")
        reader.close()
    os.close(main_end)
    assert "Asking x costs much. Go on? [y/N]" in capsys.readouterr().out


# --- the marker ------------------------------------------------------------------------------------------------------

PLACES = "2 classes inherit from P\nsrc/b.py:11 class Priced(P)\nsrc/b.py:15-20 class Named(P)"
CODE = "a.py lines 1-3 of 9\n1\tdef f():\n2\t\n3\t    return 1"


@pytest.mark.parametrize(
    ("result", "answer", "short"),
    [
        (PLACES, "Two:\n\n- `src/b.py:11` class Priced\n- **Named** at src/b.py:15\n\nThat is all.", None),
        (PLACES, "Two:\n```\nsrc/b.py:11 class Priced(P)\nsrc/b.py:15-20 class Named(P)\n```", "Two:\n[[result]]"),
        (CODE, "Here:\n```python\ndef f():\n\n    return 1\n```", "Here:\n[[result]]"),
        (CODE, "Here:\n1: def f():\n3: return 1", "Here:\n[[result]]"),
        (PLACES, "Two:\n\n    src/b.py:11 class Priced(P)\n    src/b.py:15-20 class Named(P)", "Two:\n[[result]]"),
    ],
)
def test_a_whole_copy_becomes_the_marker(result: str, answer: str, short: str | None) -> None:
    earlier = [Message("user", "?"), Message("tool", result)]
    wanted = short or "Two:\n[[result]]\n\nThat is all."
    assert abbreviated(answer, earlier) == wanted
    assert all(line.strip() in expand(wanted, earlier) for line in result.splitlines()[1:])


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        (PLACES, "One: src/b.py:11"),
        (PLACES, "src/b.py:15 Named\nsrc/b.py:11 Priced"),
        (PLACES, "src/b.py:11 Priced, which is abstract\nsrc/b.py:15 Named"),
        (PLACES, "src/b.py:11 Priced\nand then\nsrc/b.py:15 Named"),
        (PLACES, "src/b.py:12 Priced\nsrc/b.py:15 Named"),
        (CODE, "```\ndef f():\n    return 1\n\nf()\n```"),
        (CODE, "def f():\n    return 2"),
        ("No such file: a.py.", "No such file: a.py."),
        ("", "Nothing."),
    ],
)
def test_what_says_something_else_stays_as_it_is(result: str, answer: str) -> None:
    assert abbreviated(answer, [Message("user", "?"), Message("tool", result)]) == answer
