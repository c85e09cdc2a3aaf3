"""What SQLite and PostgreSQL stores share: the statements, written in the SQL that both read.

A driver gives `_read` (one statement, one consistent state), `_reading` (several in one state) and `_writing` (one
transaction, one writer at a time). Small payloads lie in their version's own row; larger ones and cards lie in
`blobs` once for each content, and go when the last version that uses them goes. Values are always bound, never
written into a statement. An addition is recorded by its version's own row, until that is deleted.
"""

# ruff: noqa: D102 -- the methods are described where they are declared, in `Store`.

from __future__ import annotations

import contextlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from whit.errors import UsageError
from whit.serving.names import Reference, check_label, check_name, parse_reference
from whit.serving.payload import MAX_PAYLOAD, kind_of
from whit.serving.store import CURRENT, Change, Entry, Held, Item, NotFound, Store
from whit.serving.store_rows import (
    Rows,
    Session,
    absent,
    held_of,
    must_have,
    now,
    pages,
    person,
    put_card,
    put_label,
    put_version,
    record,
    to_text,
)

_HIGH = "~"  # behind every letter that a name may have

SCHEMA = (
    "CREATE TABLE {p}people (id {serial}, name {text} NOT NULL UNIQUE)",
    "CREATE TABLE {p}blobs (id {serial}, digest {bytes} NOT NULL UNIQUE, content {bytes} NOT NULL)",
    "CREATE TABLE {p}names (name {text} NOT NULL PRIMARY KEY, last INTEGER NOT NULL, current INTEGER) {compact}",
    "CREATE TABLE {p}versions (name {text} NOT NULL, version INTEGER NOT NULL, content {bytes}, blob {big},"
    " card {big}, at {big} NOT NULL, by_id {big} NOT NULL, PRIMARY KEY (name, version)) {compact}",
    "CREATE INDEX {p}versions_blob ON {p}versions (blob) WHERE blob IS NOT NULL",
    "CREATE INDEX {p}versions_card ON {p}versions (card) WHERE card IS NOT NULL",
    "CREATE TABLE {p}labels (name {text} NOT NULL, label {text} NOT NULL, version INTEGER NOT NULL,"
    " PRIMARY KEY (name, label)) {compact}",
    "CREATE TABLE {p}changes (id {serial}, at {big} NOT NULL, by_id {big} NOT NULL, what {text} NOT NULL,"
    " name {text} NOT NULL, version INTEGER, detail {text} NOT NULL)",
    "CREATE INDEX {p}changes_name ON {p}changes (name)",
    "CREATE TABLE {p}tokens (name {text} NOT NULL PRIMARY KEY, digest {bytes} NOT NULL UNIQUE,"
    " rights {text} NOT NULL, at {big} NOT NULL)",
)

_VERSION = (
    "SELECT v.name, v.version, v.content, b.content, v.at, p.name, v.card FROM versions v"
    " JOIN people p ON p.id = v.by_id LEFT JOIN blobs b ON b.id = v.blob"
)


