"""The only place where bytes leave for a remote tier; nothing here moves without a clearance for that tier.

Promises: the address comes from the tier's own line of tiers.toml; no redirect is followed, no proxy or other
setting is taken from the environment, no cookie kept, no header of the client's passed on; every answer is bounded
in size and time and of the right content type; no error holds the key, the address or the remote's words.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from whit.routing.clearance import Clearance, require
from whit.routing.config import Tier
from whit.routing.errors import TierFailed
from whit.routing.limits import Places, within
from whit.routing.tiers.transport import BrokenOff, HttpTransport, Response, Transport, Unreachable

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_LONGEST_LINE = 1 << 20
_HEADERS = {"content-type": "application/json", "user-agent": "whit", "accept-encoding": "identity"}


class Wire:
    """The connections to one remote tier."""

    def __init__(self, tier: Tier, *, largest: int = 8_388_608, transport: Transport | None = None) -> None:
        self.tier, self._largest = tier, largest
        self._transport = transport or HttpTransport(
            connecting=min(10.0, 0.8 * tier.timeout), secure=tier.url.startswith("https:")
        )
        self._places = Places(tier.concurrency)

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    async def post(
        self, clearance: Clearance, path: str, headers: dict[str, str], content: bytes, seconds: float
    ) -> dict[str, Any]:
        """Send, and read a whole JSON object. Raises `NotCleared` or `TierFailed`."""
        async with self._asked(clearance, seconds):
            response = await self._send(clearance, path, headers, content, "json", "JSON")
            try:
                raw = bytearray()
                async for chunk in response.chunks():
                    raw += chunk
                    if len(raw) > self._largest:
                        raise self._failed("bad_upstream", "answered with more than it may", billed=True)
            finally:
                response.close()
        try:
            found = _read(raw)
        except (ValueError, RecursionError) as error:
            raise self._failed("bad_upstream", "answered with broken JSON", billed=True) from error
        if not isinstance(found, dict):
            raise self._failed("bad_upstream", "answered with JSON that is no object", billed=True)
        return found

    async def stream(
        self, clearance: Clearance, path: str, headers: dict[str, str], content: bytes, seconds: float
    ) -> AsyncIterator[dict[str, Any]]:
        """Send, and give each event's JSON object. Raises `NotCleared` or `TierFailed`."""
        async with self._asked(clearance, seconds):
            response = await self._send(clearance, path, headers, content, "event-stream", "an event stream")
            try:
                total, rest = 0, b""
                async for chunk in response.chunks():
                    total += len(chunk)
                    rest += chunk
                    if total > self._largest or len(rest) > _LONGEST_LINE:
                        raise self._failed("bad_upstream", "streams more than it may", billed=True)
                    *lines, rest = rest.split(b"\n")
                    for line in lines:
                        if not line.startswith(b"data:"):
                            continue
                        data = line[5:].strip()
                        if data == b"[DONE]":
                            return
                        try:
                            event = json.loads(data)
                        except (ValueError, RecursionError) as error:
                            raise self._failed("bad_upstream", "streams broken JSON", billed=True) from error
                        if isinstance(event, dict):
                            yield event
            finally:
                response.close()

    def _asked(self, clearance: Clearance, seconds: float) -> _Asked:
        require(clearance, self.tier.name)
        return _Asked(self, min(seconds, self.tier.timeout))

    async def _send(
        self, clearance: Clearance, path: str, headers: dict[str, str], content: bytes, kind: str, named: str
    ) -> Response:
        """The one call by which bytes leave."""
        require(clearance, self.tier.name)
        response = await self._transport.post(self.tier.url + path, _HEADERS | headers, content)
        try:
            if response.status != 200:
                raise self._status(response.status, response.headers.get("retry-after", ""))
            if response.headers.get("content-encoding", "identity") != "identity":
                # Not asked for, and a small packed answer may be a very large one.
                raise self._failed("bad_upstream", "answered packed, which was not asked for", billed=True)
            if kind not in response.headers.get("content-type", ""):
                raise self._failed("bad_upstream", f"answered with something that is not {named}", billed=True)
        except BaseException:
            response.close()
            raise
        return response

    def _status(self, status: int, after: str) -> TierFailed:
        wait = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else 0.0
        if 300 <= status < 400:
            return self._failed("tier_redirects", "points elsewhere, which is not followed")
        if status in (401, 403):
            return self._failed("tier_key", f"does not accept its key ({status})")
        if status == 429:
            return self._failed("tier_busy", "has too much to do (429)", again=True, after=wait, status=429)
        return self._failed("tier_error", f"answered with status {status}", again=status in _AGAIN, after=wait)

    def _failed(self, code: str, what: str, *, again: bool = False, billed: bool = False, after: float = 0.0,
                status: int = 502) -> TierFailed:  # fmt: skip
        return TierFailed(code, f"tier {self.tier.name} {what}", again=again, billed=billed, after=after, status=status)


def _read(raw: bytearray) -> Any:
    try:
        text = raw.decode("utf-8")
        found, end = _READER.raw_decode(text)
        if end == len(text):
            return found
    except ValueError:
        pass
    return json.loads(raw)  # which knows other encodings, and spaces around it


_READER = json.JSONDecoder()


class _Asked:
    """One of a tier's places and a time limit while the block runs; what goes wrong in it is told in whit's words."""

    __slots__ = ("_limit", "_seconds", "_wire")

    def __init__(self, wire: Wire, seconds: float) -> None:
        self._wire, self._seconds = wire, seconds

    async def __aenter__(self) -> None:
        until = asyncio.get_running_loop().time() + self._seconds
        places = self._wire._places
        if not places.take():  # nothing is sent yet, so nothing is billed
            try:
                with within(until):
                    await places.wait()
            except TimeoutError as error:
                raise self._wire._failed(
                    "tier_full", "has too much to do: no place was free in time", status=503
                ) from error
        self._limit = within(until)
        self._limit.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire._places.give()
        try:
            self._limit.__exit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        if isinstance(error, Unreachable):
            raise self._wire._failed("tier_unreachable", "cannot be reached", again=True) from error
        if isinstance(error, TimeoutError):
            raise self._wire._failed("tier_timeout", "took too long", billed=True, status=504) from error
        if isinstance(error, BrokenOff):
            raise self._wire._failed("tier_broken", "broke off", again=True, billed=True) from error
