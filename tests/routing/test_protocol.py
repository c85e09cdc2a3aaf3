"""HTTP as the gateway speaks it: what stands around a body is bounded, and nobody smuggles a request in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from whit.routing import protocol

Seen = list[tuple[str, bytes]]
POST = b"POST /a HTTP/1.1\r\nhost: x\r\n"


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[int, Seen]]:
    seen: Seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        seen.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, http=protocol.Protocol, ws="none", lifespan="off", log_level="critical")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol.Protocol(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


def exchange(*pieces: bytes, pause: float = 0.0) -> tuple[bytes, Seen]:
    """What came back until the connection was closed (or nothing came for a while), and what the application saw."""

    async def run() -> tuple[bytes, Seen]:
        async with served() as (port, seen):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause)
            said = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while piece := await asyncio.wait_for(reader.read(65536), 0.5):
                    said += piece
            writer.close()
            return said, seen

    return asyncio.run(run())


def test_requests_follow_each_other_on_one_connection() -> None:
    one = POST + b"content-length: 3\r\n\r\nabc"
    said, seen = exchange(one + one, one)
    assert said.count(b"HTTP/1.1 200") == 3 and seen == [("/a", b"abc")] * 3


def test_a_body_may_come_in_many_small_chunks() -> None:
    body = b"1\r\nz\r\n" * 30_000 + b"0\r\n\r\n"
    said, seen = exchange(POST + b"transfer-encoding: chunked\r\n\r\n", body)
    assert b" 200 " in said and seen == [("/a", b"z" * 30_000)]


@pytest.mark.parametrize(
    "pieces",
    [
        (POST + b"x: ", *[b"y" * 8192] * 12),
        (b"GET /" + b"y" * 70_000,),
        (POST + b"x: y\r\n" * 300 + b"\r\n",),
        (POST + b"transfer-encoding: chunked\r\n\r\n0\r\n", *[b"x: " + b"y" * 8192 + b"\r\n"] * 12),
        (POST + b"transfer-encoding: chunked\r\n\r\n1;", *[b"y" * 8192] * 12),
    ],
    ids=["header", "line", "headers", "trailers", "chunk extension"],
)
def test_what_stands_around_a_body_is_bounded(pieces: tuple[bytes, ...]) -> None:
    said, seen = exchange(*pieces, pause=0.01)
    assert b"HTTP/1.1 200" not in said and len(seen) == 0


def test_a_head_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MOST_SECONDS", 0.15)
    said, seen = exchange(b"POST /a HT", b"TP/1.1\r\n", b"host: x\r\n", b"a: b\r\n", b"\r\n", pause=0.1)
    assert b" 200 " not in said and not seen
    said, seen = exchange(POST + b"content-length: 2\r\n\r\n", b"a", b"b", pause=0.3)  # a body has its own
    assert b" 200 " in said and seen == [("/a", b"ab")]


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"content-length: 0\r\ncontent-length: 50\r\n\r\n",
        b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"content-length: -1\r\n\r\n",
        b"content-length: +5\r\n\r\nabcde",
        b"content-length : 5\r\n\r\nabcde",
        b"content-length: 5, 5\r\n\r\nabcde",
        b"x: y\r\n content-length: 5\r\n\r\nabcde",
        b"transfer-encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
    ],
)
def test_no_request_is_smuggled_in(head: bytes) -> None:
    said, seen = exchange(POST + head + b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n")
    assert not any(path == "/smuggled" for path, _ in seen)
    assert said.count(b"HTTP/1.1 200") <= 1
