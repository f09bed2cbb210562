"""Taking back what a turn did to files, and doing it again.

File tools tell what they are about to change; around commands the whole directory is compared. Nothing is written over
that is not as the turn left it: the user's newer work stays, and is named.
"""

import hashlib
import os
import secrets
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from punie.agent._database import Database, private_directory
from punie.agent._effects import Place, is_secret
from punie.agent._snapshots import NeverCovered, NotCovered, ShadowGit, Snapshot
from punie.config import home_of
from punie.tools._paths import held
from punie.tools._states import ABSENT, Conflict, State, content_at, oid_of, put, sweep

_WRITTEN_S = 3_600
"""Seconds after which a file that was being written belongs to a process that was killed."""
COMMANDS_NOTE = "Commands ran: what they did to ignored files, to .git and outside the directory is not taken back."


@dataclass(frozen=True)
class Undone:
    """What was taken back, or done again. Paths are from the root of the workspace."""

    direction: Literal["undo", "redo"]
    turn: int
    paths: tuple[str, ...]
    conflicts: tuple[tuple[str, str], ...]
    """Paths that were left as they are, and why."""
    notes: tuple[str, ...]
    """What is not covered."""


@dataclass(frozen=True)
class _Change:
    path: bytes
    before: State
    after: State


@dataclass
class Undo:
    """The journal of one session."""

    database: Database
    session: str
    root: Path
    environment: Mapping[str, str]
    """Where git is looked for."""
    turn: int = 0
    _off: str = field(default="", init=False)

    def __post_init__(self) -> None:
        place = self.database.directory / "shadow" / _shadow_name(os.fsencode(self.root))
        self.shadow = ShadowGit(place, self.root, self.environment)

    # --- keeping ---

    def creating(self, directories: Sequence[bytes]) -> None:
        """Keep that these directories do not exist yet."""
        self._keep([_Change(path, ABSENT, State(stat.S_IFDIR)) for path in directories])

    def changing(self, relative: str, *, before: bytes | None, after: bytes, mode: int | None) -> None:
        """Keep what stands in a file before it is replaced. SessionError if it cannot be kept."""
        # A content and the row that names it come together: what no row names may be deleted in between.
        with self.database.writing() as write:
            was = ABSENT
            if before is not None and mode is not None:
                was = State(mode, self._store(before))
            self._keep_in(write, [_Change(os.fsencode(relative), was, State(mode or stat.S_IFREG, oid_of(after)))])

    def before_command(self) -> Snapshot | None:
        """What the directory looks like; None, and a note for the user, if that cannot be told."""
        try:
            if self._off:
                raise NeverCovered(self._off)
            return self.shadow.take()
        except NotCovered as error:
            if isinstance(error, NeverCovered):
                self._off = str(error)
            self._note(f"commands of this turn: {error}")
            return None

    def after_command(self, before: Snapshot | None) -> None:
        """Keep what changed since."""
        if before is None:
            return
        try:
            after = self.shadow.take()
        except NotCovered as error:
            self._note(f"commands of this turn: {error}")
            return
        self._keep(_changes(before, after))
        both = before.left_out.keys() | after.left_out.keys()
        for path in sorted(path for path in both if before.left_out.get(path) != after.left_out.get(path)):
            self._note(f"{os.fsdecode(path)}: too large, or not readable")

    def _keep(self, changes: Sequence[_Change]) -> None:
        if changes:
            with self.database.writing() as write:
                self._keep_in(write, changes)

    def _keep_in(self, write: sqlite3.Connection, changes: Sequence[_Change]) -> None:
        # What was taken back before cannot be done again once something else has changed.
        write.execute(
            "UPDATE turns SET state = CASE state WHEN 'undone' THEN 'dropped' ELSE 'done' END"
            " WHERE session = ? AND state IN ('undone', 'undoing', 'redoing') AND number < ?",
            (self.session, self.turn),
        )
        write.executemany(
            "INSERT INTO changes (session, turn, path, before_mode, before_oid, after_mode, after_oid)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (self.session, self.turn, c.path, c.before.mode, c.before.oid, c.after.mode, c.after.oid)
                for c in changes
            ],
        )

    def _note(self, reason: str) -> None:
        with self.database.writing() as write:
            text = reason.encode("utf-8", "backslashreplace").decode()
            write.execute(
                "INSERT INTO uncovered (session, turn, reason) VALUES (?, ?, ?)", (self.session, self.turn, text)
            )

    # --- after a process that was killed ---

    def sweep(self, write: sqlite3.Connection, sessions: Sequence[str]) -> None:
        """Delete what killed processes left beside the files that these sessions of this directory changed.

        What is deleted is known to be kept, as what stood in a file, or to be what was to stand there.
        """
        changes = [
            row
            for session in sessions
            for row in write.execute("SELECT path, before_oid, after_oid FROM changes WHERE session = ?", (session,))
        ]
        known = {oid for _, *oids in changes for oid in oids if oid}
        with suppress(OSError), held(self.root) as tree:
            for directory in {path.rpartition(b"/")[0] for path, *_ in changes}:
                sweep(tree, directory, known)

    def forget_keys(self, write: sqlite3.Connection, sessions: Sequence[str]) -> None:
        """Delete what stood in files that commonly hold keys: that is kept for as long as a session is open."""
        marks = ",".join("?" * len(sessions))
        rows = write.execute(f"SELECT path, before_oid, after_oid FROM changes WHERE session IN ({marks})", sessions)  # noqa: S608 - marks
        secret = {oid for path, *oids in rows if self._holds_keys(path) for oid in oids if oid}
        for oid in secret:
            named = write.execute("SELECT path FROM changes WHERE before_oid = ? OR after_oid = ?", (oid, oid))
            if all(self._holds_keys(path) for (path,) in named):
                _blob(self.database, oid).unlink(missing_ok=True)

    def _holds_keys(self, path: bytes) -> bool:
        place = os.fsdecode(os.path.join(os.fsencode(self.root), path))  # noqa: PTH118 - bytes
        return is_secret(Place(place, place), home_of(self.environment))

    # --- taking back ---

    def undo(self) -> Undone | None:
        """Take back the last turn that changed something; None if there is none.

        One that was broken off in the middle, in either direction, is brought to its end by the next one.
        """
        turn = self._last("done", "max")
        return None if turn is None else self._turned(turn, "undo")

    def redo(self) -> Undone | None:
        """Do again what was taken back last; None if there is nothing, or something else has changed since."""
        turn = self._last("undone", "min")
        return None if turn is None else self._turned(turn, "redo")

    def _last(self, state: str, which: str) -> int | None:
        rows = self.database.rows(
            f"SELECT {which}(number) FROM turns t WHERE session = ? AND state IN (?, 'undoing', 'redoing') AND "  # noqa: S608 - own words
            "(EXISTS (SELECT 1 FROM changes c WHERE c.session = t.session AND c.turn = t.number) OR "
            "EXISTS (SELECT 1 FROM uncovered u WHERE u.session = t.session AND u.turn = t.number) OR "
            "EXISTS (SELECT 1 FROM calls i WHERE i.session = t.session AND i.turn = t.number"
            " AND i.tool = 'run_command' AND i.id NOT IN (SELECT id FROM results)))",
            self.session,
            state,
        )
        return cast("int | None", rows[0][0])

    def _turned(self, turn: int, direction: Literal["undo", "redo"]) -> Undone:
        paths: list[str] = []
        conflicts: list[tuple[str, str]] = []
        changes, broken = _joined(self._changes_of(turn))
        goes_on = self._begin(turn, direction)
        for change in _ordered(changes, direction):
            expected, wanted = (change.after, change.before) if direction == "undo" else (change.before, change.after)
            name = os.fsdecode(change.path)
            if goes_on and not os.path.lexists(os.path.join(os.fsencode(self.root), change.path)):  # noqa: PTH118 - bytes
                if wanted.mode is None:
                    continue
                expected = _half_way(expected, wanted)
            try:
                if self._put(change.path, expected=expected, wanted=wanted) and not _is_directory(expected, wanted):
                    paths.append(name)
                if change.path in broken and direction == "undo":
                    conflicts.append((name, "somebody else changed it between two steps; only the later one is undone"))
            except (Conflict, OSError) as error:
                reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
                if not _is_directory(expected, wanted):  # a directory that holds something stays, without a word
                    conflicts.append((name, reason))
        with self.database.writing() as write:
            self._mark(write, turn, "undone" if direction == "undo" else "done")
        return Undone(direction, turn, tuple(paths), tuple(conflicts), self._notes(turn))

    def _begin(self, turn: int, direction: str) -> bool:
        """Store that this is under way; whether it was already, in this direction or the other."""
        with self.database.writing() as write:
            query = "SELECT state FROM turns WHERE session = ? AND number = ?"
            state = write.execute(query, (self.session, turn)).fetchone()[0]
            self._mark(write, turn, "undoing" if direction == "undo" else "redoing")
        return state in {"undoing", "redoing"}

    def _mark(self, write: sqlite3.Connection, turn: int, state: str) -> None:
        write.execute("UPDATE turns SET state = ? WHERE session = ? AND number = ?", (state, self.session, turn))

    def _put(self, path: bytes, *, expected: State, wanted: State) -> bool:
        """Whether anything had to be done."""
        with held(self.root) as tree:
            now, data = content_at(tree, path)
            if now.matches(wanted):
                return False
            if not now.matches(expected):
                raise Conflict("it is gone" if now.mode is None else "it was changed since, and is left as it is")
            if now.oid:
                self._store(data)
            put(tree, path, expected=now, wanted=wanted, content=lambda: self._content(wanted.oid))
        return True

    def _changes_of(self, turn: int) -> Iterator[_Change]:
        rows = self.database.rows(
            "SELECT path, before_mode, before_oid, after_mode, after_oid FROM changes"
            " WHERE session = ? AND turn = ? ORDER BY id",
            self.session,
            turn,
        )
        for path, before_mode, before_oid, after_mode, after_oid in cast("list[tuple]", rows):
            yield _Change(path, State(before_mode, before_oid), State(after_mode, after_oid))

    def _notes(self, turn: int) -> tuple[str, ...]:
        rows = self.database.rows(
            "SELECT DISTINCT reason FROM uncovered WHERE session = ? AND turn = ?", self.session, turn
        )
        interrupted = self.database.rows(
            "SELECT c.arguments FROM calls c LEFT JOIN results r ON r.id = c.id"
            " WHERE c.session = ? AND c.turn = ? AND c.tool = 'run_command' AND r.id IS NULL",
            self.session,
            turn,
        )
        ran = self.database.rows(
            "SELECT 1 FROM calls WHERE session = ? AND turn = ? AND tool = 'run_command' LIMIT 1", self.session, turn
        )
        notes = [f"not covered: {reason}" for (reason,) in rows]
        notes += [f"not covered: what an interrupted command did: {arguments}" for (arguments,) in interrupted]
        return (*notes, *([COMMANDS_NOTE] if ran else []))

    def originals(self) -> "dict[str, bytes | None]":
        """Every file that the turns changed, and what stood in it before the first of them; None where nothing did.

        Turns that were taken back do not count, nor does what is no longer kept.
        """
        rows = self.database.rows(
            "SELECT c.path, c.before_mode, c.before_oid FROM changes c JOIN turns t"
            " ON t.session = c.session AND t.number = c.turn"
            " WHERE c.session = ? AND t.state = 'done' ORDER BY c.id",
            self.session,
        )
        found: dict[str, bytes | None] = {}
        for path, mode, oid in cast("list[tuple]", rows):
            name = os.fsdecode(path)
            if name in found or (mode is not None and not stat.S_ISREG(mode)):
                continue
            with suppress(Conflict):
                found[name] = self._content(oid) if oid else None
        return found

    # --- contents ---

    def _store(self, data: bytes) -> str:
        """Keep some content under its name, on the disk before this returns."""
        oid = oid_of(data)
        file = _blob(self.database, oid)
        if file.exists():
            return oid
        with self.database.explained():
            private_directory(file.parent)
            part = file.with_name(f".{oid[2:]}-{secrets.token_hex(4)}")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        return oid

    def _content(self, oid: str) -> bytes:
        with suppress(FileNotFoundError):
            return _blob(self.database, oid).read_bytes()
        data = self.shadow.read(oid)
        if data is None:
            raise Conflict("what stood there is no longer kept")
        return data

    @staticmethod
    def forget_unused(database: Database) -> None:
        """Delete the contents that no session needs any more, and the snapshots of directories without a session."""
        with database.writing() as write:
            used = {oid for row in write.execute("SELECT before_oid, after_oid FROM changes") for oid in row}
            for file in (database.directory / "blobs").glob("??/*"):
                if file.parent.name + file.name not in used and not _is_being_written(file):
                    file.unlink(missing_ok=True)
            roots = {_shadow_name(bytes(row[0])) for row in write.execute("SELECT DISTINCT workspace FROM sessions")}
            # A session that begins now finds none, and makes its own.
            unused = [place for place in (database.directory / "shadow").glob("*") if place.name not in roots]
            gone = [place.rename(place.with_name(f".gone-{secrets.token_hex(8)}")) for place in unused]
        for place in gone:
            shutil.rmtree(place, ignore_errors=True)


