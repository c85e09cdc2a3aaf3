"""The ledger in PostgreSQL: a table `requests` in the schema `whit`, beside the store of adapters where there is one.

Several gateways may write to one. A connection that the server dropped is made anew before the next batch; every
wait is bounded. Addresses may hold a password, so no message repeats them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from whit.errors import UsageError
from whit.routing.ledger import COLUMNS, KINDS, BookError, Record, record_of, row_of

_TYPES = {"TEXT": "TEXT", "INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION"}
_INSERT = f"INSERT INTO whit.requests ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"
_LOCK = 0x77686974  # the store's too: one makes the schema at a time
_AT_ONCE = 2000


class PostgresBook:
    """A ledger behind an address."""

    def __init__(self, address: str, patience: float) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise UsageError("a PostgreSQL ledger needs psycopg: pip install 'whit[serve]'") from error
        self._psycopg: Any = psycopg
        self._address, self._patience = address, patience
        self._base: Any = None

    def write(self, records: Sequence[Record]) -> None:
        """Put records in, all or none."""
        if not records:
            return
        with self._told():
            base = self._writing()
            with base.transaction(), base.cursor() as cursor:
                # A NUL is the one character that PostgreSQL's texts cannot hold.
                cursor.executemany(_INSERT, [tuple(map(_clean, row_of(record))) for record in records])

    def spent(self, tenant: str, since: float) -> float:
        """What a tenant spent since a moment."""
        with self._told(), self._connect() as base:
            if base.execute("SELECT to_regclass('whit.requests')").fetchone()[0] is None:
                return 0.0
            query = "SELECT coalesce(sum(cost), 0) FROM whit.requests WHERE tenant = %s AND at >= %s"
            return float(base.execute(query, (_clean(tenant), since)).fetchone()[0])

    def read(self, since: float) -> Iterator[Record]:
        """The records since a moment, oldest first; a part at a time, all of one state."""
        with self._told(), self._connect() as base:
            if base.execute("SELECT to_regclass('whit.requests')").fetchone()[0] is None:
                raise BookError("there is no ledger in this database yet: requests write it")
            with base.transaction(), base.cursor(name="whit_report") as cursor:
                cursor.itersize = _AT_ONCE
                cursor.execute("SELECT * FROM whit.requests WHERE at >= %s ORDER BY id", (since,))
                names = [column.name for column in cursor.description]
                for row in cursor:
                    yield record_of(names, row)

    def close(self) -> None:
        """Close the connection."""
        if self._base is not None:
            with contextlib.suppress(Exception):
                self._base.close()
        self._base = None

    def _writing(self) -> Any:
        """The connection for writing, alive and with its table there."""
        if self._base is not None:
            try:
                self._base.execute("SELECT 1")
                return self._base
            except self._psycopg.Error:
                self.close()
        base = self._connect()
        try:
            with base.transaction():
                base.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                if base.execute("SELECT to_regclass('whit.requests')").fetchone()[0] is None:
                    columns = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in zip(COLUMNS, KINDS, strict=True))
                    base.execute("CREATE SCHEMA IF NOT EXISTS whit")
                    base.execute(
                        f"CREATE TABLE whit.requests (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns})"
                    )
                    base.execute("CREATE INDEX requests_tenant ON whit.requests (tenant, at)")
                for name, kind in zip(COLUMNS, KINDS, strict=True):  # of a whit that did not know one of them
                    base.execute(f"ALTER TABLE whit.requests ADD COLUMN IF NOT EXISTS {name} {_TYPES[kind]}")
        except BaseException:
            base.close()
            raise
        self._base = base
        return base

    def _connect(self) -> Any:
        base = self._psycopg.connect(
            self._address, autocommit=True, connect_timeout=max(2, round(self._patience)), application_name="whit"
        )
        milliseconds = str(max(1, int(self._patience * 1000)))
        for name in ("lock_timeout", "statement_timeout"):
            base.execute("SELECT set_config(%s, %s, false)", (name, milliseconds))
        return base

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            if isinstance(error, self._psycopg.OperationalError) and error.sqlstate is None:
                raise BookError("the server cannot be reached or dropped the connection") from error
            raise BookError(f"the server refused ({error.sqlstate or type(error).__name__})") from error


def _clean(value: Any) -> Any:
    return value.replace("\0", "") if isinstance(value, str) else value
