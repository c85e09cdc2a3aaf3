"""What would happen to a request, and why, without asking any tier: the answer of `whit route check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from whit.routing.config import Config, Tenant, is_loopback
from whit.routing.detection.scanner import Hook
from whit.routing.errors import ConfigError
from whit.routing.gateway import State
from whit.routing.planning import Signals, declared, guessed, plan, signals_of
from whit.routing.request import ChatRequest
from whit.routing.tiers.local import WhitModel


@dataclass(frozen=True)
class Explanation:
    """Each tier with what it may have, and the reasons."""

    tenant: str
    order: tuple[str, ...]
    tiers: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    first: str
    reasons: tuple[str, ...]
    judged: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "contract": 1, "tenant": self.tenant, "order": list(self.order), "tiers": dict(self.tiers),
            "first": self.first, "found": list(self.kinds), "reasons": list(self.reasons),
            "judged": list(self.judged), "warnings": list(self.warnings),
        }  # fmt: skip

    def to_text(self) -> str:
        """A line a tier, then why."""
        width = max(len(name) for name, _ in self.tiers)
        lines = [f"{name:<{width}}  {what}" for name, what in self.tiers]
        lines += [f"asked in this order: {', '.join(self.order) or 'nobody'}"]
        lines += [f"why: {reason}" for reason in (self.first, *self.reasons)]
        lines += [f"a local answer is left for the next tier: {doubt}" for doubt in self.judged]
        return "\n".join([*lines, *(f"note: {warning}" for warning in self.warnings)])


def explain(
    config: Config, request: ChatRequest, *, tenant: str | None = None, label: str | None = None,
    hook: Hook | None = None,
) -> Explanation:  # fmt: skip
    """Clear and plan a request as the gateway would, and say what came of it. Raises `ConfigError`, `Refused`."""
    who = next((each for each in config.tenants if tenant in (None, each.name)), None)
    if who is None:
        known = ", ".join(each.name for each in config.tenants)
        raise ConfigError(config.path, 0, f"has no tenant {tenant!r}; there are {known}")
    state = State(config, WhitModel, hook=hook)
    route = config.routes.get(request.model)
    cleared = state.gate.clear(request, declared(config, who, label, route))
    clearance = cleared.clearance
    chance = None
    if state.choice is not None and guessed(state, request, cleared, route):
        chance = state.choice.chance(request.prompt())
    order, first = plan(state, request, cleared, route, chance)
    tiers = []
    for tier in config.tiers:
        may = "as it is" if clearance.plain(tier.name) else "masked" if clearance.allows(tier.name) else "never"
        where = "inside" if tier.inside else "outside"
        price = "free" if tier.free else f"{tier.input_price:g} in, {tier.output_price:g} out a million tokens"
        tiers.append((tier.name, f"{may} ({tier.kind}, {where}, {price})"))
    judged = (
        _judged(signals_of(config, route, request)) if len(order) > 1 and config.tier(order[0]).kind == "whit" else ()
    )
    return Explanation(
        who.name, tuple(order), tuple(tiers), tuple(sorted(clearance.kinds)), first, clearance.reasons, judged,
        (*_spending(who), *warnings(config, asked=hook is not None)),
    )  # fmt: skip


def _judged(signals: Signals) -> tuple[str, ...]:
    found = []
    if signals.min_confidence is not None:
        found.append(f"below a confidence of {signals.min_confidence:g}")
    if signals.min_least is not None:
        found.append(f"with a token that is less sure than {signals.min_least:g}")
    if signals.must_match is not None:
        found.append(f"unless it matches {signals.must_match}")
    if signals.json:
        found.append("unless it is JSON")
    if signals.agree:
        found.append("where a second sample says something else")
    return tuple(found)


def _spending(tenant: Tenant) -> list[str]:
    if tenant.budget is None:
        return []
    period = "in all" if tenant.period == "ever" else f"a {tenant.period}"
    return [f"tenant {tenant.name} may spend {tenant.budget:g} {period}"]


def warnings(config: Config, asked: bool = True) -> list[str]:
    """What a config allows and its owner may not have meant; `asked`: whether the detecting adapter has its say."""
    found = []
    if not config.inside:
        found.append("no tier is inside: a request that holds something sensitive gets no answer at all")
    if config.detection.adapter and not asked:
        found.append("the detecting adapter is not asked by check; it can only keep more inside")
    for tier in config.tiers:
        address = urlsplit(tier.url)
        if address.scheme == "http" and not tier.inside and not is_loopback(address.hostname or ""):
            found.append(f"tier {tier.name} is outside and asked over http, which anyone on the way can read")
        if not tier.inside and tier.free:
            found.append(f"tier {tier.name} is outside and has no price: budgets do not count it")
    order = [tier.cost(1000, 1000) for tier in config.tiers]
    if order != sorted(order):
        found.append("the tiers are not in the order of their prices: the first that is allowed is asked first")
    for policy in config.policies.values():
        if policy.ignore:
            found.append(f"policy {policy.name} lets {', '.join(sorted(policy.ignore))} out")
    return found
