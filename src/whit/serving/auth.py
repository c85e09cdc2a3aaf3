"""Tokens: who may use and change which adapters, and how often.

A token is 32 random bytes, shown once; the store keeps its SHA-256 (a secret of that length needs no slow hash).
Patterns are shell patterns over names (`team/*`); `use` also covers inline adapters and the bare base where it
holds `*`, else the bare base alone. Knows nothing of HTTP.
"""

from __future__ import annotations

import fnmatch
import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "whit_"
_TENANTS = 10_000


@dataclass(frozen=True)
class Rights:
    """What a token may do: patterns of names to use and to change, and requests a minute (None: no limit)."""

    use: tuple[str, ...] = ("*",)
    change: tuple[str, ...] = ()
    rate: float | None = None

    def may_use(self, name: str) -> bool:
        """Whether requests may name this adapter."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.use)

    def may_change(self, name: str) -> bool:
        """Whether versions of this adapter may be added or deleted."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.change)

    @property
    def inline(self) -> bool:
        """Whether requests may bring adapters of their own."""
        return "*" in self.use

    def to_json(self) -> dict[str, Any]:
        """As the store keeps it."""
        return {"use": list(self.use), "change": list(self.change), "rate": self.rate}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Rights:
        """From what the store keeps."""
        return cls(tuple(plain.get("use", ())), tuple(plain.get("change", ())), plain.get("rate"))


@dataclass(frozen=True)
class Caller:
    """Who asks: the token's name (or `local`, where no token is needed), and what it may do."""

    name: str
    rights: Rights


LOCAL = Caller("local", Rights(("*",), ("*",)))


def new_token() -> tuple[str, bytes]:
    """A fresh token and what the store keeps of it."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, digest_of(secret)


def digest_of(secret: str) -> bytes:
    """SHA-256 of a token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Rates:
    """A bucket for each caller: `rate` requests a minute, a burst of as many as come in ten seconds.

    `share` of it is granted here, where several processes share the requests and know nothing of each other.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._guard = threading.Lock()

    def wait(self, caller: Caller, now: float | None = None) -> float:
        """0 where the caller may go on now (and is counted), else the seconds until it may."""
        rate = caller.rights.rate
        if not rate:
            return 0.0
        rate *= self._share
        now = time.monotonic() if now is None else now
        burst = max(1.0, rate / 6)
        with self._guard:
            left, at = self._buckets.get(caller.name, (burst, now))
            left = min(burst, left + (now - at) * rate / 60)
            granted = left >= 1
            self._buckets[caller.name] = (left - 1 if granted else left, now)
            self._buckets.move_to_end(caller.name)
            while len(self._buckets) > _TENANTS:
                self._buckets.popitem(last=False)
        return 0.0 if granted else (1 - left) * 60 / rate
