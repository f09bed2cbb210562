"""Conversations on the disk, and what is left of them after kills, damage and full disks."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from tests.agent.conftest import Local, Project
from tests.agent.killing import open_calls, turn
from tests.agent.test_append_only import FIND, assert_only_grown
from tests.stubs import scripted

from punie.agent import Session, SessionStore, TurnEnded, create_agent, run_turn
from punie.agent._database import MIGRATIONS
from punie.agent.approval import approve_all
from punie.agent.session import NOT_STARTED, UNKNOWN_EFFECT
from punie.config import AgentConfig
from punie.errors import SessionError, UsageError
from punie.tools import Workspace

Open = Callable[[], SessionStore]


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state") / "punie" / "sessions"


@pytest.fixture
def store(state: Path) -> Iterator[SessionStore]:
    with SessionStore(state) as opened:
        yield opened


def program(work: str, state: Path, root: Path, number: int) -> dict[str, int]:
    root.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.agent.killing", work, str(state), str(root), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def said(*texts: str) -> list[ModelMessage]:
    return [
        ModelRequest.user_text_prompt(text) if place % 2 == 0 else ModelResponse([TextPart(text)])
        for place, text in enumerate(texts)
    ]


def stored(store: SessionStore, root: Path, *texts: str) -> Session:
    session = store.create(root)
    session.begin(model="m", title=texts[0])
    session.sync(said(*texts))
    return session


def returns(messages: object) -> list[str]:
    assert isinstance(messages, tuple)
    return [str(part.content) for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


# --- what is stored, and for whom ---


async def test_a_turn_is_there_again(project: Project, store: SessionStore, state: Path):
    session = store.create(project.root)
    await turn(session, project.root, ("read_file", {"path": "notes.md"}), "Nothing.")
    session.close()
    with SessionStore(state) as again:
        resumed = again.resume(project.root)
        assert resumed.id == session.id
        assert list(resumed.messages) == list(session.messages)
        assert [info.title for info in again.list(project.root)] == ["Go on."]
        assert again.list(project.root)[0].messages == 4


def test_only_the_user_may_read_it(project: Project, store: SessionStore, state: Path):
    command = ("run_command", {"command": "echo x > notes.md"})
    asyncio.run(turn(store.create(project.root), project.root, command, "Done."))
    for path in (state, *state.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, f"{path} {mode:o}"


def test_sessions_belong_to_their_directory(tmp_path: Path, store: SessionStore):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    session = stored(store, here, "hello", "hi")
    (tmp_path / "link").symlink_to(here)
    session.close()
    assert store.resume(tmp_path / "link").id == session.id
    with pytest.raises(UsageError, match="no session of"):
        store.resume(there)
    with pytest.raises(UsageError, match="is one of"):
        store.resume(there, session.id[:6])


def test_another_workspace_is_refused(tmp_path: Path, store: SessionStore, project: Project):
    config = AgentConfig()
    session = store.create(tmp_path / "elsewhere")
    stream = run_turn(
        create_agent(config, model=scripted("x")),
        "?",
        workspace=Workspace(project.root),
        config=config,
        session=session,
    )
    with pytest.raises(ValueError, match="is one of"):
        asyncio.run(anext(stream))


def test_an_id_is_found_by_its_beginning(tmp_path: Path, store: SessionStore):
    session = stored(store, tmp_path, "hello")
    assert store.find(session.id[:6].upper()).id == session.id
    with pytest.raises(UsageError, match="at least 4"):
        store.find(session.id[:3])
    with pytest.raises(UsageError, match="No session begins with 'zzzz'"):
        store.find("zzzz")


def test_half_characters_survive(tmp_path: Path, store: SessionStore):
    name = os.fsdecode(b"bad\xff.txt")
    messages = [*said(f"read {name}", "It is \ud83d."), ModelResponse([ToolCallPart("read_file", {"path": name})])]
    session = stored(store, tmp_path, "x")
    session.sync(messages)
    number = session.intend(messages, call="c", tool="read_file", arguments={"path": name})
    session.finish(number, outcome="ok", output=name)
    assert list(store.messages(session.id))[:3] == messages
    copy, bad = store.import_lines(list(store.export(session.id)), workspace=tmp_path)
    assert bad == 0
    assert list(store.messages(copy.id))[:3] == messages


def test_a_message_that_changed_counts_in_its_last_form(tmp_path: Path, store: SessionStore, state: Path):
    session = stored(store, tmp_path, "a", "b", "c", "d")
    session.sync([*session.messages[:2], *said("C")])
    assert list(store.messages(session.id)) == list(session.messages)
    assert len(session.messages) == 3
    with closing(sqlite3.connect(state / "sessions.db")) as raw:
        texts = [row[0] for row in raw.execute("SELECT json FROM messages ORDER BY id")]
    assert len(texts) == 6  # four, one in a new form, one taken back: rows are only ever added
    assert texts[-1] is None


def test_a_fork_leaves_the_session_alone(tmp_path: Path, store: SessionStore):
    session = stored(store, tmp_path, "a", "b")
    copy = store.fork(tmp_path, session.id)
    copy.sync([*copy.messages, *said("c")])
    assert len(store.messages(session.id)) == 2
    assert len(store.messages(copy.id)) == 3
    session.sync([*session.messages, *said("d", "e")])  # still the one that writes
    assert len(store.messages(session.id)) == 4


def test_export_and_import(tmp_path: Path, store: SessionStore):
    session = stored(store, tmp_path, "where?", "here")
    lines = list(store.export(session.id))
    assert [json.loads(line)["type"] for line in lines] == ["session", "message", "message"]
    copy, bad = store.import_lines([*lines, '{"type": "mess'], workspace=tmp_path)
    assert bad == 1
    assert list(store.messages(copy.id)) == list(session.messages)
    with pytest.raises(UsageError, match="no exported session"):
        store.import_lines(["hello"], workspace=tmp_path)


def test_a_removed_session_is_gone_from_the_disk(tmp_path: Path, store: SessionStore, state: Path):
    session = stored(store, tmp_path, "a very particular word", "fine")
    with pytest.raises(SessionError, match="in use"), SessionStore(state) as other:
        other.remove(session.id)
    session.close()
    store.remove(session.id)
    store.close()
    assert not any(b"a very particular word" in file.read_bytes() for file in state.rglob("*") if file.is_file())


# --- one writer ---


def test_a_session_has_one_writer(tmp_path: Path, store: SessionStore, state: Path):
    session = stored(store, tmp_path, "a", "b")
    with SessionStore(state) as other:
        with pytest.raises(SessionError, match=f"in use by process {os.getpid()}"):
            other.resume(tmp_path)
        assert len(other.fork(tmp_path, session.id).messages) == 2
        session.close()
        taken = other.resume(tmp_path, session.id)
        with pytest.raises(SessionError, match="no longer by this one"):
            session.sync(said("a", "b", "c"))
        assert len(taken.messages) == 2


def test_eight_processes_on_one_database(tmp_path: Path, state: Path):
    found = program("sharing", state, tmp_path / "root", 8)
    assert found == {"whole": 8, "took": 1, "refused": 7, "taken_over": 1}


# --- kills ---


async def appears(path: Path) -> None:
    there = path.exists
    for _ in range(12_000):
        if there():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} never appeared")


def test_kills_in_the_middle_of_appending_lose_nothing(tmp_path: Path, state: Path):
    found = program("appending", state, tmp_path / "root", 25)
    assert found["lost"] == 0
    assert found["acknowledged"] >= 25


def test_kills_in_the_middle_of_a_write_leave_whole_files_that_can_be_undone(tmp_path: Path, state: Path):
    found = program("writing", state, tmp_path / "root", 15)
    assert (found["torn"], found["broken"]) == (0, 0)
    assert found["undone"] == 15


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.agent.killing import turn
from punie.agent import SessionStore
state, root = map(Path, sys.argv[1:])
command = {"command": "touch started; sleep 60"}
asyncio.run(turn(SessionStore(state).create(root), root, ("read_file", {"path": "notes.md"}), ("run_command", command)))
"""


