"""Bytes to one remote address and back, over HTTP/1.1: the connections below a wire.

Promises: the system's certificates (certifi's, where the system has none) vouch for a name that is checked; no
redirect is followed; no proxy, netrc or other setting is taken from the environment; no cookie is kept; what comes
is not unpacked; a connection whose answer was not read to its end is closed, never used again. What fails is one of
three: `Unreachable` (nothing was sent), `BrokenOff`, `TimeoutError`. Knows nothing of tiers, of clearances or of what
is sent; `wire` is the only place that asks it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from whit.routing.tiers.connection import Connection

_KEPT = 15.0  # seconds that an idle connection is kept
_PATH = "/%:@!$&'()*+,;=~[]"  # what stands in an address as it is


class Unreachable(Exception):
    """No connection came about, so nothing was sent."""


class BrokenOff(Exception):
    """The connection broke, or what came over it was no HTTP."""


class Response(Protocol):
    """An answer whose head has come."""

    @property
    def status(self) -> int:
        """As in HTTP."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in lower case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `BrokenOff`, `TimeoutError`."""
        ...

    def close(self) -> None:
        """Let go of it; what was not read is not waited for."""
        ...


class Transport(Protocol):
    """What a wire sends by; tests have their own."""

    async def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Response:
        """Send, and wait for the head of the answer. Raises `Unreachable`, `BrokenOff`, `TimeoutError`."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class HttpTransport:
    """Kept connections. `connecting`: seconds until one stands; `secure`: whether any address is https."""

    def __init__(self, *, connecting: float, secure: bool) -> None:
        self._connecting = connecting
        self._tls = trusting() if secure else None
        self._places: dict[tuple[str, str, int], _Place] = {}
        self._addresses: dict[str, tuple[_Place, str]] = {}

    async def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Response:
        """Send, and wait for the head of the answer. Raises `Unreachable`, `BrokenOff`, `TimeoutError`."""
        place, line = self._addresses.get(url) or self._address(url)
        head = f"{line}{_lines(tuple(headers.items()))}content-length: {len(content)}\r\n\r\n".encode("ascii")
        connection = place.take() or await place.connect(self._connecting)
        answer = connection.ask(head + content)
        try:
            await answer.head()
        except BaseException:
            answer.close()
            raise
        return answer

    async def close(self) -> None:
        """Close every connection."""
        for place in self._places.values():
            place.close()
        await asyncio.sleep(0)  # they are closed by the loop

    def _address(self, url: str) -> tuple[_Place, str]:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        tls = self._tls or trusting() if parts.scheme == "https" else None
        place = self._places.setdefault((parts.scheme, host, port), _Place(host, port, tls))
        line = f"POST {quote(parts.path or '/', _PATH)} HTTP/1.1\r\nhost: {quote(parts.netloc, _PATH)}\r\n"
        self._addresses[url] = place, line
        return place, line


class _Place:
    """One server: its idle connections, the last used first, and all there are."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._where, self._tls = (host, port), tls
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    def take(self) -> Connection | None:
        """An idle connection, if there is one."""
        while self._idle:
            last = self._idle.pop()
            if last.open and last.loop.time() - last.since < _KEPT:
                return last
            last.close()
        return None

    async def connect(self, seconds: float) -> Connection:
        """A new one. Raises `Unreachable`."""
        from whit.routing.tiers.connection import Connection

        loop, (host, port) = asyncio.get_running_loop(), self._where
        # Another loop than asyncio's own tries a name's addresses one after the other.
        more: dict[str, Any] = {"happy_eyeballs_delay": 0.25} if isinstance(loop, asyncio.BaseEventLoop) else {}
        try:
            async with asyncio.timeout(seconds):
                _, made = await loop.create_connection(
                    lambda: Connection(loop, self.freed, self._all.discard), host, port, ssl=self._tls,
                    server_hostname=host if self._tls else None, **more,
                )  # fmt: skip
        except (OSError, TimeoutError, UnicodeError) as error:  # the last: of what cannot be a name
            raise Unreachable(type(error).__name__) from error
        self._all.add(made)
        return made

    def freed(self, connection: Connection) -> None:
        """Its answer was read: it waits for the next, for a while."""
        connection.since = connection.loop.time()
        self._idle.append(connection)
        if self._sweeping is None:  # one timer for all, not one for each
            self._sweeping = connection.loop.call_later(_KEPT, self._sweep)

    def close(self) -> None:
        """Close all."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for each in list(self._all):
            each.abort("the gateway closes")

    def _sweep(self) -> None:
        self._sweeping, idle, self._idle = None, self._idle, []
        for each in idle:
            if each.open and each.loop.time() - each.since < _KEPT:
                self._idle.append(each)
            else:
                each.close()
        if self._idle:
            oldest = self._idle[0]
            self._sweeping = oldest.loop.call_at(oldest.since + _KEPT, self._sweep)


@lru_cache(64)
def _lines(headers: tuple[tuple[str, str], ...]) -> str:
    """Headers as they stand in a head. Raises `BrokenOff` for what would be more than one line."""
    if not all(part.isascii() and part.isprintable() for header in headers for part in header):
        raise BrokenOff("a header that cannot be sent")
    return "".join(f"{name}: {value}\r\n" for name, value in headers)


@cache
def trusting() -> ssl.SSLContext:
    """What TLS is held to: the system's certificates, or certifi's on a system without."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None and not context.get_ca_certs():
        import certifi

        context.load_verify_locations(certifi.where())
    return context
