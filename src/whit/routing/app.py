"""The gateway's HTTP face: OpenAI's chat and completions API, metrics and health, as a plain ASGI application.

Promises: one guard stands before every path, known or not; a token where the config has one, and otherwise only
this machine's own names as Host and no foreign Origin; bodies are bounded before they are read; every error is of
whit's own words in OpenAI's shape. Headers of the client's go no further than here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import random
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from whit.routing.answers import CHAT, COMPLETION, Api, Send, as_bytes, headers_of, refusal, stream, whole
from whit.routing.config import Tenant, is_loopback
from whit.routing.errors import Refused
from whit.routing.gateway import Gateway
from whit.routing.limits import within
from whit.routing.request import ChatRequest, compact
from whit.routing.resilience import Idempotency

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_BODY_SECONDS = 30.0
_MODEL = "/v1/models/"
_SERVERS_OWN = ("whit.left", "whit.reply", "whit.body")
_LOOKED_AT = {name.encode(): name for name in (
    "authorization", "x-whit-label", "x-whit-timeout", "idempotency-key", "host", "content-type", "content-encoding",
    "origin",
)}  # fmt: skip


@dataclass(slots=True)
class Call:
    """One request as it came.

    `left`, where the server has it, is told what to call when the client leaves; `reply` sends a whole answer, or says
    that it must be sent by `send`; `body` gives what must not be waited for with `receive`.
    """

    headers: dict[str, str]
    tenant: Tenant
    receive: Receive
    send: Send
    left: Callable[[Callable[[], None] | None], None] | None = None
    reply: Callable[[int, list[tuple[bytes, bytes]], bytes], bool] | None = None
    body: Callable[[], bytes | None] | None = None


class App:
    """The ASGI application of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.idempotency = Idempotency()
        self.routes: dict[tuple[str, str], Callable[..., Awaitable[None]]] = {
            ("POST", "/v1/chat/completions"): partial(self._ask, CHAT),
            ("POST", "/v1/completions"): partial(self._ask, COMPLETION),
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/health"): self._health,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's life."""
        if scope["type"] == "lifespan":
            await self._life(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            headers = _headers(scope)
            tenant = self._guard(headers)
            handler = self.routes.get((scope["method"], scope["path"]))
            if handler is None and scope["method"] == "GET" and scope["path"].startswith(_MODEL):
                handler = partial(self._model, scope["path"].removeprefix(_MODEL))
            if handler is None:
                known = any(path == scope["path"] for _, path in self.routes)
                raise Refused(405 if known else 404, "not_found", "there is no such path or method here")
            await handler(Call(headers, tenant, receive, send, *map(scope.get, _SERVERS_OWN)))
        except Refused as error:
            await _json(send, error.status, refusal(error))
        except Exception as error:
            refused = Refused(500, "internal_error", f"whit failed ({type(error).__name__}, {secrets.token_hex(4)})")
            with contextlib.suppress(Exception):
                await _json(send, 500, refusal(refused))
            raise

    def _guard(self, headers: dict[str, str]) -> Tenant:
        """Who asks. Raises `Refused` (401 or 403)."""
        config = self.gateway.state.config
        given = headers.get("authorization", "")
        given = given[7:].strip() if given.lower().startswith("bearer ") else ""
        found = None
        for tenant in config.tenants:  # every one is compared, so that the time tells nothing
            if tenant.token and hmac.compare_digest(tenant.token.encode(), given.encode("utf-8", "replace")):
                found = tenant
        if found is not None:
            return found
        found = next((tenant for tenant in config.tenants if not tenant.token), None)
        if found is None:
            raise Refused(401, "invalid_api_key", "the token is missing or wrong")
        # Without tokens, a page in this machine's browser must not be able to ask by another name.
        host = headers.get("host", "")
        name = host[: host.rindex(":")] if host.rpartition(":")[2].isdigit() and ":" in host else host
        origin = headers.get("origin")
        if not is_loopback(name) or (origin is not None and not is_loopback(origin.rpartition("//")[2].split(":")[0])):
            raise Refused(403, "forbidden", "without a token only this machine is answered")
        return found

    async def _ask(self, api: Api, call: Call) -> None:
        headers = call.headers
        kind = headers.get("content-type", "")
        if kind != "application/json" and kind.partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "unsupported_media_type", "content-type must be application/json")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "unsupported_media_type", "packed bodies are not read")
        most = self.gateway.state.config.largest_body
        raw = None if call.body is None else call.body()
        if raw is None:
            raw = await _body(call.receive, most)
        elif len(raw) > most:
            raise _too_large(most)
        request = api.read(raw)
        key = headers.get("idempotency-key")
        if key is None:
            await self._answer(api, request, call)
            return
        if not 1 <= len(key) <= 255:
            raise Refused(400, "invalid_request_error", "Idempotency-Key must have 1 to 255 characters")
        label = headers.get("x-whit-label", "")
        kept, mine = self.idempotency.enter(
            call.tenant.name, key, b"\0".join((api.whole.encode(), raw, label.encode()))
        )
        if not mine:
            for message in await asyncio.shield(kept):
                await call.send(message)
            return
        said: list[MutableMapping[str, Any]] = []
        send = call.send

        async def keep(message: MutableMapping[str, Any]) -> None:
            said.append(message)
            await send(message)

        call.send, call.reply = keep, None
        try:
            if not await self._answer(api, request, call):
                raise Refused(499, "client_left", "the client left")
            kept.set_result(said)
        except BaseException as error:
            self.idempotency.forget(call.tenant.name, key)
            if not isinstance(error, Refused) or error.code == "client_left":
                kept.set_exception(Refused(409, "idempotency_error", "the first request with this key was cut off"))
            else:
                kept.set_exception(error)
            kept.exception()  # nobody may be waiting for it
            raise

    async def _answer(self, api: Api, request: ChatRequest, call: Call) -> bool:
        """Answer, unless the client leaves first: then the work ends too. Whether it was answered."""
        here = asyncio.current_task()
        left = False

        def leave() -> None:
            nonlocal left
            if here is not None:
                left = True
                here.cancel()

        stop = _watched(call, leave)
        try:
            await self._work(api, request, call)
            return True
        except asyncio.CancelledError:
            if here is None or not left or here.uncancel() > 0:
                raise
            return False
        finally:
            stop()

    async def _work(self, api: Api, request: ChatRequest, call: Call) -> None:
        headers = call.headers
        served = await self.gateway.serve(
            request, call.tenant, headers.get("x-whit-label"), _seconds(headers.get("x-whit-timeout"))
        )
        head = {"id": f"{api.prefix}-{random.getrandbits(96):024x}", "created": int(time.time()), "model": served.tier}
        if served.pieces is None:
            content = compact(whole(api, served.ready, head)).encode()
            about = {"content-type": "application/json", "content-length": str(len(content)), **headers_of(served)}
            if call.reply is None or not call.reply(200, as_bytes(about), content):
                await _send(call.send, 200, content, about)
            return
        async with aclosing(served.pieces) as pieces:  # type: ignore[type-var]
            await stream(api, call.send, pieces, head, request, served)

    async def _models(self, call: Call) -> None:
        data = [_described(name) for name in self._names(call.tenant)]
        await _json(call.send, 200, {"object": "list", "data": data})

    async def _model(self, name: str, call: Call) -> None:
        if name not in self._names(call.tenant):
            raise Refused(404, "model_not_found", "there is no such model here; GET /v1/models lists them")
        await _json(call.send, 200, _described(name))

    def _names(self, tenant: Tenant) -> list[str]:
        """What a tenant may name as its model."""
        config = self.gateway.state.config
        allowed = config.policies[tenant.policy].tiers
        names = ["auto", *config.routes, *(tier.name for tier in config.tiers if tier.name in allowed)]
        return list(dict.fromkeys(names))

    async def _metrics(self, call: Call) -> None:
        text = self.gateway.metrics.text(self.gateway.ledger.lost if self.gateway.ledger else 0)
        await _plain(call.send, 200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _health(self, call: Call) -> None:
        state = self.gateway.state
        tiers = {name: "resting" if breaker.open else "ok" for name, breaker in state.breakers.items()}
        lost = self.gateway.ledger.lost if self.gateway.ledger else 0
        await _json(call.send, 200, {"status": "ok", "tiers": tiers, "ledger_lost": lost})

    async def _life(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.gateway.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _headers(scope: Scope) -> dict[str, str]:
    """Those that are looked at."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = _LOOKED_AT.get(raw_name.lower())
        if name is not None:
            if name in found:
                raise Refused(400, "invalid_request_error", f"the header {name} is there twice")
            found[name] = raw_value.decode("latin-1")
    return found


async def _body(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size, until = 0, asyncio.get_running_loop().time() + _BODY_SECONDS
    while True:
        try:
            with within(until):
                message = await receive()
        except TimeoutError as error:
            raise Refused(408, "request_timeout", "the body did not come in time") from error
        if message["type"] == "http.disconnect":
            raise Refused(499, "client_left", "the client left")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(most: int) -> Refused:
    return Refused(413, "request_too_large", f"the body is larger than {most:,} bytes")


def _watched(call: Call, leave: Callable[[], None]) -> Callable[[], None]:
    """Have `leave` called when the client leaves, until what this gives is called."""
    if call.left is not None:
        call.left(leave)
        return partial(call.left, None)
    watch = asyncio.ensure_future(_left(call.receive))  # of another server only a task hears

    def over(watch: asyncio.Task[None]) -> None:
        if not watch.cancelled():
            leave()

    def stop() -> None:
        watch.remove_done_callback(over)
        watch.cancel()

    watch.add_done_callback(over)
    return stop


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3600:
        raise Refused(400, "invalid_request_error", "x-whit-timeout must be seconds, from 0 to 3600")
    return seconds


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "whit"}


async def _json(send: Send, status: int, body: Any) -> None:
    await _plain(send, status, compact(body).encode(), "application/json")


async def _plain(send: Send, status: int, content: bytes, kind: str) -> None:
    await _send(send, status, content, {"content-type": kind, "content-length": str(len(content))})


async def _send(send: Send, status: int, content: bytes, headers: dict[str, str]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": as_bytes(headers)})
    await send({"type": "http.response.body", "body": content, "more_body": False})
