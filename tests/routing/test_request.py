"""What a client may say, and what is refused or dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from whit.routing.errors import Refused
from whit.routing.request import read_request

ONE = [{"role": "user", "content": "hello"}]


def read(**body: Any) -> Any:
    return read_request(json.dumps({"messages": ONE, **body}).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"{", b"\xff", b'{"messages":[]}', b'{"messages":[{"role":"root","content":"x"}]}',
        b'{"messages":[{"role":"user","content":"a","content":"b"}]}', b'{"messages":[{"role":"user","content":5}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}', b'{"temperature":NaN}',
        b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_request(raw)
    assert refused.value.status == 400


@pytest.mark.parametrize("body", [{"n": 2}, {"max_tokens": 0}, {"temperature": 3}, {"stream": "yes"}, {"model": 5},
                                  {"stop": [1]}, {"seed": True}, {"tools": 5}])  # fmt: skip
def test_values_beyond_their_limits_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=next(iter(body))):
        read(**body)


def test_what_is_not_known_is_dropped() -> None:
    request = read(user="card 4111", metadata={"a": "b"}, base_url="https://evil.example", api_key="x", temperature=0.5)
    assert set(request.body()) == {"messages", "temperature"}


def test_every_text_is_seen_and_contents_stand_together() -> None:
    request = read(
        messages=[{"role": "user", "content": "4111 1111"}, {"role": "user", "name": "n", "content": "1111 1111"}],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"secret": {"enum": [12345]}}}}],
        seed=99887766,
    )
    texts = request.texts()
    assert {"12345", "99887766", "secret", "n", "f"} <= set(texts)
    assert "\n".join(texts).startswith("4111 1111\n1111 1111") or texts[:2] == ["4111 1111", "n"]


def test_what_was_said_has_neither_numbers_nor_the_apis_own_words() -> None:
    request = read(
        messages=[{"role": "user", "name": "bob", "content": [{"type": "text", "text": "I am Ada"}]}],
        tools=[{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "Ada's": [1, 2.5]}}}],
        temperature=0.5, seed=7,
    )  # fmt: skip
    assert sorted(request.said()) == ["Ada's", "I am Ada", "bob"]
    assert set(request.said()) < set(request.texts()) >= {"7", "0.5", "1", "2.5", "user", "find"}


def test_prompt_and_size() -> None:
    assert read().prompt() == "hello" and read().size >= 5
    assert read(max_completion_tokens=7, max_tokens=9).max_tokens == 7


def test_what_is_sent_is_what_was_looked_through() -> None:
    given: dict[str, Any] = {"temperature": 0.5, "stop": ['\u00e9"\\'], "max_completion_tokens": 7, "max_tokens": 9}
    request = read(**given, n=1, user="not this")
    sent = json.loads(request.written("m", 3))
    kept = {"messages": ONE, "temperature": 0.5, "stop": given["stop"]}
    assert sent == {"model": "m", "max_completion_tokens": 3, **kept}
    assert request.limit == "max_completion_tokens" and read(max_tokens=2).limit == read().limit == "max_tokens"
    assert request.body() == {**kept, "max_completion_tokens": 7, "max_tokens": 9}
    request.body()["messages"].clear()
    assert request.body()["messages"] == ONE and {"7", "9"} <= set(request.texts())
