"""What would happen to a request, and why, without asking any tier: the answer of `whit route check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from whit.routing.clearance import Gate
from whit.routing.config import Config
from whit.routing.detection.scanner import Scanner
from whit.routing.errors import ConfigError
from whit.routing.planning import declared
from whit.routing.request import ChatRequest


@dataclass(frozen=True)
class Explanation:
    """Each tier with what it may have, and the reasons."""

    tenant: str
    order: tuple[str, ...]
    tiers: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "contract": 1, "tenant": self.tenant, "order": list(self.order), "tiers": dict(self.tiers),
            "found": list(self.kinds), "reasons": list(self.reasons), "warnings": list(self.warnings),
        }  # fmt: skip

    def to_text(self) -> str:
        """A line a tier, then why."""
        width = max(len(name) for name, _ in self.tiers)
        lines = [f"{name:<{width}}  {what}" for name, what in self.tiers]
        lines += [f"asked in this order: {', '.join(self.order) or 'nobody'}"]
        lines += [f"why: {reason}" for reason in self.reasons]
        return "\n".join([*lines, *(f"note: {warning}" for warning in self.warnings)])


def explain(
    config: Config, request: ChatRequest, *, tenant: str | None = None, label: str | None = None
) -> Explanation:
    """Clear a request as the gateway would, and say what came of it. Raises `ConfigError`, `Refused`."""
    who = next((each for each in config.tenants if tenant in (None, each.name)), None)
    if who is None:
        known = ", ".join(each.name for each in config.tenants)
        raise ConfigError(config.path, 0, f"has no tenant {tenant!r}; there are {known}")
    gate = Gate([tier.name for tier in config.tiers], config.inside, Scanner(config.detection))
    route = config.routes.get(request.model)
    clearance = gate.clear(request, declared(config, who, label, route)).clearance
    tiers = []
    for tier in config.tiers:
        may = "as it is" if clearance.plain(tier.name) else "masked" if clearance.allows(tier.name) else "never"
        where = "inside" if tier.inside else "outside"
        price = "free" if tier.free else f"{tier.input_price:g} in, {tier.output_price:g} out a million tokens"
        tiers.append((tier.name, f"{may} ({tier.kind}, {where}, {price})"))
    order = tuple(tier.name for tier in config.tiers if clearance.allows(tier.name))
    return Explanation(
        who.name, order, tuple(tiers), tuple(sorted(clearance.kinds)), clearance.reasons, tuple(warnings(config))
    )


def warnings(config: Config) -> list[str]:
    """What a config allows and its owner may not have meant."""
    found = []
    if not config.inside:
        found.append("no tier is inside: a request that holds something sensitive gets no answer at all")
    if config.detection.adapter:
        found.append("the detecting adapter is not asked by check; it can only keep more inside")
    for tier in config.tiers:
        if tier.url.startswith("http://") and not tier.inside:
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
