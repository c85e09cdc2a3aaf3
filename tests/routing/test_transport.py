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
