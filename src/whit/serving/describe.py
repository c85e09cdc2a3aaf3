"""The server's own OpenAPI 3.1 description, from the same bounds that requests are checked against."""

from __future__ import annotations

from typing import Any

from whit.serving import schema

_TEXT = {"type": "string"}
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": _TEXT}}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]},
                           "code": {"type": ["string", "null"]}},
        }
    },
}  # fmt: skip
_STATUSES = {
    400: "what is wrong with the request", 401: "no valid token", 404: "no such model, or no right to it",
    405: "another method", 408: "the body came too slowly", 413: "the body is too large", 415: "not JSON",
    421: "another Host than localhost", 429: "too many requests; Retry-After says when", 500: "a fault here",
    503: "shutting down, or the store cannot be reached", 504: "not ready in time",
}  # fmt: skip


def description(base: str, *, tokens: bool) -> dict[str, Any]:
    """The description, as plain values."""
    shared: dict[str, Any] = {
        "model": {"type": "string", "minLength": 1, "maxLength": 20_000, "examples": [base]},
        "temperature": _number(0, 2),
        "top_p": _number(0, 1),
        "n": _whole(1, schema.MAX_N),
        "max_tokens": _whole(1, 1 << 20),
        "max_completion_tokens": _whole(1, 1 << 20),
        "seed": _whole(-schema.MAX_SEED - 1, schema.MAX_SEED),
        "stop": {"anyOf": [
            {"type": "null"},
            {"type": "string", "minLength": 1, "maxLength": schema.MAX_STOP},
            {"type": "array", "maxItems": schema.MAX_STOPS,
             "items": {"type": "string", "minLength": 1, "maxLength": schema.MAX_STOP}},
        ]},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"]},
        "user": {},
    }  # fmt: skip
    part = {"type": "object", "required": ["type", "text"],
            "properties": {"type": {"const": "text"}, "text": _TEXT}}  # fmt: skip
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": list(schema.ROLES)},
                       "content": {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": part}]}},
    }  # fmt: skip
    ids = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}}
    text = {"type": "string", "minLength": 1}
    chat = {
        **shared,
        "messages": {"type": "array", "minItems": 1, "maxItems": schema.MAX_MESSAGES, "items": message},
        "logprobs": {"type": ["boolean", "null"]},
        "top_logprobs": _whole(0, schema.MAX_LOGPROBS),
    }
    completion = {
        **shared,
        "prompt": {"anyOf": [text, ids, {"type": "array", "minItems": 1, "maxItems": schema.MAX_N,
                                         "items": {"anyOf": [text, ids]}}]},
        "logprobs": _whole(0, schema.MAX_LOGPROBS),
    }  # fmt: skip
    answer = {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"]}
    models = {"type": "object", "required": ["object", "data"]}
    after = {"name": "after", "in": "query", "schema": _TEXT}
    name = {"name": "name", "in": "path", "required": True, "schema": text}
    paths: dict[str, Any] = {
        "/v1/chat/completions": {"post": _posted(chat, ["model", "messages"], answer)},
        "/v1/completions": {"post": _posted(completion, ["model", "prompt"], answer)},
        "/v1/models": {"get": {**_got(models), "parameters": [after]}},
        "/v1/models/{name}": {"get": {**_got({"type": "object", "required": ["id", "object"]}), "parameters": [name]}},
        "/health": {"get": _got({"type": "object"})},
        "/ready": {"get": _got({"type": "object"})},
        "/metrics": {"get": _got(None)},
        "/openapi.json": {"get": _got({"type": "object"})},
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "whit", "version": "1", "description": "An OpenAI-compatible server of small adapters."},
        "paths": paths,
    }
    if tokens:
        described["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        described["security"] = [{"token": []}]
    return described


def _number(least: float, most: float) -> dict[str, Any]:
    return {"type": ["number", "null"], "minimum": least, "maximum": most}


def _whole(least: int, most: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


def _responses(good: dict[str, Any]) -> dict[str, Any]:
    bad = {"application/json": {"schema": _ERROR}}
    return {"200": good, **{str(status): {"description": said, "content": bad} for status, said in _STATUSES.items()}}


def _posted(properties: dict[str, Any], required: list[str], answer: dict[str, Any]) -> dict[str, Any]:
    body = {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
    content = {"application/json": {"schema": answer}, "text/event-stream": {"schema": _EVENT}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": _responses({"description": "the answer", "content": content}),
    }


def _got(answer: dict[str, Any] | None) -> dict[str, Any]:
    content = {"application/json": {"schema": answer}} if answer else {"text/plain": {"schema": _TEXT}}
    responses = _responses({"description": "found", "content": content})
    if answer == {"type": "object"}:
        responses["503"] = {"description": "not ready", "content": {"application/json": {"schema": answer}}}
    return {"responses": responses}
