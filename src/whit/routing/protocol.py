"""HTTP/1.1 as the gateway speaks it: uvicorn's protocol on httptools, with limits on what stands around a body.

Promises that a request's line, headers, trailers and the framing of its chunks are bounded in bytes, its headers in
number and the time until its head is whole in seconds (slow-loris), whatever the application does. Bodies are the
application's business. Knows nothing of what requests hold.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES, MOST_HEADERS, MOST_SECONDS = 65_536, 200, 10.0
_FRAME = 16  # bytes around a chunk that count for nothing


class Protocol(HttpToolsProtocol):
    """One connection."""

    _around = 0  # bytes of this request that are no body
    _in_head = True
    _late: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A client came: its first head has its time from now."""
        super().connection_made(transport)
        self._late = self.loop.call_later(MOST_SECONDS, self._end, "took too long")

    def connection_lost(self, exc: Exception | None) -> None:
        """It went."""
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes: of a head, of a body, or of both."""
        self._around += len(data)
        if self._in_head and self._late is None:  # the first of a head on a kept connection
            self._late = self.loop.call_later(MOST_SECONDS, self._end, "took too long")
        super().data_received(data)
        if self._around > MOST_BYTES:
            self._end("is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or trailer."""
        super().on_header(name, value)
        if len(self.headers) > MOST_HEADERS:
            raise ValueError("too many headers")  # ends the parser, which ends the connection with 400

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._in_head = False
        self._in_time()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._around = max(0, self._around - len(body) - _FRAME)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes next is a head."""
        super().on_message_complete()
        self._in_head, self._around = True, 0

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self, why: str) -> None:
        self._late = None
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"The head of the request {why}.")
        else:  # an answer may be half out
            self.transport.close()
