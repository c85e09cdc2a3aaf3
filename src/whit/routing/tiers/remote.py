"""Remote tiers: any OpenAI-compatible address, and Anthropic's API.

A client is made for one clearance and cannot be made or asked without one that allows its tier; the request comes
out of `Cleared` in the form that this tier may have. Answers are read field by field, never passed on as they are.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from whit.routing.clearance import Clearance, Cleared, require
from whit.routing.errors import NotCleared, TierFailed
from whit.routing.masking import Masks, Restorer
from whit.routing.request import ChatRequest, compact, content_text
from whit.routing.tiers.answer import Ask, End, Piece
from whit.routing.tiers.wire import Wire

_FINISHES = {"stop", "length", "tool_calls", "content_filter"}


class RemoteClient:
    """One request's way to a remote tier."""

    def __init__(self, wire: Wire, clearance: Clearance) -> None:
        self._clearance = require(clearance, wire.tier.name)
        self._wire, self._tier = wire, wire.tier

    def answer(self, cleared: Cleared, ask: Ask) -> AsyncIterator[Piece | End]:
        """Pieces, then one `End`; what was masked is restored. Raises `NotCleared`, `TierFailed`."""
        request, masks = self._mine(cleared)
        pieces = self._ask(request, ask)
        return pieces if masks is None else _restored(pieces, masks)

    async def whole(self, cleared: Cleared, ask: Ask) -> list[Piece | End]:
        """The same at once: what an answer that is no stream needs no more for. Raises `NotCleared`, `TierFailed`."""
        if self._tier.kind == "openai":
            request, masks = self._mine(cleared)
            if masks is None and not request.stream:
                return await self._openai_whole(request, ask)
        return [piece async for piece in self.answer(cleared, ask)]

    def _mine(self, cleared: Cleared) -> tuple[ChatRequest, Masks | None]:
        if type(cleared) is not Cleared or cleared.clearance is not self._clearance:
            raise NotCleared(f"tier {self._tier.name} was asked with another request's clearance")
        return cleared.request_for(self._tier.name)

    def _ask(self, request: ChatRequest, ask: Ask) -> AsyncIterator[Piece | End]:
        if self._tier.kind == "anthropic":
            return self._anthropic(request, ask)
        return self._openai(request, ask)

    async def _openai_whole(self, request: ChatRequest, ask: Ask) -> list[Piece | End]:
        content = request.written(self._tier.model, ask.max_tokens)
        found = await self._wire.post(self._clearance, "/chat/completions", self._bearer(), content, ask.seconds)
        choice = _first(found.get("choices"))
        message = choice.get("message")
        if not isinstance(message, dict):
            raise self._broken()
        pieces: list[Piece | End] = []
        if text := content_text(message.get("content")):
            pieces.append(Piece(text))
        if "tool_calls" in message:
            pieces += [Piece(tool=_tool(at, tool)) for at, tool in enumerate(_list(message["tool_calls"]))]
        pieces.append(_end(choice.get("finish_reason"), found.get("usage"), "prompt_tokens", "completion_tokens"))
        return pieces

    def _bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._tier.key}"} if self._tier.key else {}

    async def _openai(self, request: ChatRequest, ask: Ask) -> AsyncIterator[Piece | End]:
        if not request.stream:
            for piece in await self._openai_whole(request, ask):
                yield piece
            return
        content = request.written(self._tier.model, ask.max_tokens, stream=True)
        finish, usage = None, None
        async for event in self._wire.stream(
            self._clearance, "/chat/completions", self._bearer(), content, ask.seconds
        ):
            if event.get("error"):
                raise self._broken()
            usage = event.get("usage") or usage
            choice = _first(event.get("choices"))
            delta = choice.get("delta")
            finish = choice.get("finish_reason") or finish
            if isinstance(delta, dict):
                if isinstance(said := delta.get("content"), str) and said:
                    yield Piece(said)
                for at, tool in enumerate(_list(delta.get("tool_calls"))):
                    yield Piece(tool=_tool(tool.get("index", at), tool))
        if finish is None:
            raise TierFailed("tier_broken", f"tier {self._tier.name} broke off", again=True, billed=True)
        yield _end(finish, usage, "prompt_tokens", "completion_tokens")

    async def _anthropic(self, request: ChatRequest, ask: Ask) -> AsyncIterator[Piece | End]:
        body = to_anthropic(request.body(), self._tier.model, ask.max_tokens)
        headers = {"x-api-key": self._tier.key, "anthropic-version": "2023-06-01"}
        if request.stream:
            body["stream"] = True
        content = compact(body).encode()
        if not request.stream:
            found = await self._wire.post(self._clearance, "/v1/messages", headers, content, ask.seconds)
            for at, block in enumerate(_list(found.get("content"))):
                if block.get("type") == "text" and isinstance(block.get("text"), str):
                    yield Piece(block["text"])
                elif block.get("type") == "tool_use":
                    yield Piece(tool=_tool_use(at, block, json.dumps(block.get("input") or {})))
            yield _end(_STOPS.get(str(found.get("stop_reason"))), found.get("usage"), "input_tokens", "output_tokens")
            return
        finish, ended = None, False
        usage: dict[str, Any] = {}
        async for event in self._wire.stream(self._clearance, "/v1/messages", headers, content, ask.seconds):
            kind, delta = event.get("type"), _dict(event.get("delta"))
            if kind == "error":
                raise self._broken()
            if kind == "message_start":
                usage |= _dict(_dict(event.get("message")).get("usage"))
            elif kind == "content_block_start" and _dict(event.get("content_block")).get("type") == "tool_use":
                yield Piece(tool=_tool_use(event.get("index"), event["content_block"], ""))
            elif kind == "content_block_delta":
                if delta.get("type") == "text_delta" and isinstance(delta.get("text"), str):
                    yield Piece(delta["text"])
                elif delta.get("type") == "input_json_delta":
                    arguments = str(delta.get("partial_json", ""))
                    yield Piece(tool={"index": _index(event.get("index")), "function": {"arguments": arguments}})
            elif kind == "message_delta":
                finish = _STOPS.get(str(delta.get("stop_reason")), finish)
                usage |= _dict(event.get("usage"))
            elif kind == "message_stop":
                ended = True
                break
        if not ended:
            raise TierFailed("tier_broken", f"tier {self._tier.name} broke off", again=True, billed=True)
        yield _end(finish, usage, "input_tokens", "output_tokens")

    def _broken(self) -> TierFailed:
        return TierFailed("bad_upstream", f"tier {self._tier.name} answered with no answer", again=False, billed=True)


