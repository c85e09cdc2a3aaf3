"""A request while it is served, and what one attempt at a tier did to that tier's breaker and the tenant's budget.

Promises that what was set aside for an attempt is settled whatever became of it, and in full where it may have been
billed and nobody said for what. Knows nothing of how tiers are chosen or asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType

from whit.routing.clearance import Cleared
from whit.routing.config import Route, Tenant, Tier
from whit.routing.errors import TierFailed
from whit.routing.request import ChatRequest
from whit.routing.resilience import Breaker, Budgets, Reservation
from whit.routing.tiers.answer import End, Piece

_NOT_ITS_FAULT = frozenset({"unsupported", "context_length_exceeded"})


@dataclass(slots=True)
class Case:
    """What is known of a request while it is served."""

    request: ChatRequest
    tenant: Tenant
    route: Route | None
    label: str | None
    cleared: Cleared
    began: float
    until: float
    notes: list[str] = field(default_factory=list)
    attempts: int = 0
    spent: float = 0.0


class Meter:
    """Tells the breaker and the budget how one attempt went, from its pieces; a block around it."""

    __slots__ = ("_breaker", "_budgets", "_case", "_cost", "_count", "_most", "_reservation", "_tier", "_told")

    def __init__(
        self, budgets: Budgets, case: Case, tier: Tier, breaker: Breaker, reservation: Reservation, most: int
    ) -> None:
        self._budgets, self._case, self._tier, self._breaker = budgets, case, tier, breaker
        self._reservation, self._most = reservation, most
        self._count, self._cost, self._told = 0, 0.0, False

    def see(self, piece: Piece | End) -> None:
        """One more piece. Raises `TierFailed` where there are more than can be."""
        if isinstance(piece, End):
            self._breaker.success()
            self._told = True
            known = piece.tokens_in is not None and piece.tokens_out is not None
            self._cost = (
                self._tier.cost(piece.tokens_in or 0, piece.tokens_out or 0) if known else self._reservation.amount
            )
            return
        self._count += 1
        if self._count > 1.5 * self._most + 64:
            raise TierFailed(
                "tier_overran", f"tier {self._tier.name} said more than it was asked for", again=False, billed=True
            )

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, TierFailed):
            self._told = True
            self._cost = self._reservation.amount if error.billed or self._count else 0.0
            if error.code in _NOT_ITS_FAULT:
                self._breaker.success()
            elif error.code == "tier_full":  # it was not asked at all
                self._breaker.neither()
            else:
                self._breaker.failure()
        if not self._told:  # the client went away: the tier stops too, so what came so far is what it cost
            self._breaker.neither()
            self._cost = min(self._reservation.amount, self._tier.cost(self._case.request.size, self._count + 8))
        self._case.spent += self._cost
        self._budgets.settle(self._reservation, self._cost)


async def metered(pieces: AsyncIterator[Piece | End], meter: Meter) -> AsyncIterator[Piece | End]:
    """The pieces of an attempt, each seen by its meter."""
    with meter:
        async with aclosing(pieces) as source:  # type: ignore[type-var]
            async for piece in source:
                meter.see(piece)
                yield piece
