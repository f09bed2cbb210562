"""Conversations on the disk: every message, and every tool call before it runs and after.

A process may be killed at any moment. What was acknowledged is there when the session is opened again, and a call of
which nobody knows how it ended says so.
"""

import json
import os
import re
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal, cast

from pydantic import ValidationError
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_core import PydanticSerializationError

from punie.agent._database import Database, Row
from punie.agent.undo import Undo, Undone
from punie.errors import SessionError, UsageError
from punie.redaction import Redactor

UNKNOWN_EFFECT = "interrupted; effect unknown - check"
NOT_STARTED = "interrupted before it started; it did not run"
_TITLE = 80
_SHORTEST_ID = 4
_CHANGED = (
    "SELECT s.id, max(s.created, coalesce(max(m.written), 0)) AS changed"
    " FROM sessions s LEFT JOIN messages m ON m.session = s.id"
)
"""Every session, also one without messages, and when it changed last."""

Outcome = Literal["ok", "error", "interrupted"]


@dataclass(frozen=True)
class SessionInfo:
    """What a list of sessions shows. Times are seconds since the epoch."""

    id: str
    workspace: Path
    created: float
    changed: float
    model: str
    title: str
    messages: int


class SessionStore:
    """The sessions below one directory, of all workspaces. Several processes may use it at once.

    Raises SessionError where it cannot be written. `notices` says what had to be mended. `environment` is where the
    search for git begins.
    """

    def __init__(self, directory: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self._database = Database(directory)
        self._environment = os.environ if environment is None else environment
        self._redact = Redactor(self._environment)
        self.notices = self._database.notices

    def __enter__(self) -> "SessionStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; sessions of this store can be used no more."""
        self._database.close()

    def create(self, workspace: Path, *, id: str = "") -> "Session":  # noqa: A002 - the field's name
        """A new session; nothing is stored before its first turn."""
        return self._session(id or uuid.uuid4().hex, workspace=workspace.resolve())

    def _session(self, id: str, *, workspace: Path) -> "Session":  # noqa: A002 - the field's name
        return Session(self._database, id, workspace=workspace, environment=self._environment)

    def resume(self, workspace: Path, id: str = "") -> "Session":  # noqa: A002 - the field's name
        """Go on with a session of this workspace, by the beginning of its id, or with the last one.

        UsageError if there is none; SessionError if another process has it open.
        """
        found = self._of(workspace, id)
        session = self._session(found.id, workspace=found.workspace)
        session.take()
        if not self._database.rows("SELECT 1 FROM sessions WHERE id = ?", found.id):
            session.close()
            raise UsageError(
                f"Session {found.id[:8]} has just been deleted.", "`punie sessions list` shows the others."
            )
        session.messages = self._messages(found.id)
        return session

    def fork(self, workspace: Path, id: str = "") -> "Session":  # noqa: A002 - the field's name
        """A new session that begins with everything said in another one of this workspace."""
        source = self._of(workspace, id)
        messages = self._messages(source.id)
        session = self._session(uuid.uuid4().hex, workspace=source.workspace)
        session.begin(model=source.model, title=source.title, parent=source.id)
        session.sync(messages)
        return session

    def list(self, workspace: Path | None = None) -> "Sequence[SessionInfo]":
        """The sessions of a workspace, or of all, the one that changed last first."""
        rows = self._database.rows(
            "SELECT s.id, s.workspace, s.created, max(m.written), s.model, s.title, count(DISTINCT m.position)"
            " FROM sessions s JOIN messages m ON m.session = s.id GROUP BY s.id ORDER BY max(m.id) DESC"
        )
        found = (SessionInfo(r[0], Path(os.fsdecode(r[1])), *r[2:]) for r in cast("Sequence[tuple]", rows))
        wanted = workspace.resolve() if workspace else None
        return [info for info in found if wanted is None or info.workspace == wanted]

    def find(self, id: str) -> SessionInfo:  # noqa: A002 - the field's name
        """The one session whose id begins like this. UsageError if there is none, or several."""
        found = [info for info in self.list() if len(id) >= _SHORTEST_ID and info.id.startswith(id.lower())]
        if len(found) == 1:
            return found[0]
        which = f"{len(found)} sessions begin" if found else "no session begins"
        least = "" if len(id) >= _SHORTEST_ID else f"; give at least {_SHORTEST_ID} characters"
        raise UsageError(f"{which[0].upper()}{which[1:]} with '{id}'{least}.", "`punie sessions list` shows them.")

    def _of(self, workspace: Path, id: str) -> SessionInfo:  # noqa: A002 - the field's name
        if not id:
            found = self.list(workspace)
            if not found:
                raise UsageError(f"There is no session of {workspace} yet.", "`punie` without --continue starts one.")
            return found[0]
        info = self.find(id)
        if info.workspace != workspace.resolve():
            raise UsageError(f"Session {info.id[:8]} is one of {info.workspace}.", "Go on with it there: --cwd DIR.")
        return info

    def messages(self, id: str) -> Sequence[ModelMessage]:  # noqa: A002 - the field's name
        """The conversation of a session, valid also if it was interrupted."""
        return self._messages(self.find(id).id)

    def _messages(self, id: str) -> Sequence[ModelMessage]:  # noqa: A002 - the field's name
        """What is stored of a conversation; a secret that was not known as one when it was stored stays out of it."""
        stored = load(self._database, id)
        found = [restore(redacted(dump(message), self._redact))[0] for message in stored]
        return closed(found, _outcomes(self._database, id))

    def remove(self, id: str) -> SessionInfo:  # noqa: A002 - the field's name
        """Delete a session and what undoing it needs. SessionError if a process has it open."""
        found = self.find(id)
        with self._database.writing() as write:
            _refuse_used(write, found.id)
            _delete(write, found.id)
        Undo.forget_unused(self._database)
        self._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")  # what was deleted is in the log until then
        return found

    def prune(self, *, keep_days: int, keep: int) -> int:
        """Delete the sessions that nothing was added to for so many days, and the oldest beyond so many; 0 sets no end.

        One that a process has open stays. Returns how many were deleted. What they took is used again.
        """
        gone = 0
        for id_, changed in self._outdated(keep_days=keep_days, keep=keep):
            with self._database.writing() as write:
                # It may have been taken up, or added to, since it was found.
                now = write.execute(f"{_CHANGED} WHERE s.id = ? GROUP BY s.id", (id_,)).fetchone()
                if _user(write, id_) or now != (id_, changed):
                    continue
                _delete(write, id_)
            gone += 1
        if gone:
            Undo.forget_unused(self._database)
            self._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def _outdated(self, *, keep_days: int, keep: int) -> "Sequence[tuple[str, float]]":
        rows = self._database.rows(f"{_CHANGED} GROUP BY s.id ORDER BY changed DESC")
        since = time.time() - keep_days * 86_400 if keep_days else 0.0
        found = cast("Sequence[tuple[str, float]]", rows)
        return [row for place, row in enumerate(found) if row[1] < since or (keep and place >= keep)]

    def compact(self) -> None:
        """Give the room of what was deleted back to the disk. SessionError while other processes write."""
        self._database.rows("VACUUM")
        self._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def rename(self, id: str, title: str) -> None:  # noqa: A002 - the field's name
        """Give a session another title."""
        with self._database.writing() as write:
            values = (self._redact(title)[:_TITLE], self.find(id).id)
            write.execute("UPDATE sessions SET title = ? WHERE id = ?", values)

    def export(self, id: str) -> Iterator[str]:  # noqa: A002 - the field's name
        """A session as JSON lines: what it is, its messages, then its tool calls with what came of them."""
        info = self.find(id)
        head = {"version": 1, "id": info.id, "workspace": str(info.workspace), "created": info.created}
        yield _line("session", {**head, "model": info.model, "title": info.title})
        for message in load(self._database, info.id):
            yield _line("message", {"message": json.loads(redacted(dump(message), self._redact))[0]})
        calls = self._database.rows(
            "SELECT c.turn, c.call, c.tool, c.arguments, c.started, r.outcome, r.output, r.ended"
            " FROM calls c LEFT JOIN results r ON r.id = c.id WHERE c.session = ? ORDER BY c.id",
            info.id,
        )
        names = ("turn", "call", "tool", "arguments", "started", "outcome", "output", "ended")
        for row in calls:
            called = dict(zip(names, row, strict=True))
            arguments = self._redact.of(json.loads(str(called["arguments"])))
            output = self._redact.of(called["output"])
            yield _line("call", {**called, "arguments": json.dumps(arguments), "output": output})

    def import_lines(self, lines: Iterable[str], *, workspace: Path) -> "tuple[Session, int]":
        """A new session of this workspace with the messages of an export, and how many lines could not be read.

        UsageError if the first line is none of a session.
        """
        numbered = iter(lines)
        head = _read_line(next(numbered, ""))
        if head is None or head.get("type") != "session" or head.get("version") != 1:
            raise UsageError("This is no exported session.", "`punie sessions export ID` writes one.")
        messages: list[ModelMessage] = []
        bad = 0
        for line in numbered:
            found = _read_line(line)
            try:
                if found is not None and found.get("type") == "message":
                    messages += restore(json.dumps([found["message"]]))
                bad += found is None
            except (KeyError, ValidationError):
                bad += 1
        session = self.create(workspace)
        session.begin(model=str(head.get("model", "")), title=str(head.get("title", "")))
        session.sync(closed(messages, {}))
        return session, bad


class Session:
    """One conversation that this process may add to. Made by a SessionStore.

    `messages` is the conversation as it is stored; `run_turn` adds to it. `journal` keeps what its turns change, byte
    for byte. Everything else is stored without secrets: `redact` takes them out.
    """

    def __init__(self, database: Database, id: str, *, workspace: Path, environment: Mapping[str, str]) -> None:  # noqa: A002 - the field's name
        self.id = id
        self.workspace = workspace
        self.messages: Sequence[ModelMessage] = ()
        self._database = database
        self._token = uuid.uuid4().hex
        self._stored = [str(row[1]) for row in _stored(database, id)]
        self._turn = 0
        self.redact = Redactor(environment)
        self.journal = Undo(database, id, workspace, environment)

    def close(self) -> None:
        """Let another process go on with it."""
        with suppress(SessionError, OSError), self._database.writing() as write:  # a stale lock is taken over
            self.journal.forget_keys(write, [self.id])
            write.execute("DELETE FROM locks WHERE session = ? AND token = ?", (self.id, self._token))

    def take(self) -> None:
        """Become the one process that writes. SessionError if another one does."""
        with self._database.writing() as write:
            self._take(write)

    def begin(self, *, model: str, title: str, parent: str | None = None) -> None:
        """Begin a turn. SessionError when nothing can be stored, or another process writes to the session."""
        text = re.sub(r"\s+", " ", self.redact(title).encode("utf-8", "replace").decode()).strip()
        row = (self.id, os.fsencode(self.workspace), time.time(), self.redact(model), text[:_TITLE], parent)
        with self._database.writing() as write:
            write.execute("INSERT OR IGNORE INTO sessions VALUES (?, ?, ?, ?, ?, ?)", row)
            self._take(write)
            last = write.execute("SELECT max(number) FROM turns WHERE session = ?", (self.id,)).fetchone()[0]
            self._turn = (last or 0) + 1
            values = (self.id, self._turn)
            write.execute("INSERT INTO turns (session, number, state) VALUES (?, ?, 'done')", values)
        self.journal.turn = self._turn

    def sync(self, messages: Sequence[ModelMessage], *, settled: int = 0) -> None:
        """Store what is new in the conversation. The first `settled` messages are known not to have changed."""
        with self._database.writing() as write:
            self._own(write)
            dumped = self._sync(write, messages, settled=settled)
        self._stored, self.messages = dumped, tuple(messages)

    def intend(self, messages: Sequence[ModelMessage], *, call: str, tool: str, arguments: Mapping[str, object]) -> int:
        """Store that a call is about to run, with the conversation up to it; the number is for `finish`."""
        text = json.dumps(self.redact.of(dict(arguments)), default=str)
        with self._database.writing() as write:
            self._own(write)
            dumped = self._sync(write, messages, settled=len(self._stored) - 2)
            cursor = write.execute(
                "INSERT INTO calls (session, turn, call, tool, arguments, started) VALUES (?, ?, ?, ?, ?, ?)",
                (self.id, self._turn, call, tool, text, time.time()),
            )
        self._stored, self.messages = dumped, tuple(messages)
        return cursor.lastrowid or 0

    def finish(self, number: int, *, outcome: Outcome, output: str) -> None:
        """Store how a call ended."""
        with self._database.writing() as write:
            values = (number, outcome, _escaped(self.redact(output)), time.time())
            write.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", values)

    def undo(self) -> Undone | None:
        """Take back what the last turn did to files; None if there is nothing to take back. Works turn by turn."""
        return self.journal.undo()

    def redo(self) -> Undone | None:
        """Do again what was taken back last; None if there is nothing, or if a later turn changed something."""
        return self.journal.redo()

    def creating(self, directories: Sequence[bytes]) -> None:
        """The journal's part of `Workspace`: directories that will be made."""
        self.journal.creating(directories)

    def changing(self, relative: str, *, before: bytes | None, after: bytes, mode: int | None) -> None:
        """The journal's part of `Workspace`: a file that will be replaced."""
        self.journal.changing(relative, before=before, after=after, mode=mode)

    def _sync(self, write: sqlite3.Connection, messages: Sequence[ModelMessage], *, settled: int) -> list[str]:
        """Add a row for every message that is not stored as it is; what was dropped is taken back."""
        settled = max(0, min(settled, len(messages)))
        dumped = [*self._stored[:settled], *self._dumped(messages[settled:], at=settled)]
        before = [*self._stored, *[None] * len(dumped)]
        changed = [(place, text) for place, text in enumerate(dumped) if before[place] != text]
        gone = [(place, None) for place in range(len(dumped), len(self._stored))]
        now = time.time()
        write.executemany(
            "INSERT INTO messages (session, position, written, json) VALUES (?, ?, ?, ?)",
            [(self.id, place, now, text) for place, text in [*changed, *gone]],
        )
        return dumped

    def _dumped(self, messages: Sequence[ModelMessage], *, at: int) -> Iterator[str]:
        """The messages from this place on as they are stored; what is stored already is known to hold no secrets."""
        for message, known in zip_longest(messages, self._stored[at : at + len(messages)]):
            text = dump(message)
            yield text if text == known else redacted(text, self.redact)

    def _take(self, write: sqlite3.Connection) -> None:
        _refuse_used(write, self.id, own=self._token)
        self._tidy(write)
        values = (self.id, self._token, os.getpid(), started(os.getpid()))
        write.execute("INSERT OR REPLACE INTO locks VALUES (?, ?, ?, ?)", values)

    def _tidy(self, write: sqlite3.Connection) -> None:
        """See to what was left by processes that were killed here: whoever ends in order lets go of his sessions."""
        rows = write.execute(
            "SELECT l.session, l.token FROM locks l JOIN sessions s ON s.id = l.session WHERE s.workspace = ?",
            (os.fsencode(self.workspace),),
        ).fetchall()
        killed = [id_ for id_, token in rows if token != self._token and not _user(write, id_)]
        if killed:
            self.journal.sweep(write, killed)
            self.journal.forget_keys(write, [id_ for id_ in killed if id_ != self.id])
            write.executemany("DELETE FROM locks WHERE session = ?", [(id_,) for id_ in killed])

    def _own(self, write: sqlite3.Connection) -> None:
        row = write.execute("SELECT token, pid FROM locks WHERE session = ?", (self.id,)).fetchone()
        if row is None or row[0] != self._token:
            who = f"process {row[1]}" if row else "nobody"
            raise SessionError(
                f"Session {self.id[:8]} is written by {who} now, no longer by this one.", "--fork makes a copy of it."
            )


def _refuse_used(write: sqlite3.Connection, id: str, *, own: str = "") -> None:  # noqa: A002 - the field's name
    pid = _user(write, id, own=own)
    if pid:
        raise SessionError(
            f"Session {id[:8]} is in use by process {pid}.", "End that one, or go on with a copy: --fork."
        )


def _user(write: sqlite3.Connection, id: str, *, own: str = "") -> int:  # noqa: A002 - the field's name
    """The process that has a session open; 0 if there is none, or it is the owner of this token."""
    row = write.execute("SELECT token, pid, started FROM locks WHERE session = ?", (id,)).fetchone()
    return row[1] if row is not None and row[0] != own and row[2] and started(row[1]) == row[2] else 0


def _delete(write: sqlite3.Connection, id: str) -> None:  # noqa: A002 - the field's name
    write.execute("DELETE FROM results WHERE id IN (SELECT id FROM calls WHERE session = ?)", (id,))
    for table in ("messages", "calls", "turns", "changes", "uncovered", "locks"):
        write.execute(f"DELETE FROM {table} WHERE session = ?", (id,))  # noqa: S608 - own names
    write.execute("DELETE FROM sessions WHERE id = ?", (id,))


_ps = threading.Lock()


def started(pid: int) -> str:
    """When a process was started, in the system's own words; empty if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "" if Path("/proc/self/stat").exists() else _started_by_ps(pid)
    return "" if fields[0] in {b"Z", b"X"} else fields[19].decode()


def _started_by_ps(pid: int) -> str:
    with _ps:
        done = subprocess.run(["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, check=False)
    return done.stdout.decode("ascii", "replace").strip()


def dump(message: ModelMessage) -> str:
    """One message as a JSON list; half characters are kept as `\\udcXX`."""
    try:
        return ModelMessagesTypeAdapter.dump_json([message]).decode()
    except PydanticSerializationError:
        return json.dumps(ModelMessagesTypeAdapter.dump_python([message], mode="json"))


def restore(text: str) -> list[ModelMessage]:
    """The messages of a JSON list. ValidationError if they are none."""
    try:
        return ModelMessagesTypeAdapter.validate_json(text)
    except ValidationError:
        return ModelMessagesTypeAdapter.validate_python(json.loads(text))


def redacted(text: str, redact: Redactor) -> str:
    """One message as `dump` gives it, without secrets."""
    value = json.loads(text)
    safe = redact.of(value)
    return text if safe == value else dump(restore(json.dumps(safe))[0])


def _stored(database: Database, id: str) -> list[Row]:  # noqa: A002 - the field's name
    """The rows that count: the last one of each place, without those that were taken back."""
    rows = database.rows(
        "SELECT position, json FROM messages WHERE id IN"
        " (SELECT max(id) FROM messages WHERE session = ? GROUP BY position) AND json IS NOT NULL ORDER BY position",
        id,
    )
    # After a damage places may be missing; what follows a gap cannot be told to belong there.
    return [row for place, row in enumerate(rows) if row[0] == place]


def load(database: Database, id: str) -> list[ModelMessage]:  # noqa: A002 - the field's name
    """The messages of a session as they were stored."""
    return [message for row in _stored(database, id) for message in restore(str(row[1]))]


def _outcomes(database: Database, id: str) -> Mapping[str, "tuple[str, str] | None"]:  # noqa: A002 - the field's name
    """What is known of each call that was about to run: outcome and output, or None."""
    rows = database.rows(
        "SELECT c.call, r.outcome, r.output FROM calls c LEFT JOIN results r ON r.id = c.id"
        " WHERE c.session = ? ORDER BY c.id",
        id,
    )
    return {str(call): None if outcome is None else (str(outcome), str(output)) for call, outcome, output in rows}


def closed(
    messages: Sequence[ModelMessage], outcomes: Mapping[str, "tuple[str, str] | None"]
) -> tuple[ModelMessage, ...]:
    """The conversation with a result for every call: what its tool gave, or that nobody knows."""
    answered = {
        part.tool_call_id
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    }
    results = [
        _result(part, outcomes)
        for message in messages
        if isinstance(message, ModelResponse)
        for part in message.tool_calls
        if part.tool_call_id not in answered
    ]
    if not results:
        return tuple(messages)
    if isinstance(last := messages[-1], ModelRequest):
        return (*messages[:-1], replace(last, parts=[*last.parts, *results]))
    return (*messages, ModelRequest(parts=results))


def _result(call: ToolCallPart, outcomes: Mapping[str, "tuple[str, str] | None"]) -> ToolReturnPart:
    id_, name = call.tool_call_id, call.tool_name
    if id_ not in outcomes:
        return ToolReturnPart(name, NOT_STARTED, id_, outcome="interrupted")
    known = outcomes[id_]
    if known is None or known[0] == "interrupted":
        return ToolReturnPart(name, UNKNOWN_EFFECT, id_, outcome="interrupted")
    return ToolReturnPart(name, known[1], id_, outcome="success" if known[0] == "ok" else "failed")


def _escaped(text: str) -> str:
    """SQLite stores no half characters."""
    return text.encode("utf-8", "backslashreplace").decode()


def _line(kind: str, fields: Mapping[str, object]) -> str:
    return json.dumps({"type": kind, **fields})


def _read_line(line: str) -> "dict[str, object] | None":
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
