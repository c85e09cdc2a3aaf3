"""The gateway's added latency, its rate against a plain reverse proxy, and bytes of canary that leave.

    python benchmarks/gateway.py canary --requests 100000
    python benchmarks/gateway.py latency --requests 2000
    python benchmarks/gateway.py rate --requests 6000 --clients 100

`latency` (one client) and `rate` (many) run an upstream stub, a plain reverse proxy on the same server (uvicorn on
httptools) and the gateway, each in its own process on this machine, in turns, and ask them by bare sockets. All three
run on the same event loop (`--loop`: asyncio's, as `whit route` does, or uvloop), none writes an access log, and
connections are kept everywhere. The proxy's client is aiohttp's, the fastest that is commonly used; with `--client own`
it is the gateway's. Beside the rate, which what asks and what answers take part in, it prints the CPU time of each
process for a request (on Linux), which is its own. `canary` is in `gateway_canary.py`.
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

from whit.routing.tiers.transport import HttpTransport

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


def proxy(url: str, kind: str) -> Any:
    """A plain reverse proxy: reads, passes on, passes back."""
    client: Any = None
    where = url + "/chat/completions"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal client
        if scope["type"] != "http":
            return
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message.get("body", b""), message.get("more_body", False)
        headers = {
            name.decode(): value.decode()
            for name, value in scope["headers"]
            if name not in (*HOP, b"host", b"content-length")
        }
        if client is None:
            client = HttpTransport(connecting=10, secure=False) if kind == "own" else aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )  # fmt: skip
        if kind == "own":
            found = await client.post(where, headers, content)
            pairs = ((name.encode(), value.encode()) for name, value in found.headers.items())
            passed = [pair for pair in pairs if pair[0] not in HOP]
            await send({"type": "http.response.start", "status": found.status, "headers": passed})
            async for chunk in found.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        else:
            async with client.post(where, data=content, headers=headers, allow_redirects=False) as found:
                passed = [(name.lower(), value) for name, value in found.raw_headers if name.lower() not in HOP]
                await send({"type": "http.response.start", "status": found.status, "headers": passed})
                async for chunk in found.content.iter_any():  # as it comes: most answers of such a server are streams
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def serve(what: str, port: int, url: str, loop: str, client: str) -> None:
    """One of the three, until it is ended."""
    import uvicorn

    if what != "gateway":
        # uvicorn takes uvloop by itself where that is installed, and then the three would not run on the same.
        uvicorn.run(stub if what == "stub" else proxy(url, client), port=port, log_level="error", access_log=False,
                    lifespan="off", timeout_keep_alive=300, http="httptools", loop=loop,
                    proxy_headers=False)  # fmt: skip
        return
    from whit.routing.config import read_config
    from whit.routing.gateway import Gateway
    from whit.routing.server import run

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiers.toml"
        path.write_text(TIERS.format(url=url), "utf-8")
        made = Gateway(read_config(path, {}), load_local=lambda tier: Fake())
        with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
            runner.run(run(made, say=print, host="127.0.0.1", port=port))


def loop_factory(loop: str) -> Any:
    if loop == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def cpu_seconds(process: subprocess.Popen[bytes]) -> float | None:
    """What a process took so far, user and system; None where nobody tells."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


async def measure(clients: int, count: int, loop: str, client: str) -> None:
    """Ask the three in turns, and print what each took."""
    ports = {what: free_port() for what in ("stub", "proxy", "gateway")}
    url = f"http://127.0.0.1:{ports['stub']}"
    more = ["--url", url, "--loop", loop, "--client", client]
    running = {
        what: subprocess.Popen([sys.executable, __file__, "serve", "--what", what, "--port", str(port), *more])
        for what, port in ports.items()
    }
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
        cpu: dict[str, list[float]] = {what: [] for what in ports}
        for _ in range(ROUNDS):
            for what, port in ports.items():
                before = cpu_seconds(running[what])
                some, took = await ask(port, count // ROUNDS, clients)
                await asyncio.sleep(0.3)  # the ledger's thread writes a little later
                after = cpu_seconds(running[what])
                times[what] += some
                rates[what].append(len(some) / took)
                if before is not None and after is not None:
                    cpu[what].append(1000 * (after - before) / len(some))
    finally:
        for each in running.values():
            each.terminate()
        for each in running.values():
            each.wait()
    found: dict[str, Any] = {"clients": clients, "requests of each": count, "loop": loop, "the proxy's client": client}
    for what in ports:
        every = sorted(times[what])
        found[what] = {"p50 ms": round(every[len(every) // 2], 2), "p99 ms": round(every[int(0.99 * len(every))], 2),
                       "rate": round(statistics.median(rates[what])),
                       "cpu ms": round(statistics.fmean(cpu[what]), 3) if cpu[what] else None}  # fmt: skip
    pairs = [mine / theirs for mine, theirs in zip(rates["gateway"], rates["proxy"], strict=True)]
    found["gateway's rate to the proxy's"] = round(statistics.median(pairs), 3)
    if cpu["gateway"]:
        found["the proxy's cpu to the gateway's"] = round(sum(cpu["proxy"]) / sum(cpu["gateway"]), 3)
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
    parser.add_argument("--loop", default="asyncio", choices=("asyncio", "uvloop"))
    parser.add_argument("--client", default="aiohttp", choices=("aiohttp", "own"), help="the proxy's")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.what_to_do == "serve":
        serve(given.what, given.port, given.url, given.loop, given.client)
    elif given.what_to_do == "canary":
        print(json.dumps(asyncio.run(canary(given.requests, given.seed))))
    else:
        clients = given.clients if given.what_to_do == "rate" else 1
        asyncio.run(measure(clients, given.requests, given.loop, given.client))


if __name__ == "__main__":
    main()
