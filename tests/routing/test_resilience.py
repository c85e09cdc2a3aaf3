"""Breakers, pauses, budgets and keys that repeat, each by its own clock."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.routing.config import Tenant
from whit.routing.errors import Refused
from whit.routing.resilience import Breaker, Budgets, Idempotency, pause, period_start


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_breaker_rests_tries_once_and_closes() -> None:
    clock = Clock()
    breaker = Breaker(most=3, rest=10, clock=clock)
    for _ in range(3):
        assert breaker.begin()
        breaker.failure()
    assert breaker.open and not breaker.begin()
    clock.now += 11
    assert breaker.begin() and not breaker.begin()  # one trial only
    breaker.failure()
    assert not breaker.begin()
    clock.now += 11
    assert breaker.begin()
    breaker.success()
    assert breaker.begin() and not breaker.open


def test_pauses_grow_have_jitter_and_heed_the_deadline() -> None:
    assert len({pause(3, 0, 100) for _ in range(20)}) > 10
    assert all(0 <= (pause(9, 0, 100) or 0) <= 5 for _ in range(50))
    assert pause(0, 7, 100) == 7 and pause(0, 7, 5) is None


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), max_size=30))
@settings(deadline=None)
def test_no_order_of_reservations_goes_over_the_budget(moves: list[tuple[float, float]]) -> None:
    budgets = Budgets({"t": Tenant("t", "p", budget=5.0)}, clock=Clock())
    spent, open_ = 0.0, []
    for amount, part in moves:
        reservation = budgets.reserve("t", amount)
        if reservation is not None:
            open_.append(reservation)
        if open_ and part > 0.5:
            done = open_.pop(0)
            budgets.settle(done, done.amount * part)
            budgets.settle(done, done.amount)  # a second time changes nothing
            spent += done.amount * part
        assert spent + sum(each.amount for each in open_) <= 5.0 + 1e-6


def test_a_budget_knows_what_was_spent_before_and_when_it_begins_anew() -> None:
    clock = Clock()
    budgets = Budgets({"t": Tenant("t", "p", budget=5.0, period="hour")}, spent=lambda tenant, since: 4.5, clock=clock)
    assert budgets.reserve("t", 1.0) is None and budgets.reserve("t", 0.4) is not None
    clock.now += 3600
    assert budgets.reserve("t", 4.0) is not None


def test_periods() -> None:
    assert period_start("month", 1_700_000_000) == 1_698_796_800  # 2023-11-01
    assert period_start("day", 1_700_000_000) == 1_699_920_000 and period_start("ever", 5) == 0


def test_keys_that_repeat() -> None:
    async def run() -> None:
        clock = Clock()
        keys = Idempotency(seconds=10, clock=clock)
        first, mine = keys.enter("t", "k", b"a")
        again, not_mine = keys.enter("t", "k", b"a")
        assert mine and not not_mine and first is again
        assert keys.enter("other", "k", b"b")[1]  # another tenant's key is another key
        with pytest.raises(Refused):
            keys.enter("t", "k", b"b")
        clock.now += 11
        assert keys.enter("t", "k", b"b")[1]

    asyncio.run(run())
