"""HTTP/1.1 as the gateway speaks it: uvicorn's protocol on httptools, with limits on what stands around a body.

Promises that a request's line, headers, trailers and the framing of its chunks are bounded in bytes, its headers in
number and the time until its head is whole in seconds (slow-loris), whatever the application does. An application is
told at once that its client left, where it gives `scope["whit.left"]` a call; `scope["whit.body"]` gives it a body
that is whole by then without waiting; a whole answer that it gives to `scope["whit.reply"]` is sent in one piece, and
so is what it writes in one turn of the loop. Bodies are the application's business.

Knows nothing of what requests hold.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle, Transport, current_task
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MOST_BYTES, MOST_HEADERS, MOST_SECONDS = 65_536, 200, 10.0
_FRAME = 16  # bytes around a chunk that count for nothing
_GATHERED = 65_536  # bytes that are sent without waiting for more


class Gathering:
    """A transport that sends what is written in one turn of the loop together: a head and its body are one packet."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, at the end of this turn."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > _GATHERED:
            self.flush()

    def write_now(self, data: bytes) -> None:
        """Send at once, after what was written before."""
        self.flush()
        if not self._transport.is_closing():
            self._transport.write(data)

    def flush(self) -> None:
        """Send what was written."""
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            if not self._transport.is_closing():
                self._transport.write(b"".join(parts))

    def close(self) -> None:
        """Close, once what was written is sent."""
        self.flush()
        self._transport.close()


def reply(cycle: RequestResponseCycle, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
    """Send a whole answer: what `cycle.send` does of a start and a body of known length, in one step.

    `headers` are of whit's own making, `content-length` among them. False where that must take the usual way.
    """
    if cycle.disconnected or cycle.response_started or cycle.flow.write_paused or cycle.scope["method"] == "HEAD":
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    parts = [STATUS_LINE[status]]
    for name, value in (*cycle.default_headers, *headers):
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
    parts.append(body)
    cycle.transport.write_now(b"".join(parts))  # type: ignore[attr-defined]
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


def body(cycle: RequestResponseCycle) -> bytes | None:
    """The body where all of it is here and nothing must be said first: what `cycle.receive` gives, in one step."""
    if cycle.more_body or cycle.disconnected or cycle.response_complete or cycle.waiting_for_100_continue:
        return None
    cycle.flow.resume_reading()
    cycle.message_event.clear()
    whole, cycle.body = bytes(cycle.body), bytearray()
    return whole


class Protocol(HttpToolsProtocol):
    """One connection."""

    _around = 0  # bytes of this request that are no body
    _in_head, _between = True, False  # the latter: after a request, with nothing of the next
    _late: TimerHandle | None = None
    _left: Callable[[], None] | None = None
    _idle: float | None = None  # since when it waits for a request
    _looking: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A client came: its first head has its time from now."""
        super().connection_made(Gathering(transport, self.loop))  # type: ignore[arg-type]
        self._late = self.loop.call_later(MOST_SECONDS, self._end, "took too long")

    def connection_lost(self, exc: Exception | None) -> None:
        """It went."""
        self._in_time()
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)
        if self._left is not None:
            self._left()

    def data_received(self, data: bytes) -> None:
        """Some bytes: of a head, of a body, or of both."""
        self._around += len(data)
        self._between = False
        super().data_received(data)
        if self._around > MOST_BYTES:
            self._end("is too long")
        elif self._in_head and not self._between and self._late is None:  # of a head that is not whole yet
            self._late = self.loop.call_later(MOST_SECONDS, self._end, "took too long")

    def leaving(self, call: Callable[[], None] | None) -> None:
        """What is called when the client of the request that is being answered leaves; None for nothing."""
        self._left = call

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._between = False
        self.scope["whit.left"] = self.leaving  # type: ignore[typeddict-unknown-key]

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or trailer."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > MOST_HEADERS:
            raise ValueError("too many headers")  # ends the parser, which ends the connection with 400

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._in_head = False
        self._in_time()
        super().on_headers_complete()
        self.scope["whit.reply"] = partial(reply, self.cycle)  # type: ignore[typeddict-unknown-key]
        self.scope["whit.body"] = partial(body, self.cycle)  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._around = max(0, self._around - len(body) - _FRAME)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes next is a head."""
        super().on_message_complete()
        self._in_head, self._between, self._around = True, True, 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.tasks.add(self.loop.create_task(self._answered(cycle, app)))

    async def _answered(self, cycle: RequestResponseCycle, app: Any) -> None:
        try:
            await cycle.run_asgi(app)
        finally:  # a task's own end costs less than a call of the loop for it
            self.tasks.discard(current_task())

    def on_response_complete(self) -> None:
        """An answer is out; without another request the connection ends after a while."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle = self.loop.time()
        if self._looking is None:  # a timer a connection, not one a request
            self._looking = self.loop.call_later(self.timeout_keep_alive, self._look)

    def _unset_keepalive_if_required(self) -> None:
        self._idle = None  # the timer runs on: it is the connection's

    def _look(self) -> None:
        now, most = self.loop.time(), self.timeout_keep_alive
        since = now if self._idle is None else self._idle
        if now - since < most:
            self._looking = self.loop.call_at(since + most, self._look)
        elif not self.transport.is_closing():
            self.transport.close()

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
