"""Limits: what runs out raises `TimeoutError`, and what is cancelled from elsewhere stays cancelled."""

from __future__ import annotations

import asyncio

import pytest

from whit.routing.limits import _CLOCKS, Places, within


def now() -> float:
    return asyncio.get_running_loop().time()


def test_what_takes_too_long_ends() -> None:
    async def run() -> None:
        began = now()
        with pytest.raises(TimeoutError), within(now() + 0.05):
            await asyncio.sleep(5)
        assert 0.04 < now() - began < 2
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        await asyncio.sleep(0.01)  # and nothing of it is left

    asyncio.run(run())


def test_what_is_in_time_goes_on() -> None:
    async def run() -> str:
        with within(now() + 0.05):
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        with within(now() + 5):
            return "done"

    assert asyncio.run(run()) == "done"


def test_the_inner_of_two_ends_first_and_the_outer_still_holds() -> None:
    async def run() -> list[str]:
        said = []
        with pytest.raises(TimeoutError), within(now() + 0.1):
            try:
                with within(now() + 0.03):
                    await asyncio.sleep(5)
            except TimeoutError:
                said.append("inner")
            await asyncio.sleep(5)
        return [*said, "outer"]

    assert asyncio.run(run()) == ["inner", "outer"]


def test_a_task_that_is_cancelled_from_elsewhere_stays_so() -> None:
    async def work(seconds: float) -> None:
        with within(now() + seconds):
            await asyncio.sleep(5)

    async def run() -> None:
        task = asyncio.create_task(work(5))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        both = asyncio.create_task(work(0.02))
        await asyncio.sleep(0.01)
        both.get_loop().call_later(0.01, both.cancel)
        with pytest.raises((asyncio.CancelledError, TimeoutError)):
            await both

    asyncio.run(run())


def test_many_blocks_share_one_timer_and_each_ends_at_its_own_time() -> None:
    async def work(seconds: float) -> float:
        began = now()
        try:
            with within(began + seconds):
                await asyncio.sleep(0.2)
        except TimeoutError:
            pass
        return now() - began

    async def run() -> None:
        given = [0.05 + 0.01 * at for at in range(5)] * 20 + [10.0] * 50
        taken = asyncio.gather(*map(work, given))
        await asyncio.sleep(0.01)
        clock = _CLOCKS[asyncio.get_running_loop()]
        assert len(clock.running) == len(given) and clock._next < now() + 0.05
        for wanted, found in zip(given, await taken, strict=True):
            assert min(wanted, 0.2) - 0.01 <= found < min(wanted, 0.2) + 0.15
        assert not clock.running

    asyncio.run(run())


def test_places_are_taken_in_turn_and_none_is_lost() -> None:
    async def run() -> None:
        places = Places(1)
        assert places.take() and not places.take()
        order: list[int] = []

        async def ask(number: int) -> None:
            await places.wait()
            order.append(number)
            places.give()

        asked = [asyncio.create_task(ask(number)) for number in range(4)]
        await asyncio.sleep(0)
        asked[1].cancel()
        places.give()  # to the first, whose task runs later
        assert not places.take(), "it is somebody's by now"
        asked[0].cancel()  # to whom it was given and who does not want it any more
        await asyncio.gather(*asked, return_exceptions=True)
        assert order == [2, 3] and places.free == 1

    asyncio.run(run())


def test_a_place_that_is_not_free_in_time_is_nobodys() -> None:
    async def run() -> None:
        places = Places(1)
        assert places.take()
        with pytest.raises(TimeoutError), within(now() + 0.02):
            await places.wait()
        places.give()
        assert places.free == 1

    asyncio.run(run())
