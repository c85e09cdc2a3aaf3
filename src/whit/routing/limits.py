"""Limits that cost little: one timer of the event loop for all blocks that run under one.

`asyncio.timeout` does the same with a timer for each block, which the loop sorts in and throws away again; a gateway
has several for each request, and of ten thousand one runs out. And places for so many at a time. Knows nothing of what
is limited.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from weakref import WeakKeyDictionary


class within:  # noqa: N801 - as the functions of asyncio that it stands beside
    """`with within(until):` raises `TimeoutError` in the running task once the loop's clock is at `until`."""

    __slots__ = ("_before", "_clock", "_late", "task", "until")

    def __init__(self, until: float) -> None:
        self.until, self._late = until, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a time limit is for a task"
        self.task, self._before = task, task.cancelling()
        loop = task.get_loop()
        clock = _CLOCKS.get(loop)
        if clock is None:
            clock = _CLOCKS[loop] = _Clock()
        self._clock = clock
        clock.add(loop, self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock.running.discard(self)
        # Cancelled from elsewhere too: then that is what it is.
        if self._late and self.task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        """Its time is over."""
        self._late = True
        self.task.cancel()


class Places:
    """Places for so many at a time, first come, first served; where one is free there is no coroutine."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a place, where one is free."""
        if self.free < 1:
            return False
        self.free -= 1
        return True

    async def wait(self) -> None:
        """Take a place once one is free."""
        if self.take():
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given, and is not wanted any more
                self.give()
            raise

    def give(self) -> None:
        """Give a place back: to who waits longest, so that it is free only where nobody does."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.free += 1


class _Clock:
    """The blocks of one loop that run under a limit, and the timer of the next that may run out."""

    def __init__(self) -> None:
        self.running: set[within] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0

    def add(self, loop: asyncio.AbstractEventLoop, block: within) -> None:
        self.running.add(block)
        if self._timer is None or block.until < self._next:
            self._set(loop, block.until)

    def _set(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = until
        self._timer = loop.call_at(until, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is late. Most that ran when the timer was set are done by now."""
        self._timer, now = None, loop.time()
        for block in [each for each in self.running if each.until <= now]:
            self.running.discard(block)
            block.end()
        if self.running:
            self._set(loop, min(each.until for each in self.running))


_CLOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Clock] = WeakKeyDictionary()
