"""A store in one SQLite file.

A write-ahead log beside it while it is open, so that readers never wait for a writer; it goes when the last user
closes the file. Another writer is waited for. What is deleted is overwritten with zeros. Every fault of the file or
the disk is a `StorageError` that says what to do.
"""

# ruff: noqa: D102 -- the methods are described where they are declared, in `Store`.

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from whit.errors import StorageError
from whit.serving.store_rows import Rows, Session
from whit.serving.store_sql import SCHEMA, SqlStore

_APPLICATION = 0x77686974  # "whit", in the file's header
_LAYOUT = 1
_TYPES = {
    "p": "", "text": "TEXT", "bytes": "BLOB", "big": "INTEGER", "serial": "INTEGER PRIMARY KEY",
    "compact": "WITHOUT ROWID",
}  # fmt: skip


class SqliteStore(SqlStore):
    """The store in a file; `wait` is how many seconds another writer is waited for."""

    def __init__(self, path: Path, *, read_only: bool = False, create: bool = True, wait: float = 30.0) -> None:
        self.path, self._read_only, self._wait = path, read_only, wait
        self._own = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._closed = False
        if not path.exists() and (read_only or not create):
            raise StorageError(f"there is no store at {path}; `whit store add NAME ADAPTER --store {path}` makes one")
        with self._told():
            connection = self._connection()
            self._prepare(connection)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        layout = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and (tables or self._read_only):
            raise StorageError(f"{self.path} is not a store of whit; name another file with --store")
        if layout > _LAYOUT:
            raise StorageError(f"{self.path} was made by a newer whit (layout {layout}); this one reads {_LAYOUT}")
        if self._read_only:
            return
        connection.execute("PRAGMA journal_mode = WAL")
        if not tables:
            with self._writing() as run:
                # Two processes may both have found it empty.
                if not run("SELECT COUNT(*) FROM sqlite_master")[0][0]:
                    for statement in SCHEMA:
                        run(statement.format(**_TYPES))
                    run(f"PRAGMA application_id = {_APPLICATION}")
                    run(f"PRAGMA user_version = {_LAYOUT}")

    def _connection(self) -> sqlite3.Connection:
        """This thread's own connection."""
        found: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if found is not None:
            return found
        if self._closed:
            raise StorageError(f"the store {self.path} was closed")
        if self._read_only:
            address = f"{self.path.resolve().as_uri()}?mode=ro"
            found = sqlite3.connect(
                address, uri=True, timeout=self._wait, isolation_level=None, check_same_thread=False
            )
            try:
                found.execute("SELECT COUNT(*) FROM sqlite_master")
            except sqlite3.OperationalError:
                # A folder that takes no log beside the file: it is read as it lies.
                found.close()
                found = sqlite3.connect(
                    address + "&immutable=1", uri=True, isolation_level=None, check_same_thread=False
                )
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            found = sqlite3.connect(self.path, timeout=self._wait, isolation_level=None, check_same_thread=False)
        # The schema of a file that came from elsewhere must not run anything.
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "secure_delete = ON", "synchronous = FULL"):
            found.execute(f"PRAGMA {pragma}")
        self._own.connection = found
        with self._guard:
            self._open.append(found)
        return found

    def _read(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        with self._told():
            return self._connection().execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._transaction("BEGIN") as run:
            yield run

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Session]:
        with self._transaction("BEGIN IMMEDIATE") as run:
            yield run

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[Session]:
        with self._told():
            connection = self._connection()
            connection.execute(begin)
            try:
                yield lambda statement, values=(): connection.execute(statement, values).fetchall()
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                raise

    def _deleted(self) -> None:
        # The log still holds what was deleted; where a reader is at work, a later checkpoint clears it.
        with contextlib.suppress(sqlite3.Error):
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        with self._guard:
            self._closed = True
            for connection in self._open:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
            self._open.clear()
        self._own = threading.local()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"the store {self.path}: {self._reason(error)}") from error
        except OSError as error:
            raise StorageError(f"the store {self.path}: {error.strerror or error}") from error

    def _reason(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        reasons = {
            sqlite3.SQLITE_BUSY: f"another program has been writing to it for {self._wait:g} s; try again",
            sqlite3.SQLITE_LOCKED: "it is locked by another program; try again",
            sqlite3.SQLITE_FULL: "the disk is full; nothing was changed. Free some space and try again",
            sqlite3.SQLITE_READONLY: "it is read-only; nothing was changed. Choose another file or its rights",
            sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a copy or an export",
            sqlite3.SQLITE_NOTADB: "it is not a store of whit (or it is damaged); name another file with --store",
            sqlite3.SQLITE_CANTOPEN: "it cannot be opened; see that its folder is there and may be read",
            sqlite3.SQLITE_PERM: "not permitted; choose a file that you may read and write",
        }
        return reasons.get(code, str(error))
