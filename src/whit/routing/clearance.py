"""Clearance: the proof, carried by a request, of which tiers it may go to.

Only a `Gate` makes a `Clearance`, and no part of whit that moves bytes to a tier can be constructed or called
without one that allows that tier: it is a type, not an `if`. What is declared (the tenant's policy, a label, the
route) comes first; what detectors find can only take tiers away. The one exception is written in the policy by its
owner: `masked_tiers` may have the request with what was found masked, and only if a second scan finds nothing.

Knows nothing of HTTP, of prices or of how detectors work. Python cannot stop code that reaches for private names;
the promise is that no ordinary mistake, and nothing in a request, makes a clearance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from whit.routing.errors import NotCleared
from whit.routing.masking import Masks
from whit.routing.request import ChatRequest

_SEAL: Final = object()
_NONE: Final[frozenset[str]] = frozenset()
_set = object.__setattr__


@dataclass(frozen=True)
class Policy:
    """Which tiers may be asked, and what masking may change about it."""

    name: str
    tiers: frozenset[str]
    mask: frozenset[str] = frozenset()
    masked_tiers: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scan:
    """What detectors found: kinds, and the texts that can be masked; `failed` says why they could not look."""

    kinds: frozenset[str] = frozenset()
    found: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    failed: str | None = None

    @property
    def clean(self) -> bool:
        """Whether everything was looked at and nothing found."""
        return not self.kinds and self.failed is None


class Clearance:
    """Which tiers a request may go to, as it is (`plain`) or with what was found masked (`masked`)."""

    __slots__ = ("_causes", "_id", "_kinds", "_masked", "_plain", "_reasons")
    _causes: tuple[str, ...]
    _id: str
    _plain: frozenset[str]
    _masked: frozenset[str]
    _kinds: frozenset[str]
    _reasons: tuple[str, ...]

    def __init__(
        self,
        seal: object,
        plain: Iterable[str],
        masked: Iterable[str],
        kinds: Iterable[str],
        reasons: Iterable[str],
        causes: Iterable[str] = (),
    ) -> None:
        if seal is not _SEAL:
            raise NotCleared("only the gate makes a clearance")
        _set(self, "_id", f"{random.getrandbits(64):016x}")  # a name, no secret
        _set(self, "_plain", frozenset(plain))
        _set(self, "_masked", frozenset(masked))
        _set(self, "_kinds", frozenset(kinds))
        _set(self, "_reasons", tuple(reasons))
        _set(self, "_causes", tuple(causes))

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("a clearance has no kinds")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a clearance does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a clearance does not change")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a clearance is neither copied nor stored")

    def __repr__(self) -> str:
        return f"<clearance {self._id}: {', '.join(sorted(self.tiers)) or 'nothing'}>"

    @property
    def id(self) -> str:
        """What the ledger and the answer's headers call it."""
        return self._id

    @property
    def tiers(self) -> frozenset[str]:
        """Every tier that may be asked, in one form or the other."""
        return self._plain | self._masked if self._masked else self._plain

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of what was found; never the text."""
        return self._kinds

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why tiers are absent, in words without any of the request's text."""
        return self._reasons

    @property
    def causes(self) -> tuple[str, ...]:
        """What keeps it from a tier that is outside: kinds that were found, `unread`, or the policy's source."""
        return self._causes

    def allows(self, tier: str) -> bool:
        """Whether the request may go to this tier, in some form."""
        return tier in self._plain or tier in self._masked

    def plain(self, tier: str) -> bool:
        """Whether the request may go to this tier as it is."""
        return tier in self._plain


def require(clearance: object, tier: str) -> Clearance:
    """The clearance itself, if it is one and allows the tier. Raises `NotCleared`."""
    if type(clearance) is not Clearance:
        raise NotCleared(f"tier {tier} was asked without a clearance")
    try:
        allowed = clearance.allows(tier)
    except AttributeError:  # made past __init__, so by no gate
        allowed = False
    if not allowed:
        raise NotCleared(f"tier {tier} is not on this request's clearance")
    return clearance


class Cleared:
    """A request with its clearance; the request comes out only for a tier that is allowed."""

    __slots__ = ("_masked", "_masks", "_plain", "clearance")
    clearance: Clearance
    _plain: ChatRequest
    _masked: ChatRequest | None
    _masks: Masks | None

    def __init__(
        self, seal: object, clearance: Clearance, plain: ChatRequest, masked: ChatRequest | None, masks: Masks | None
    ) -> None:
        if seal is not _SEAL:
            raise NotCleared("only the gate clears a request")
        _set(self, "clearance", clearance)
        _set(self, "_plain", plain)
        _set(self, "_masked", masked)
        _set(self, "_masks", masks)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("a cleared request has no kinds")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a cleared request does not change")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a cleared request is neither copied nor stored")

    def __repr__(self) -> str:
        return f"<cleared request {self.clearance.id}>"

    def request_for(self, tier: str) -> tuple[ChatRequest, Masks | None]:
        """The request in the form that this tier may have, and what undoes the masking. Raises `NotCleared`."""
        clearance = require(self.clearance, tier)
        if clearance.plain(tier):
            return self._plain, None
        if self._masked is None or self._masks is None:
            raise NotCleared(f"tier {tier} may have this request only masked, and it could not be masked")
        return self._masked, self._masks


