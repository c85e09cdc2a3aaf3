"""Both stores do the same: versions that never change, labels, rollback, deletion, a record, export and import."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from whit.errors import StorageError, UsageError
from whit.serving.payload import digest_of
from whit.serving.store import Item, NotFound, Store, open_store

LARGE = bytes(range(256)) * 100


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "whit.db")
    return str(request.getfixturevalue("postgres").address())


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    with open_store(where) as opened:
        yield opened


def test_versions_stay_and_the_newest_is_current(store: Store) -> None:
    assert store.add("team/alice", b"one", by="ann", card={"base": "tiny"}) == 1
    assert store.add("team/alice", b"two", by="bob") == 2
    assert store.add("team/bob", LARGE, by="bob") == 1
    assert store.find("team/alice").payload == b"two"
    first = store.find("team/alice@1", card=True)
    assert (first.payload, first.by, first.card) == (b"one", "ann", {"base": "tiny"})
    assert store.find("team/bob").payload == LARGE and store.find("team/bob").digest == digest_of(LARGE)
    assert abs(first.at - time.time()) < 60
    assert [each.version for each in store.versions("team/alice")] == [1, 2]
    assert store.count() == 2


def test_labels_and_rollback(store: Store) -> None:
    for content in (b"one", b"two", b"three"):
        store.add("alice", content, by="ann")
    store.label("alice", "prod", 3, by="ann")
    assert store.find("alice@prod").payload == b"three"
    assert store.rollback("alice", by="bob", label="prod") == 2
    assert store.find("alice@prod").payload == b"two" and store.find("alice").payload == b"three"
    assert store.rollback("alice", by="bob") == 2 and store.find("alice").payload == b"two"
    assert store.rollback("alice", by="bob", to=1) == 1 and store.find("alice").payload == b"one"
    with pytest.raises(NotFound):
        store.rollback("alice", by="bob")
    assert store.add("alice", b"four", by="ann") == 4 and store.find("alice").payload == b"four"
    store.label("alice", "prod", None, by="ann")
    with pytest.raises(NotFound):
        store.find("alice@prod")
    record = [(each.by, each.what, each.version) for each in store.history("alice")]
    assert ("bob", "rollback", 1) in record and ("ann", "add", 4) in record and ("ann", "label", 3) in record


def test_deleted_is_gone_and_its_number_is_not_used_again(store: Store) -> None:
    store.add("alice", b"one", by="ann", card={"who": "alice"}, labels=["prod"])
    store.add("alice", LARGE, by="ann")
    store.add("bob", LARGE, by="ann")
    assert store.remove("alice", by="bob", version=2) == 1
    assert store.find("alice").payload == b"one"
    assert store.find("bob").payload == LARGE  # it shared the bytes
    assert store.remove("alice", by="bob") == 1
    for reference in ("alice", "alice@1", "alice@prod"):
        with pytest.raises(NotFound):
            store.find(reference)
    assert [entry.name for entry in store.listing()] == ["bob"]
    assert store.add("alice", b"three", by="ann") == 3
    assert {(each.what, each.version) for each in store.history("alice")} >= {("add", 1), ("remove", 1), ("add", 3)}


def test_listing_is_in_order_and_in_pages(store: Store) -> None:
    store.add_many([Item(f"team/u{n:03}", b"whit\x01\x01" + bytes([n])) for n in range(30)], by="ann")
    store.add("other", b"x", by="ann", labels=["prod"])
    names = [entry.name for entry in store.listing(prefix="team/")]
    assert names == [f"team/u{n:03}" for n in range(30)]
    page = store.listing(prefix="team/", after="team/u009", limit=5)
    assert [entry.name for entry in page] == [f"team/u{n:03}" for n in range(10, 15)]
    assert page[0].kind == "tiny" and page[0].bytes == 7
    assert store.listing()[0].labels == {"prod": 1}


@pytest.mark.parametrize(
    "name",
    ["", "..", "../etc", "a/../b", "/abs", "a//b", "a b", "a@b", "a\0b", "ünï", "a/b/c/d/e", "whit1_x", "x" * 200],
)
def test_what_is_no_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError):
        store.add(name, b"x", by="ann")
    with pytest.raises(UsageError):
        store.find(name)
    assert store.count() == 0


def test_a_failed_addition_leaves_nothing(store: Store) -> None:
    with pytest.raises(UsageError):
        store.add_many([Item("alice", b"one"), Item("../bob", b"two")], by="ann")
    assert store.count() == 0 and store.history() == []


def test_export_and_import_give_the_same_store(store: Store, tmp_path: Path) -> None:
    store.add("alice", b"one", by="ann", card={"n": 1}, labels=["prod"])
    store.add("alice", LARGE, by="bob", card={"n": 1})
    store.add("alice", b"three", by="bob")
    store.add("gone", b"x", by="bob")
    store.remove("gone", by="bob")
    store.remove("alice", by="bob", version=3)
    store.rollback("alice", by="cat")
    assert store.export(tmp_path / "all.jsonl") == 2
    with open_store(tmp_path / "copy.db") as copy:
        assert copy.import_file(tmp_path / "all.jsonl", by="dan") == (2, 0)
        assert copy.import_file(tmp_path / "all.jsonl", by="dan") == (0, 2)
        assert copy.find("alice").payload == b"one" and copy.find("alice@2").payload == LARGE
        assert copy.find("alice@2", card=True).card == {"n": 1} and copy.labels("alice") == {"prod": 1}
        assert copy.find("alice@2").by == "bob"
        assert copy.add("alice", b"four", by="dan") == 4 and copy.add("gone", b"y", by="dan") == 2
        same = [(each.by, each.what, each.version) for each in store.history("alice")]
        assert same == [(each.by, each.what, each.version) for each in copy.history("alice") if each.by != "dan"]


def test_import_refuses_what_contradicts_and_what_is_cut(store: Store, tmp_path: Path) -> None:
    store.add("alice", b"one", by="ann")
    store.add("bob", b"two", by="ann")
    path = tmp_path / "all.jsonl"
    store.export(path)
    with open_store(tmp_path / "other.db") as other:
        other.add("bob", b"another", by="ann")
        with pytest.raises(UsageError, match="other content"):
            other.import_file(path, by="ann")
        assert other.count() == 1
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[:-1]))
    with open_store(tmp_path / "fresh.db") as other:
        with pytest.raises(UsageError, match="ends too soon"):
            other.import_file(path, by="ann")
        for damaged in ("{", "[]", '{"whit_store": 2}', json.dumps({"whit_store": 1, "name": 3})):
            path.write_text(damaged + "\n" + lines[1] + "\n")
            with pytest.raises(UsageError):
                other.import_file(path, by="ann")
        for line in (
            {"name": "../x", "version": 1, "content": "YQ=="},
            {"name": "x", "version": -1, "content": "YQ=="},
            {"name": "x", "version": 1, "content": "?"},
            {"name": "x", "version": 1, "blob_of": 9},
        ):
            path.write_text("\n".join([lines[0], json.dumps({**line, "at": 1, "by": "x"}), lines[-1]]))
            with pytest.raises(UsageError):
                other.import_file(path, by="ann")
        assert other.count() == 0


def test_tokens_are_kept_by_their_hash(store: Store) -> None:
    store.add_token("ci", digest_of(b"secret"), {"use": ["*"]}, by="ann")
    assert store.token(digest_of(b"secret")) == ("ci", {"use": ["*"]}) and store.token(digest_of(b"other")) is None
    with pytest.raises(UsageError):
        store.add_token("ci", digest_of(b"x"), {}, by="ann")
    store.remove_token("ci", by="ann")
    assert store.token(digest_of(b"secret")) is None and store.tokens() == []


def _write(where: str, name: str, count: int) -> None:
    with open_store(where) as opened:
        for number in range(count):
            opened.add("shared", f"{name}-{number}".encode(), by=name)


def test_two_processes_writing_at_once_lose_nothing(store: Store, where: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(where, name, 40)) for name in ("ann", "bob")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    held = store.versions("shared")
    assert [each.version for each in held] == list(range(1, 81))
    assert {each.payload for each in held} == {f"{n}-{i}".encode() for n in ("ann", "bob") for i in range(40)}


_KILLED = """
import sys
from whit.serving.store import Item, open_store
store = open_store(sys.argv[1])
number = 0
while True:
    store.add_many([Item(f"a{number}", b"x" * 5000 + bytes([part])) for part in range(3)], by="x")
    print(number, flush=True)
    number += 1
