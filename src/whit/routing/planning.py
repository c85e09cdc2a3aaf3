"""Which policies a request is under, which tiers are asked in which order, and when a local answer is not good enough.

`Signals` are what tiers.toml says of a good answer of the local tier: how sure the model was of its tokens, whether a
second sample says the same, whether the answer has the form that the task calls for. Knows nothing of how tiers are
asked.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whit.routing.clearance import Cleared, Policy
from whit.routing.config import Config, Route, Tenant, Tier
from whit.routing.errors import Refused
from whit.routing.request import ChatRequest
from whit.routing.tiers.answer import End

if TYPE_CHECKING:
    from whit.routing.gateway import State


@dataclass(frozen=True)
class Signals:
    """What a local answer is held to; None and False hold it to nothing."""

    min_confidence: float | None = None
    min_least: float | None = None
    must_match: str | None = None
    agree: bool = False
    json: bool = False

    def __bool__(self) -> bool:
        return self != Signals()

    def doubt(self, text: str, end: End) -> str | None:
        """Why one answer is not good enough; None where it is. Holds nothing of the answer."""
        for what, value, least in (
            ("confidence", end.confidence, self.min_confidence),
            ("its least sure token", end.least, self.min_least),
        ):
            if least is not None and value is not None and value < least:
                return f"{what} {value:.2f} below {least:g}"
        if self.must_match is not None and re.fullmatch(self.must_match, text.strip(), re.S) is None:
            return "its answer has not the form that this route calls for"
        if self.json and not _is_json(text):
            return "its answer is not the JSON that was asked for"
        return None


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def signals_of(config: Config, route: Route | None, request: ChatRequest | None = None) -> Signals:
    """The route's, and where it says nothing the gateway's; and what the request itself calls for."""
    confidence = config.min_confidence
    wanted = request is not None and request.wants_json
    if route is None:
        return Signals(confidence, json=wanted)
    own = route.min_confidence
    return Signals(confidence if own is None else own, route.min_least, route.must_match, route.agree, wanted)


def same(one: str, other: str) -> bool:
    """Whether two answers say the same, spaces, case and a last full stop aside."""
    return " ".join(one.lower().split()).rstrip(".") == " ".join(other.lower().split()).rstrip(".")


def overlap(one: str, other: str) -> float:
    """How far two answers say the same: F1 over their words, 0 to 1 (Rajpurkar et al., 2016, arXiv 1606.05250)."""
    words = [Counter(re.findall(r"\w+", text.lower())) for text in (one, other)]
    shared, sizes = (words[0] & words[1]).total(), (words[0].total(), words[1].total())
    return 2 * shared / sum(sizes) if sum(sizes) else 1.0


def sampled(config: Config, cleared: Cleared, tier: Tier) -> Tier | None:
    """The dearest tier, where this answer of a local one is to be compared with it and it may have the request as it
    is; by chance, `sample` of the time."""
    if tier.kind != "whit" or config.sample == 0 or random.random() >= config.sample:
        return None
    rival = config.dearest
    return rival if rival.kind != "whit" and cleared.clearance.plain(rival.name) else None


def declared(config: Config, tenant: Tenant, label: str | None, route: Route | None) -> list[tuple[str, Policy]]:
    """The policies that a request is under: its tenant's, its label's, its route's. Raises `Refused`."""
    found = [(f"tenant {tenant.name}", config.policies[tenant.policy])]
    if label is not None:
        if label not in config.labels:
            known = ", ".join(config.labels) or "none"
            raise Refused(400, "unknown_label", f"x-whit-label is not one of those in tiers.toml ({known})")
        found.append((f"label {label}", config.policies[config.labels[label]]))
    if route is not None and route.policy is not None:
        found.append((f"route {route.name}", config.policies[route.policy]))
    return found


def guessed(state: State, request: ChatRequest, cleared: Cleared, route: Route | None) -> bool:
    """Whether the learned guess says which of the allowed tiers is asked first."""
    if state.choice is None or (route is not None and route.start is not None):
        return False
    names = [tier.name for tier in state.config.tiers]
    return request.model not in names and sum(map(cleared.clearance.allows, names)) > 1


async def guess(
    state: State, request: ChatRequest, cleared: Cleared, route: Route | None, until: float
) -> float | None:
    """The chance that the smallest tier does it; None where nobody asks for it, or where it failed or took too long.

    It is computed in this process, and only chooses among the tiers that the clearance allows.
    """
    if state.choice is None or not guessed(state, request, cleared, route):
        return None
    prompt = request.prompt()
    if state.thinking is None:
        return state.choice.chance(prompt)
    try:
        async with asyncio.timeout(min(state.config.choice_timeout, until - time.monotonic())):
            return await asyncio.get_running_loop().run_in_executor(state.thinking, state.choice.chance, prompt)
    except Exception:  # whatever failed there: without a guess the request goes on as if none were configured
        return None


def plan(
    state: State, request: ChatRequest, cleared: Cleared, route: Route | None, chance: float | None = None
) -> tuple[list[str], str]:
    """The tiers to ask, in order, and why the first is first: dearer ones next, then cheaper ones.

    `chance` is what `guess` found.
    """
    allowed = [name for name in state.tiers if cleared.clearance.allows(name)]
    if not allowed:
        return [], "no tier is allowed"
    start, reason = 0, "the smallest tier that is allowed"
    names = list(state.tiers)
    if request.model in names:
        start, reason = _from(allowed, names, request.model), f"the client asked for {request.model}"
    elif route is not None and route.start is not None:
        start, reason = _from(allowed, names, route.start), f"route {route.name} starts at {route.start}"
    elif chance is None:
        if guessed(state, request, cleared, route):
            reason = "the smallest tier that is allowed, for the learned guess failed"
    elif state.choice is not None:
        if chance < state.choice.threshold:
            start = len(allowed) - 1
        reason = f"chance {chance:.2f} that the smallest does it, threshold {state.choice.threshold:.2f}"
    return allowed[start:] + allowed[:start][::-1], reason


def _from(allowed: list[str], names: list[str], wanted: str) -> int:
    """The first allowed tier from `wanted` on, else the last."""
    place = names.index(wanted)
    return next((at for at, name in enumerate(allowed) if names.index(name) >= place), len(allowed) - 1)
