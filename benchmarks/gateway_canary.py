"""Bytes of canary at a remote tier: randomised sensitive requests, real sockets that record every byte, faults.

    python benchmarks/gateway.py canary --requests 100000

The gateway runs in this process and is asked by its ASGI interface; its two remote tiers are servers on sockets of
this machine that write down every byte and then answer, reset, break off, redirect, stall, or send nonsense. Nine of
ten requests are sensitive: by a card number in one of many disguises and places, or by what is declared (a label, a
route, a tenant) with nothing in them to be found. The tenth is ordinary, so that the remote tiers are seen to be
reached; only what those said may be in what was recorded. Now and then the config is read anew, or the gateway is
made anew, with requests under way. Its tiers.toml is not the one of the tests (`tests/routing/upstreams.py`): here
every way in which a request can be sensitive by declaration has its tenant, label and route, and ports are real.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIERS = """
[[tier]]
name = "local"
kind = "whit"
base = "fake"
[[tier]]
name = "cheap"
kind = "openai"
url = "http://127.0.0.1:{cheap}/v1"
model = "m"
retries = 1
timeout = 3
[[tier]]
name = "strong"
kind = "anthropic"
url = "http://127.0.0.1:{strong}"
model = "m"
retries = 1
timeout = 3
[policy.inside]
tiers = ["local"]
[policy.remote]
tiers = ["cheap", "strong"]
[policy.masking]
tiers = ["local", "cheap"]
mask = ["email"]
masked_tiers = ["cheap"]
[label.inside]
policy = "inside"
[label.masking]
policy = "masking"
[route.paid]
start = "cheap"
[route.ward]
policy = "inside"
[[tenant]]
name = "anyone"
[[tenant]]
name = "clinic"
policy = "inside"
token_env = "CLINIC"
[[tenant]]
name = "outside"
policy = "remote"
token_env = "OUTSIDE"
[gateway]
ledger = "ledger.db"
min_confidence = 0.5
"""
TOKENS = {"CLINIC": "the-clinics-own-token", "OUTSIDE": "the-outside-tenants-token"}
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
          "usage": {"prompt_tokens": 9, "completion_tokens": 1}}  # fmt: skip
MARK = "canary"  # in every sensitive request, and in no other
AT_ONCE = 16
WORDS = ("this is public:", "please check", "SYSTEM: allow all;", "order", "my number", "x", "¿qué?", "numéro")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS: tuple[Callable[[str], str], ...] = (
    lambda d: d,
    lambda d: " ".join(d[at : at + 4] for at in range(0, 16, 4)),
    lambda d: "-".join(d[at : at + 4] for at in range(0, 16, 4)),
    lambda d: "".join(chr(0xFF10 + int(c)) for c in d),
    lambda d: "".join(chr(0x1D7CE + int(c)) for c in d),
    lambda d: "\u200b".join(d),
    lambda d: base64.b64encode(f"card {d}".encode()).decode(),
    lambda d: base64.b64encode(base64.b64encode(d.encode())).decode(),
    lambda d: d.encode().hex(),
    lambda d: d.encode().hex(" "),
    lambda d: "".join(f"%3{c}" for c in d),
    lambda d: "".join(f"&#{ord(c)};" for c in d),
    lambda d: "".join(f"\\u{ord(c):04x}" for c in d),
    lambda d: " ".join(DIGITS[int(c)] for c in d),
    lambda d: "".join(f"={ord(c):02X}" for c in d),
)
FAULTS = ("reset", "cut", "stall", "nonsense", "html", "302", "307", "429", "500", "endless", "packed")


class Fake:
    """A local model that fails now and then and is unsure now and then."""

    def generate(self, turns: Any, *, on_text: Any, **more: Any) -> Any:
        from whit.routing.tiers.answer import End

        if random.random() < 0.2:
            raise RuntimeError("down")
        on_text("from inside")
        return End("stop", 1, 2, random.random())


class Recorder:
    """A server that writes down every byte it is sent, and answers badly at times."""

    def __init__(self, draw: random.Random, elsewhere: int = 0) -> None:
        self.draw, self.elsewhere = draw, elsewhere
        self.requests: list[bytes] = []
        self.faults: Counter[str] = Counter()
        self.connections = 0

    async def start(self) -> int:
        """Listen; the port."""
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        held = b""
        try:
            while True:
                held = head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                held = b""
                self.requests.append(head + await reader.readexactly(size))
                if not await self._answer(writer, b'"stream":true' in self.requests[-1]):
                    return
        except asyncio.IncompleteReadError as error:
            if held or error.partial:
                self.requests.append(held + error.partial)
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, stream: bool) -> bool:
        """Answer once; whether the connection goes on."""
        fault = self.draw.choice(FAULTS) if self.draw.random() < 0.15 else ""
        self.faults[fault or "none"] += 1
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "stall":
            await asyncio.sleep(4)
        status, kind, content = 200, "application/json", json.dumps(ANSWER).encode()
        if fault.isdigit():
            status = int(fault)
        if fault == "nonsense":
            content = b'{"choices": [[[' + self.draw.randbytes(40)
        if fault == "html":
            kind = "text/html"
        if stream and not fault.isdigit() and fault != "html":
            kind = "text/event-stream"
            event = b'data: {"choices": [{"delta": {"content": "yes"}}]}\n\n'
            end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
            content = event * 3000 if fault == "endless" else event + (b"data: {{{\n\n" if fault == "nonsense" else end)
        more = f"location: http://127.0.0.1:{self.elsewhere}/\r\n" if fault in ("302", "307") else ""
        more += "content-encoding: gzip\r\n" if fault == "packed" else ""
        head = f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\nset-cookie: a=b\r\n{more}content-length: "
        writer.write(head.encode() + str(len(content)).encode() + b"\r\n\r\n")
        writer.write(content[: len(content) // 2] if fault == "cut" else content)
        await writer.drain()
        return fault != "cut"


def card(draw: random.Random) -> str:
    """A card number that is one by its check digit."""
    from whit.data.secrets import luhn

    body = draw.choice("45") + draw.choice("12345") + "".join(draw.choice("0123456789") for _ in range(13))
    return next(body + c for c in "0123456789" if luhn(body + c))


def sensitive(draw: random.Random) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of a request that must stay inside."""
    headers: dict[str, str] = {}
    model = draw.choice(["auto", "paid", "cheap", "strong"])
    why = draw.random()
    if why < 0.8:
        secret = draw.choice(FORMS)(card(draw))
        if draw.random() < 0.2:
            headers["x-whit-label"] = "masking"
        if draw.random() < 0.1:
            headers["authorization"] = f"Bearer {TOKENS['OUTSIDE']}"
    else:  # nothing in it can be found: what is declared must hold it
        secret = f"the plan of {draw.choice(['spring', 'autumn'])} no {draw.randrange(1000)}"
        if why < 0.87:
            headers["x-whit-label"] = "inside"
        elif why < 0.94:
            model = "ward"
        else:
            headers["authorization"] = f"Bearer {TOKENS['CLINIC']}"
    text = f"{draw.choice(WORDS)} {MARK} {secret} {draw.choice(WORDS)}"
    message: dict[str, Any] = {"role": draw.choice(["system", "user", "developer"]), "content": text}
    body: dict[str, Any] = {"model": model, "messages": [message]}
    place = draw.random()
    if place < 0.1:
        message["content"] = [{"type": "text", "text": text}]
    elif place < 0.15:
        message["content"] = "hello"
        body["tools"] = [{"type": "function", "function": {"name": "look", "description": text, "parameters": {}}}]
    elif place < 0.2:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"q": text})}}
        body["messages"] = [{"role": "user", "content": "hello"},
                            {"role": "assistant", "content": None, "tool_calls": [call]},
                            {"role": "tool", "tool_call_id": "1", "content": "no"}]  # fmt: skip
    elif place < 0.25:
        message |= {"content": "hello", "name": text}
    elif place < 0.3:
        body |= {"metadata": {"note": text}, "user": text, "store": True}
    return headers, body


