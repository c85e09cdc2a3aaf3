"""What keeps one bad tier from spoiling every request: breakers, retries with jitter, budgets, idempotency.

Each is a small object with its own clock; none knows of HTTP or of what is sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from whit.routing.config import Tenant
from whit.routing.errors import Refused

Clock = Callable[[], float]


class Breaker:
    """Open after `most` failures in a row: then one trial each `rest` seconds, until one succeeds."""

    def __init__(self, most: int = 5, rest: float = 10.0, clock: Clock = time.monotonic) -> None:
        self._most, self._rest, self._clock = most, rest, clock
        self._failures, self._opened, self._trial = 0, 0.0, False

    @property
    def open(self) -> bool:
        """Whether the tier is left alone for now."""
        return self._failures >= self._most and (self._trial or self._clock() - self._opened < self._rest)

    def begin(self) -> bool:
        """Whether to ask now; after its rest an open breaker lets one trial through."""
        if self._failures < self._most:
            return True
        if self.open:
            return False
        self._trial = True
        return True

    def success(self) -> None:
        """It answered."""
        self._failures, self._trial = 0, False

    def failure(self) -> None:
        """It did not."""
        self._failures += 1
        self._trial = False
        if self._failures >= self._most:
            self._opened = self._clock()

    def neither(self) -> None:
        """The trial ended without an answer that says anything, for the client went away."""
        self._trial = False


def pause(attempt: int, after: float, left: float) -> float | None:
    """Seconds to wait before the next attempt (full jitter over 0.1, 0.2, 0.4 … s); None where time is too short."""
    wait = max(after, random.uniform(0, min(0.1 * 2**attempt, 5.0)))
    return wait if wait < left else None


@dataclass
class Reservation:
    """Money set aside for one attempt, until what it cost is known."""

    tenant: str
    amount: float
    open: bool = True


@dataclass
class Budgets:
    """Hard limits by tenant: money is set aside before a tier is asked, so that no answer can overrun.

    `spent(tenant, since)` tells what the ledger knows from before this process.
    """

    tenants: dict[str, Tenant]
    spent: Callable[[str, float], float] = lambda tenant, since: 0.0
    clock: Clock = time.time
    _known: dict[str, tuple[float, float]] = field(default_factory=dict)
    _held: dict[str, float] = field(default_factory=dict)

    def left(self, tenant: str) -> float | None:
        """What a tenant may still spend in this period; None without a limit."""
        budget = self.tenants[tenant].budget if tenant in self.tenants else None
        if budget is None:
            return None
        return budget - self._used(tenant)[1] - self._held.get(tenant, 0.0)

    def reserve(self, tenant: str, amount: float) -> Reservation | None:
        """Set `amount` aside, or None where the budget does not hold it."""
        left = self.left(tenant)
        if amount > 0 and left is not None and amount > left + 1e-12:
            return None
        self._held[tenant] = self._held.get(tenant, 0.0) + amount
        return Reservation(tenant, amount)

    def settle(self, reservation: Reservation, cost: float) -> None:
        """What it cost in the end."""
        if not reservation.open:
            return
        reservation.open = False
        tenant = reservation.tenant
        self._held[tenant] = max(0.0, self._held.get(tenant, 0.0) - reservation.amount)
        if tenant in self.tenants and self.tenants[tenant].budget is not None:
            since, used = self._used(tenant)
            self._known[tenant] = (since, used + cost)

    def _used(self, tenant: str) -> tuple[float, float]:
        since = period_start(self.tenants[tenant].period, self.clock())
        known = self._known.get(tenant)
        if known is None or known[0] != since:
            # Only the first look asks the ledger: what comes later is counted here.
            known = (since, self.spent(tenant, since) if known is None else 0.0)
            self._known[tenant] = known
        return known


def period_start(period: str, now: float) -> float:
    """When the running hour, day or month (UTC) began; 0 for `ever`."""
    moment = time.gmtime(now)
    if period == "hour":
        return now // 3600 * 3600
    if period == "day":
        return now // 86400 * 86400
    if period == "month":
        return now // 86400 * 86400 - (moment.tm_mday - 1) * 86400
    return 0.0


class Idempotency:
    """The same key of the same tenant gives the same answer, once: later ones wait for the first, then repeat it.

    A key that comes with another request is refused (422). At most `most` answers are kept, for `seconds`.
    """

    def __init__(self, most: int = 1000, seconds: float = 600.0, clock: Clock = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._kept: OrderedDict[tuple[str, str], tuple[bytes, float, asyncio.Future[Any]]] = OrderedDict()

    def enter(self, tenant: str, key: str, content: bytes) -> tuple[asyncio.Future[Any], bool]:
        """The answer that is to come, and whether this caller is the one to make it. Raises `Refused`."""
        digest = hashlib.sha256(content).digest()
        now = self._clock()
        while self._kept and (len(self._kept) > self._most or next(iter(self._kept.values()))[1] < now):
            self._kept.popitem(last=False)
        found = self._kept.get((tenant, key))
        if found is not None:
            if found[0] != digest:
                raise Refused(422, "idempotency_error", "this Idempotency-Key came with another request before")
            return found[2], False
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._kept[tenant, key] = (digest, now + self._seconds, future)
        return future, True

    def forget(self, tenant: str, key: str) -> None:
        """Let the key be used again: its request came to nothing."""
        self._kept.pop((tenant, key), None)
