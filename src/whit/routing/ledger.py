"""The ledger: what became of every request, in SQLite or PostgreSQL. Never its text.

Writing happens in a thread of its own, in batches, from a bounded queue: a ledger that is slow, locked, full or gone
stops no request; what could not be written is counted, and the count is shown. Where it lies is the business of a
`Book`. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from whit.routing.errors import ConfigError


@dataclass(slots=True)  # not frozen: that takes thrice as long to make, and each request makes one
class Record:
    """One request. Costs in the currency of tiers.toml, times in seconds; `cost_strong` is the dearest tier's; `causes`
    are those of its clearance, with commas between.

    Of a sampled row there is a second record, of outcome `sampled`: what the dearest tier's answer cost, and how far it
    agrees with the local one (0 to 1).
    """

    at: float
    tenant: str
    route: str
    label: str
    tier: str
    outcome: str
    reason: str
    clearance: str
    allowed: str
    kinds: str
    masked: int
    attempts: int
    tokens_in: int
    tokens_out: int
    cost: float
    cost_strong: float
    seconds: float
    first_seconds: float
    confidence: float | None
    agreement: float | None = None
    causes: str = ""


COLUMNS = tuple(part.name for part in fields(Record))
KINDS = tuple("TEXT" if part.type == "str" else "INTEGER" if part.type == "int" else "REAL" for part in fields(Record))


#: A record as the row of a table.
row_of: Callable[[Record], tuple[float | str | int | None, ...]] = attrgetter(*COLUMNS)


def record_of(names: Sequence[str], values: Sequence[Any]) -> Record:
    """The record of a table's row; an older whit's table has fewer columns. Raises `TypeError` for no such row."""
    known: dict[str, Any] = {name: value for name, value in zip(names, values, strict=True) if name in COLUMNS}
    known["causes"] = known.get("causes") or ""
    return Record(**known)


_GATHER, _AT_ONCE = 0.2, 200  # seconds, records


class BookError(Exception):
    """The book could not be written or read; says nothing of where it is."""


class Book(Protocol):
    """Where records lie. Each method is called from one thread at a time, and raises `BookError`."""

    def write(self, records: Sequence[Record]) -> None:
        """Put records in, all or none."""
        ...

    def spent(self, tenant: str, since: float) -> float:
        """What a tenant spent since a moment; from a connection of its own."""
        ...

    def read(self, since: float) -> Iterator[Record]:
        """The records since a moment, oldest first."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


def is_address(where: str) -> bool:
    """Whether this is a database's address, and no file."""
    return where.startswith(("postgresql://", "postgres://"))


def book_at(where: str, patience: float = 2.0) -> Book:
    """The book in a file or behind a postgresql:// address; nothing is opened yet. Raises `UsageError`."""
    if is_address(where):
        from whit.routing.ledger_postgres import PostgresBook

        return PostgresBook(where, patience)
    return SqliteBook(where, patience)


class Ledger:
    """Writes records to a book."""

    def __init__(self, where: str, *, waiting: int = 10_000, patience: float = 2.0) -> None:
        self.written = 0
        self._unwritten, self._refused = 0, 0  # each counted by one thread alone
        self._book = book_at(where, patience)
        self._records: deque[Record] = deque()
        self._most = waiting
        self._some, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="whit-ledger", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """How many records could not be written."""
        return self._unwritten + self._refused

    def add(self, record: Record) -> None:
        """Take a record in; never waits, never fails."""
        if len(self._records) >= self._most:
            self._refused += 1
            return
        self._records.append(record)
        if not self._some.is_set():  # waking a thread takes longer than asking
            self._some.set()

    def close(self, seconds: float = 5.0) -> None:
        """Write what is waiting."""
        self._ending.set()
        self._some.set()
        self._thread.join(seconds)

    def spent(self, tenant: str, since: float) -> float:
        """What a tenant spent since a moment, as far as the book knows; 0 where it cannot be read."""
        try:
            return self._book.spent(tenant, since)
        except BookError:
            return 0.0

    def _work(self) -> None:
        while not (self._ending.is_set() and not self._records):
            self._some.wait()
            # A thread that wakes for every record takes time from those who answer requests.
            self._ending.wait(_GATHER)
            self._some.clear()  # before looking, so that what comes meanwhile wakes it again
            while self._records:
                self._write([self._records.popleft() for _ in range(min(_AT_ONCE, len(self._records)))])
        self._book.close()

    def _write(self, records: list[Record]) -> None:
        try:
            self._book.write(records)
            self.written += len(records)
        except Exception:  # whatever it is, it stops no request: the thread goes on, and the loss is shown
            self._unwritten += len(records)


