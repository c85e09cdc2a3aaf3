"""The ledger: what became of every request, in SQLite. Never its text.

Writing happens in a thread of its own, in batches, from a bounded queue: a ledger that is slow, locked, full or gone
stops no request; what could not be written is counted, and the count is shown. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from whit.routing.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """One request. Costs in the currency of tiers.toml, times in seconds; `cost_strong` is the dearest tier's."""

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


_COLUMNS = tuple(part.name for part in fields(Record))
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, "
    + ", ".join(
        f"{part.name} {'TEXT' if part.type == 'str' else 'INTEGER' if part.type == 'int' else 'REAL'}"
        for part in fields(Record)
    )
    + ")"
)
_INSERT = f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


class Ledger:
    """Writes records to a file; `lost` is how many it could not."""

    def __init__(self, path: str, *, waiting: int = 10_000, patience: float = 2.0) -> None:
        self.path, self.lost, self.written = path, 0, 0
        self._patience = patience
        self._queue: queue.Queue[Record | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._work, name="whit-ledger", daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Take a record in; never waits, never fails."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.lost += 1

    def close(self, seconds: float = 5.0) -> None:
        """Write what is waiting."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def spent(self, tenant: str, since: float) -> float:
        """What a tenant spent since a moment, as far as the file knows; 0 where it cannot be read."""
        if not Path(self.path).is_file():
            return 0.0
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=self._patience)) as base:
                (found,) = base.execute(
                    "SELECT coalesce(sum(cost), 0) FROM requests WHERE tenant = ? AND at >= ?", (tenant, since)
                ).fetchone()
                return float(found)
        except sqlite3.Error:
            return 0.0

    def _work(self) -> None:
        base: sqlite3.Connection | None = None
        while True:
            batch = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < 500:
                    batch.append(self._queue.get_nowait())
            ended = None in batch
            records = [record for record in batch if record is not None]
            try:
                if base is None:
                    base = self._open()
                with base:
                    base.executemany(_INSERT, [astuple(record) for record in records])
                self.written += len(records)
            except (sqlite3.Error, OSError):
                self.lost += len(records)
                if base is not None:
                    with contextlib.suppress(sqlite3.Error):
                        base.close()
                base = None
            if ended:
                if base is not None:
                    base.close()
                return

    def _open(self) -> sqlite3.Connection:
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        base = sqlite3.connect(self.path, timeout=self._patience)
        try:
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            base.execute(_SCHEMA)
        except sqlite3.Error:
            base.close()
            raise
        return base


def read_ledger(path: str | Path, since: float = 0.0) -> Iterator[Record]:
    """The records since a moment, oldest first. Raises `ConfigError`."""
    if not Path(path).is_file():
        raise ConfigError(path, 0, "there is no ledger yet: requests write it")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{Path(path).resolve()}?mode=ro", uri=True, timeout=5)) as base:
            query = f"SELECT {', '.join(_COLUMNS)} FROM requests WHERE at >= ? ORDER BY id"
            for row in base.execute(query, (since,)):
                yield Record(*row)
    except sqlite3.Error as error:
        raise ConfigError(path, 0, f"is not a ledger that can be read ({error})") from error


def now() -> float:
    """Seconds since 1970."""
    return time.time()
