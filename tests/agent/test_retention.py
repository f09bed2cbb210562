"""Old conversations go by themselves; one that is open, and what others need, stays."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic_ai.messages import ModelRequest
from tests.agent.killing import turn

from punie.agent import Session, SessionStore
from punie.errors import UsageError

DAY = 86_400
WRITE = ("write_file", {"path": "a.txt", "content": "new\n"})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions"


@pytest.fixture
def store(state: Path) -> Iterator[SessionStore]:
    with SessionStore(state) as opened:
        yield opened


def stored(store: SessionStore, root: Path, *, days: float) -> Session:
    """A session that was closed, and to which nothing was added for so many days."""
    session = store.create(root)
    session.begin(model="m", title=f"{days} days old")
    session.sync([ModelRequest.user_text_prompt("hello")])
    session.close()
    aged(store, session, days=days)
    return session


def aged(store: SessionStore, session: Session, *, days: float) -> None:
    then = time.time() - days * DAY
    with store._database.writing() as write:
        write.execute("UPDATE sessions SET created = ? WHERE id = ?", (then - DAY, session.id))
        write.execute("UPDATE messages SET written = ? WHERE session = ?", (then, session.id))


def titles(store: SessionStore) -> set[str]:
    return {info.title for info in store.list()}


def test_what_is_older_goes(store: SessionStore, tmp_path: Path):
    for days in (0.5, 89, 91, 400):
        stored(store, tmp_path, days=days)
    assert store.prune(keep_days=90, keep=0) == 2
    assert titles(store) == {"0.5 days old", "89 days old"}


def test_so_many_stay_those_that_changed_last(store: SessionStore, tmp_path: Path):
    for days in (3, 1, 4, 2):
        stored(store, tmp_path / str(days), days=days)
    assert store.prune(keep_days=0, keep=2) == 2
    assert titles(store) == {"1 days old", "2 days old"}


def test_nothing_is_deleted_without_a_limit(store: SessionStore, tmp_path: Path):
    stored(store, tmp_path, days=10_000)
    assert store.prune(keep_days=0, keep=0) == 0
    assert titles(store) == {"10000 days old"}


def test_a_session_that_is_open_here_or_in_another_process_stays(store: SessionStore, tmp_path: Path, state: Path):
    here, there = stored(store, tmp_path, days=300), stored(store, tmp_path, days=200)
    resumed = store.resume(tmp_path, here.id)
    program = (
        "import sys; from pathlib import Path; from punie.agent import SessionStore\n"
        "session = SessionStore(Path(sys.argv[1])).resume(Path(sys.argv[2]), sys.argv[3])\n"
        "print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(state), str(tmp_path), there.id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        assert store.prune(keep_days=90, keep=1) == 0
        other.kill()
    assert store.prune(keep_days=90, keep=1) == 1
    resumed.close()
    assert titles(store) == {"300 days old"}
    assert store.prune(keep_days=90, keep=1) == 1


def test_one_that_is_deleted_while_it_is_taken_up_is_not_there(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session = stored(store, tmp_path, days=300)
    take = Session.take

    def late(self: Session) -> None:
        store.remove(session.id)
        take(self)

    monkeypatch.setattr(Session, "take", late)
    with pytest.raises(UsageError, match="has just been deleted"):
        store.resume(tmp_path, session.id)
    assert store._database.rows("SELECT * FROM locks") == []


def test_contents_and_snapshots_go_with_the_last_session_that_needs_them(
    store: SessionStore, tmp_path: Path, state: Path
):
    roots = [tmp_path / "one", tmp_path / "two"]
    sessions: list[Session] = []
    for root in roots:
        root.mkdir()
        (root / "a.txt").write_text(f"old in {root.name}\n")
        session = store.create(root)
        command = ("run_command", {"command": "echo x > b.txt"})
        asyncio.run(turn(session, root, ("read_file", {"path": "a.txt"}), WRITE, command, "Done."))
        session.close()
        sessions.append(session)
    assert len(list((state / "shadow").iterdir())) == len(list((state / "blobs").glob("??/*"))) == 2
    aged(store, sessions[0], days=100)
    assert store.prune(keep_days=90, keep=0) == 1
    assert [path.name for path in (state / "shadow").iterdir()] == [sessions[1].journal.shadow.directory.name]
    assert [path.read_text() for path in (state / "blobs").glob("??/*")] == ["old in two\n"]
    with closing(store.resume(roots[1])) as session:
        undone = session.undo()
        assert undone is not None
        assert set(undone.paths) == {"a.txt", "b.txt"}
    assert (roots[1] / "a.txt").read_text() == "old in two\n"


def test_the_disk_gets_its_room_back(store: SessionStore, tmp_path: Path, state: Path):
    for _ in range(5):
        session = store.create(tmp_path)
        session.begin(model="m", title="t")
        session.sync([ModelRequest.user_text_prompt("x" * 200_000)])
        session.close()
        aged(store, session, days=100)
    store._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    before = (state / "sessions.db").stat().st_size
    store.prune(keep_days=90, keep=0)
    store.compact()
    assert (state / "sessions.db").stat().st_size < before / 5
