"""One connection to a remote address, and the answer that comes over it: HTTP/1.1 as a client speaks it, on httptools.

Promises that an answer's line, headers and the framing of its chunks are bounded in bytes and its headers in number;
that reading stops while nobody takes what came; that a connection is used again only after an answer which was whole,
that said so and that nothing followed. What comes unasked ends it. Knows nothing of addresses or of what is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast

import httptools

from whit.routing.tiers.transport import BrokenOff

MOST_BYTES, MOST_HEADERS = 65_536, 200
_FRAME = 16  # bytes around a chunk that count for nothing
_HIGH, _LOW = 262_144, 65_536  # bytes that wait to be taken


class Answer:
    """An answer on its way. `status` and `headers` (names in lower case) are there once `head` returned."""

    __slots__ = ("_connection", "_pieces", "_size", "_waiter", "begun", "ended", "error", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self.status, self.headers = 0, dict[str, str]()
        self.begun = self.ended = False
        self.error: str | None = None

    async def head(self) -> None:
        """Wait for the head. Raises `BrokenOff`."""
        while not self.begun:
            if self.error is not None:
                raise BrokenOff(self.error)
            await self._wait()

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `BrokenOff`."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self.ended:
                raise StopAsyncIteration
            if self.error is not None:
                raise BrokenOff(self.error)
            await self._wait()
        piece = self._pieces.popleft()
        self._size -= len(piece)
        if self._size < _LOW:
            self._connection.flow()
        return piece

    def close(self) -> None:
        """Let go of it; what was not read is not waited for."""
        if not self.ended:
            self._connection.abort("it was left")

    def take(self, piece: bytes) -> bool:
        """One more piece; whether more may come at once."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._size < _HIGH

    def wake(self) -> None:
        """Something came."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Connection(asyncio.Protocol):
    """One connection; `free` is told when it may be used again, `gone` when it never will be."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, free: Callable[[Connection], None], gone: Callable[[Connection], None]
    ) -> None:
        self.loop, self.since, self._free, self._gone = loop, 0.0, free, gone
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._around = 0  # bytes of this answer that are no body
        self._headers: dict[str, str] = {}
        self._count = 0
        self._passing = self._endless = self._kept = self._paused = False

    @property
    def open(self) -> bool:
        """Whether something can be sent over it."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, content: bytes) -> Answer:
        """Send a whole request; only where it is free."""
        if self._answer is not None or self._transport is None:
            raise RuntimeError("a connection was asked twice")
        self._around = 0
        self._answer = Answer(self)
        self._transport.write(content)
        return self._answer

    def flow(self) -> None:
        """Read on, where reading stopped."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self, why: str) -> None:
        """End it at once."""
        self._over(why)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End it, an idle one."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It went: the end of an answer that has no other."""
        answer = self._answer
        if answer is not None and exc is None and answer.begun and self._endless:
            answer.ended = True
        self._over("it ended")
        self._gone(self)

    def data_received(self, data: bytes) -> None:
        """Some bytes of an answer."""
        answer = self._answer
        if answer is None:  # what nobody asked for would be taken for the next answer
            self.abort("it spoke unasked")
            return
        self._around += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort("it spoke no HTTP")
            return
        if self._around > MOST_BYTES:
            self.abort("it said too much around its body")
            return
        answer.wake()
        if answer.ended:
            self._answer = None
            self.flow()
            if self._kept and self.open:
                self._free(self)
            else:
                self.close()

    def on_message_begin(self) -> None:
        """A head begins."""
        if self._answer is None or self._answer.ended:
            raise ValueError("two answers")
        self._headers, self._count = {}, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or trailer."""
        self._count += 1
        if self._count > MOST_HEADERS:
            raise ValueError("too many headers")
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """A head is whole: the answer's, or one that only says that it will come."""
        status, answer = self._parser.get_status_code(), self._answer
        assert answer is not None
        if status == 101:
            raise ValueError("another protocol")
        self._passing = status < 200
        if self._passing:
            return
        headers = self._headers
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._endless = not chunked and "content-length" not in headers
        answer.status, answer.headers, answer.begun = status, dict(headers), True

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._around = max(0, self._around - len(body) - _FRAME)
        if self._answer is not None and not self._answer.take(body) and not self._paused:
            self._paused = True
            assert self._transport is not None
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """An answer is whole."""
        if self._passing:
            return
        assert self._answer is not None
        self._answer.ended = True
        self._kept = self._parser.should_keep_alive()

    def _over(self, why: str) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            if not answer.ended:
                answer.error = why
            answer.wake()