def test_a_kill_in_the_middle_of_a_tool_says_so_and_the_session_goes_on(project: Project, state: Path):
    here = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(state), str(project.root)], cwd=here)
    asyncio.run(appears(project.root / "started"))
    child.send_signal(signal.SIGKILL)
    child.wait()
    with SessionStore(state) as store:
        session = store.resume(project.root)
        assert not open_calls(session.messages)
        assert returns(session.messages)[-1] == UNKNOWN_EFFECT
        undone = session.undo()
        assert undone is not None
        assert any("interrupted command" in note and "sleep 60" in note for note in undone.notes)
        asyncio.run(turn(session, project.root, "I looked."))
        assert returns(session.messages)[-1] == UNKNOWN_EFFECT
        assert not open_calls(session.messages)


def test_a_call_that_had_not_started_says_so(tmp_path: Path, store: SessionStore):
    calls = [ToolCallPart("read_file", {}, "one"), ToolCallPart("read_file", {}, "two"), ToolCallPart("x", {}, "three")]
    messages = [*said("go"), ModelResponse(calls)]
    session = stored(store, tmp_path, "go")
    session.finish(session.intend(messages, call="one", tool="read_file", arguments={}), outcome="ok", output="text")
    session.intend(messages, call="two", tool="read_file", arguments={})
    session.close()
    resumed = store.resume(tmp_path)
    assert returns(resumed.messages) == ["text", UNKNOWN_EFFECT, NOT_STARTED]