"""


def test_killed_while_writing_the_last_committed_state_remains(store: Store, where: str) -> None:
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", _KILLED, where], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(3)]
            time.sleep(0.03)
            os.kill(child.pid, signal.SIGKILL)
            said += child.stdout.readlines()
        entries = store.listing()
        done = int(said[-1])
        assert done <= max(int(entry.name[1:]) for entry in entries) <= done + 1
        assert all(entry.versions % 3 == 0 for entry in entries)
        for entry in entries:
            store.remove(entry.name, by="x")


def test_threads_may_share_a_store(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(name: int) -> int:
        store.add(f"u{name}", b"x", by="ann")
        return store.find(f"u{name}").version

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(20))) == [1] * 20


def test_deleted_bytes_are_not_in_the_file(tmp_path: Path) -> None:
    secret = b"a-secret-payload-that-must-go"
    with open_store(tmp_path / "whit.db") as store:
        store.add("alice", secret, by="ann")
        store.add("bob", secret * 400, by="ann", card={"note": secret.decode()})
        store.remove("alice", by="ann")
        store.remove("bob", by="ann")
        left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret not in left


def test_a_sqlite_store_is_one_file_when_closed(tmp_path: Path) -> None:
    with open_store(tmp_path / "whit.db") as store:
        store.add("alice", b"x", by="ann")
    assert [path.name for path in tmp_path.iterdir()] == ["whit.db"]


def refuses(action: Callable[[], Any], said: str) -> None:
    with pytest.raises(StorageError, match=said):
        action()


def test_faults_of_a_sqlite_file_are_told(tmp_path: Path) -> None:
    from whit.serving.store_sqlite import SqliteStore

    path = tmp_path / "whit.db"
    refuses(lambda: open_store(path, create=False), "no store at")
    with open_store(path) as store:
        store.add("alice", b"x", by="ann")
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        with SqliteStore(path, wait=0.2) as other:
            refuses(lambda: other.add("bob", b"x", by="ann"), "writing to it")
            assert other.find("alice").payload == b"x"  # readers go on
        lock.execute("ROLLBACK")
        lock.close()
        # A disk that is full is one on which the file may not grow.
        connection = store._connection()  # type: ignore[attr-defined]
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
        refuses(lambda: store.add("bob", LARGE * 4, by="ann"), "disk is full")
        assert store.find("alice").payload == b"x" and store.count() == 1
    with open_store(path, read_only=True) as store:
        assert store.find("alice").payload == b"x"
        refuses(lambda: store.add("bob", b"x", by="ann"), "read-only")
    content = bytearray(path.read_bytes())
    path.write_bytes(b"not a database" * 100)
    refuses(lambda: open_store(path), "not a store")
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    refuses(lambda: open_store(path).find("alice"), "damaged|not a store|malformed")
    path.unlink()
    strange = sqlite3.connect(path)
    strange.execute("CREATE TABLE mine (x)")
    strange.close()
    refuses(lambda: open_store(path), "not a store of whit")
    refuses(lambda: open_store(tmp_path), "cannot be opened")


def test_a_restarted_postgres_is_found_again(own_postgres: Any) -> None:
    with open_store(own_postgres.address()) as store:
        store.add("alice", b"x", by="ann")
        own_postgres.stop()
        try:
            refuses(lambda: store.find("alice"), "cannot be reached")
        finally:
            own_postgres.start()
        assert store.find("alice").payload == b"x"
        own_postgres.stop()
        own_postgres.start()
        assert store.add("alice", b"y", by="ann") == 2


def test_a_postgres_address_is_not_repeated() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError) as told:
        open_store("postgresql://user:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(told.value)
