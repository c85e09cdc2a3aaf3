"""The gateway's added latency, its rate against a plain reverse proxy, and bytes of canary that leave.

    python benchmarks/gateway.py canary --requests 100000
    python benchmarks/gateway.py latency --requests 2000
    python benchmarks/gateway.py rate --requests 6000 --clients 100

`latency` (one client) and `rate` (many) run an upstream stub, a plain reverse proxy of the same libraries (uvicorn on
httptools, aiohttp's client) and the gateway, each in its own process on this machine, in turns, and ask them by bare
sockets. `canary` is in `gateway_canary.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from gateway_canary import ANSWER, Fake, canary

TIERS = """
[[tier]]
name = "local"
kind = "whit"
base = "fake"
[[tier]]
name = "paid"
kind = "openai"
url = "{url}"
model = "m"
concurrency = 256
[gateway]
ledger = "ledger.db"
"""
ROUNDS = 5
HOP = (b"connection", b"transfer-encoding", b"keep-alive", b"date", b"server")
BODY = {"model": "paid", "messages": [{"role": "user", "content": "Where does the river begin? " * 8}]}


async def stub(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    content = json.dumps(ANSWER).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def proxy(url: str) -> Any:
    """A plain reverse proxy: reads, passes on, passes back. Its client is the gateway's, set up as it is there."""
    client: Any = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal client
        if scope["type"] != "http":
            return
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message.get("body", b""), message.get("more_body", False)
        if client is None:
            client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        headers = [
            (name.decode(), value.decode())
            for name, value in scope["headers"]
            if name not in (*HOP, b"host", b"content-length")
        ]
        asked = client.post(url + "/chat/completions", data=content, headers=headers, allow_redirects=False)
        async with asked as found:
            passed = [(name.lower(), value) for name, value in found.raw_headers if name.lower() not in HOP]
            await send({"type": "http.response.start", "status": found.status, "headers": passed})
            async for chunk in found.content.iter_any():  # as it comes: most answers of such a server are streams
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def serve(what: str, port: int, url: str) -> None:
    """One of the three, until it is ended."""
    import uvicorn

    if what != "gateway":
        uvicorn.run(stub if what == "stub" else proxy(url), port=port, log_level="error", access_log=False,
                    lifespan="off", timeout_keep_alive=300, http="httptools",
                    proxy_headers=False)  # fmt: skip
        return
    from whit.routing.config import read_config
    from whit.routing.gateway import Gateway
    from whit.routing.server import run

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiers.toml"
        path.write_text(TIERS.format(url=url), "utf-8")
        made = Gateway(read_config(path, {}), load_local=lambda tier: Fake())
        asyncio.run(run(made, say=print, host="127.0.0.1", port=port))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def ask(port: int, count: int, clients: int) -> tuple[list[float], float]:
    """Milliseconds of each of `count` requests over `clients` kept connections, and the seconds of all."""
    content = json.dumps(BODY).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n").encode()  # fmt: skip
    times: list[float] = []
    begun = 0

    async def one() -> None:
        nonlocal begun
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while begun < count:
            begun += 1
            start = time.perf_counter()
            writer.write(head + content)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode("latin-1"))
            size = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            if b"yes" not in await reader.readexactly(int(size)):
                raise RuntimeError("this is not the stub's answer")
            times.append(1000 * (time.perf_counter() - start))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return times, time.perf_counter() - began


async def measure(clients: int, count: int) -> None:
    """Ask the three in turns, and print what each took."""
    ports = {what: free_port() for what in ("stub", "proxy", "gateway")}
    url = f"http://127.0.0.1:{ports['stub']}"
    running = [
        subprocess.Popen([sys.executable, __file__, "serve", "--what", what, "--port", str(port), "--url", url])
        for what, port in ports.items()
    ]
    try:
        for port in ports.values():
            for _ in range(600):
                try:
                    await ask(port, 20, 1)  # the first ones load what is loaded when it is needed
                    break
                except OSError:
                    await asyncio.sleep(0.1)
            await ask(port, 2 * clients, clients)
        times: dict[str, list[float]] = {what: [] for what in ports}
        rates: dict[str, list[float]] = {what: [] for what in ports}
        for _ in range(ROUNDS):
            for what, port in ports.items():
                some, took = await ask(port, count // ROUNDS, clients)
                times[what] += some
                rates[what].append(len(some) / took)
    finally:
        for each in running:
            each.terminate()
        for each in running:
            each.wait()
    found: dict[str, Any] = {"clients": clients, "requests of each": count}
    for what in ports:
        every = sorted(times[what])
        found[what] = {"p50 ms": round(every[len(every) // 2], 2), "p99 ms": round(every[int(0.99 * len(every))], 2),
                       "rate": round(statistics.median(rates[what]))}  # fmt: skip
    pairs = [mine / theirs for mine, theirs in zip(rates["gateway"], rates["proxy"], strict=True)]
    found["gateway's rate to the proxy's"] = round(statistics.median(pairs), 3)
    for each in ("p50 ms", "p99 ms"):
        for other in ("stub", "proxy"):
            found[f"added to the {other}'s {each}"] = round(found["gateway"][each] - found[other][each], 2)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what_to_do", nargs="?", default="latency", choices=("canary", "latency", "rate", "serve"))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", default="stub")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--url", default="")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.what_to_do == "serve":
        serve(given.what, given.port, given.url)
    elif given.what_to_do == "canary":
        print(json.dumps(asyncio.run(canary(given.requests, given.seed))))
    else:
        asyncio.run(measure(given.clients if given.what_to_do == "rate" else 1, given.requests))


if __name__ == "__main__":
    main()
