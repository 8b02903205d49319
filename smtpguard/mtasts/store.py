"""What must still be known after a restart?

Tables of key -> octets in one SQLite file.  Everything is read at start; afterwards `put` and `delete` only
note the change in memory, and one writer brings the notes to the disk within a second.  No decision waits for
the disk; if that fails, a StoreError is emitted and the writer tries again.
"""

import os
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from smtpguard.events import Emit, StoreError
from smtpguard.reasons import printable

WRITE_SECONDS: Final = 0.5
"""A note is on its way to the disk after this long; kill -9 loses no more than that and the write itself."""
RETRY_SECONDS: Final = 5.0
MAX_NOTES: Final = 100_000
"""Changes kept in memory while the disk fails; beyond it new keys are lost."""
_SCHEMA_VERSION: Final = 1

_Notes = dict[tuple[str, str], bytes | None]
Runner = Callable[[Callable[[], str]], Awaitable[str]]


async def _in_thread(write: Callable[[], str]) -> str:
    # Not abandoned on cancellation: the flush at the end must not race a write that is still under way.
    return await trio.to_thread.run_sync(write)


class Store:
    """The state of one process.  One Store serves several owners, each with tables of its own.

    All methods are for the Trio thread.  `run` is the writer; `close` flushes, after `run` has ended.
    """

    def __init__(self, database: sqlite3.Connection | None, name: str, emit: Emit, runner: Runner = _in_thread) -> None:
        """Use `Store.open`.  `runner` calls the blocking write somewhere else; tests call it in place."""
        self._database = database
        self._name = name
        self._emit = emit
        self._runner = runner
        self._notes: _Notes = {}
        self._noted = trio.Event()
        self._failing = False

    @classmethod
    def open(cls, path: Path | None, emit: Emit, *, runner: Runner = _in_thread, busy_seconds: float = 2.0) -> "Store":
        """The store in the file `path`, which is made if it is missing; None keeps everything in memory only.

        A file that is not a sound database is renamed to `<path>.corrupt`, with a StoreError, and a new one
        begun.
        Raises OSError with the path and the way out where the file cannot be used at all.
        """
        if path is None:
            return cls(None, "memory", emit, runner)
        try:
            database = _open_database(path, busy_seconds)
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise OSError(_unusable(path, error)) from error
            aside = path.with_name(path.name + ".corrupt")
            try:
                _move_aside(path, aside)
                database = _open_database(path, busy_seconds)
            except (OSError, sqlite3.Error) as second:
                raise OSError(_unusable(path, second)) from second
            emit(
                StoreError(
                    store=printable(str(path)),
                    detail=printable(f"unreadable ({error}); moved to {aside}, starting empty"),
                )
            )
        except OSError as error:
            raise OSError(_unusable(path, error)) from error
        return cls(database, str(path), emit, runner)

    def load(self, table: str) -> list[tuple[str, bytes]]:
        """All entries of `table`, ordered by key; blocks, so it is for the start."""
        entries: dict[str, bytes] = {}
        if self._database is not None:
            try:
                rows = self._database.execute("SELECT key, value FROM entry WHERE tbl = ?", (table,)).fetchall()
            except sqlite3.Error as error:
                self._report(f"table {table} could not be read: {error}")
            else:
                entries = {str(key): bytes(value) for key, value in rows}
        for (noted_table, key), value in self._notes.items():
            if noted_table == table:
                if value is None:
                    entries.pop(key, None)
                else:
                    entries[key] = value
        return sorted(entries.items())

    def put(self, table: str, key: str, value: bytes) -> None:
        """Remember `value` under `key`, replacing what was there.  Never blocks or raises."""
        self._note(table, key, value)

    def delete(self, table: str, key: str) -> None:
        """Forget `key`, if it is there.  Never blocks or raises."""
        self._note(table, key, None)

    def _note(self, table: str, key: str, value: bytes | None) -> None:
        # Without a file the notes are the store, and a deletion needs no trace.
        if self._database is None and value is None:
            self._notes.pop((table, key), None)
            return
        if len(self._notes) >= MAX_NOTES and (table, key) not in self._notes:
            self._report(f"more than {MAX_NOTES} changes wait for the disk; new ones are lost")
            return
        self._notes[table, key] = value
        self._noted.set()

    async def run(self) -> None:
        """Bring notes to the disk until cancelled."""
        while True:
            await self._noted.wait()
            await trio.sleep(RETRY_SECONDS if self._failing else WRITE_SECONDS)
            database = self._database
            if database is None:
                return
            notes = self._take()
            try:
                failure = await self._runner(partial(_write, database, notes))
            except BaseException:
                self._give_back(notes)
                raise
            self._settle(notes, failure)

    def flush(self) -> None:
        """Bring all notes to the disk now; blocks."""
        if self._database is not None:
            notes = self._take()
            self._settle(notes, _write(self._database, notes))

    def close(self) -> None:
        """Flush and close the file; what is noted later is forgotten.  Blocks for one small write."""
        self.flush()
        if self._database is not None:
            self._database.close()
            self._database = None

    def _take(self) -> _Notes:
        # Swapped here, in the Trio thread: the writing thread owns what it was given.
        notes, self._notes = self._notes, {}
        self._noted = trio.Event()
        return notes

    def _give_back(self, notes: _Notes) -> None:
        """Keep what was not written, below what was noted since."""
        self._notes = notes | self._notes
        if self._notes:
            self._noted.set()

    def _settle(self, notes: _Notes, failure: str) -> None:
        if failure:
            self._give_back(notes)
            self._report(f"not written, will be tried again: {failure}")
        else:
            self._failing = False

    def _report(self, detail: str) -> None:
        """Say it once per failure, not once per change."""
        if not self._failing:
            self._failing = True
            self._emit(StoreError(store=printable(self._name), detail=printable(detail)))


def _write(database: sqlite3.Connection, notes: _Notes) -> str:
    """All notes in one transaction; what went wrong, or empty.  Runs in a thread."""
    try:
        with database:
            database.executemany(
                "INSERT OR REPLACE INTO entry (tbl, key, value) VALUES (?, ?, ?)",
                [(table, key, value) for (table, key), value in notes.items() if value is not None],
            )
            database.executemany(
                "DELETE FROM entry WHERE tbl = ? AND key = ?",
                [place for place, value in notes.items() if value is None],
            )
    except sqlite3.Error as error:
        return str(error)
    return ""


def _open_database(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """Raises OSError, sqlite3.Error."""
    # SQLite would make the file readable for all; whom we send mail to is nobody's business.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=busy_seconds, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise _Corrupt(sound)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise OSError(f"it was written by a newer smtpguard (schema {version})")
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS entry"
                " (tbl TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (tbl, key))"
            )
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            # A file on a read-only or full disk shows itself here, not after the first decision.
            database.execute("INSERT OR REPLACE INTO entry VALUES ('', 'probe', x'')")
            database.execute("DELETE FROM entry WHERE tbl = ''")
    except BaseException:
        database.close()
        raise
    return database


class _Corrupt(sqlite3.DatabaseError):
    """quick_check found damage."""


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    """Damage of the file itself; a lock, a full disk or a missing right must not cost the contents."""
    if isinstance(error, _Corrupt):
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _move_aside(path: Path, aside: Path) -> None:
    path.replace(aside)
    for suffix in ("-wal", "-shm"):  # they belong to the damaged file and would be replayed into the new one
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _unusable(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (
        f"the state file {path} cannot be used: {reason};"
        " state_dir must be a directory that smtpguard may write to, on a disk with free space"
    )
