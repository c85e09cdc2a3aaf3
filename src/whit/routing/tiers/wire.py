"""The only place where bytes leave for a remote tier; nothing here moves without a clearance for that tier.

Promises: the address comes from the tier's own line of tiers.toml; no redirect is followed, no proxy or other
setting is taken from the environment, no cookie kept, no header of the client's passed on; every answer is bounded
in size and time and of the right content type; no error holds the key, the address or the remote's words.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from whit.routing.clearance import Clearance, require
from whit.routing.config import Tier
from whit.routing.errors import TierFailed

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_LONGEST_LINE = 1 << 20
_HEADERS = {"content-type": "application/json", "user-agent": "whit", "accept-encoding": "identity"}


class Wire:
    """The connections to one remote tier."""

    def __init__(self, tier: Tier, *, largest: int = 8_388_608, transport: Any = None) -> None:
        import httpx2

        self.tier, self._largest = tier, largest
        # A transport and no client above it: nothing there follows redirects, keeps cookies or reads the environment.
        self._transport = transport or httpx2.AsyncHTTPTransport(
            trust_env=False,
            limits=httpx2.Limits(max_connections=tier.concurrency, max_keepalive_connections=tier.concurrency),
        )
        timeout = httpx2.Timeout(tier.timeout, connect=min(10.0, tier.timeout))
        self._extensions = {"timeout": timeout.as_dict()}
        self._urls: dict[str, Any] = {}

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def post(
        self, clearance: Clearance, path: str, headers: dict[str, str], body: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Send, and read a whole JSON object. Raises `NotCleared` or `TierFailed`."""
        async with self._open(clearance, path, headers, body, seconds) as response:
            if "json" not in response.headers.get("content-type", ""):
                raise self._failed("bad_upstream", "answered with something that is not JSON", billed=True)
            raw = bytearray()
            async for chunk in response.aiter_bytes():
                raw += chunk
                if len(raw) > self._largest:
                    raise self._failed("bad_upstream", "answered with more than it may", billed=True)
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise self._failed("bad_upstream", "answered with broken JSON", billed=True) from error
        if not isinstance(found, dict):
            raise self._failed("bad_upstream", "answered with JSON that is no object", billed=True)
        return found

    async def stream(
        self, clearance: Clearance, path: str, headers: dict[str, str], body: dict[str, Any], seconds: float
    ) -> AsyncIterator[dict[str, Any]]:
        """Send, and give each event's JSON object. Raises `NotCleared` or `TierFailed`."""
        async with self._open(clearance, path, headers, body, seconds) as response:
            if "event-stream" not in response.headers.get("content-type", ""):
                raise self._failed("bad_upstream", "answered with something that is no event stream", billed=True)
            total, rest = 0, b""
            async for chunk in response.aiter_bytes():
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

    @contextlib.asynccontextmanager
    async def _open(
        self, clearance: Clearance, path: str, headers: dict[str, str], body: dict[str, Any], seconds: float
    ) -> AsyncIterator[Any]:
        import asyncio

        import httpx2

        require(clearance, self.tier.name)
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = httpx2.URL(self.tier.url + path)
        request = httpx2.Request(
            "POST", url, headers={**_HEADERS, **headers}, extensions=self._extensions,
            content=json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(),
        )  # fmt: skip
        try:
            async with asyncio.timeout(min(seconds, self.tier.timeout)):
                response = await self._transport.handle_async_request(request)
                try:
                    if response.status_code != 200:
                        raise self._status(response.status_code, response.headers.get("retry-after", ""))
                    if response.headers.get("content-encoding", "identity") != "identity":
                        # Not asked for, and a small packed answer may be a very large one.
                        raise self._failed("bad_upstream", "answered packed, which was not asked for", billed=True)
                    yield response
                finally:
                    await response.aclose()
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise self._failed("tier_unreachable", "cannot be reached", again=True) from error
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise self._failed("tier_timeout", "took too long", billed=True, status=504) from error
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            raise self._failed("tier_broken", "broke off", again=True, billed=True) from error

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
