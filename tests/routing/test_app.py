"""The HTTP face: one guard before every path, bounded bodies, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
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


def test_a_model_by_its_name(tmp_path: Path) -> None:
    of = config(tmp_path, text=GUARDED)
    a, b = ({"authorization": "Bearer " + token * 16} for token in "ab")
    assert one(of, method="GET", path="/v1/models/strong", headers=a).json["id"] == "strong"
    for headers, name in ((b, "strong"), (a, "gone"), (a, ""), (a, "../metrics")):
        reply = one(of, method="GET", path=f"/v1/models/{name}", headers=headers)
        assert reply.status == 404 and reply.json["error"]["code"] == "model_not_found"
        assert not name or name not in reply.json["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_older_completions_go_the_same_way(tmp_path: Path, stream: bool) -> None:
    of, upstream = config(tmp_path), Upstream()
    body = {"model": "cheap", "prompt": "hello", "stream": stream, "max_tokens": 9, "logit_bias": {"1": 2}}
    reply = one(of, body, upstream, path="/v1/completions")
    assert reply.headers["x-whit-tier"] == "cheap"
    assert upstream.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]
    if stream:
        events = [line.removeprefix("data: ") for line in reply.body.decode().splitlines() if line]
        assert events.pop() == "[DONE]"
        found = [json.loads(event) for event in events]
    else:
        found = [reply.json]
        assert reply.json["usage"]["completion_tokens"] > 0
    assert {each["object"] for each in found} == {"text_completion"} and found[0]["id"].startswith("cmpl-")
    choices = [each["choices"][0] for each in found]
    assert "".join(choice["text"] for choice in choices) == "from afar" and choices[-1]["finish_reason"] == "stop"
    assert all("message" not in choice and "delta" not in choice for choice in choices)


def test_a_completion_passes_the_same_gate(tmp_path: Path) -> None:
    of, upstream = config(tmp_path), Upstream()
    reply = one(of, {"model": "strong", "prompt": "card 4111 1111 1111 1111"}, upstream, path="/v1/completions")
    assert not upstream.received and b"4111" not in reply.body


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": 3}, {"prompt": ["a", "b"]}, {"prompt": [1, 2]}, {"messages": [{"role": "user", "content": "x"}]},
        {"prompt": "x", "echo": True}, {"prompt": "x", "suffix": "y"}, {"prompt": "x", "n": 2},
        {"prompt": "x", "best_of": 3}, {"prompt": "x", "logprobs": 5},
    ],
)  # fmt: skip
def test_completions_that_cannot_be_had(tmp_path: Path, body: dict[str, Any]) -> None:
    assert one(config(tmp_path), body, path="/v1/completions").status == 400


def test_a_key_is_not_shared_between_the_two_ways_to_ask(tmp_path: Path) -> None:
    app, both = App(gateway(config(tmp_path))), {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}

    async def run() -> list[Reply]:
        paths = ("/v1/chat/completions", "/v1/completions")
        return [await call(app, both, path=path, headers={"idempotency-key": "k"}) for path in paths]

    chat, completion = asyncio.run(run())
    assert chat.status == 200 and completion.status == 422


def test_tool_calls_go_there_and_come_back(tmp_path: Path) -> None:
    upstream = Upstream()
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    one(config(tmp_path), say("hi", model="strong", tools=tools), upstream)
    assert upstream.bodies[0]["tools"] == [{"name": "f", "description": "", "input_schema": {"type": "object"}}]
