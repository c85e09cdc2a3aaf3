"""The HTTP face: one guard before every path, bounded bodies, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from upstreams import TIERS, Reply, Upstream, call, config, gateway, say

from whit.routing.app import App

TENANTS = (
    '[[tenant]]\nname = "a"\ntoken_env = "A"\n[[tenant]]\nname = "b"\ntoken_env = "B"\npolicy = "secret"\n[gateway]'
)
GUARDED = TIERS.replace("[gateway]", TENANTS)


def one(of: Any, body: Any = None, upstream: Upstream | None = None, **more: Any) -> Reply:
    async def run() -> Reply:
        return await call(App(gateway(of, upstream)), say("hello") if body is None else body, **more)

    return asyncio.run(run())


def test_without_the_token_no_path_answers(tmp_path: Path) -> None:
    of = config(tmp_path, text=GUARDED)
    routes = [*App(gateway(of)).routes, ("GET", "/"), ("POST", "/v1/embeddings"), ("GET", "/../tiers.toml")]
    for method, path in routes:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic " + "a" * 16}):
            assert one(of, method=method, path=path, headers=headers).status == 401, (method, path)


def test_a_token_is_its_tenants(tmp_path: Path) -> None:
    of, upstream = config(tmp_path, text=GUARDED), Upstream()
    for token, tier in (("a", "strong"), ("b", "local")):
        headers = {"authorization": "Bearer " + token * 16}
        assert one(of, say("hi", model="strong"), upstream, headers=headers).headers["x-whit-tier"] == tier
    assert len(upstream.received) == 1


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"host": "127.0.0.1.evil.example:8080"}, {"host": ""},
                                     {"origin": "https://evil.example"}, {"origin": "null"}])  # fmt: skip
def test_without_tokens_only_this_machine_asks(tmp_path: Path, headers: dict[str, str]) -> None:
    assert one(config(tmp_path), headers=headers).status == 403


@pytest.mark.parametrize("headers", [{"host": "localhost:8080"}, {"host": "[::1]:8080"}, {"host": "127.0.0.1"},
                                     {"origin": "http://localhost:3000"}])  # fmt: skip
def test_this_machine_may_ask(tmp_path: Path, headers: dict[str, str]) -> None:
    assert one(config(tmp_path), headers=headers).status == 200


def test_headers_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    for name, values in (("authorization", "ab"), ("x-whit-label", ("secret", "other")), ("host", ("127.0.0.1", "x"))):
        headers = [(name, f"Bearer {value * 16}" if name == "authorization" else value) for value in values]
        assert one(config(tmp_path, text=GUARDED), headers=headers).status in (400, 401)


@pytest.mark.parametrize(
    ("body", "more", "status"),
    [
        (b"{", {}, 400), (b"x" * 2_000_000, {}, 413), (say("x"), {"content-type": "text/plain"}, 415),
        (say("x"), {"content-encoding": "gzip"}, 415), (say("x"), {"x-whit-timeout": "nan"}, 400),
        (say("x"), {"x-whit-label": "unknown"}, 400), (say("x"), {"idempotency-key": "k" * 300}, 400),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_our_words(tmp_path: Path, body: Any, more: dict[str, str], status: int) -> None:
    reply = one(config(tmp_path), body, headers=more)
    assert reply.status == status and set(reply.json["error"]) == {"message", "type", "code", "param"}


def test_models_health_and_unknown_paths(tmp_path: Path) -> None:
    of = config(tmp_path)
    names = [each["id"] for each in one(of, method="GET", path="/v1/models").json["data"]]
    assert names == ["auto", "legal", "local", "cheap", "strong"]
    assert one(of, method="GET", path="/health").json["tiers"] == {"local": "ok", "cheap": "ok", "strong": "ok"}
    assert one(of, method="GET", path="/v1/chat/completions").status == 405
    assert one(of, path="/v1/embeddings").status == 404


def test_tool_calls_go_there_and_come_back(tmp_path: Path) -> None:
    upstream = Upstream()
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    one(config(tmp_path), say("hi", model="strong", tools=tools), upstream)
    assert upstream.bodies[0]["tools"] == [{"name": "f", "description": "", "input_schema": {"type": "object"}}]
