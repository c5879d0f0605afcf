"""The file that notes are kept in: SQLite, one file an SAE, safe for several processes at once.

    notes/ID.sqlite     application_id 0x53504E54, user_version 1
      labels(latent, source, text, score, low, high, control, n, created)    one a latent and source
      notes(latent, text, created)                                           one a latent
      lists(name, created), listed(name, latent, place)                      latents of a list in the order they were given
      changes(n)                                                             one row: how many times something was written

It is made by the first write; before, everything reads as empty. Write-ahead logging lets a page read while a command writes. Each use
opens the file, does one transaction and closes it, so that threads share nothing and a run that vanished is noticed at once. A reader,
too, may have to roll back what a killed writer left: it opens the file for writing and then asks only.
A stranger's file is data: one with other tables, triggers or views is refused before anything in it is asked.
Trade-off: a use costs a third of a millisecond and a write one fsync, so many labels go in one transaction.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsight.errors import NotesError

__all__ = ["reading", "writing"]

APPLICATION, VERSION = 0x53504E54, 1
WAIT_SECONDS = 10.0
_SCHEMA = (
    "CREATE TABLE labels(latent INTEGER, source TEXT, text TEXT, score REAL, low REAL, high REAL, control REAL, n INTEGER, "
    "created TEXT, PRIMARY KEY(latent, source)) WITHOUT ROWID",
    "CREATE TABLE notes(latent INTEGER PRIMARY KEY, text TEXT, created TEXT)",
    "CREATE TABLE lists(name TEXT PRIMARY KEY, created TEXT) WITHOUT ROWID",
    "CREATE TABLE listed(name TEXT, latent INTEGER, place INTEGER, PRIMARY KEY(name, latent)) WITHOUT ROWID",
    "CREATE TABLE changes(n INTEGER)",
)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """One consistent view; an empty one where nothing was written yet. Raises NotesError when the file is not ours."""
    with _told(path):
        database = _connect(path, "rw") if path.exists() else _nothing()
        database.execute("PRAGMA query_only = ON")
        if _is_empty(database):  # another process is making it
            database.close()
            database = _nothing()
        try:
            _check(database, path)
            database.execute("BEGIN")
            yield database
        finally:
            database.close()


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction, kept whole or not at all. The file is made, where the run's folder is still there. Raises NotesError."""
    with _told(path):
        if not path.parent.parent.is_dir():
            raise NotesError(f"{path.parent.parent} is not there any more; nothing was written.")
        path.parent.mkdir(exist_ok=True)
        database = _connect(path, "rwc")
        try:
            _log_ahead(database)
            database.execute("BEGIN IMMEDIATE")
            if _is_empty(database):
                _make(database)
            _check(database, path)
            yield database
            database.execute("UPDATE changes SET n = n + 1")
            database.commit()
        finally:
            database.close()  # rolls back what was not committed


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    if mode == "rw" and not os.access(path.parent, os.W_OK):
        address += "&immutable=1"  # nobody else writes here either, and the log's files cannot be made
    database = sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA trusted_schema = OFF")
    return database


def _log_ahead(database: sqlite3.Connection) -> None:
    """Switches to write-ahead logging; that needs the file for itself for a moment, which SQLite does not wait for."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _nothing() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", isolation_level=None)
    _make(database)
    return database


def _is_empty(database: sqlite3.Connection) -> bool:
    unmarked = database.execute("PRAGMA application_id").fetchone()[0] == 0
    return unmarked and not database.execute("SELECT 1 FROM sqlite_master").fetchone()


def _make(database: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        database.execute(statement)
    database.execute("INSERT INTO changes VALUES (0)")
    database.execute(f"PRAGMA application_id = {APPLICATION}")
    database.execute(f"PRAGMA user_version = {VERSION}")


def _check(database: sqlite3.Connection, path: Path) -> None:
    """Raises NotesError unless the file's tables are ours, to the letter, and nothing else is in it."""
    found = tuple(database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    held = [sql for (sql,) in database.execute("SELECT sql FROM sqlite_master ORDER BY rowid")]
    if found != (APPLICATION, VERSION) or sorted(map(str, held)) != sorted(_SCHEMA):
        raise NotesError(
            f"{path} is no file of notes of this version (application and version {found}; expected {(APPLICATION, VERSION)} and its "
            "five tables). Move it away; notes are carried over with `sparsight notes RUN --export`."
        )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SQLite and the system say about the file, as one line."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError) as error:
        remedy = "Check that it is a whole file of notes, that the disk has room and that you may write there"
        if "locked" in str(error) or "busy" in str(error):
            remedy = f"Another process has held it for {WAIT_SECONDS:g} seconds; try again when it is done"
        raise NotesError(f"{path} cannot be used ({error}). {remedy}.") from None
