"""The store: adapters by name and version, with cards, labels and a record of who changed what.

`open_store` gives a `Store` for a SQLite file or a `postgresql://` address; both behave the same. A version never
changes and its number is never given out again, even after it was deleted. A name answers with its *current*
version: the newest one added, unless `rollback` moved it. Every change is one transaction: a process killed in the
midst of it leaves the state before. Knows nothing of models; payloads are checked by whoever adds them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from whit.errors import StorageError, UsageError

CURRENT = "current"  # how `rollback` and `history` call what a bare name answers with


class NotFound(UsageError):
    """A name, version or label that the store does not hold."""


@dataclass(frozen=True)
class Held:
    """One version: `payload` is the adapter (see `payload.py`), `digest` its SHA-256, `at` seconds since 1970."""

    name: str
    version: int
    payload: bytes
    digest: bytes
    at: float
    by: str
    card: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """A name in a listing: its current version, how many there are, and its labels."""

    name: str
    version: int
    versions: int
    kind: str
    bytes: int
    at: float
    by: str
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Change:
    """A line of the record: `what` is add, label, rollback, remove or import."""

    at: float
    by: str
    what: str
    name: str
    version: int | None
    detail: str = ""


@dataclass(frozen=True)
class Item:
    """An adapter to be added."""

    name: str
    payload: bytes
    card: Mapping[str, Any] | str | None = None
    labels: Sequence[str] = ()


class Store(ABC):
    """What every store does. All methods may be called from any thread; each raises `StorageError` on a fault."""

    @abstractmethod
    def add_many(self, items: Iterable[Item], *, by: str) -> list[int]:
        """Add a new version for each, all or none; their version numbers. Each becomes its name's current one."""

    @abstractmethod
    def find(self, reference: str, *, card: bool = False) -> Held:
        """The version that a reference means, with its card where asked for. Raises `NotFound`."""

    @abstractmethod
    def versions(self, name: str) -> list[Held]:
        """Every version of a name, the oldest first, without cards. Raises `NotFound`."""

    @abstractmethod
    def listing(self, *, prefix: str = "", after: str = "", limit: int = 1000) -> list[Entry]:
        """Names in order of their letters, those behind `after` that begin with `prefix`."""

    @abstractmethod
    def labels(self, name: str) -> dict[str, int]:
        """The labels of a name, and the version that each is on."""

    @abstractmethod
    def label(self, name: str, label: str, version: int | None, *, by: str) -> None:
        """Put a label on a version, or take it away (None). Raises `NotFound`."""

    @abstractmethod
    def rollback(self, name: str, *, by: str, to: int | None = None, label: str | None = None) -> int:
        """Move what a bare name (or `label`) means to the version before, or to `to`. Raises `NotFound`."""

    @abstractmethod
    def remove(self, name: str, *, by: str, version: int | None = None) -> int:
        """Delete a version, or all of them; how many. Their bytes and cards are overwritten or dropped."""

    @abstractmethod
    def history(self, name: str | None = None, *, limit: int = 1000) -> list[Change]:
        """Who changed what and when, the newest first."""

    @abstractmethod
    def count(self) -> int:
        """How many names there are."""

    @abstractmethod
    def dump(self) -> Iterator[dict[str, Any]]:
        """Everything, as the lines of an export; one consistent state."""

    @abstractmethod
    def take(self, lines: Iterator[dict[str, Any]], *, by: str) -> tuple[int, int]:
        """Add what an export holds, all or nothing: versions added, and those that were there already.

        Raises `UsageError` where a version of that name and number is here with other content.
        """

    @abstractmethod
    def add_token(self, name: str, digest: bytes, rights: Mapping[str, Any], *, by: str) -> None:
        """Keep a server token's hash and its rights under a name. Raises `UsageError` where the name is taken."""

    @abstractmethod
    def token(self, digest: bytes) -> tuple[str, dict[str, Any]] | None:
        """The name and rights of the token with this hash."""

    @abstractmethod
    def tokens(self) -> list[tuple[str, dict[str, Any], float]]:
        """Name, rights and time of each token."""

    @abstractmethod
    def remove_token(self, name: str, *, by: str) -> None:
        """Revoke a token. Raises `NotFound`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file or the connections."""

    def add(
        self,
        name: str,
        payload: bytes,
        *,
        by: str,
        card: Mapping[str, Any] | str | None = None,
        labels: Sequence[str] = (),
    ) -> int:
        """Add a new version; its number."""
        return self.add_many([Item(name, payload, card, labels)], by=by)[0]

    def export(self, path: str | Path) -> int:
        """Write everything into one file of JSON lines, whole or not at all; how many versions."""
        from whit.files import atomic_open

        count = 0
        with atomic_open(path, "w") as file:
            for line in self.dump():
                count += "version" in line and "content" in line
                file.write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")
        return count

    def import_file(self, path: str | Path, *, by: str) -> tuple[int, int]:
        """Add what `export` wrote, all or nothing; versions added, and those that were there already."""
        return self.take(_read_export(Path(path)), by=by)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(where: str | Path, *, read_only: bool = False, create: bool = True) -> Store:
    """The store in a SQLite file or behind a `postgresql://` address. Raises `StorageError` or `UsageError`."""
    if str(where).startswith(("postgresql://", "postgres://")):
        from whit.serving.store_postgres import PostgresStore

        return PostgresStore(str(where), read_only=read_only)
    from whit.serving.store_sqlite import SqliteStore

    return SqliteStore(Path(where), read_only=read_only, create=create)


def _read_export(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an export, checked to be one and to be whole."""
    ended = False
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise UsageError(f"{path}, line {number}: not JSON; this is no export of a store") from error
                if not isinstance(line, dict) or (number == 1 and line.get("whit_store") != 1):
                    raise UsageError(f"{path}, line {number}: this is no export of a store that this whit reads")
                ended = "end" in line
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not ended:
        raise UsageError(f"{path}: the export ends too soon; export the store again")