class SqliteBook:
    """A SQLite file."""

    def __init__(self, path: str, patience: float) -> None:
        self._path, self._patience = path, patience
        self._base: sqlite3.Connection | None = None

    def write(self, records: Sequence[Record]) -> None:
        """Put records in, all or none."""
        try:
            if self._base is None:
                self._base = self._open()
            with self._base:
                # Many in a statement: for each by itself the thread would ask for the interpreter anew.
                most = self._base.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(COLUMNS)
                for at in range(0, len(records), most):
                    some = records[at : at + most]
                    values = [value for record in some for value in row_of(record)]
                    self._base.execute(_INSERT + ", ".join([_ROW] * len(some)), values)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise BookError(str(error)) from error

    def spent(self, tenant: str, since: float) -> float:
        """What a tenant spent since a moment."""
        if not Path(self._path).is_file():
            return 0.0
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=self._patience)) as base:
                (found,) = base.execute(
                    "SELECT coalesce(sum(cost), 0) FROM requests WHERE tenant = ? AND at >= ?", (tenant, since)
                ).fetchone()
                return float(found)
        except sqlite3.Error as error:
            raise BookError(str(error)) from error

    def read(self, since: float) -> Iterator[Record]:
        """The records since a moment, oldest first."""
        path = Path(self._path)
        if not path.is_file():
            raise BookError("there is no ledger yet: requests write it")
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True, timeout=5)) as base:
                rows = base.execute("SELECT * FROM requests WHERE at >= ? ORDER BY id", (since,))
                names = [column[0] for column in rows.description]
                for row in rows:
                    yield record_of(names, row)
        except (sqlite3.Error, TypeError) as error:
            raise BookError(f"is not a ledger that can be read ({error})") from error

    def close(self) -> None:
        """Close the file."""
        if self._base is not None:
            with contextlib.suppress(sqlite3.Error):
                self._base.close()
        self._base = None

    def _open(self) -> sqlite3.Connection:
        Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        # Made by one thread and closed by whichever ends it.
        base = sqlite3.connect(self._path, timeout=self._patience, check_same_thread=False)
        try:
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            columns = ", ".join(f"{name} {kind}" for name, kind in zip(COLUMNS, KINDS, strict=True))
            base.execute(f"CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, {columns})")
            there = {row[1] for row in base.execute("PRAGMA table_info(requests)")}
            for name, kind in zip(COLUMNS, KINDS, strict=True):
                if name not in there:  # written by a whit that did not know it
                    base.execute(f"ALTER TABLE requests ADD COLUMN {name} {kind}")
        except sqlite3.Error:
            base.close()
            raise
        return base


_INSERT, _ROW = f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ", f"({', '.join('?' * len(COLUMNS))})"


def read_ledger(where: str | Path, since: float = 0.0) -> Iterator[Record]:
    """The records since a moment, oldest first, of a file or an address. Raises `ConfigError`, `UsageError`."""
    try:
        yield from book_at(str(where)).read(since)
    except BookError as error:
        named = "the PostgreSQL ledger" if is_address(str(where)) else where  # an address may hold a password
        raise ConfigError(named, 0, str(error)) from error


def now() -> float:
    """Seconds since 1970."""
    return time.time()