def _shadow_name(root: bytes) -> str:
    return hashlib.sha256(root).hexdigest()[:32]


def _is_being_written(file: Path) -> bool:
    """Whether a file that has no name yet may be one that a process is writing now."""
    with suppress(FileNotFoundError):
        return file.name.startswith(".") and file.stat().st_mtime > time.time() - _WRITTEN_S
    return False


def _blob(database: Database, oid: str) -> Path:
    return database.directory / "blobs" / oid[:2] / oid[2:]


def _changes(before: Snapshot, after: Snapshot) -> list[_Change]:
    """What differs, directories first."""
    paths = sorted(
        path
        for path in before.entries.keys() | after.entries.keys()
        if path not in before.left_out and path not in after.left_out
        if before.entries.get(path) != after.entries.get(path)
    )
    made = sorted(path for path in after.directories if path not in before.entries and not before.had(path))
    gone = sorted(path for path in before.directories if path not in after.entries and not after.had(path))
    directories = [_Change(path, ABSENT, State(stat.S_IFDIR)) for path in made]
    directories += [_Change(path, State(stat.S_IFDIR), ABSENT) for path in gone]
    return [*directories, *(_Change(path, before.state(path), after.state(path)) for path in paths)]


def _joined(changes: Iterator[_Change]) -> tuple[list[_Change], set[bytes]]:
    """One change for each path, and the paths where somebody else's change lies between two of the turn's."""
    found: dict[bytes, _Change] = {}
    broken: set[bytes] = set()
    for change in changes:
        earlier = found.get(change.path)
        if earlier is None:
            found[change.path] = change
        elif earlier.after.matches(change.before):
            found[change.path] = _Change(change.path, earlier.before, change.after)
        else:
            broken.add(change.path)
            found[change.path] = change
    return [*found.values()], broken


def _ordered(changes: Sequence[_Change], direction: str) -> list[_Change]:
    """First what goes, innermost first; then what comes, outermost first."""
    wanted = {change.path: change.before if direction == "undo" else change.after for change in changes}
    goes = sorted((c for c in changes if wanted[c.path].mode is None), key=lambda c: c.path, reverse=True)
    comes = sorted((c for c in changes if wanted[c.path].mode is not None), key=lambda c: c.path)
    return [*goes, *comes]


def _half_way(expected: State, wanted: State) -> State:
    """What a path may be that is empty after somebody was killed here: a directory cannot be exchanged for a file."""
    kinds = {stat.S_IFMT(state.mode) for state in (expected, wanted) if state.mode is not None}
    return ABSENT if len(kinds) > 1 else expected


def _is_directory(*states: State) -> bool:
    return all(state.mode is None or stat.S_ISDIR(state.mode) for state in states)
