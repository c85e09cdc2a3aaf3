"""The gateway: clears a request, chooses tiers for it, asks them in turn, and writes down what became of it.

Promises: every way to a tier passes the one gate; a tier is left for the next only before the first piece of its
answer went out; what must stay inside gets an error where the inside tiers are down, never another tier's answer;
no tenant is answered beyond its budget. Knows nothing of HTTP servers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from whit.routing.attempts import Case, Meter, metered
from whit.routing.choosing import Choice, load_choice
from whit.routing.clearance import Cleared, Gate
from whit.routing.config import Config, Route, Tenant, Tier
from whit.routing.detection.scanner import Hook, Scanner
from whit.routing.errors import Refused, TierFailed
from whit.routing.ledger import Ledger, Record
from whit.routing.metrics import Metrics
from whit.routing.planning import Signals, declared, guess, overlap, plan, same, sampled, signals_of
from whit.routing.request import ChatRequest
from whit.routing.resilience import Breaker, Budgets, pause
from whit.routing.tiers.answer import Ask, End, Piece, text_of
from whit.routing.tiers.local import LocalClient, LocalModel, LocalRoom, WhitModel
from whit.routing.tiers.remote import RemoteClient
from whit.routing.tiers.wire import Wire

_INLINE = 8192


class State:
    """One reading of tiers.toml, with what stands behind it; requests keep theirs through a reload."""

    def __init__(
        self, config: Config, load_local: Callable[[Tier], LocalModel], transport: Any = None, hook: Hook | None = None
    ) -> None:
        self.config, self.users = config, 0
        self.scanner = Scanner(config.detection, hook)
        self.gate = Gate([tier.name for tier in config.tiers], config.inside, self.scanner, hears=self.scanner.slow)
        self.rooms = {tier.name: LocalRoom(tier, load_local) for tier in config.tiers if tier.kind == "whit"}
        self.wires = {
            tier.name: Wire(tier, largest=config.largest_answer, transport=transport)
            for tier in config.tiers
            if tier.kind != "whit"
        }
        self.dearest = config.dearest
        self.tiers = {tier.name: tier for tier in config.tiers}
        self.signals: dict[tuple[str | None, bool], Signals | None] = {}
        self.breakers = {tier.name: Breaker() for tier in config.tiers}
        self.choice: Choice | None = load_choice(config.choice) if config.choice else None
        self.thinking: ThreadPoolExecutor | None = None
        if self.choice is not None and self.choice.space is not None:
            self.choice.space.ready()
            self.thinking = ThreadPoolExecutor(1, "whit-choice")

    def client(self, tier: str, cleared: Cleared) -> LocalClient | RemoteClient:
        """A client for one request. Raises `NotCleared`."""
        if tier in self.rooms:
            return LocalClient(self.rooms[tier], cleared.clearance)
        return RemoteClient(self.wires[tier], cleared.clearance)

    def held_to(self, route: Route | None, request: ChatRequest) -> Signals | None:
        """What a local answer to a request is held to, if to anything."""
        what = (None if route is None else route.name), request.wants_json
        if what not in self.signals:
            self.signals[what] = signals_of(self.config, route, request) or None
        return self.signals[what]

    async def close(self) -> None:
        """Once its last request ended, close what it holds."""
        while self.users:
            await asyncio.sleep(0.05)
        if self.thinking is not None:
            self.thinking.shutdown(wait=False, cancel_futures=True)
        for room in self.rooms.values():
            await room.close()
        for wire in self.wires.values():
            await wire.close()


@dataclass(slots=True)
class Served:
    """An answer: `ready` is all of it, or `pieces` is on its way and ends with an `End`."""

    tier: str
    cleared: Cleared
    reason: str
    ready: list[Piece | End]
    pieces: AsyncIterator[Piece | End] | None = None


class Gateway:
    """Serves requests by a config; `load_local`, `transport` and `hook` are for tests and for other models."""

    def __init__(
        self,
        config: Config,
        *,
        load_local: Callable[[Tier], LocalModel] = WhitModel,
        transport: Any = None,
        hook: Hook | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._make = (load_local, transport, hook)
        self.state = State(config, *self._make)
        self.ledger = ledger or (Ledger(config.ledger) if config.ledger else None)
        self.metrics = Metrics()
        self.budgets = self._budgets(config)
        self._closing: set[asyncio.Task[None]] = set()

    def _budgets(self, config: Config) -> Budgets:
        spent = self.ledger.spent if self.ledger else lambda tenant, since: 0.0
        return Budgets({tenant.name: tenant for tenant in config.tenants}, spent)

    def reload(self, config: Config) -> None:
        """Take over a new config; requests under way end by the old one."""
        old, self.state = self.state, State(config, *self._make)
        self.budgets.tenants = {tenant.name: tenant for tenant in config.tenants}
        self._later(old.close())

    async def close(self) -> None:
        """End everything."""
        await self.state.close()
        await asyncio.gather(*self._closing)
        if self.ledger:
            await asyncio.to_thread(self.ledger.close)

    async def serve(self, request: ChatRequest, tenant: Tenant, label: str | None, seconds: float | None) -> Served:
        """Have a request answered; returns with the first piece in hand. Raises `Refused`."""
        state, began = self.state, time.monotonic()
        state.users += 1
        try:
            route = state.config.routes.get(request.model)
            policies = declared(state.config, tenant, label, route)
            if state.scanner.slow or request.size > _INLINE:
                cleared = await asyncio.to_thread(state.gate.clear, request, policies)
            else:
                cleared = state.gate.clear(request, policies)
            until = began + min(seconds or state.config.deadline, state.config.deadline)
            case = Case(request, tenant, route, label, cleared, began, until)
            for cause in cleared.clearance.causes:
                self.metrics.add("whit_kept_inside_total", cause=cause)
            try:
                served = await self._first(state, case)
            except Refused as error:
                self._write(state, case, "", error.code, str(error), None)
                raise
        except BaseException:
            state.users -= 1
            raise
        if served.pieces is None:
            state.users -= 1
        return served

    async def _first(self, state: State, case: Case) -> Served:
        chance = None
        if state.choice is not None:
            chance = await guess(state, case.request, case.cleared, case.route, case.until)
        order, first = plan(state, case.request, case.cleared, case.route, chance)
        reason = "; ".join([first, *case.cleared.clearance.reasons])
        kept: tuple[str, list[Piece | End]] | None = None
        last: Refused | None = None
        signals = state.held_to(case.route, case.request)
        for place, name in enumerate(order):
            tier = state.tiers[name]
            held_to = signals if tier.kind == "whit" and place + 1 < len(order) and kept is None else None
            try:
                pieces, ready = await self._ask(state, case, tier, whole=held_to is not None or not case.request.stream)
            except Refused as error:
                last = error
                case.notes.append(f"{name}: {error.code}")
                continue
            doubt = None if held_to is None else await self._doubt(state, case, tier, held_to, ready)
            if doubt is not None:
                kept = (name, ready)
                case.notes.append(f"{name}: {doubt}")
                continue
            why = "; ".join([reason, *case.notes])
            return self._served(state, case, tier, pieces, ready, why)
        if kept is not None:  # an unsure answer is better than none
            tier = state.tiers[kept[0]]
            why = "; ".join([reason, *case.notes, "no other tier answered"])
            return self._served(state, case, tier, None, kept[1], why)
        raise self._nobody(state, case, order, last)

    async def _doubt(
        self, state: State, case: Case, tier: Tier, signals: Signals, ready: list[Piece | End]
    ) -> str | None:
        """Why a local answer is not good enough, if so."""
        end = ready[-1] if ready and isinstance(ready[-1], End) else End()
        text = text_of(ready)
        if (doubt := signals.doubt(text, end)) is not None or not signals.agree:
            return doubt
        try:
            _, again = await self._ask(state, case, tier, whole=True, sample=True)
        except Refused as error:
            return f"no second sample ({error.code})"
        return None if same(text, text_of(again)) else "two samples disagree"

    async def _ask(
        self, state: State, case: Case, tier: Tier, *, whole: bool, sample: bool = False
    ) -> tuple[AsyncIterator[Piece | End] | None, list[Piece | End]]:
        """The first piece of a tier's answer (or all of it) and what follows. Raises `Refused`."""
        breaker = state.breakers[tier.name]
        sent, _ = case.cleared.request_for(tier.name)
        most = min(sent.max_tokens or tier.max_tokens, tier.max_tokens)
        bound = tier.cost(sent.size + 1024, most)  # a token is a byte at least; the rest is the server's template
        attempt = 0
        while True:
            left = case.until - time.monotonic()
            if left <= 0:
                raise Refused(504, "deadline_exceeded", "there was no time left")
            if not breaker.begin():
                raise Refused(503, "tier_resting", f"tier {tier.name} failed too often and is left alone for now")
            reservation = self.budgets.reserve(case.tenant.name, bound)
            if reservation is None:
                breaker.neither()
                raise Refused(429, "insufficient_quota", f"the budget of {case.tenant.name} does not hold this")
            case.attempts += 1
            adapter = case.route.adapter if case.route else None
            client, ask = state.client(tier.name, case.cleared), Ask(left, most, adapter, sample)
            meter = Meter(self.budgets, case, tier, breaker, reservation, most)
            try:
                if whole and not sent.stream and isinstance(client, RemoteClient):
                    with meter:
                        ready = await client.whole(case.cleared, ask)
                        for piece in ready:
                            meter.see(piece)
                    return None, ready
                pieces = metered(client.answer(case.cleared, ask), meter)
                ready = []
                async for piece in pieces:
                    ready.append(piece)
                    if not whole:
                        break
                return (None if whole else pieces), ready
            except TierFailed as error:
                self.metrics.add("whit_failures_total", tier=tier.name, code=error.code)
                wait = pause(attempt, error.after, case.until - time.monotonic())
                if not error.again or attempt >= tier.retries or wait is None:
                    raise
                attempt += 1
                await asyncio.sleep(wait)

    def _served(
        self, state: State, case: Case, tier: Tier, pieces: AsyncIterator[Piece | End] | None,
        ready: list[Piece | End], why: str,
    ) -> Served:  # fmt: skip
        """An answer for the client: one that is no stream is whole by now, and written down."""
        if case.request.stream:
            through = self._through(state, case, tier, pieces, ready, why)
            return Served(tier.name, case.cleared, why, [], through)
        end = ready[-1] if ready and isinstance(ready[-1], End) else None
        rival = sampled(state.config, case.cleared, tier)
        if rival is not None and end is not None:
            self._sample(state, case, rival, ready)
        self._write(state, case, tier.name, "ok", why, end, time.monotonic() - case.began)
        return Served(tier.name, case.cleared, why, ready)

    def _sample(self, state: State, case: Case, rival: Tier, said: list[Piece | End]) -> None:
        state.users += 1
        self._later(self._compare(state, case, rival, text_of(said)))

    async def _through(
        self,
        state: State,
        case: Case,
        tier: Tier,
        pieces: AsyncIterator[Piece | End] | None,
        ready: list[Piece | End],
        why: str,
    ) -> AsyncIterator[Piece | End]:
        first = time.monotonic() - case.began
        outcome, end = "ok", None
        rival, said = sampled(state.config, case.cleared, tier), []
        try:
            for piece in ready:
                end = piece if isinstance(piece, End) else end
                said.append(piece)
                yield piece
            if pieces is not None:
                async with aclosing(pieces) as rest:  # type: ignore[type-var]
                    async for piece in rest:
                        end = piece if isinstance(piece, End) else end
                        if rival is not None:
                            said.append(piece)
                        yield piece
        except TierFailed as error:
            outcome = error.code
            self.metrics.add("whit_failures_total", tier=tier.name, code=error.code)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "client_left" if end is None else "ok"
            raise
        finally:
            if rival is not None and outcome == "ok" and end is not None:
                self._sample(state, case, rival, said)
            state.users -= 1
            self._write(state, case, tier.name, outcome, why, end, first)

    async def _compare(self, state: State, case: Case, rival: Tier, text: str) -> None:
        """Ask the dearest tier too, and write down how far it says the same. By the request's own clearance."""
        now = time.monotonic()
        again = Case(case.request, case.tenant, case.route, case.label, case.cleared, now, now + state.config.deadline)
        try:
            _, ready = await self._ask(state, again, rival, whole=True)
            end = next((piece for piece in ready if isinstance(piece, End)), None)
            self._write(
                state, again, rival.name, "sampled", "a sampled row", end, agreement=overlap(text, text_of(ready))
            )
        except Refused as error:
            self._write(state, again, rival.name, "sample_failed", f"a sampled row: {error.code}", None)
        finally:
            state.users -= 1

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _nobody(self, state: State, case: Case, order: list[str], last: Refused | None) -> Refused:
        """The error that says why nobody answered."""
        clearance = case.cleared.clearance
        reasons = "; ".join(clearance.reasons)
        if not order:
            return Refused(403, "not_allowed", f"no tier may have this request: {reasons}")
        stays = clearance.tiers <= state.config.inside and len(clearance.tiers) < len(state.config.tiers)
        tried = ", ".join(case.notes)
        if stays:
            status = last.status if last and last.status in (400, 429, 504) else 503
            return Refused(
                status, "inside_unavailable",
                f"this request stays inside ({reasons}), and there nobody could answer it ({tried})",
            )  # fmt: skip
        if last is not None and len(order) == 1:
            return last
        status = 503 if last is None else last.status
        return Refused(status, last.code if last else "unavailable", f"no tier could answer ({tried})")

    def _write(
        self, state: State, case: Case, tier: str, outcome: str, reason: str, end: End | None, first: float = 0.0,
        agreement: float | None = None,
    ) -> None:  # fmt: skip
        seconds = time.monotonic() - case.began
        tokens_in = (end.tokens_in if end else None) or 0
        tokens_out = (end.tokens_out if end else None) or 0
        if not tokens_in and outcome == "ok":
            tokens_in = case.request.size // 4  # a tier that counts nothing: four bytes a token, as a guess
        self.metrics.add("whit_requests_total", tier=tier or "none", outcome=outcome)
        if tier:
            self.metrics.answered(tier, seconds, tokens_in, tokens_out, case.spent)
        if self.ledger is None:
            return
        clearance = case.cleared.clearance
        dearest = state.dearest
        self.ledger.add(
            Record(
                time.time(), case.tenant.name, case.route.name if case.route else "", case.label or "", tier, outcome,
                reason, clearance.id, _listed(clearance.tiers), _listed(clearance.kinds),
                int(bool(tier) and not clearance.plain(tier)), case.attempts, tokens_in, tokens_out, case.spent,
                dearest.cost(tokens_in, tokens_out), seconds, first, end.confidence if end else None,
                agreement, ", ".join(clearance.causes),
            )
        )  # fmt: skip


@lru_cache(1024)
def _listed(names: frozenset[str]) -> str:
    return " ".join(sorted(names))