class SqlStore(Store):
    """The store over a driver."""

    @abstractmethod
    def _read(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """One statement that changes nothing."""

    @abstractmethod
    def _reading(self) -> contextlib.AbstractContextManager[Session]:
        """Several statements that see one state."""

    @abstractmethod
    def _writing(self) -> contextlib.AbstractContextManager[Session]:
        """One transaction; no other writer until it ends."""

    def _deleted(self) -> None:
        """Called after something was deleted."""

    # -- reading

    def find(self, reference: str, *, card: bool = False) -> Held:
        asked = parse_reference(reference)
        if asked.version is not None:
            found = self._read(f"{_VERSION} WHERE v.name = ? AND v.version = ?", (asked.name, asked.version))
        elif asked.label is not None:
            found = self._read(
                f"{_VERSION} JOIN labels l ON l.name = v.name AND l.version = v.version"
                " WHERE l.name = ? AND l.label = ?",
                (asked.name, asked.label),
            )
        else:
            found = self._read(
                f"{_VERSION} JOIN names n ON n.name = v.name AND n.current = v.version WHERE n.name = ?", (asked.name,)
            )
        if not found:
            raise absent(asked)
        held = held_of(found[0])
        if not card or found[0][6] is None:
            return held
        text = self._read("SELECT content FROM blobs WHERE id = ?", (found[0][6],))
        about = json.loads(bytes(text[0][0])) if text else None
        return Held(held.name, held.version, held.payload, held.digest, held.at, held.by, about)

    def versions(self, name: str) -> list[Held]:
        found = self._read(f"{_VERSION} WHERE v.name = ? ORDER BY v.version", (check_name(name),))
        if not found:
            raise absent(Reference(name))
        return [held_of(row) for row in found]

    def listing(self, *, prefix: str = "", after: str = "", limit: int = 1000) -> list[Entry]:
        statement = (
            "SELECT n.name, v.version, (SELECT COUNT(*) FROM versions w WHERE w.name = n.name), v.content,"
            " substr(b.content, 1, 8), COALESCE(length(v.content), length(b.content)), v.at, p.name"
            " FROM names n JOIN versions v ON v.name = n.name AND v.version = n.current"
            " JOIN people p ON p.id = v.by_id LEFT JOIN blobs b ON b.id = v.blob"
            " WHERE n.name > ? AND n.name >= ? AND n.name < ? ORDER BY n.name LIMIT ?"
        )
        with self._reading() as run:
            rows = run(statement, (after, prefix, prefix + _HIGH, limit))
            labels: dict[str, dict[str, int]] = {}
            if rows:
                span = (rows[0][0], rows[-1][0])
                for name, label, version in run(
                    "SELECT name, label, version FROM labels WHERE name >= ? AND name <= ?", span
                ):
                    labels.setdefault(name, {})[label] = version
        return [
            Entry(row[0], row[1], row[2], kind_of(bytes(row[3] or row[4])), row[5], row[6] / 1000, row[7],
                  labels.get(row[0], {}))
            for row in rows
        ]  # fmt: skip

    def labels(self, name: str) -> dict[str, int]:
        return dict(self._read("SELECT label, version FROM labels WHERE name = ?", (check_name(name),)))

    def history(self, name: str | None = None, *, limit: int = 1000) -> list[Change]:
        where = "" if name is None else "WHERE x.name = ?"
        values: tuple[Any, ...] = () if name is None else (check_name(name),)
        changes = self._read(
            f"SELECT x.at, p.name, x.what, x.name, x.version, x.detail FROM changes x JOIN people p ON p.id = x.by_id"
            f" {where} ORDER BY x.id DESC LIMIT ?",
            (*values, limit),
        )
        added = self._read(
            f"SELECT x.at, p.name, 'add', x.name, x.version, '' FROM versions x JOIN people p ON p.id = x.by_id"
            f" {where} ORDER BY x.at DESC LIMIT ?",
            (*values, limit),
        )
        every = sorted([*changes, *added], key=lambda row: -row[0])
        return [Change(row[0] / 1000, *row[1:]) for row in every[:limit]]

    def count(self) -> int:
        return int(self._read("SELECT COUNT(*) FROM names WHERE current IS NOT NULL")[0][0])

    # -- writing

    def add_many(self, items: Iterable[Item], *, by: str) -> list[int]:
        versions = []
        with self._writing() as run:
            who, at = person(run, by), now()
            cards: dict[str, int] = {}
            for item in items:
                check_name(item.name)
                if len(item.payload) > MAX_PAYLOAD:
                    raise UsageError(f"{item.name}: {len(item.payload):,} bytes; at most {MAX_PAYLOAD:,} are kept")
                found = run(
                    "INSERT INTO names (name, last, current) VALUES (?, 1, 1)"
                    " ON CONFLICT (name) DO UPDATE SET last = names.last + 1, current = names.last + 1 RETURNING last",
                    (item.name,),
                )
                version = int(found[0][0])
                put_version(run, item.name, version, item.payload, put_card(run, item, cards), at, who)
                for label in item.labels:
                    put_label(run, item.name, check_label(label), version)
                    record(run, who, "label", item.name, version, label)
                versions.append(version)
        return versions

    def label(self, name: str, label: str, version: int | None, *, by: str) -> None:
        check_name(name)
        check_label(label)
        with self._writing() as run:
            if version is not None:
                must_have(run, name, version)
                put_label(run, name, label, version)
            elif not run("DELETE FROM labels WHERE name = ? AND label = ? RETURNING version", (name, label)):
                raise absent(Reference(name, label=label))
            record(run, person(run, by), "label", name, version, label if version is not None else f"-{label}")

    def rollback(self, name: str, *, by: str, to: int | None = None, label: str | None = None) -> int:
        check_name(name)
        with self._writing() as run:
            if label is None:
                found = run("SELECT current FROM names WHERE name = ? AND current IS NOT NULL", (name,))
            else:
                found = run("SELECT version FROM labels WHERE name = ? AND label = ?", (name, check_label(label)))
            if not found:
                raise absent(Reference(name, label=label))
            here = int(found[0][0])
            if to is None:
                before = run("SELECT MAX(version) FROM versions WHERE name = ? AND version < ?", (name, here))[0][0]
                if before is None:
                    raise NotFound(f"{name} has no version before {here} to go back to")
                to = int(before)
            else:
                must_have(run, name, to)
            if label is None:
                run("UPDATE names SET current = ? WHERE name = ?", (to, name))
            else:
                put_label(run, name, label, to)
            record(run, person(run, by), "rollback", name, to, f"{label or CURRENT} from {here}")
        return to

    def remove(self, name: str, *, by: str, version: int | None = None) -> int:
        check_name(name)
        with self._writing() as run:
            where, values = "name = ?", (name,) if version is None else (name, version)
            if version is not None:
                where += " AND version = ?"
            gone = run(f"DELETE FROM versions WHERE {where} RETURNING version, at, by_id, blob, card", values)
            if not gone:
                raise absent(Reference(name, version))
            who = person(run, by)
            for number, at, adder, _, _ in sorted(gone):
                # The version's row recorded its addition; that stays known.
                run(
                    "INSERT INTO changes (at, by_id, what, name, version, detail) VALUES (?, ?, 'add', ?, ?, '')",
                    (at, adder, name, number),
                )
                record(run, who, "remove", name, number, "")
            run(f"DELETE FROM labels WHERE {where}", values)
            run(
                "UPDATE names SET current = (SELECT MAX(v.version) FROM versions v WHERE v.name = names.name)"
                " WHERE name = ? AND NOT EXISTS"
                " (SELECT 1 FROM versions v WHERE v.name = names.name AND v.version = names.current)",
                (name,),
            )
            for blob in {part for row in gone for part in row[3:] if part is not None}:
                run(
                    "DELETE FROM blobs WHERE id = ? AND NOT EXISTS (SELECT 1 FROM versions WHERE blob = ?)"
                    " AND NOT EXISTS (SELECT 1 FROM versions WHERE card = ?)",
                    (blob, blob, blob),
                )
        self._deleted()
        return len(gone)

    # -- tokens

    def add_token(self, name: str, digest: bytes, rights: Mapping[str, Any], *, by: str) -> None:
        check_name(name)
        with self._writing() as run:
            if run("SELECT 1 FROM tokens WHERE name = ?", (name,)):
                raise UsageError(f"there is a token {name} already; remove it first, or choose another name")
            text = json.dumps(rights, sort_keys=True)
            run("INSERT INTO tokens (name, digest, rights, at) VALUES (?, ?, ?, ?)", (name, digest, text, now()))
            record(run, person(run, by), "token", name, None, "")

    def token(self, digest: bytes) -> tuple[str, dict[str, Any]] | None:
        found = self._read("SELECT name, rights FROM tokens WHERE digest = ?", (digest,))
        return (found[0][0], json.loads(found[0][1])) if found else None

    def tokens(self) -> list[tuple[str, dict[str, Any], float]]:
        rows = self._read("SELECT name, rights, at FROM tokens ORDER BY name")
        return [(name, json.loads(rights), at / 1000) for name, rights, at in rows]

    def remove_token(self, name: str, *, by: str) -> None:
        with self._writing() as run:
            if not run("DELETE FROM tokens WHERE name = ? RETURNING name", (check_name(name),)):
                raise NotFound(f"there is no token {name}")
            record(run, person(run, by), "token", name, None, "-")
        self._deleted()

    # -- the whole store

    def dump(self) -> Iterator[dict[str, Any]]:
        yield {"whit_store": 1}
        count = 0
        with self._reading() as run:
            for number, content in pages(
                run, "SELECT id, content FROM blobs WHERE id > ? ORDER BY id LIMIT 100", 1, (0,)
            ):
                yield {"blob": number, "content": to_text(content)}
            rows = pages(
                run,
                "SELECT v.name, v.version, v.content, v.blob, v.card, v.at, p.name FROM versions v JOIN people p"
                " ON p.id = v.by_id WHERE (v.name, v.version) > (?, ?) ORDER BY v.name, v.version LIMIT 1000",
                2,
                ("", 0),
            )
            for name, version, content, blob, card, at, by in rows:
                kept = {"blob_of": blob} if content is None else {}
                yield {"name": name, "version": version, "content": to_text(content or b""), **kept, "card": card,
                       "at": at, "by": by}  # fmt: skip
                count += 1
            for name, last, current in pages(
                run, "SELECT name, last, current FROM names WHERE name > ? ORDER BY name LIMIT 1000", 1, ("",)
            ):
                yield {"head": name, "last": last, "current": current}
            for name, label, version in run("SELECT name, label, version FROM labels ORDER BY name, label"):
                yield {"label": label, "name": name, "version": version}
            for at, by, what, name, number, detail in run(
                "SELECT c.at, p.name, c.what, c.name, c.version, c.detail FROM changes c JOIN people p"
                " ON p.id = c.by_id WHERE c.what <> 'token' ORDER BY c.id"
            ):
                yield {"change": what, "at": at, "by": by, "name": name, "number": number, "detail": detail}
        yield {"end": count}

    def take(self, lines: Iterator[dict[str, Any]], *, by: str) -> tuple[int, int]:
        from whit.serving.store_take import Taking

        with self._writing() as run:
            taking = Taking(run, by)
            for line in lines:
                taking(line)
            return taking.finish()
