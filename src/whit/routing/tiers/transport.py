"""Bytes to one remote address and back, over HTTP/1.1: the connections below a wire.

Promises: the system's certificates (certifi's, where the system has none) vouch for a name that is checked; no
redirect is followed; no proxy, netrc or other setting is taken from the environment; no cookie is kept; what comes
is not unpacked; a connection whose answer was not read to its end is closed, never used again. What fails is one of
three: `Unreachable` (nothing was sent), `BrokenOff`, `TimeoutError`. Knows nothing of tiers, of clearances or of what
is sent; `wire` is the only place that asks it.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import aiohttp
    import yarl

_KEPT = 15.0  # seconds that an idle connection is kept


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
        self._tls: ssl.SSLContext | bool = trusting() if secure else True
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, yarl.URL] = {}

    async def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Response:
        """Send, and wait for the head of the answer. Raises `Unreachable`, `BrokenOff`, `TimeoutError`."""
        import aiohttp

        session = self._session or self._open()
        try:
            where = self._urls.get(url)
            if where is None:
                import yarl

                where = self._urls[url] = yarl.URL(url)
            return _HttpResponse(await session.post(where, data=content, headers=headers, allow_redirects=False))
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise Unreachable(type(error).__name__) from error
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise BrokenOff(type(error).__name__) from error

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        self._session = aiohttp.ClientSession(
            # Who asks counts its requests by itself, so that waiting for a place is no part of connecting.
            connector=aiohttp.TCPConnector(
                limit=0, ssl=self._tls, keepalive_timeout=_KEPT, resolver=aiohttp.ThreadedResolver()
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connecting),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
            auto_decompress=False,
            trust_env=False,
        )
        return self._session


class _HttpResponse:
    def __init__(self, found: aiohttp.ClientResponse) -> None:
        self._found = found
        self.status, self.headers = found.status, {name.lower(): value for name, value in found.headers.items()}

    async def chunks(self) -> AsyncIterator[bytes]:
        import aiohttp

        content = self._found.content
        try:
            while chunk := await content.readany():
                yield chunk
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenOff(type(error).__name__) from error

    def close(self) -> None:
        # At its end the connection went back by itself; before it, this closes it.
        self._found.close()


@cache
def trusting() -> ssl.SSLContext:
    """What TLS is held to: the system's certificates, or certifi's on a system without."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None and not context.get_ca_certs():
        import certifi

        context.load_verify_locations(certifi.where())
    return context
