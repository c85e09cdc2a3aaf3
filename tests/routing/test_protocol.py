"""HTTP as the gateway speaks it: what stands around a body is bounded, and nobody smuggles a request in."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from upstreams import Upstream, config, gateway, say
from uvicorn.server import ServerState

from whit.routing import protocol
from whit.routing.app import App

Seen = list[tuple[str, bytes]]
POST = b"POST /a HTTP/1.1\r\nhost: x\r\n"


@contextlib.asynccontextmanager
async def served(how: Any = None, **more: Any) -> AsyncIterator[tuple[int, Seen]]:
    seen: Seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        seen.append((scope["path"], body))
        if how is not None:
            await how(scope, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, http=protocol.Protocol, ws="none", lifespan="off", log_level="critical", **more)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol.Protocol(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


def exchange(*pieces: bytes, pause: float = 0.0, how: Any = None, **more: Any) -> tuple[bytes, Seen]:
    """What came back until the connection was closed (or nothing came for a while), and what the application saw."""

    async def run() -> tuple[bytes, Seen]:
        async with served(how, **more) as (port, seen):
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


async def in_one(scope: Any, send: Any) -> None:
    if not scope["whit.reply"](200, [(b"content-length", b"3"), (b"x-a", b"b")], b"one"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def test_a_whole_answer_goes_out_as_any_other() -> None:
    post = POST + b"content-length: 3\r\n\r\nabc"
    said, seen = exchange(post + post, post, how=in_one)
    assert said.count(b"HTTP/1.1 200 OK\r\n") == 3 and said.count(b"x-a: b\r\n\r\none") == 3 and len(seen) == 3
    said, _ = exchange(POST + b"connection: close\r\ncontent-length: 3\r\n\r\nabc", how=in_one)
    assert said.count(b"connection: close") == 1 and said.endswith(b"\r\n\r\none")
    said, _ = exchange(b"POST /a HTTP/1.0\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc", how=in_one)
    assert said.endswith(b"connection: close\r\n\r\none"), "an old client is not kept"
    said, _ = exchange(b"HEAD /a HTTP/1.1\r\nhost: x\r\n\r\n", how=in_one)
    assert said.startswith(b"HTTP/1.1 200") and b"one" not in said


def test_one_who_sends_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MOST_SECONDS", 0.15)

    async def run(*pieces: bytes) -> float:
        async with served(in_one, timeout_keep_alive=0.15) as (port, _):  # type: ignore[arg-type]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = asyncio.get_running_loop().time()
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.05)
            await asyncio.wait_for(reader.read(), 2)
            writer.close()
            return asyncio.get_running_loop().time() - began

    whole = POST + b"content-length: 0\r\n\r\n"
    for pieces in ((), (whole,), (whole, whole, whole), (whole, b"\r\n"), (whole, b"POST /")):
        taken = asyncio.run(run(*pieces))
        assert 0.1 < taken - 0.05 * max(0, len(pieces) - 1) < 1.5, pieces


def test_an_application_hears_that_its_client_left() -> None:
    async def run() -> None:
        left = asyncio.Event()

        async def slow(scope: Any, send: Any) -> None:
            scope["whit.left"](left.set)
            await asyncio.wait_for(left.wait(), 2)

        async with served(slow) as (port, seen):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(POST + b"content-length: 3\r\n\r\nabc")
            await asyncio.sleep(0.1)
            assert seen and not left.is_set()
            writer.close()
            await asyncio.wait_for(left.wait(), 1)

    asyncio.run(run())


def test_a_stream_goes_out_as_it_is_written() -> None:
    async def run() -> None:
        go_on = asyncio.Event()

        async def stream(scope: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await go_on.wait()
            for _ in range(40):
                await send({"type": "http.response.body", "body": b"z" * 10_000, "more_body": True})
            await send({"type": "http.response.body", "body": b"last"})

        async with served(stream) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000_000)
            writer.write(POST + b"content-length: 0\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"first"), 1)
            go_on.set()
            rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 2)
            assert rest.count(b"z") == 400_000 and b"last" in rest
            writer.close()

    asyncio.run(run())


def test_a_request_whose_client_left_is_worked_on_no_more(tmp_path: Path) -> None:
    async def run() -> None:
        made = gateway(config(tmp_path), Upstream(faults=["slow"]))
        of = uvicorn.Config(App(made), http=protocol.Protocol, ws="none", lifespan="off", log_level="critical")
        of.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: protocol.Protocol(of, state, {}), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(say("hello", model="cheap")).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        while not made.state.users:
            await asyncio.sleep(0.01)
        writer.close()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not made.state.users and not state.tasks:
                break
        assert not made.state.users and not state.tasks
        server.close()

    asyncio.run(asyncio.wait_for(run(), 10))
