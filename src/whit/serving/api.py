"""The OpenAI-compatible API: chat completions, completions and models, over any `Backend`.

`build_app` gives an ASGI application. What is looked up, encoded or read from the store happens outside the event
loop; tokens come from the backend's thread. A client that goes away takes its rows with it. Knows nothing of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from whit.data.rows import Turn
from whit.errors import DataError
from whit.serving import answers
from whit.serving.describe import description
from whit.serving.limits import Gate, Limits, error_answer, read_json, refusal, too_many
from whit.serving.metrics import CONTENT_TYPE, Metrics
from whit.serving.models import Model, Models
from whit.serving.sampling import Sampling
from whit.serving.scheduler import Backend, QueueFull, Token
from whit.serving.scheduler import Request as Job
from whit.serving.schema import Ask, BadRequest, read_chat, read_completion
from whit.serving.store import Store

if TYPE_CHECKING:
    from whit.bases import Base


@dataclass
class Service:
    """What the routes share. `log` takes a line as plain values; `prompts` puts prompts into the log."""

    base: Base
    backend: Backend
    models: Models
    store: Store | None
    metrics: Metrics
    log: Callable[[dict[str, Any]], None]
    limits: Limits = field(default_factory=Limits)
    prompts: bool = False
    ready: Callable[[], bool] = lambda: True
    draining: bool = False


@dataclass
class _Choice:
    """One answer under way."""

    job: Job
    text: answers.Text
    prompt: int
    tokens: list[Token] = field(default_factory=list)
    shown: int = 0
    reason: str | None = None


def build_app(service: Service, *, tokens: bool) -> Starlette:
    """The application; with `tokens`, every route asks for one."""
    metrics, backend = service.metrics, service.backend
    metrics.counter("whit_requests_total", "Requests answered, by status.")
    metrics.counter("whit_prompt_tokens_total", "Prompt tokens of answered requests.")
    metrics.counter("whit_completion_tokens_total", "Tokens written.")
    metrics.histogram("whit_request_seconds", "Seconds from a request to the end of its answer.")
    metrics.histogram("whit_first_token_seconds", "Seconds from a request to its first token.")
    metrics.histogram("whit_queue_seconds", "Seconds that requests waited for a row.")
    metrics.gauge("whit_waiting", "Requests waiting for a row.", lambda: backend.load().waiting)
    metrics.gauge("whit_running", "Rows at work.", lambda: backend.load().running)
    metrics.gauge("whit_steps_total", "Steps done.", lambda: backend.load().steps, kind="counter")
    metrics.gauge("whit_reused_tokens_total", "Prompt tokens not read again.",
                  lambda: backend.load().reused_tokens, kind="counter")  # fmt: skip

    async def chat(request: Request) -> Response | _Stream:
        return await _answer(service, request, read_chat(await read_json(request, service.limits)), chat=True)

    async def complete(request: Request) -> Response | _Stream:
        return await _answer(service, request, read_completion(await read_json(request, service.limits)), chat=False)

    async def models(request: Request) -> Response:
        after = request.query_params.get("after", "")[:200]
        found = await run_in_threadpool(lambda: service.models.listing(request.state.caller, after=after))
        return JSONResponse({"object": "list", "data": [_model(name, at) for name, at in found]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        await run_in_threadpool(service.models.find, name, request.state.caller)
        return JSONResponse(_model(name, 0.0))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        good = service.ready() and not service.draining
        return JSONResponse({"status": "ready" if good else "not ready"}, 200 if good else 503)

    async def page(request: Request) -> Response:
        return PlainTextResponse(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def described(request: Request) -> Response:
        return JSONResponse(description(service.models.base, tokens=tokens))

    async def http_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        said = {404: "there is no such route", 405: "that method is not for this route"}.get(status, "not possible")
        answer = error_answer(status, said)
        if isinstance(error, HTTPException) and error.headers:
            answer.headers.update(error.headers)
        return answer

    async def bad_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, BadRequest)
        return refusal(error)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name:path}", model, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
            Route("/metrics", page, methods=["GET"]),
            Route("/openapi.json", described, methods=["GET"]),
        ],
        exception_handlers={HTTPException: http_error, BadRequest: bad_request},
    )
    app.router.redirect_slashes = False
    app.add_middleware(
        Gate, store=service.store, tokens=tokens, metrics=metrics, log=service.log, limits=service.limits
    )
    return app


def _model(name: str, at: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(at), "owned_by": "whit"}


async def _answer(service: Service, request: Request, ask: Ask, *, chat: bool) -> Response | _Stream:
    if service.draining:
        raise BadRequest("this server is shutting down", status=503)
    model = await run_in_threadpool(service.models.find, ask.model, request.state.caller)
    prompts = await run_in_threadpool(_encode, service, ask, chat)
    note = request.state.note
    note.update(model=model.name, prompt_tokens=sum(map(len, prompts)), choices=ask.n * len(prompts))
    if service.prompts:
        note["prompt"] = [content for _, content in ask.messages] if chat else list(ask.prompts)
    run = _Run(service, request, ask, model, prompts, chat)
    run.submit()
    return _Stream(run) if ask.stream else await run.whole()


def _encode(service: Service, ask: Ask, chat: bool) -> list[list[int]]:
    base, most = service.base, service.backend.context
    if chat:
        turns = [Turn(role, content) for role, content in ask.messages]
        try:
            prompts = [base.encode(base.template.render(turns))]
        except DataError as error:
            raise BadRequest("the base's chat template takes no such conversation", "messages") from error
    else:
        prompts = [base.encode(each) if isinstance(each, str) else list(each) for each in ask.prompts]
    words = int(base.model.config.vocab_size)
    for prompt in prompts:
        if not prompt or any(token >= words for token in prompt):
            raise BadRequest("the prompt has no tokens, or one that the base does not know", "prompt")
        if len(prompt) + (ask.max_tokens or 1) > most:
            raise BadRequest(
                f"the prompt has {len(prompt):,} tokens and {ask.max_tokens or 1:,} are asked for; "
                f"the context is {most:,}",
                "messages" if chat else "prompt",
                code="context_length_exceeded",
            )
    return prompts


class _Run:
    """A request at work: its rows, and the events that come from them."""

    def __init__(
        self, service: Service, request: Request, ask: Ask, model: Model, prompts: Sequence[list[int]], chat: bool
    ) -> None:
        self.service, self.request, self.ask, self.model, self.chat = service, request, ask, model, chat
        self.events: asyncio.Queue[tuple[int, Token | str]] = asyncio.Queue()
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{request.state.id[4:]}"
        self.created = int(time.time())
        loop = asyncio.get_running_loop()
        seed = ask.seed if ask.seed is not None else random.SystemRandom().getrandbits(62)
        deadline = time.monotonic() + service.limits.answer_seconds
        self.choices: list[_Choice] = []

        def put(at: int, event: Token | str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be gone at the very end
                loop.call_soon_threadsafe(self.events.put_nowait, (at, event))

        for prompt in prompts:
            for _ in range(ask.n):
                at = len(self.choices)
                job = Job(
                    prompt,
                    ask.max_tokens or service.backend.context - len(prompt),
                    on_token=lambda token, at=at: put(at, token),  # type: ignore[misc]
                    on_end=lambda reason, at=at: put(at, reason),  # type: ignore[misc]
                    adapter=model.adapter,
                    sampling=Sampling(ask.temperature, ask.top_p, seed + at, ask.logprobs),
                    tenant=request.state.caller.name,
                    deadline=deadline,
                )
                self.choices.append(_Choice(job, answers.Text(service.base.decode, ask.stop), len(prompt)))

    def submit(self) -> None:
        """Queue the rows. Raises `BadRequest` where the queue is full."""
        try:
            self.service.backend.submit([choice.job for choice in self.choices])
        except QueueFull as full:
            raise too_many(str(full), full.seconds) from None

    def cancel(self) -> None:
        """Take all rows out."""
        for choice in self.choices:
            choice.job.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, str, list[Token]]]:
        """Choice, new text and the tokens behind it; an empty text with no token is the end of that choice."""
        open_ = set(range(len(self.choices)))
        first = True
        while open_:
            at, event = await self.events.get()
            choice = self.choices[at]
            if at not in open_:
                continue
            if isinstance(event, Token):
                if first:
                    first = False
                    self.service.metrics.observe(
                        "whit_first_token_seconds", time.monotonic() - self.request.state.began
                    )
                choice.tokens.append(event)
                piece = choice.text.add(event.id)
                if choice.text.stopped:
                    choice.job.cancel()
                    event = "stop"
            else:
                piece = choice.text.end()
            if isinstance(event, str):
                choice.reason = event
                open_.discard(at)
            if piece or isinstance(event, str):
                new, choice.shown = choice.tokens[choice.shown :], len(choice.tokens)
                yield at, piece, new
        self._note()

    def _note(self) -> None:
        written = sum(len(choice.tokens) for choice in self.choices)
        started = self.choices[0].job.started
        metrics, note = self.service.metrics, self.request.state.note
        metrics.count("whit_completion_tokens_total", written)
        metrics.count("whit_prompt_tokens_total", sum(choice.prompt for choice in self.choices))
        if started is not None:
            waited = started - self.choices[0].job.queued
            metrics.observe("whit_queue_seconds", waited)
            note["queue_seconds"] = round(waited, 4)
        note.update(completion_tokens=written, reasons=sorted({choice.reason or "" for choice in self.choices}))

    def failure(self) -> BadRequest | None:
        """Why there is no whole answer."""
        reasons = {choice.reason for choice in self.choices}
        if "error" in reasons:
            return BadRequest(f"something went wrong here; the log has it under {self.request.state.id}", status=500)
        if "deadline" in reasons:
            return BadRequest("the answer was not ready in time", status=504, code="deadline_exceeded")
        if any(choice.reason == "cancelled" and not choice.text.stopped for choice in self.choices):
            return BadRequest("this server is shutting down", status=503)
        return None

    async def whole(self) -> Response:
        """The answer in one piece; given up where the client goes away."""
        gone = asyncio.create_task(_gone(self.request.receive))
        done = asyncio.create_task(self._collect())
        try:
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                self.request.state.note["cancelled"] = True
                return Response(status_code=499)
            await done
        finally:
            self.cancel()
            gone.cancel()
            done.cancel()
        if error := self.failure():
            raise error
        return JSONResponse({**self._head(False), "choices": [self._choice(at) for at in range(len(self.choices))],
                             "usage": self.usage()})  # fmt: skip

    async def _collect(self) -> None:
        async for _ in self.pieces():
            pass

    def _head(self, stream: bool) -> dict[str, Any]:
        kind = ("chat.completion" if self.chat else "text_completion") + (".chunk" if stream and self.chat else "")
        return {"id": self.id, "object": kind, "created": self.created, "model": self.ask.model,
                "system_fingerprint": f"whit-{self.service.base.fingerprint[:12]}"}  # fmt: skip

    def usage(self) -> dict[str, Any]:
        """Tokens read and written; a prompt with several answers counts once."""
        firsts = self.choices[:: self.ask.n]
        written = sum(len(choice.tokens) for choice in self.choices)
        return answers.usage(sum(each.prompt for each in firsts), sum(each.job.reused for each in firsts), written)

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self.ask.logprobs is None:
            return None
        decode = self.service.base.decode
        return answers.chat_logprobs(tokens, decode) if self.chat else answers.completion_logprobs(tokens, decode)

    def _choice(self, at: int) -> dict[str, Any]:
        choice = self.choices[at]
        reason = answers.finish_reason(choice.reason or "", choice.text.stopped)
        held = {"index": at, "logprobs": self._logprobs(choice.tokens), "finish_reason": reason}
        if self.chat:
            return {**held, "message": {"role": "assistant", "content": choice.text.text, "refusal": None}}
        return {**held, "text": choice.text.text}

    def chunk(self, at: int, piece: str, tokens: Sequence[Token], *, role: bool = False) -> dict[str, Any]:
        """One event of a stream."""
        choice = self.choices[at]
        reason = answers.finish_reason(choice.reason, choice.text.stopped) if choice.reason else None
        held: dict[str, Any] = {"index": at, "logprobs": self._logprobs(tokens), "finish_reason": reason}
        if self.chat:
            held["delta"] = {**({"role": "assistant"} if role else {}), "content": piece}
        else:
            held["text"] = piece
        tail = {"usage": None} if self.ask.include_usage else {}
        return {**self._head(True), "choices": [held], **tail}

    def last(self) -> dict[str, Any]:
        """The event that carries the usage."""
        return {**self._head(True), "choices": [], "usage": self.usage()}


class _Stream(Response):
    """Server-sent events."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self.background = None
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.create_task(_gone(receive))
        events = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait({gone, events}, return_when=asyncio.FIRST_COMPLETED)
            if events.done():
                await events
            else:
                self._run.request.state.note["cancelled"] = True
        finally:
            self._run.cancel()
            gone.cancel()
            events.cancel()

    async def _send(self, send: Send) -> None:
        run, begun = self._run, set[int]()

        async def event(body: str) -> None:
            await send({"type": "http.response.body", "body": f"data: {body}\n\n".encode(), "more_body": True})

        async for at, piece, tokens in run.pieces():
            await event(json.dumps(run.chunk(at, piece, tokens, role=at not in begun), ensure_ascii=False))
            begun.add(at)
        if error := run.failure():
            await event(bytes(refusal(error).body).decode())
        else:
            if run.ask.include_usage:
                await event(json.dumps(run.last()))
            await event("[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Return when the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
