"""A chat request as whit understands it: what a client may say, held to limits, and nothing else passed on.

Promises that only known fields of OpenAI's chat API are kept, each of a known shape, so that nothing rides along
unread; and that `texts` gives every text that any tier could receive. Fields that are about the caller's account
(`user`, `metadata`, `store`, …) are dropped. Knows nothing of tiers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from whit.routing.errors import Refused

_WRITER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _compact() -> Callable[[Any], str]:
    """`_WRITER.encode`, without making its C encoder anew for each value."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without it
        return _WRITER.encode
    # No place for circles, for what is written here was read or built as a tree.
    encode = make(None, _WRITER.default, json.encoder.encode_basestring, None, ":", ",", False, False, True)
    return lambda value: "".join(encode(value, 0))


#: A value as the shortest JSON.
compact: Callable[[Any], str] = _compact()
MAX_MESSAGES = 2000
MAX_DEPTH = 24
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_NUMBERS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_COUNTS = {"max_tokens": (1, 1_000_000), "max_completion_tokens": (1, 1_000_000), "seed": (-(2**63), 2**63 - 1)}
_LIMITS = frozenset({"max_tokens", "max_completion_tokens"})
_TREES = ("tools", "tool_choice", "response_format")
_OPTIONS = frozenset({*_NUMBERS, *_COUNTS, *_TREES, "stop", "stream_options"})
_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
# Words of the API's own and of JSON Schema: a detector that looks for names would take some for one.
_VOCABULARY = frozenset((
    "messages", "role", "content", "system", "developer", "user", "assistant", "tool", "tools", "function",
    "functions", "type", "text", "input_text", "name", "parameters", "properties", "required", "description",
    "object", "string", "array", "number", "integer", "boolean", "null", "enum", "items", "anyOf", "oneOf",
    "allOf", "additionalProperties", "title", "default", "format", "minimum", "maximum", "pattern", "arguments",
    "id", "index", "tool_calls", "tool_call_id", "tool_choice", "auto", "none", "response_format",
    "json_object", "json_schema", "schema", "strict", "stop", "temperature", "top_p", "max_tokens",
    "max_completion_tokens", "presence_penalty", "frequency_penalty", "seed",
))  # fmt: skip
_PLAIN_NAME = re.compile(r"[a-z][a-z0-9_-]*")  # of a function or a key, as programs have them
_TEXT_PARTS = frozenset({"text", "input_text"})


class ChatRequest:
    """A chat request: immutable; `body` is what may be passed on, `model` what the client asked for."""

    __slots__ = ("_kept", "_rest", "include_usage", "limit", "max_tokens", "model", "opaque", "size", "stream",
                 "wants_json")  # fmt: skip

    def __init__(self, body: dict[str, Any], *, model: str, stream: bool, include_usage: bool, opaque: bool) -> None:
        """`body` belongs to the request from now on."""
        self._kept = body
        # All but how much may be said, which each tier bounds by itself: what is looked through and what is sent are
        # written once.
        self._rest = compact(body if "max_tokens" not in body and "max_completion_tokens" not in body else
                             {key: value for key, value in body.items() if key not in _LIMITS}).encode()  # fmt: skip
        #: Bytes of what may be passed on: never fewer than its tokens, for a token is a byte at least.
        self.size: int = len(self._rest)
        self.model, self.stream, self.include_usage, self.opaque = model, stream, include_usage, opaque
        # Newer models of OpenAI's take only the one, most other servers only the other: as the client said it.
        self.limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        most = body.get(self.limit)
        self.max_tokens: int | None = most if isinstance(most, int) else None
        form = body.get("response_format")
        self.wants_json = isinstance(form, dict) and form.get("type") in ("json_object", "json_schema")

    def __repr__(self) -> str:
        return f"<chat request of {self.size} bytes>"

    def body(self) -> dict[str, Any]:
        """A fresh copy of what may be passed on."""
        found: dict[str, Any] = json.loads(compact(self._kept))
        return found

    def written(self, model: str, most: int, *, stream: bool = False) -> bytes:
        """What may be passed on, as JSON for an OpenAI-compatible `model` that may say `most` tokens."""
        return _opening(model, self.limit, most, stream) + self._rest[1:]

    def texts(self) -> list[str]:
        """Every text in it, numbers too; keys and other names come last, so that contents stand side by side."""
        found: list[str] = []
        names: list[str] = []
        _texts(self._kept, found, names, True)
        return found + names

    def said(self) -> list[str]:
        """What somebody may have said: the texts without numbers, the API's own words and a program's plain names."""
        found: list[str] = []
        names: list[str] = []
        _texts(self._kept, found, names, False)
        found += [name for name in names if _PLAIN_NAME.fullmatch(name) is None]
        return [text for text in found if text not in _VOCABULARY]

    def prompt(self) -> str:
        """What the user says last, as text."""
        for message in reversed(self._kept["messages"]):
            if message["role"] == "user":
                return content_text(message.get("content"))
        return ""

    def map(self, change: Callable[[str], str]) -> ChatRequest:
        """The same request with every text in its messages, tools and formats changed."""
        body = self.body()
        for key in ("messages", "stop", *_TREES):
            if key in body:
                body[key] = _map(body[key], change)
        return ChatRequest(
            body, model=self.model, stream=self.stream, include_usage=self.include_usage, opaque=self.opaque
        )


@lru_cache(256)
def _opening(model: str, limit: str, most: int, stream: bool) -> bytes:
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return compact({"model": model, limit: most, **streamed})[:-1].encode() + b","