_STOPS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
          "refusal": "content_filter"}  # fmt: skip


def to_anthropic(body: dict[str, Any], model: str, max_tokens: int) -> dict[str, Any]:
    """An OpenAI chat body as Anthropic's Messages API has it."""
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    for message in body["messages"]:
        role, text = message["role"], content_text(message.get("content"))
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        if role in ("system", "developer"):
            system.append(text)
            continue
        if role == "tool":
            blocks = [{"type": "tool_result", "tool_use_id": message.get("tool_call_id", ""), "content": text}]
        for call in _list(message.get("tool_calls")):
            function = _dict(call.get("function"))
            try:
                given = json.loads(function.get("arguments") or "{}")
            except (ValueError, TypeError):
                given = {}
            blocks.append({"type": "tool_use", "id": call.get("id", ""), "name": function.get("name", ""),
                           "input": given if isinstance(given, dict) else {}})  # fmt: skip
        role = "assistant" if role == "assistant" else "user"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})
    found: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "messages": messages}
    if system:
        found["system"] = "\n\n".join(system)
    if "temperature" in body:
        found["temperature"] = min(1.0, body["temperature"])
    if "top_p" in body:
        found["top_p"] = body["top_p"]
    if "stop" in body:
        found["stop_sequences"] = body["stop"]
    tools = [_dict(tool.get("function")) for tool in _list(body.get("tools"))]
    if tools:
        found["tools"] = [
            {"name": tool.get("name", ""), "description": tool.get("description", ""),
             "input_schema": tool.get("parameters") or {"type": "object"}}
            for tool in tools
        ]  # fmt: skip
    return found


async def _restored(pieces: AsyncIterator[Piece | End], masks: Masks) -> AsyncIterator[Piece | End]:
    text, tools = Restorer(masks), {}  # type: ignore[var-annotated]
    async for piece in pieces:
        if isinstance(piece, End):
            if rest := text.rest():
                yield Piece(rest)
            for index, (_, restorer) in tools.items():
                if rest := restorer.rest():
                    yield Piece(tool={"index": index, "function": {"arguments": rest}})
            yield piece
        elif piece.tool is not None:
            tool = piece.tool
            function = dict(tool.get("function") or {})
            _, restorer = tools.setdefault(tool["index"], (tool, Restorer(masks, quoted=True)))
            function["arguments"] = restorer(function.get("arguments") or "")
            yield Piece(tool={**tool, "function": function})
        elif clear := text(piece.text):
            yield Piece(clear)


def _end(finish: Any, usage: Any, key_in: str, key_out: str) -> End:
    usage = _dict(usage)
    counts = [usage.get(key) for key in (key_in, key_out)]
    tokens_in, tokens_out = (
        count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 10**9 else None
        for count in counts
    )
    return End(finish if finish in _FINISHES else "stop", tokens_in, tokens_out)


def _tool(index: Any, given: dict[str, Any]) -> dict[str, Any]:
    function = _dict(given.get("function"))
    found: dict[str, Any] = {"index": _index(index), "function": {}}
    if isinstance(given.get("id"), str):
        found |= {"id": given["id"], "type": "function"}
    for key in ("name", "arguments"):
        if isinstance(function.get(key), str):
            found["function"][key] = function[key]
    return found


def _tool_use(index: Any, block: dict[str, Any], arguments: str) -> dict[str, Any]:
    return {"index": _index(index), "id": str(block.get("id", "")), "type": "function",
            "function": {"name": str(block.get("name", "")), "arguments": arguments}}  # fmt: skip


def _index(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1000 else 0


def _first(value: Any) -> dict[str, Any]:
    return value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