class Gate:
    """The only maker of clearances.

    `inside` are the tiers whose requests never leave the building; `scan` looks through a request's texts, all of them
    and those that somebody said, where it `hears` them.
    """

    def __init__(
        self, tiers: Sequence[str], inside: Iterable[str], scan: Callable[[Sequence[str], Sequence[str]], Scan],
        *, hears: bool = True,
    ) -> None:  # fmt: skip
        self._tiers, self._inside, self._scan, self._hears = tuple(tiers), frozenset(inside), scan, hears
        self._every = frozenset(self._tiers)

    def clear(self, request: ChatRequest, policies: Sequence[tuple[str, Policy]]) -> Cleared:
        """Clear a request under every one of `policies` (what declared it, the policy); the narrowest wins."""
        return self.decide(request, policies, self.look(request))

    def look(self, request: ChatRequest, masks: Masks | None = None) -> Scan:
        """What the detectors say of a request, masked by `masks`; a detector that raises is a scan that failed."""
        if request.opaque:
            return Scan(failed="a part of it is not text, so it could not be looked at")
        try:
            said = request.said() if self._hears else ()
            return self._scan(request.texts(), said if masks is None else [masks.blank(text) for text in said])
        except Exception as error:
            return Scan(failed=f"the detectors failed ({type(error).__name__})")

    def decide(self, request: ChatRequest, policies: Sequence[tuple[str, Policy]], scan: Scan) -> Cleared:
        """Clear a request of which `scan` is what the detectors said."""
        declared = self._every if policies else frozenset()
        reasons = [] if policies else ["nothing declares where it may go"]
        causes = []
        for source, policy in policies:
            if not declared <= policy.tiers:
                gone = [tier for tier in self._tiers if tier in declared and tier not in policy.tiers]
                reasons.append(f"{source} (policy {policy.name}) leaves out {', '.join(gone)}")
                if not self._inside.issuperset(gone):
                    causes.append(source)
                declared &= policy.tiers
        ignored, kinds, outside, masked = _NONE, _NONE, _NONE, _NONE
        if not scan.clean:
            ignored = frozenset.intersection(*(policy.ignore for _, policy in policies)) if policies else _NONE
            kinds, outside = scan.kinds - ignored, declared - self._inside
        masked_request, masks = None, None
        if scan.failed is not None:
            plain = declared & self._inside
            if outside:
                reasons.append(f"{scan.failed}: stays inside, without {self._listed(outside)}")
                causes.append("unread")
        elif kinds:
            plain = declared & self._inside
            found = f"it holds {', '.join(sorted(kinds))}"
            masked_request, masks = self._mask(request, policies, scan, kinds, ignored)
            if masked_request is not None:
                masked = outside.intersection(*(policy.masked_tiers for _, policy in policies))
            if outside - masked:
                reasons.append(f"{found}: stays inside, without {self._listed(outside - masked)}")
                causes += sorted(kinds)
            if masked:
                reasons.append(f"{found}: masked for {self._listed(masked)}, as its policy allows")
        else:
            plain = declared
        clearance = Clearance(_SEAL, plain, masked, scan.kinds, reasons, causes)
        return Cleared(_SEAL, clearance, request, masked_request if masked else None, masks if masked else None)

    def _mask(
        self,
        request: ChatRequest,
        policies: Sequence[tuple[str, Policy]],
        scan: Scan,
        kinds: frozenset[str],
        ignored: frozenset[str],
    ) -> tuple[ChatRequest | None, Masks | None]:
        """The request without what was found; nothing where a policy forbids it or a second scan still finds some."""
        if not all(kinds <= policy.mask and policy.masked_tiers for _, policy in policies):
            return None, None
        masks = Masks([(kind, text) for kind, text in scan.found if kind in kinds], avoid="\n".join(request.texts()))
        masked = request.map(masks.mask)
        again = self.look(masked, masks)
        if again.failed is not None or again.kinds - ignored:
            return None, None
        return masked, masks

    def _listed(self, tiers: Iterable[str]) -> str:
        some = set(tiers)
        return ", ".join(tier for tier in self._tiers if tier in some)
