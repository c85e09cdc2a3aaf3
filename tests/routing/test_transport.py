"""The connections below a wire: one address, nothing of the environment, no certificate taken on trust."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from whit.routing.tiers import transport
from whit.routing.tiers.transport import BrokenOff, HttpTransport, Unreachable

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """Gives each request the answer that it is told to, and remembers who came with what."""

    def __init__(self, *answers: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.answers, self.tls = list(answers), tls
        self.connections, self.requests = 0, []  # type: ignore[var-annotated]

    async def __aenter__(self) -> Server:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                self.requests.append(head + await reader.readexactly(size))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                writer.write(answer)
                await writer.drain()
                if answer.endswith(b"CUT"):
                    break
        writer.close()


async def read(at: HttpTransport, url: str) -> tuple[int, bytes]:
    found = await at.post(url, {"content-type": "text/plain", "authorization": "Bearer k"}, b"hello")
    try:
        return found.status, b"".join([chunk async for chunk in found.chunks()])
    finally:
        found.close()


@contextlib.asynccontextmanager
async def opened(secure: bool = False) -> AsyncIterator[HttpTransport]:
    made = HttpTransport(connecting=5, secure=secure)
    try:
        yield made
    finally:
        await made.close()


def run(work: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


def test_a_connection_is_kept_and_says_only_what_it_is_told_to() -> None:
    async def work() -> None:
        async with Server(OK) as server, opened() as at:
            for _ in range(3):
                assert await read(at, f"http://127.0.0.1:{server.port}/v1/x") == (200, b"{}")
            assert server.connections == 1 and len(server.requests) == 3
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
            assert names == {b"host", b"content-type", b"content-length", b"authorization"} and body == b"hello"
            assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")

    run(work)


def test_no_redirect_is_followed_and_no_proxy_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with Server(OK) as elsewhere, opened() as at:
            (tmp_path / ".netrc").write_text("machine 127.0.0.1 login who password secret\n")
            monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{elsewhere.port}")
            for status in (301, 302, 303, 307, 308):
                told = (
                    f"HTTP/1.1 {status} x\r\nlocation: http://127.0.0.1:{elsewhere.port}/\r\ncontent-length: 0\r\n\r\n"
                )
                async with Server(told.encode()) as server:
                    assert await read(at, f"http://127.0.0.1:{server.port}/") == (status, b"")
                    assert len(server.requests) == 1
            assert elsewhere.connections == 0

    run(work)


@pytest.mark.parametrize(
    "answer",
    [
        b"CUT",
        b"nonsense\r\n\r\nCUT",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nCUT",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nCUT",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\nCUT",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5000 + b"\r\nCUT",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 7\r\n\r\nhelloCUT",
    ],
    ids=["nothing", "nonsense", "half", "chunk", "header", "headers", "two lengths"],
)
def test_what_is_no_answer_breaks_off(answer: bytes) -> None:
    async def work() -> None:
        async with Server(answer) as server, opened() as at:
            with pytest.raises(BrokenOff):
                await read(at, f"http://127.0.0.1:{server.port}/")

    run(work)


def test_who_is_not_there_is_unreachable() -> None:
    async def work() -> None:
        async with Server(OK) as server:
            port = server.port
        async with opened() as at:
            for url in (f"http://127.0.0.1:{port}/", "http://no-such-host.invalid/"):
                with pytest.raises(Unreachable):
                    await read(at, url)

    run(work)


def test_an_answer_is_not_unpacked_and_one_left_half_read_is_not_used_again() -> None:
    packed = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00"
    long = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1000

    async def work() -> None:
        async with Server(packed, long, OK) as server, opened() as at:
            url = f"http://127.0.0.1:{server.port}/"
            assert await read(at, url) == (200, b"\x1f\x8b\x08\x00")
            found = await at.post(url, {}, b"")
            found.close()
            assert await read(at, url) == (200, b"{}") and server.connections == 2

    run(work)


def test_what_only_says_that_an_answer_will_come_is_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"

    async def work() -> None:
        async with Server(b"HTTP/1.1 100 Continue\r\n\r\n" + early + OK, early * 5000 + OK) as server, opened() as at:
            url = f"http://127.0.0.1:{server.port}/"
            assert await read(at, url) == (200, b"{}")
            with pytest.raises(BrokenOff):  # not for ever
                await read(at, url)

    run(work)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def work() -> None:
        async with Server(b"HTTP/1.1 200 OK\r\n\r\nall of it, CUT", OK) as server, opened() as at:
            url = f"http://127.0.0.1:{server.port}/"
            assert await read(at, url) == (200, b"all of it, CUT")
            assert await read(at, url) == (200, b"{}") and server.connections == 2

    run(work)


@pytest.mark.parametrize(
    "answer", [OK + OK, OK + b"HTTP/1.1 2", OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")],
    ids=["two answers", "one and a half", "it says that it closes"],
)  # fmt: skip
def test_a_connection_that_is_not_clean_is_not_used_again(answer: bytes) -> None:
    async def work() -> None:
        async with Server(answer, OK) as server, opened() as at:
            url = f"http://127.0.0.1:{server.port}/"
            with contextlib.suppress(BrokenOff):
                assert await read(at, url) == (200, b"{}")
            assert await read(at, url) == (200, b"{}") and server.connections == 2

    run(work)


def test_what_is_said_unasked_is_no_answer_to_the_next_request() -> None:
    async def work() -> None:
        writers = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            while await reader.readuntil(b"hello"):
                writer.write(OK)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with opened() as at:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            assert await read(at, url) == (200, b"{}")
            writers[0].write(OK.replace(b"{}", b"[]"))
            await asyncio.sleep(0.05)
            assert await read(at, url) == (200, b"{}") and len(writers) == 2
        server.close()

    run(work)


def test_what_nobody_takes_is_not_read() -> None:
    async def work() -> None:
        sent = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"hello")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 64000000\r\n\r\n")
            for _ in range(1000):
                writer.write(b"x" * 64_000)
                await writer.drain()
                sent += 64_000

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with opened() as at:
            found = await at.post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", {}, b"hello")
            await asyncio.sleep(0.3)
            assert sent < 32_000_000, "what the system's buffers hold, and no more"
            assert len(b"".join([chunk async for chunk in found.chunks()])) == 64_000_000
        server.close()

    run(work)


def test_a_header_is_one_line() -> None:
    async def work() -> None:
        async with Server(OK) as server, opened() as at:
            for headers in ({"x": "a\r\ny: b"}, {"x\n": "a"}, {"x": "\u0107"}):
                with pytest.raises(BrokenOff):
                    await at.post(f"http://127.0.0.1:{server.port}/", headers, b"")
            assert not server.requests

    run(work)


def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_KEPT", 0.1)

    async def work() -> None:
        async with Server(OK) as server, opened() as at:
            url = f"http://127.0.0.1:{server.port}/"
            assert await read(at, url) == await read(at, url) == (200, b"{}") and server.connections == 1
            await asyncio.sleep(0.3)
            (place,) = at._places.values()
            assert not place._idle and not place._all
            assert await read(at, url) == (200, b"{}") and server.connections == 2

    run(work)


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificate, is not here")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)

    async def work() -> None:
        async with Server(OK, tls=tls) as server:
            async with opened(secure=True) as at:
                with pytest.raises(Unreachable):
                    await read(at, f"https://localhost:{server.port}/")
            assert not server.requests
            trusted = ssl.create_default_context(cafile=str(cert))
            monkeypatch.setattr(transport, "trusting", lambda: trusted)
            async with opened(secure=True) as at:
                assert await read(at, f"https://localhost:{server.port}/") == (200, b"{}")
                with pytest.raises(Unreachable):  # vouched for, but for another name
                    await read(at, f"https://127.0.0.1:{server.port}/")
            assert len(server.requests) == 1

    run(work)
