"""The file that sessions are stored in: opened, checked, migrated, and salvaged when it is damaged.

SQLite in WAL mode with `synchronous=FULL`: what was committed survives kill -9 and power loss.
"""

import fcntl
import os
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from punie.errors import SessionError

BUSY_S = 30.0
"""How long to wait for other processes that write."""
_POLL_S = 0.005
"""SQLite's own waiting gives up to 100 ms to whoever comes by: with many writers some wait for ever."""
_PROBED_ROWS = 100_000
"""Row numbers that are tried one by one around a damaged page."""

Row = tuple[object, ...]

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE sessions (id TEXT PRIMARY KEY, workspace BLOB NOT NULL, created REAL NOT NULL,"
        " model TEXT NOT NULL, title TEXT NOT NULL, parent TEXT)",
        # Only ever added to. A later row for the same place counts instead of an earlier one; NULL takes it back.
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, session TEXT NOT NULL, position INTEGER NOT NULL,"
        " written REAL NOT NULL, json TEXT)",
        "CREATE INDEX messages_of ON messages (session, position, id)",
        "CREATE TABLE calls (id INTEGER PRIMARY KEY, session TEXT NOT NULL, turn INTEGER NOT NULL,"
        " call TEXT NOT NULL, tool TEXT NOT NULL, arguments TEXT NOT NULL, started REAL NOT NULL)",
        "CREATE INDEX calls_of ON calls (session, turn)",
        "CREATE TABLE results (id INTEGER PRIMARY KEY, outcome TEXT NOT NULL, output TEXT NOT NULL,"
        " ended REAL NOT NULL)",
        "CREATE TABLE locks (session TEXT PRIMARY KEY, token TEXT NOT NULL, pid INTEGER NOT NULL,"
        " started TEXT NOT NULL)",
    ),
    (
        "CREATE TABLE turns (id INTEGER PRIMARY KEY, session TEXT NOT NULL, number INTEGER NOT NULL,"
        " state TEXT NOT NULL, UNIQUE (session, number))",
        "CREATE TABLE changes (id INTEGER PRIMARY KEY, session TEXT NOT NULL, turn INTEGER NOT NULL,"
        " path BLOB NOT NULL, before_mode INTEGER, before_oid TEXT NOT NULL, after_mode INTEGER,"
        " after_oid TEXT NOT NULL)",
        "CREATE INDEX changes_of ON changes (session, turn)",
        "CREATE TABLE uncovered (id INTEGER PRIMARY KEY, session TEXT NOT NULL, turn INTEGER NOT NULL,"
        " reason TEXT NOT NULL)",
        "CREATE INDEX uncovered_of ON uncovered (session, turn)",
    ),
)
"""What each version of the file adds to the one before it; `PRAGMA user_version` counts them."""

TABLES = ("sessions", "messages", "calls", "results", "turns", "changes", "uncovered")
"""What is salvaged; locks are not."""


