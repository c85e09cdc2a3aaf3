"""What guards a server from its clients: sizes and times of requests, and one gate before every route.

The gate gives each request an id, asks for a token on every path where tokens are required (an unknown path too),
refuses strange `Host`s where they are not (a web page must not reach a loopback server through a name of its own),
counts, logs without prompts, and turns whatever goes wrong into an answer that says nothing of the inside.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from whit.errors import StorageError
from whit.serving.auth import LOCAL, Caller, Rates, Rights, digest_of
from whit.serving.metrics import Metrics
from whit.serving.schema import BadRequest
from whit.serving.store import Store

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True)
class Limits:
    """Bytes of a body, and seconds for a request's head, its body, and its answer; the share of a token's rate."""

    body: int = 2 << 20
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    answer_seconds: float = 300.0
    share: float = 1.0


def error_answer(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


def refusal(error: BadRequest) -> JSONResponse:
    """The answer to a request that is refused."""
    answer = error_answer(error.status, str(error), param=error.param, code=error.code)
    if error.retry_after is not None:
        answer.headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return answer


async def read_json(request: Request, limits: Limits) -> Any:
    """The body as JSON, within its limits. Raises `BadRequest`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest("the body must be sent as application/json", status=415)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise BadRequest(f"the body is larger than {limits.body:,} bytes", status=413)
                parts.append(part)
    except TimeoutError:
        raise BadRequest("the body did not arrive in time", status=408) from None
    try:
        return json.loads(b"".join(parts), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class Gate:
    """Stands before every route."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store | None,
        tokens: bool,
        metrics: Metrics,
        log: Callable[[dict[str, Any]], None],
        limits: Limits,
    ) -> None:
        self.app, self._store, self._tokens = app, store, tokens
        self._metrics, self._log, self._limits = metrics, log, limits
        self._rates = Rates(limits.share)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, name = time.monotonic(), f"req-{secrets.token_hex(8)}"
        state = scope.setdefault("state", {})
        state.update(id=name, began=began, note={})
        status = 0

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        failed: str | None = None
        try:
            state["caller"] = await self._caller(scope)
            await self.app(scope, receive, out)
        except BadRequest as error:
            if not status:
                await refusal(error)(scope, receive, out)
        except ClientDisconnect:
            failed = "the client went away"
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
            if not status:
                unavailable = isinstance(error, StorageError)
                message = "the store cannot be reached now" if unavailable else "something went wrong here"
                answer = error_answer(503 if unavailable else 500, f"{message}; the log has it under {name}")
                await answer(scope, receive, out)
        seconds = time.monotonic() - began
        self._metrics.count("whit_requests_total", labels={"status": str(status)})
        self._metrics.observe("whit_request_seconds", seconds)
        caller = state.get("caller")
        line = {"id": name, "tenant": caller.name if caller else None, "method": scope["method"], "status": status}
        self._log({**line, "seconds": round(seconds, 4), **state["note"], **({"error": failed} if failed else {})})

    async def _caller(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > self._limits.body:
            raise BadRequest(f"the body is larger than {self._limits.body:,} bytes", status=413)
        if not self._tokens:
            host = headers.get("host", "")
            plain = host if host.endswith("]") else host.rpartition(":")[0] or host
            if plain.lower() not in LOOPBACK:
                raise BadRequest("this server answers as localhost only", status=421)
            return LOCAL
        kind, _, secret = headers.get("authorization", "").partition(" ")
        found = None
        if kind.lower() == "bearer" and secret and len(secret) <= 200 and self._store is not None:
            found = await run_in_threadpool(self._store.token, digest_of(secret.strip()))
        if found is None:
            raise BadRequest("a valid token is needed: Authorization: Bearer …", status=401, code="invalid_api_key")
        caller = Caller(found[0], Rights.from_json(found[1]))
        if wait := self._rates.wait(caller):
            raise too_many("this token's rate is used up", wait)
        return caller


def too_many(message: str, seconds: float) -> BadRequest:
    """A 429 that says when to come again."""
    error = BadRequest(
        f"{message}; try again in {max(1, math.ceil(seconds))} s", status=429, code="rate_limit_exceeded"
    )
    error.retry_after = seconds
    return error


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with a limit on how long a request's head may take (slow-loris)."""

    head_seconds = Limits.head_seconds
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Wait on until the head is there."""
        super().data_received(data)
        self._wait_for_head()

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self._head is not None:
            self._head.cancel()
            self._head = None
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        at_work = self.cycle is not None and not self.cycle.response_complete
        if at_work and self._head is not None:
            self._head.cancel()
            self._head = None
        elif not at_work and self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.head_seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