# --- the prompt of a local model ---


async def test_the_prompt_only_grows_after_a_resume(project: Project, local: Local, store: SessionStore, state: Path):
    model, engine = local(FIND, "There:\n[[result]]")
    session = store.create(project.root)
    await _turn_of(model, session, project)
    session.close()
    with SessionStore(state) as again:
        other_model, other = local("Yes.")
        await _turn_of(other_model, again.resume(project.root), project)
    other.requests[:0] = engine.requests
    assert_only_grown(other, requests=3)


async def test_the_prompt_only_grows_after_a_kill_in_a_tool(project: Project, local: Local, state: Path):
    call = FIND.replace("find_symbol", "run_command").replace('"name": "Flask"', '"command": "touch started; sleep 2"')
    model, engine = local(call, "Done.")
    with SessionStore(state) as store:
        running = asyncio.create_task(_turn_of(model, store.create(project.root), project))
        await appears(project.root / "started")
        # The files as they are now are what a process leaves that is killed now.
        shutil.copytree(state, state.with_name("killed"))
        await running
    with SessionStore(state.with_name("killed")) as store:
        with closing(sqlite3.connect(state.with_name("killed") / "sessions.db")) as raw:
            raw.execute("DELETE FROM locks")
            raw.commit()
        session = store.resume(project.root)
        assert returns(session.messages) == [UNKNOWN_EFFECT]
        other_model, other = local("Yes.")
        await _turn_of(other_model, session, project)
    other.requests.insert(0, engine.requests[0])
    assert_only_grown(other, requests=2)


async def test_a_session_changes_nothing_in_the_prompt(project: Project, local: Local, store: SessionStore):
    model, engine = local(FIND, "There.", FIND, "There.")
    await project.turn(model=model)
    await _turn_of(model, store.create(project.root), project, prompt="Where is Flask?")
    assert engine.requests[0]["prompt"] == engine.requests[2]["prompt"]
    assert engine.requests[1]["prompt"] == engine.requests[3]["prompt"]


async def _turn_of(model: object, session: Session, project: Project, *, prompt: str = "Go on.") -> None:
    config = AgentConfig()
    agent = create_agent(config, model=model, approve=approve_all)  # type: ignore[arg-type]
    workspace = Workspace(project.root)
    stream = run_turn(agent, prompt, workspace=workspace, config=config, history=session.messages, session=session)
    async for _ in stream:
        pass


# --- state that cannot be written ---


async def test_no_turn_is_begun_that_cannot_be_stored(project: Project, store: SessionStore, state: Path):
    session = store.create(project.root)
    with closing(sqlite3.connect(state / "sessions.db")) as raw:
        raw.execute("DROP TABLE turns")
    config = AgentConfig()
    model = scripted()  # has nothing to say: it must not be asked
    stream = run_turn(
        create_agent(config, model=model), "?", workspace=Workspace(project.root), config=config, session=session
    )
    events = [event async for event in stream]
    end = events[-1]
    assert isinstance(end, TurnEnded)
    assert (end.stop_reason, end.exit_code) == ("error", 1)
    assert "--no-session" in (end.error or "")


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError, match="cannot be stored in") as caught:
        SessionStore(tmp_path / "file" / "sessions")
    assert "--no-session" in str(caught.value)


FULL = """
import resource, sys
from pathlib import Path
from pydantic_ai.messages import ModelRequest
from punie.agent import SessionStore
from punie.errors import SessionError
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
stored = 0
try:
    session = SessionStore(Path(sys.argv[1])).create(Path(sys.argv[2]))
    messages = []
    for number in range(1000):
        session.begin(model="m", title="full")
        messages.append(ModelRequest.user_text_prompt(f"{number} " + "x" * 2000))
        session.sync(messages)
        stored += 1
except SessionError as error:
    print(stored, str(error).replace("\\n", " "))
"""


def fill(state: Path, root: Path, *, limit: int = 0) -> tuple[int, str]:
    command = [sys.executable, "-c", FULL, str(state), str(root), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    number, _, text = done.stdout.partition(" ")
    assert text, done.stderr
    return int(number), text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], tuple[Path, int]]]:
    """A directory on a disk of so many kB, and the file size limit that stands for it where nothing can be mounted."""
    mounted: list[Path] = []

    def make(size: int) -> tuple[Path, int]:
        place = tmp_path / f"disk{size}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            mounted.append(place)
            return place, 0
        return place, size * 1024

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_of_64_kb_is_refused_in_plain_words(small_disk: Callable[[int], tuple[Path, int]], tmp_path: Path):
    place, limit = small_disk(64)
    stored_turns, text = fill(place / "sessions", tmp_path, limit=limit)
    assert stored_turns < 1000
    assert "cannot be stored in" in text
    assert "--no-session" in text


