"""What the gateway's tests share: a fake local model, recorded upstreams with faults, and a caller of the app."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whit.data.rows import Turn
from whit.routing.app import App
from whit.routing.config import Config, Tier, read_config
from whit.routing.gateway import Gateway
from whit.routing.tiers.answer import End
from whit.routing.tiers.transport import BrokenOff, Unreachable

TIERS = """\
[[tier]]
name = "local"
kind = "whit"
base = "fake"
[[tier]]
name = "cheap"
kind = "openai"
url = "https://cheap.example/v1"
model = "small"
key_env = "CHEAP_KEY"
input_price = 1
output_price = 2
retries = 1
timeout = 5
[[tier]]
name = "strong"
kind = "anthropic"
url = "https://strong.example"
model = "big"
key_env = "STRONG_KEY"
input_price = 10
output_price = 50
retries = 1
timeout = 5
max_tokens = 100
[policy.default]
tiers = ["local", "cheap", "strong"]
[policy.remote]
tiers = ["cheap", "strong"]
[policy.secret]
tiers = ["local"]
[policy.masking]
tiers = ["local", "cheap"]
mask = ["email", "card"]
masked_tiers = ["cheap"]
[label.secret]
policy = "secret"
[route.legal]
start = "cheap"
[gateway]
ledger = ""
"""
KEYS = {"CHEAP_KEY": "cheap-key-1234567890", "STRONG_KEY": "strong-key-1234567890", "A": "a" * 16, "B": "b" * 16}


class FakeModel:
    """Says what it is told to, or fails."""

    def __init__(self, says: str = "from the local tier", confidence: float | None = 0.9, fails: bool = False) -> None:
        self.says, self.confidence, self.fails = says, confidence, fails
        self.asked: list[list[Turn]] = []

    def generate(self, turns: Sequence[Turn], *, on_text: Callable[[str], bool], **more: Any) -> End:
        self.asked.append(list(turns))
        if self.fails:
            raise RuntimeError("no model here")
        for word in self.says.split(" "):
            on_text(word + " ")
        return End("stop", 5, 4, self.confidence)


@dataclass
class Upstream:
    """Remote tiers that record every byte; `faults` are taken one a request, by host or for all."""

    faults: list[str] = field(default_factory=list)
    says: str = "from afar"
    received: list[bytes] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def transport(self) -> FakeTransport:
        return FakeTransport(self.handle)

    async def handle(self, url: str, headers: Mapping[str, str], content: bytes) -> Answer:
        self.urls.append(url)
        self.received.append(url.encode() + repr(headers).encode() + content)
        self.bodies.append(json.loads(content))
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "connect":
            raise Unreachable("canary-connect")
        if fault == "reset":
            raise BrokenOff("canary-reset")
        if fault == "slow":
            await asyncio.sleep(30)
        if fault.isdigit():
            return Answer([b'{"error": "key"}'], int(fault), location="https://elsewhere.example/")
        if fault == "html":
            return Answer([b"<html>"], kind="text/html")
        if fault == "broken":
            return Answer([b'{"choices": ['])
        if fault == "huge":
            return Answer([b" " * 20_000_000])
        echo = (
            self.says.replace("ECHO", self.bodies[-1]["messages"][-1]["content"]) if "ECHO" in self.says else self.says
        )
        anthropic = "strong" in url
        if self.bodies[-1].get("stream"):
            events = _anthropic_events(echo) if anthropic else _openai_events(echo)
            if fault == "cut":
                events = events[: len(events) // 2]
            if fault == "endless":
                events = events[:2] * 5000
            return Answer(events, kind="text/event-stream")
        return Answer([json.dumps(_anthropic_whole(echo) if anthropic else _openai_whole(echo)).encode()])


class Answer:
    """A remote tier's answer, piece by piece."""

    def __init__(self, pieces: list[bytes], status: int = 200, kind: str = "application/json", **more: str) -> None:
        self.pieces, self.status, self.headers = pieces, status, {"content-type": kind, **more}

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            await asyncio.sleep(0)
            yield piece

    def close(self) -> None:
        self.pieces = []


class FakeTransport:
    """Asks a function instead of a socket."""

    def __init__(self, handle: Callable[[str, Mapping[str, str], bytes], Awaitable[Answer]]) -> None:
        self.handle = handle

    async def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Answer:
        return await self.handle(url, headers, content)

    async def close(self) -> None:
        return


def _openai_whole(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 20}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage, "id": "theirs"}


def _anthropic_whole(text: str) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 20}
    return {"content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "usage": usage}


def _line(event: Any) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


def _openai_events(text: str) -> list[bytes]:
    pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
    events = [_line({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
    events.append(_line({"choices": [{"delta": {}, "finish_reason": "stop"}]}))
    return [
        *events,
        _line({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}),
        b"data: [DONE]\n\n",
    ]


def _anthropic_events(text: str) -> list[bytes]:
    pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
    start = [{"type": "message_start", "message": {"usage": {"input_tokens": 10}}}]
    middle = [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": piece}} for piece in pieces]
    end = [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}},
           {"type": "message_stop"}]  # fmt: skip
    return [_line(event) for event in (*start, *middle, *end)]


def config(folder: Path, more: str = "", text: str = TIERS) -> Config:
    path = folder / "tiers.toml"
    path.write_text(text.replace("[gateway]\n", "[gateway]\n" + more), encoding="utf-8")
    return read_config(path, KEYS)


def gateway(of: Config, upstream: Upstream | None = None, model: FakeModel | None = None, **more: Any) -> Gateway:
    fake = model or FakeModel()

    def load(tier: Tier) -> FakeModel:
        return fake

    more.setdefault("transport", (upstream or Upstream()).transport())
    return Gateway(of, load_local=load, **more)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return str(self.json["choices"][0]["message"]["content"])

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    @property
    def streamed(self) -> str:
        deltas = [
            event["choices"][0]["delta"] for event in self.events if isinstance(event, dict) and event.get("choices")
        ]
        return "".join(delta.get("content") or "" for delta in deltas)


async def call(
    app: App, content: Any = None, *, method: str = "POST", path: str = "/v1/chat/completions",
    headers: dict[str, str] | list[tuple[str, str]] | None = None, leave_after: int | None = None,
) -> Reply:  # fmt: skip
    """One request to the app. `leave_after`: go away after so many messages."""
    given = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
    named = {name.lower() for name, _ in given}
    for name, value in (("host", "127.0.0.1:8080"), ("content-type", "application/json")):
        if name not in named:
            given.append((name, value))
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    scope = {"type": "http", "method": method, "path": path,
             "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given]}  # fmt: skip
    sent: list[Any] = []
    done, asked = asyncio.Event(), 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 1:
            return {"type": "http.request", "body": body, "more_body": False}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if leave_after is not None and len(sent) >= leave_after:
            done.set()
            await asyncio.sleep(0.01)

    serve: Awaitable[None] = app(scope, receive, send)
    await serve
    start = next(message for message in sent if message["type"] == "http.response.start")
    parts = [message.get("body", b"") for message in sent if message["type"] == "http.response.body"]
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(parts))


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}
