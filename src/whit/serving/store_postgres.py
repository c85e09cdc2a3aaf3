"""A store in PostgreSQL, in a schema of its own named `whit`.

One writer at a time, by an advisory lock that lives as long as the transaction. A connection that the server has
dropped is made anew: a read is then tried once more, a write is not, for it may have been done. Addresses may hold
a password, so no message repeats them.
"""

# ruff: noqa: D102 -- the methods are described where they are declared, in `Store`.

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from whit.errors import StorageError, UsageError
from whit.serving.store_rows import Rows, Session
from whit.serving.store_sql import SCHEMA, SqlStore

_LOCK = 0x77686974
_TYPES = {
    "p": "whit.", "text": 'TEXT COLLATE "C"', "bytes": "BYTEA", "big": "BIGINT",
    "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "compact": "",
}  # fmt: skip


class PostgresStore(SqlStore):
    """The store behind an address."""

    def __init__(self, address: str, *, read_only: bool = False, wait: float = 10.0) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise UsageError("a PostgreSQL store needs psycopg: pip install 'whit[serve]'") from error
        self._psycopg: Any = psycopg
        self._address, self._read_only, self._wait = address, read_only, wait
        self._own = threading.local()
        self._open: list[Any] = []
        self._guard = threading.Lock()
        if not read_only:
            self._prepare()

    def _prepare(self) -> None:
        with self._told(), self._connection().transaction():
            connection = self._connection()
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            there = connection.execute("SELECT to_regclass('whit.versions')").fetchone()[0]
            if there is None:
                connection.execute("CREATE SCHEMA IF NOT EXISTS whit")
                for statement in SCHEMA:
                    text = statement.format(**_TYPES)
                    connection.execute(text.replace("INDEX whit.", "INDEX "))

    def _connection(self) -> Any:
        """This thread's own connection."""
        found = getattr(self._own, "connection", None)
        if found is not None and not found.closed:
            return found
        found = self._psycopg.connect(
            self._address, autocommit=True, connect_timeout=max(2, int(self._wait)), application_name="whit"
        )
        found.execute("SET search_path TO whit")
        found.execute("SELECT set_config('lock_timeout', %s, false)", (str(int(self._wait * 1000)),))
        if self._read_only:
            found.execute("SET default_transaction_read_only TO on")
        self._own.connection = found
        with self._guard:
            self._open = [each for each in self._open if not each.closed] + [found]
        return found

    def _read(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        with self._told():
            try:
                return self._rows(self._connection(), statement, values)
            except (self._psycopg.OperationalError, self._psycopg.InterfaceError):
                if not self._connection_lost():
                    raise
            return self._rows(self._connection(), statement, values)

    def _connection_lost(self) -> bool:
        connection = getattr(self._own, "connection", None)
        return connection is None or bool(connection.closed) or bool(connection.broken)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._transaction("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY") as run:
            yield run

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Session]:
        with self._transaction(f"SELECT pg_advisory_xact_lock({_LOCK})") as run:
            yield run

    @contextlib.contextmanager
    def _transaction(self, first: str) -> Iterator[Session]:
        with self._told():
            connection = self._connection()
            try:
                # A connection that died while it lay idle is noticed here, before anything is done.
                connection.execute("SELECT 1")
            except (self._psycopg.OperationalError, self._psycopg.InterfaceError):
                with contextlib.suppress(Exception):
                    connection.close()
                connection = self._connection()
            with connection.transaction():
                connection.execute(first)
                yield lambda statement, values=(): self._rows(connection, statement, values)

    @staticmethod
    def _rows(connection: Any, statement: str, values: Sequence[Any]) -> Rows:
        cursor = connection.execute(statement.replace("?", "%s"), values)
        return list(cursor.fetchall()) if cursor.description else []

    def close(self) -> None:
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(Exception):
                    connection.close()
            self._open.clear()
        self._own = threading.local()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            raise StorageError(f"the PostgreSQL store: {self._reason(error)}") from error

    def _reason(self, error: Any) -> str:
        errors = self._psycopg.errors
        if isinstance(error, errors.LockNotAvailable):
            return f"another program has been writing to it for {self._wait:g} s; try again"
        if isinstance(error, errors.ReadOnlySqlTransaction):
            return "it is read-only; nothing was changed"
        if isinstance(error, errors.DiskFull):
            return "the disk is full; nothing was changed. Free some space and try again"
        if isinstance(error, errors.UndefinedTable):
            return "there is no store in this database yet"
        if isinstance(error, errors.InsufficientPrivilege):
            return "this user may not do that there"
        if isinstance(error, self._psycopg.OperationalError):
            return "the server cannot be reached or dropped the connection; see that it runs, and try again"
        return f"the server refused ({getattr(error, 'sqlstate', None) or type(error).__name__})"