class Database:
    """One connection that threads share. Every failure is a SessionError that says how to go on."""

    def __init__(self, directory: Path) -> None:
        """Open or create `sessions.db`. SessionError if it cannot be written, or is of a newer version."""
        self.directory = directory
        self.notices: tuple[str, ...] = ()
        self._mutex = threading.RLock()
        with self.explained():
            private_directory(directory)
            with _locked(directory / "open.lock"):
                self._use = _descriptor(directory / "use.lock")
                try:
                    fcntl.flock(self._use, fcntl.LOCK_SH)
                    self._connection = self._opened()
                except BaseException:
                    os.close(self._use)
                    raise

    @property
    def file(self) -> Path:
        """Where the sessions are."""
        return self.directory / "sessions.db"

    def close(self) -> None:
        """Close the connection; closing twice does nothing."""
        with self._mutex:
            if self._use >= 0:
                self._connection.close()
                os.close(self._use)
                self._use = -1

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on the disk when this ends, or none of it."""
        with self._mutex, self.explained():
            self._begin()
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back already
                    self._connection.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        """Become the one that writes, with the same chance as everybody else who waits."""
        end = time.monotonic() + BUSY_S
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    self._connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if not _is_busy(error) or time.monotonic() > end:
                        raise
                time.sleep(random.uniform(0, 2 * _POLL_S))
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")

    def rows(self, sql: str, *values: object) -> list[Row]:
        """All rows of a query."""
        with self._mutex, self.explained():
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Failures of the disk, as a SessionError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise SessionError(
                f"The conversation cannot be stored in {self.directory}: {self._reason(error)}.",
                "Make room there or make it writable, or go on with --no-session, which stores nothing.",
            ) from error

    def _reason(self, error: Exception) -> str:
        """What the system has against it. SQLite calls many things that a full disk does a disk I/O error."""
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if isinstance(error, sqlite3.Error) and _is_busy(error):
            return f"other processes have been writing to it for {BUSY_S:.0f} s"
        with suppress(OSError):
            if "I/O" in str(error) and shutil.disk_usage(self.directory).free == 0:
                return "the disk is full"
        return str(error)

    def _opened(self) -> sqlite3.Connection:
        os.close(_descriptor(self.file))
        try:
            connection = _connected(self.file)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            return self._salvaged()
        try:
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise SessionError(
                f"{self.file} was written by a newer punie: it has version {version}, {len(MIGRATIONS)} is known.",
                "Update punie, or go on with --no-session.",
            )
        if 0 < version < len(MIGRATIONS):
            with self._alone("is of an older version"):
                _copy(connection, self.file.with_name(f"sessions.db.v{version}"))
                _upgrade(connection)
        elif version == 0:
            _upgrade(connection)

    def _salvaged(self) -> sqlite3.Connection:
        """A new file with every row that can still be read; the damaged one is kept beside it."""
        with self._alone("is damaged"):
            aside = self.file.with_name(f"sessions.db.corrupt-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    self.file.with_name(self.file.name + suffix).rename(f"{aside}{suffix}")
            os.close(_descriptor(self.file))
            connection = _connected(self.file)
            _upgrade(connection)
            saved = _salvage(aside, connection)
            rows = connection.execute("SELECT count(*) FROM messages").fetchone()[0]
        self.notices = (
            f"The stored sessions were damaged: {saved} rows could still be read, {rows} of them messages."
            f" The damaged file is kept as {aside}.",
        )
        return connection

    @contextmanager
    def _alone(self, why: str) -> Iterator[None]:
        """No other process has the file open meanwhile."""
        try:
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SessionError(
                f"{self.file} {why}, and another punie is using it.", "End that one first, or go on with --no-session."
            ) from None
        try:
            yield
        finally:
            fcntl.flock(self._use, fcntl.LOCK_SH)


def private_directory(directory: Path) -> None:
    """Make a directory, and the one it lies in, for the user alone."""
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.mkdir(exist_ok=True, mode=0o700)
    directory.chmod(0o700)


def _descriptor(file: Path) -> int:
    """The file, made if need be, for the user alone."""
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    descriptor = _descriptor(file)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _connected(file: Path) -> sqlite3.Connection:
    """A checked connection. DatabaseError if the file is damaged."""
    connection = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise _damage(found)
        _version(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _damage(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the file is broken, not that it is locked, full or read-only."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _is_busy(error: sqlite3.Error) -> bool:
    """Whether an error says that another process is at it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _upgrade(connection: sqlite3.Connection) -> None:
    """Every missing migration, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in MIGRATIONS[_version(connection) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _copy(connection: sqlite3.Connection, file: Path) -> None:
    """The whole database as it is, beside it."""
    file.unlink(missing_ok=True)
    os.close(_descriptor(file))
    with closing(sqlite3.connect(file)) as target:
        connection.backup(target)


def _salvage(damaged: Path, connection: sqlite3.Connection) -> int:
    """Copy every row that can be read, and say how many those are."""
    saved = 0
    with closing(sqlite3.connect(damaged, isolation_level=None)) as source:
        connection.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            names = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")]
            marks = ", ".join("?" * (len(names) + 1))
            insert = f"INSERT OR IGNORE INTO {table} (rowid, {', '.join(names)}) VALUES ({marks})"  # noqa: S608 - own names
            for row in _readable(source, table, names):
                with suppress(sqlite3.IntegrityError):
                    saved += connection.execute(insert, row).rowcount
        connection.execute(
            "INSERT OR IGNORE INTO sessions SELECT session, x'', written, '', '(found in a damaged file)', NULL"
            " FROM messages GROUP BY session"
        )
        connection.execute("COMMIT")
    return saved


def _readable(source: sqlite3.Connection, table: str, names: Sequence[str]) -> Iterable[Row]:
    """The rows from the front up to the damage, from the back up to it, then each one between that can be found."""
    select = f"SELECT rowid, {', '.join(names)} FROM {table}"  # noqa: S608 - own names
    found: dict[int, Row] = {}
    if _read(source, f"{select} NOT INDEXED ORDER BY rowid", into=found):
        return found.values()
    if not found:
        _read(source, f"{select} NOT INDEXED ORDER BY rowid DESC", into=found)
        return found.values()
    first = max(found)
    _read(source, f"{select} NOT INDEXED WHERE rowid > {first} ORDER BY rowid DESC", into=found)
    last = min((number for number in found if number > first), default=first + _PROBED_ROWS)
    for number in range(first + 1, min(last, first + _PROBED_ROWS)):
        _read(source, f"{select} NOT INDEXED WHERE rowid = {number}", into=found)
    return [found[number] for number in sorted(found)]


def _read(source: sqlite3.Connection, sql: str, *, into: dict[int, Row]) -> bool:
    """Collect rows until the damage; whether there was none."""
    try:
        for row in source.execute(sql):
            into[int(row[0])] = row
    except (sqlite3.Error, UnicodeDecodeError, OverflowError):
        return False
    return True