def content_text(content: Any) -> str:
    """A message's content as one text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


def read_request(raw: bytes) -> ChatRequest:
    """A client's body. Raises `Refused` (400), naming the field but never its content."""
    return _request(_object(raw))


def read_completion(raw: bytes) -> ChatRequest:
    """A client's body of OpenAI's older API: its prompt becomes what one user says. Raises `Refused` (400)."""
    body = _object(raw)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise _bad("prompt", "must be one text")
    for key in ("suffix", "echo", "logprobs"):
        if body.get(key):
            raise _bad(key, "is not served here")
    if body.get("best_of") not in (None, 1):
        raise _bad("best_of", "must be 1")
    chat = {key: value for key, value in body.items() if key != "messages" and key not in _TREES}
    return _request({**chat, "messages": [{"role": "user", "content": prompt}]})


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = _read(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad("body", "is not valid JSON of the kind that every reader reads alike") from error
    if not isinstance(body, dict):
        raise _bad("body", "must be a JSON object")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        raise _bad("body", "is nested too deeply")
    return body


def _request(body: dict[str, Any]) -> ChatRequest:
    kept: dict[str, Any] = {}
    model = body.get("model", "auto")
    if not isinstance(model, str) or len(model) > 200:
        raise _bad("model", "must be a name")
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise _bad("stream", "must be true or false")
    if body.get("n") not in (None, 1):
        raise _bad("n", "must be 1")
    kept["messages"], opaque = _messages(body.get("messages"))
    usage = False
    if not _OPTIONS.isdisjoint(body):
        usage = _options(body, kept)
    try:
        return ChatRequest(kept, model=model, stream=stream, include_usage=usage, opaque=opaque)
    except UnicodeEncodeError as error:
        raise _bad("body", "holds half a character (a lone surrogate)") from error


def _options(body: dict[str, Any], kept: dict[str, Any]) -> bool:
    """Keep what else a client may say; whether it wants to know what a stream used."""
    for key, (low, high) in _NUMBERS.items():
        if (value := body.get(key)) is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise _bad(key, f"must be from {low} to {high}")
            kept[key] = value
    for key, (least, most) in _COUNTS.items():
        if (value := body.get(key)) is not None:
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise _bad(key, f"must be a whole number from {least} to {most}")
            kept[key] = value
    if (stop := body.get("stop")) is not None:
        listed = [stop] if isinstance(stop, str) else stop
        if not isinstance(listed, list) or len(listed) > 8 or not all(isinstance(each, str) for each in listed):
            raise _bad("stop", "must be a text or up to 8 texts")
        kept["stop"] = listed
    for key in _TREES:
        if (value := body.get(key)) is not None:
            if not isinstance(value, str | list | dict):
                raise _bad(key, "has a wrong shape")
            kept[key] = value
    options = body.get("stream_options")
    return bool(isinstance(options, dict) and options.get("include_usage") is True)


def _messages(given: Any) -> tuple[list[dict[str, Any]], bool]:
    if not isinstance(given, list) or not given or len(given) > MAX_MESSAGES:
        raise _bad("messages", f"must be a list of 1 to {MAX_MESSAGES} messages")
    kept, opaque = [], False
    for at, message in enumerate(given):
        where = f"messages[{at}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _bad(where, "must have a role of " + ", ".join(sorted(_ROLES)))
        content = message.get("content")
        if isinstance(content, list):
            for part in content:
                if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                    raise _bad(where, "has a part without a type")
                if part["type"] in _TEXT_PARTS:
                    if not isinstance(part.get("text"), str):
                        raise _bad(where, "has a text part without text")
                else:
                    opaque = True
            content = [
                {"type": "text", "text": part["text"]} if part["type"] in _TEXT_PARTS else part for part in content
            ]
        elif content is not None and not isinstance(content, str):
            raise _bad(where, "must have a text, or a list of parts, as content")
        for key in ("name", "tool_call_id"):
            if message.get(key) is not None and not isinstance(message[key], str):
                raise _bad(f"{where}.{key}", "must be a text")
        if message.get("tool_calls") is not None and not isinstance(message["tool_calls"], list):
            raise _bad(f"{where}.tool_calls", "must be a list")
        each = {key: value for key, value in message.items() if key in _MESSAGE_KEYS and value is not None}
        each["content"] = content
        kept.append(each)
    return kept, opaque


def _texts(value: Any, found: list[str], names: list[str], numbers: bool) -> None:
    """Gather the texts of a tree, and its names apart."""
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            names.append(key)
            if isinstance(inner, str):
                (names if key in ("role", "type") else found).append(inner)
            elif key == "function" and isinstance(inner, dict) and isinstance(inner.get("name"), str):
                names.append(inner["name"])
                _texts({each: more for each, more in inner.items() if each != "name"}, found, names, numbers)
            else:
                _texts(inner, found, names, numbers)
    elif isinstance(value, list):
        for inner in value:
            _texts(inner, found, names, numbers)
    elif numbers and isinstance(value, int | float) and not isinstance(value, bool):
        found.append(str(value))


def _map(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: inner if key in ("role", "type") else _map(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_map(inner, change) for inner in value]
    return value


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level and deepest <= MAX_DEPTH:
        deepest += 1
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return deepest


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers may take different ones of a key that is there twice: what was looked at is then not what is sent.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


_READER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_doubles)


def _read(text: str) -> Any:
    if text[:1] == "{":  # most have no spaces around them, which `decode` looks for
        found, end = _READER.raw_decode(text)
        if end == len(text):
            return found
    return _READER.decode(text)


def _bad(field: str, message: str) -> Refused:
    return Refused(400, "invalid_request_error", f"{field} {message}")
