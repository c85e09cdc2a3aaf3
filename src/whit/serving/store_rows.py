"""The statements that more than one part of a store over SQL needs; each runs in the transaction it is handed.

Knows nothing of files or connections.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from whit.errors import UsageError
from whit.serving.names import Reference
from whit.serving.payload import digest_of
from whit.serving.store import Held, Item, NotFound

INLINE = 4096  # bytes; a larger payload lies in `blobs`
MAX_CARD = 1 << 20

Rows = list[tuple[Any, ...]]


class Session(Protocol):
    """A transaction under way."""

    def __call__(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Run one statement; its rows."""


def pages(run: Session, statement: str, key: int, start: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """All rows, some at a time; the first `key` columns are where the next page begins."""
    at = start
    while rows := run(statement, at):
        yield from rows
        at = tuple(rows[-1][:key])


def to_text(content: Any) -> str:
    """Base64, as an export holds it."""
    return base64.b64encode(bytes(content)).decode("ascii")


def from_text(text: Any) -> bytes:
    """The bytes behind `to_text`. Raises `UsageError`."""
    try:
        return base64.b64decode(str(text).encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise UsageError("the export is damaged: a content in it is not base64") from error


def held_of(row: tuple[Any, ...]) -> Held:
    """A version from its row."""
    payload = bytes(row[2] if row[2] is not None else row[3])
    return Held(row[0], row[1], payload, digest_of(payload), row[4] / 1000, row[5])


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def person(run: Session, name: str) -> int:
    """The number of a person, made where there is none."""
    found = run("SELECT id FROM people WHERE name = ?", (name,))
    if not found:
        found = run("INSERT INTO people (name) VALUES (?) RETURNING id", (name[:200],))
    return int(found[0][0])


def put_blob(run: Session, content: bytes) -> int:
    """The number of a content, put there where it is new."""
    digest = digest_of(content)
    found = run("SELECT id FROM blobs WHERE digest = ?", (digest,))
    if not found:
        found = run("INSERT INTO blobs (digest, content) VALUES (?, ?) RETURNING id", (digest, content))
    return int(found[0][0])


def put_card(run: Session, item: Item, known: dict[str, int]) -> int | None:
    """The number of an item's card, if it has one. Raises `UsageError` where it is too large."""
    if item.card is None:
        return None
    text = item.card if isinstance(item.card, str) else json.dumps(item.card, sort_keys=True, ensure_ascii=False)
    content = text.encode()
    if len(content) > MAX_CARD:
        raise UsageError(f"{item.name}: a card of {len(content):,} bytes; at most {MAX_CARD:,} are kept")
    key = hashlib.sha256(content).hexdigest()
    if key not in known:
        known[key] = put_blob(run, content)
    return known[key]


def put_version(run: Session, name: str, version: int, payload: bytes, card: int | None, at: int, who: int) -> None:
    """Write a version's row."""
    inline = len(payload) <= INLINE
    run(
        "INSERT INTO versions (name, version, content, blob, card, at, by_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, version, payload if inline else None, None if inline else put_blob(run, payload), card, at, who),
    )


def put_label(run: Session, name: str, label: str, version: int) -> None:
    """Put a label on a version."""
    run(
        "INSERT INTO labels (name, label, version) VALUES (?, ?, ?)"
        " ON CONFLICT (name, label) DO UPDATE SET version = excluded.version",
        (name, label, version),
    )


def record(
    run: Session, who: int, what: str, name: str, version: int | None, detail: str, at: int | None = None
) -> None:
    """Write a line of the record."""
    run(
        "INSERT INTO changes (at, by_id, what, name, version, detail) VALUES (?, ?, ?, ?, ?, ?)",
        (now() if at is None else at, who, what, name, version, detail),
    )


def must_have(run: Session, name: str, version: int) -> None:
    """Raise `NotFound` where there is no such version."""
    if not run("SELECT 1 FROM versions WHERE name = ? AND version = ?", (name, version)):
        raise absent(Reference(name, version))


def absent(reference: Reference) -> NotFound:
    """What is raised where a reference leads nowhere."""
    return NotFound(f"there is no adapter {reference} in the store; see `whit store list`")