def test_what_was_stored_before_the_disk_was_full_is_there(
    small_disk: Callable[[int], tuple[Path, int]], tmp_path: Path
):
    place, limit = small_disk(400)
    stored_turns, text = fill(place / "sessions", tmp_path, limit=limit)
    assert stored_turns > 0
    assert "--no-session" in text
    shutil.copytree(place / "sessions", tmp_path / "room")
    with SessionStore(tmp_path / "room") as store:
        session = store.resume(tmp_path)
        assert len(session.messages) == stored_turns
        session.begin(model="m", title="more")
        session.sync([*session.messages, *said("there is room again")])


# --- damage and versions ---


def damaged(state: Path, *, at: int, size: int) -> None:
    with (state / "sessions.db").open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(size))


def test_a_damaged_file_is_kept_and_what_can_be_read_is_saved(tmp_path: Path, state: Path):
    with SessionStore(state) as store:
        for number in range(6):
            stored(store, tmp_path, *[f"{number} {place} " + "x" * 3000 for place in range(12)]).close()
    size = (state / "sessions.db").stat().st_size
    damaged(state, at=size // 2 // 4096 * 4096, size=4096 * 2)
    with SessionStore(state) as store:
        notice = store.notices[0]
        kept = next(state.glob("sessions.db.corrupt-*"))
        assert str(kept) in notice
        readable = sum(info.messages for info in store.list())
        assert f"{readable} of them messages" in notice
        assert 50 < readable < 72
        for info in store.list():
            assert all(message.parts for message in store.messages(info.id))
        stored(store, tmp_path, "on we go")
    with SessionStore(state) as store:
        assert not store.notices


def test_a_file_that_is_no_database_is_put_aside(tmp_path: Path, state: Path):
    with SessionStore(state) as store:
        stored(store, tmp_path, "hello").close()
    damaged(state, at=0, size=8192)
    with SessionStore(state) as store:
        assert "0 rows could still be read" in store.notices[0]
        assert store.list() == []
        stored(store, tmp_path, "a new one")


def test_a_damaged_file_in_use_is_left_alone(tmp_path: Path, state: Path):
    with SessionStore(state) as store:
        stored(store, tmp_path, "hello")
        with closing(sqlite3.connect(state / "sessions.db")) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damaged(state, at=0, size=100)
        with pytest.raises(SessionError, match="is damaged, and another punie is using it"):
            SessionStore(state)


def test_an_older_file_is_migrated_after_a_copy(tmp_path: Path, state: Path):
    state.mkdir(parents=True)
    with closing(sqlite3.connect(state / "sessions.db")) as old:
        for statement in MIGRATIONS[0]:
            old.execute(statement)
        old.execute("PRAGMA user_version = 1")
        old.execute("INSERT INTO sessions VALUES ('feed0000', ?, 1.0, 'm', 'old', NULL)", (os.fsencode(tmp_path),))
        text = '[{"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "hello"}]}]'
        old.execute("INSERT INTO messages (session, position, written, json) VALUES ('feed0000', 0, 1.0, ?)", (text,))
        old.commit()
    with SessionStore(state) as store:
        session = store.resume(tmp_path, "feed")
        assert len(session.messages) == 1
        session.begin(model="m", title="new")
        session.sync([*session.messages, *said("more")])
    for name, version in (("sessions.db", len(MIGRATIONS)), ("sessions.db.v1", 1)):
        with closing(sqlite3.connect(state / name)) as file:
            assert file.execute("PRAGMA user_version").fetchone()[0] == version
            assert file.execute("SELECT count(*) FROM sessions").fetchone()[0] == 1


def test_a_newer_file_is_left_alone(tmp_path: Path, state: Path):
    with SessionStore(state) as store:
        stored(store, tmp_path, "hello")
    with closing(sqlite3.connect(state / "sessions.db")) as raw:
        raw.execute("PRAGMA user_version = 99")
    before = (state / "sessions.db").read_bytes()
    with pytest.raises(SessionError, match="written by a newer punie"):
        SessionStore(state)
    assert (state / "sessions.db").read_bytes() == before


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_a_failed_migration_changes_nothing(state: Path, version: int):
    state.mkdir(parents=True)
    with closing(sqlite3.connect(state / "sessions.db")) as old:
        for statement in (text for part in MIGRATIONS[:version] for text in part):
            old.execute(statement)
        old.execute("CREATE TABLE changes (something_else TEXT)")
        old.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(SessionError, match="already exists"):
        SessionStore(state)
    with closing(sqlite3.connect(state / "sessions.db")) as file:
        assert file.execute("PRAGMA user_version").fetchone()[0] == version
        tables = {row[0] for row in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "turns" not in tables
