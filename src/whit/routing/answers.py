"""Answers in OpenAI's shapes: whole or as a stream, for chat and for the older completions, and errors.

Knows nothing of how an answer came about.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from whit.routing.errors import Refused
from whit.routing.gateway import Served
from whit.routing.request import ChatRequest, compact, read_completion, read_request
from whit.routing.tiers.answer import End, Piece

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Api:
    """One of OpenAI's two ways to ask for text: how a request is read, and what answers are called."""

    read: Callable[[bytes], ChatRequest]
    prefix: str
    whole: str
    chunk: str


CHAT = Api(read_request, "chatcmpl", "chat.completion", "chat.completion.chunk")
COMPLETION = Api(read_completion, "cmpl", "text_completion", "text_completion")


def whole(api: Api, pieces: Iterable[Piece | End], head: dict[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    text: list[str] = []
    tools: dict[int, dict[str, Any]] = {}
    end = End()
    for piece in pieces:
        if isinstance(piece, End):
            end = piece
        elif piece.tool is not None:
            tool = tools.setdefault(piece.tool["index"], {"type": "function", "function": {"arguments": ""}})
            tool |= {key: piece.tool[key] for key in ("id", "type") if key in piece.tool}
            function = piece.tool["function"]
            tool["function"] |= {key: value for key, value in function.items() if key == "name"}
            tool["function"]["arguments"] += function.get("arguments", "")
        else:
            text.append(piece.text)
    if api is COMPLETION:
        plain = {"index": 0, "text": "".join(text), "finish_reason": end.finish, "logprobs": None}
        return {**head, "object": api.whole, "choices": [plain], "usage": _usage(end)}
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text) if text or not tools else None}
    if tools:
        message["tool_calls"] = [tools[index] for index in sorted(tools)]
    choice = {"index": 0, "message": message, "finish_reason": end.finish}
    return {**head, "object": api.whole, "choices": [choice], "usage": _usage(end)}


async def stream(
    api: Api, send: Send, pieces: AsyncIterator[Piece | End], head: dict[str, Any], request: ChatRequest, served: Served
) -> None:
    """Send an answer piece by piece. Raises `Refused` where nothing went out yet."""
    started = False

    async def event(data: Any) -> None:
        nonlocal started
        if not started:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await send(
                {"type": "http.response.start", "status": 200, "headers": headers + as_bytes(headers_of(served))}
            )
            started = True
        text = data if isinstance(data, str) else compact(data)
        await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        if api is COMPLETION:
            choice = {"index": 0, "text": delta.get("content", ""), "finish_reason": finish, "logprobs": None}
        return {**head, "object": api.chunk, "choices": [choice]}

    try:
        role: dict[str, Any] = {"role": "assistant"}
        async for piece in pieces:
            if isinstance(piece, End):
                await event(chunk(role, piece.finish))
                if request.include_usage:
                    await event({**chunk({}), "choices": [], "usage": _usage(piece)})
            else:
                delta = {"tool_calls": [piece.tool]} if piece.tool is not None else {"content": piece.text}
                await event(chunk({**role, **delta}))
            role = {}
        await event("[DONE]")
    except Refused as error:
        if not started:
            raise
        await event(refusal(error))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _usage(end: End) -> dict[str, int]:
    tokens_in, tokens_out = end.tokens_in or 0, end.tokens_out or 0
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def headers_of(served: Served) -> dict[str, str]:
    """The headers that say what whit did."""
    return {
        "x-whit-tier": _visible(served.tier),
        "x-whit-clearance": served.cleared.clearance.id,
        "x-whit-reason": _visible(served.reason)[:500],
    }


def _visible(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def refusal(error: Refused) -> dict[str, Any]:
    """whit's refusal in OpenAI's shape."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    return {"error": {"message": str(error), "type": kind, "code": error.code, "param": None}}


def as_bytes(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as the server takes them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
