"""The ledger in PostgreSQL, against a real server where the machine has one (skipped with the reason otherwise)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from serving.conftest import Postgres
from serving.conftest import own_postgres as own_postgres
from serving.conftest import postgres as postgres
from test_ledger import ONE
from upstreams import TIERS, FakeModel, call, config, gateway, say

from whit.routing.app import App
from whit.routing.errors import ConfigError
from whit.routing.ledger import Ledger, read_ledger
from whit.routing.report import summarise
from whit.settings import RouteSettings
from whit.verbs.route import route

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")


def test_what_goes_in_comes_out(postgres: Postgres) -> None:
    address = postgres.address()
    with pytest.raises(ConfigError, match="no ledger in this database yet") as told:
        list(read_ledger(address))
    assert address not in str(told.value)
    ledger = Ledger(address)
    assert ledger.spent("t", 0) == 0
    records = [replace(ONE, at=ONE.at + at, cost=0.25 * at, confidence=None, label="é'\"; --") for at in range(2500)]
    for record in records:
        ledger.add(record)
    ledger.add(replace(ONE, at=ONE.at + 2500, reason="a\0b"))
    ledger.close()
    found = list(read_ledger(address))
    assert found[:-1] == records and found[-1].reason == "ab" and ledger.lost == 0
    assert list(read_ledger(address, ONE.at + 2499)) == found[2499:]
    assert ledger.spent("t", ONE.at + 2498) == 0.25 * (2498 + 2499)
    assert ledger.spent("'; DROP TABLE whit.requests; --", 0) == 0
    assert summarise(read_ledger(address)).requests == 2501


def test_two_ledgers_may_begin_at_once(postgres: Postgres) -> None:
    address = postgres.address()
    several = [Ledger(address) for _ in range(4)]
    for each in several:
        each.add(ONE)
    for each in several:
        each.close()
    assert len(list(read_ledger(address))) == 4 and not any(each.lost for each in several)


def test_a_server_that_restarts_loses_what_came_meanwhile_and_counts_it(own_postgres: Postgres) -> None:
    address = own_postgres.address()
    ledger = Ledger(address, patience=1.0)

    def settle() -> None:
        until = time.monotonic() + 20
        before = ledger.lost + ledger.written
        while ledger.lost + ledger.written == before and time.monotonic() < until:
            time.sleep(0.02)

    ledger.add(ONE)
    settle()
    own_postgres.stop()
    try:
        began = time.monotonic()
        ledger.add(ONE)
        assert time.monotonic() - began < 0.5 and ledger.spent("t", 0) == 0
        settle()
    finally:
        own_postgres.start()
    ledger.add(ONE)
    ledger.close()
    assert (ledger.written, ledger.lost) == (2, 1) and len(list(read_ledger(address))) == 2


def test_a_locked_table_stops_no_request(postgres: Postgres) -> None:
    address = postgres.address()
    first = Ledger(address)
    first.add(ONE)
    first.close()
    with psycopg.connect(address) as other:
        other.execute("LOCK TABLE whit.requests IN ACCESS EXCLUSIVE MODE")
        ledger = Ledger(address, patience=0.1)
        ledger.add(ONE)
        ledger.close()
        assert ledger.lost == 1


def test_the_gateway_writes_it_and_the_report_reads_it(postgres: Postgres, tmp_path: Path) -> None:
    address = postgres.address()
    made = gateway(config(tmp_path, text=TIERS.replace('ledger = ""', f'ledger = "{address}"')), model=FakeModel())

    async def one() -> int:
        reply = await call(App(made), say("hello"))
        await made.close()
        return reply.status

    assert asyncio.run(one()) == 200
    found = route(RouteSettings(words=("report", address)))
    assert found is not None and found.to_json()["requests"] == 1
