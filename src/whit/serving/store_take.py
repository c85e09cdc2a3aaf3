"""Reading an export back into a store, within the transaction that it is handed.

Every line is checked before it is written: an export may come from anywhere. Versions keep their numbers, times and
authors. Knows nothing of files.
"""

from __future__ import annotations

import json
from typing import Any

from whit.errors import UsageError
from whit.serving.names import check_label, check_name
from whit.serving.payload import MAX_PAYLOAD
from whit.serving.store_rows import (
    MAX_CARD,
    Session,
    from_text,
    must_have,
    now,
    person,
    put_blob,
    put_label,
    put_version,
    record,
)

_LARGEST_TIME = 1 << 52


class Taking:
    """One import: call it with each line, then `finish`."""

    def __init__(self, run: Session, by: str) -> None:
        self._run, self._by = run, person(run, by)
        self._blobs: dict[int, bytes] = {}
        self._people: dict[str, int] = {}
        self._new: set[str] = set()
        self._old: set[str] = set()
        self._added = self._there = 0

    def __call__(self, line: dict[str, Any]) -> None:
        """Check and write one line. Raises `UsageError`."""
        if "blob" in line:
            content = from_text(line.get("content"))
            if len(content) > MAX_PAYLOAD:
                raise UsageError("the export holds an adapter that is too large for a store")
            self._blobs[_integer(line, "blob")] = content
        elif "head" in line:
            self._head(line)
        elif "label" in line:
            name, label = check_name(_string(line, "name")), check_label(_string(line, "label"))
            if name in self._new and name not in self._old:
                must_have(self._run, name, _integer(line, "version"))
                put_label(self._run, name, label, line["version"])
        elif "change" in line:
            self._change(line)
        elif "name" in line:
            self._version(line)

    def finish(self) -> tuple[int, int]:
        """How many versions were added, and how many were there already."""
        for name in self._new:
            # Whatever the export claims, numbers go on behind the last one and the current version is one there is.
            self._run(
                "UPDATE names SET last = (SELECT MAX(v.version) FROM versions v WHERE v.name = names.name)"
                " WHERE name = ? AND last < (SELECT MAX(v.version) FROM versions v WHERE v.name = names.name)",
                (name,),
            )
            self._run(
                "UPDATE names SET current = (SELECT MAX(v.version) FROM versions v WHERE v.name = names.name)"
                " WHERE name = ? AND (current IS NULL OR NOT EXISTS"
                " (SELECT 1 FROM versions v WHERE v.name = names.name AND v.version = names.current))",
                (name,),
            )
        if self._added:
            record(self._run, self._by, "import", "store", None, f"{self._added} versions")
        return self._added, self._there

    def _version(self, line: dict[str, Any]) -> None:
        name, version = check_name(_string(line, "name")), _integer(line, "version")
        payload = self._blob_of(line, "blob_of") if "blob_of" in line else from_text(line.get("content"))
        if not 1 <= version < 1_000_000_000 or not payload:
            raise UsageError(f"the export is damaged: {name} has no version {version}, or nothing in it")
        found = self._run(
            "SELECT v.content, b.content FROM versions v LEFT JOIN blobs b ON b.id = v.blob"
            " WHERE v.name = ? AND v.version = ?",
            (name, version),
        )
        if found:
            if bytes(found[0][0] if found[0][0] is not None else found[0][1]) != payload:
                raise UsageError(f"{name}@{version} is in the store with other content; nothing was imported")
            self._there += 1
            self._old.add(name)
            return
        known = self._run("SELECT last FROM names WHERE name = ?", (name,))
        if not known:
            self._run("INSERT INTO names (name, last, current) VALUES (?, ?, ?)", (name, version, version))
        elif name not in self._new:
            self._old.add(name)
            if version <= int(known[0][0]):
                raise UsageError(f"{name}@{version} was in this store and was deleted; nothing was imported")
        self._new.add(name)
        card = None
        if line.get("card") is not None:
            text = self._blob_of(line, "card")
            if len(text) > MAX_CARD:
                raise UsageError(f"{name}@{version}: a card of {len(text):,} bytes; at most {MAX_CARD:,} are kept")
            try:
                json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{name}@{version}: the card in the export is not JSON") from error
            card = put_blob(self._run, text)
        put_version(self._run, name, version, payload, card, _time(line), self._person(_string(line, "by")))
        self._added += 1

    def _head(self, line: dict[str, Any]) -> None:
        name, last = check_name(_string(line, "head")), _integer(line, "last")
        if name in self._new:
            if name not in self._old:
                self._run("UPDATE names SET last = ?, current = ? WHERE name = ?", (last, line.get("current"), name))
        elif not self._run("SELECT 1 FROM names WHERE name = ?", (name,)):
            # All its versions were deleted: their numbers stay used.
            self._run("INSERT INTO names (name, last, current) VALUES (?, ?, NULL)", (name, last))

    def _change(self, line: dict[str, Any]) -> None:
        name = check_name(_string(line, "name"))
        if name in self._old:
            return
        number = None if line.get("number") is None else _integer(line, "number")
        what, detail = _string(line, "change")[:32], _string(line, "detail")[:200]
        record(self._run, self._person(_string(line, "by")), what, name, number, detail, _time(line))

    def _person(self, name: str) -> int:
        if name not in self._people:
            self._people[name] = person(self._run, name)
        return self._people[name]

    def _blob_of(self, line: dict[str, Any], key: str) -> bytes:
        number = _integer(line, key)
        if number not in self._blobs:
            raise UsageError("the export is damaged: it lacks a content that it refers to")
        return self._blobs[number]


def _string(line: dict[str, Any], key: str) -> str:
    value = line.get(key)
    if not isinstance(value, str):
        raise UsageError(f"the export is damaged: {key} is no text in {str(line)[:80]}")
    return value


def _integer(line: dict[str, Any], key: str) -> int:
    value = line.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise UsageError(f"the export is damaged: {key} is no whole number in {str(line)[:80]}")
    return value


def _time(line: dict[str, Any]) -> int:
    value = line.get("at")
    return value if isinstance(value, int) and 0 <= value < _LARGEST_TIME else now()