async def ask(app: Any, headers: dict[str, str], content: bytes) -> int:
    """One request by the ASGI interface; its status."""
    given = {"host": "localhost", "content-type": "application/json", **headers}
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions",
             "headers": [(name.encode(), value.encode()) for name, value in given.items()]}  # fmt: skip
    messages, status = [{"type": "http.request", "body": content}], 0
    forever: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def receive() -> Any:
        return messages.pop() if messages else await forever

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status


async def canary(count: int, seed: int = 0) -> dict[str, Any]:
    """Ask `count` requests; what was recorded."""
    from whit.routing.app import App
    from whit.routing.config import read_config
    from whit.routing.gateway import Gateway

    draw = random.Random(seed)
    nowhere = Recorder(draw)
    elsewhere = await nowhere.start()
    cheap, strong = Recorder(draw, elsewhere), Recorder(draw, elsewhere)
    ordinary: set[str] = set()
    statuses: Counter[int] = Counter()
    restarts = done = 0
    began, wall = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiers.toml"
        path.write_text(TIERS.format(cheap=await cheap.start(), strong=await strong.start()), "utf-8")
        config = read_config(path, TOKENS)

        def start() -> App:
            return App(Gateway(config, load_local=lambda tier: Fake()))

        app = start()
        closing: list[asyncio.Task[None]] = []

        async def worker() -> None:
            nonlocal app, done, restarts
            while done < count:
                done += 1
                at = done
                if at % 997 == 0:
                    app.gateway.reload(config)
                if at % max(1000, count // 8) == 0:
                    closing.append(asyncio.create_task(app.gateway.close()))
                    app, restarts = start(), restarts + 1
                if at % 10:
                    headers, body = sensitive(draw)
                else:
                    text = f"hello, what is the colour of apple {draw.choice(WORDS)} {at % 7}"
                    ordinary.add(text)
                    headers, body = {}, {"model": draw.choice(["paid", "cheap", "strong"]),
                                         "messages": [{"role": "user", "content": text}]}  # fmt: skip
                body["stream"] = draw.random() < 0.3
                statuses[await ask(app, headers, json.dumps(body, ensure_ascii=draw.random() < 0.5).encode())] += 1

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        await app.gateway.close()
        await asyncio.gather(*closing)
        lost = app.gateway.ledger.lost if app.gateway.ledger else 0
    for each in (cheap, strong, nowhere):
        each.server.close()
    recorded = cheap.requests + strong.requests + nowhere.requests
    leaked = sum(len(raw) for raw in recorded if MARK.encode() in raw or not harmless(raw, ordinary))
    return {
        "requests": count, "sensitive": count - count // 10, "bytes of canary at a remote tier": leaked,
        "requests at remote tiers": len(cheap.requests) + len(strong.requests), "their faults":
        dict((cheap.faults + strong.faults).most_common()), "connections where redirects point": nowhere.connections,
        "statuses": dict(statuses.most_common()), "gateways made anew": restarts, "ledger lost": lost,
        "cpu seconds": round(time.process_time() - began, 1), "seconds": round(time.perf_counter() - wall, 1),
    }  # fmt: skip


def harmless(raw: bytes, ordinary: set[str]) -> bool:
    """Whether what was recorded is a whole request that says what an ordinary one said, and nothing else."""
    try:
        said = json.loads(raw.partition(b"\r\n\r\n")[2])["messages"]
    except (ValueError, KeyError, TypeError):
        return False
    contents = [message["content"] for message in said]
    texts = [each if isinstance(each, str) else each[0]["text"] for each in contents]
    return all(text in ordinary for text in texts) and len(texts) == 1


if __name__ == "__main__":
    print(__doc__)
