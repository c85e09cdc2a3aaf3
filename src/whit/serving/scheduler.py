"""Batches that rows join and leave at any step, each with its own adapter and its own sampling.

A small scheduler over the slots of one preallocated key-value cache. Each `step` admits waiting requests (fairly
between tenants), computes a bounded part of the prompts that are not read yet, and one token for every row that is.
Prompts that begin alike are read once (see `prefix.py`), and by the bare base for all adapters that act on answers
alone, whose rows answer from their last prompt token on. The answer of a row does not depend on the rows beside it.
`Scheduler` runs in the thread that calls it; `Worker` gives it one. `Backend` is what a server needs, so that
another engine can take the scheduler's place. Knows nothing of text, names or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from whit.errors import WhitError
from whit.serving.pool import Served
from whit.serving.prefix import PrefixCache
from whit.serving.rows import row_model
from whit.serving.sampling import Choice, Drawer, Sampling, likeliest

if TYPE_CHECKING:
    from whit.adapters.basis import Basis
    from whit.bases import Base


class QueueFull(WhitError):
    """No more requests are taken for now; `seconds` is when to come again."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True)
class Token:
    """One token of an answer, with its natural log-probability and the likeliest others, if they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request:
    """What is to be answered.

    `on_token` is called from the scheduler's thread for every token, `on_end` once with the reason: `stop` (the base
    ended), `length`, `deadline`, `cancelled` or `error`. `deadline` is a `time.monotonic()`.
    """

    prompt: Sequence[int]
    max_tokens: int
    on_token: Callable[[Token], None]
    on_end: Callable[[str], None]
    adapter: Served | None = None
    sampling: Sampling = Sampling()
    tenant: str = ""
    deadline: float | None = None
    cancelled: bool = False
    queued: float = field(default_factory=time.monotonic)
    started: float | None = None
    reused: int = 0

    def cancel(self) -> None:
        """Leave at the next step."""
        self.cancelled = True


@dataclass
class Load:
    """What the scheduler is doing; for metrics."""

    waiting: int = 0
    running: int = 0
    steps: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0


class Backend(Protocol):
    """What a server needs of an engine."""

    context: int

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, all or none. Raises `QueueFull`."""

    def load(self) -> Load:
        """What it is doing."""

    def start(self) -> None:
        """Begin to answer."""

    def stop(self) -> None:
        """End; what is not answered is cancelled."""


class _Row:
    """A request in its slot: `done` tokens of it are in the cache; while `reading`, of `prompt` tokens to be read."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.done = 0
        self.answered = 0
        self.draw = Drawer(request.sampling)
        # What an adapter does not act on is read first; the last token is then taken as those of an answer are.
        self.bare = request.adapter is not None and request.adapter.answers_only
        self.prompt = len(self.tokens) - (1 if self.bare else 0)
        self.reading = True


class Scheduler:
    """Answers requests with one base.

    `bases` are a `Pool`'s, `rows` is how many are answered at once, `context` the most tokens of prompt and answer,
    `prefill` how many prompt tokens are read in a step; `waiting` and `waiting_each` bound the queue in all and for
    one tenant, `prefix_bytes` what is kept of prompts; `int8` computes in 8 bits (see `int8.py`).
    """

    def __init__(
        self,
        base: Base,
        bases: Mapping[int, Basis],
        *,
        rows: int = 32,
        context: int | None = None,
        prefill: int = 512,
        waiting: int = 256,
        waiting_each: int = 128,
        prefix_bytes: int = 256 << 20,
        int8: bool = False,
    ) -> None:
        self.base, self.rows, self.prefill = base, rows, prefill
        self.context = min(context or base.context, base.context)
        self.model = row_model(base, rows, self.context, bases, int8=int8)
        number_type = "int8" if int8 else base.dtype
        self.prefixes = PrefixCache(f"{base.fingerprint} {number_type}", prefix_bytes)
        self._bounds = waiting, waiting_each
        self._queues: OrderedDict[str, deque[Request]] = OrderedDict()
        self._guard = threading.Condition()
        # Rows that answer come first, those that still read after them: each is one span of the cache.
        self._live: list[_Row] = []
        self._seconds_each = 1.0
        self._load = Load()

    # -- the queue, from any thread

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, all or none. Raises `QueueFull`."""
        with self._guard:
            most, most_each = self._bounds
            waiting = sum(map(len, self._queues.values()))
            mine = len(self._queues.get(requests[0].tenant, ()))
            if waiting + len(requests) > most or mine + len(requests) > most_each:
                seconds = max(1.0, self._seconds_each * waiting / self.rows)
                raise QueueFull("too many requests are waiting", min(60.0, seconds))
            for request in requests:
                self._queues.setdefault(request.tenant, deque()).append(request)
            self._guard.notify()

    def load(self) -> Load:
        """What it is doing."""
        with self._guard:
            waiting = sum(map(len, self._queues.values()))
            return Load(waiting, len(self._live), *(getattr(self._load, name) for name in _COUNTS))

    def wait(self, seconds: float) -> None:
        """Wait until something is queued, or for so long."""
        with self._guard:
            if not self._queues and not self._live:
                self._guard.wait(seconds)

    def _next(self) -> Request | None:
        """The next request: of the tenant with the fewest rows at work; among equals, of the one served longest ago."""
        with self._guard:
            busy: dict[str, int] = {}
            for row in self._live:
                busy[row.request.tenant] = busy.get(row.request.tenant, 0) + 1
            if not self._queues:
                return None
            tenant = min(self._queues, key=lambda name: busy.get(name, 0))
            queue = self._queues[tenant]
            request = queue.popleft()
            self._queues.move_to_end(tenant)
            if not queue:
                del self._queues[tenant]
            return request

    # -- a step

    def step(self) -> bool:
        """Do one step; whether there was anything to do."""
        self._drop_ended()
        self._drop_waiting()
        self._admit()
        if not self._live:
            return False
        with torch.inference_mode():
            self._read_prompts()
            self._answer()
        self._load.steps += 1
        return True

    def abort(self, reason: str) -> None:
        """End everything, waiting or at work."""
        with self._guard:
            ended = [request for queue in self._queues.values() for request in queue]
            self._queues.clear()
            ended += [row.request for row in self._live]
            self._live.clear()
        for request in ended:
            request.on_end(reason)

    def _drop_waiting(self) -> None:
        now, ended = time.monotonic(), []
        with self._guard:
            for tenant in list(self._queues):
                queue = self._queues[tenant]
                gone = [request for request in queue if _reason(request, now)]
                if gone:
                    ended += gone
                    self._queues[tenant] = kept = deque(request for request in queue if request not in gone)
                    if not kept:
                        del self._queues[tenant]
        for request in ended:
            request.on_end(_reason(request, now) or "cancelled")

    def _drop_ended(self) -> None:
        now = time.monotonic()
        for place in range(len(self._live) - 1, -1, -1):
            if reason := _reason(self._live[place].request, now):
                self._leave(place, reason)

    def _admit(self) -> None:
        while len(self._live) < self.rows and (request := self._next()):
            request.started = time.monotonic()
            row, place = _Row(request), len(self._live)
            self._live.append(row)
            try:
                self.model.put(place, None if row.bare else request.adapter)
                row.done = self.prefixes.fetch(_content(request), row.tokens, self.model, place)
            except Exception:
                self._live.pop()
                request.on_end("error")
                raise
            request.reused = row.done
            self._load.reused_tokens += row.done
            if row.bare and row.done == row.prompt:
                self._read(row)

    def _read_prompts(self) -> None:
        answering = sum(not row.reading for row in self._live)
        reading = self._live[answering:]
        if not reading:
            return
        # As many rows as share the step's tokens; a long prompt takes several steps.
        left, parts = self.prefill, list[int]()
        for row in reading:
            part = min(row.prompt - row.done, left)
            if part <= 0:
                break
            # Rows of very unlike lengths would be mostly padding beside each other.
            if parts and (max(*parts, part) * (len(parts) + 1) > 2 * self.prefill):
                break
            parts.append(part)
            left -= part
        some = reading[: len(parts)]
        tokens = [row.tokens[row.done : row.done + part] for row, part in zip(some, parts, strict=True)]
        hidden = self.model.forward(answering, tokens, [row.done for row in some])
        finished = []
        for at, (row, part) in enumerate(zip(some, parts, strict=True)):
            row.done += part
            self._load.prompt_tokens += part
            if row.done == row.prompt:
                finished.append((row, hidden[at, part - 1]))
        for row, _ in finished:
            self.prefixes.keep(_content(row.request), row.tokens[: row.prompt], self.model, self._live.index(row))
            self._read(row)
        if whole := [(row, state) for row, state in finished if not row.bare]:
            self._choose([row for row, _ in whole], torch.stack([state for _, state in whole]))

    def _read(self, row: _Row) -> None:
        """A row's prompt was read: it joins those that answer, and its adapter acts from here on."""
        place, answering = self._live.index(row), sum(not each.reading for each in self._live)
        row.reading = False
        if row.bare:
            self.model.put(place, row.request.adapter)
        self._swap(place, answering)

    def _answer(self) -> None:
        # A row whose prompt was read in this step has its first token already; it goes on with the others.
        answering = sum(not row.reading for row in self._live)
        rows = self._live[:answering]
        if not rows:
            return
        hidden = self.model.forward(0, [row.tokens[-1:] for row in rows], [row.done for row in rows])
        for row in rows:
            row.done += 1
        self._choose(rows, hidden[:, 0])

    def _choose(self, rows: list[_Row], hidden: torch.Tensor) -> None:
        choices: Sequence[Choice]
        if all(row.draw.greedy for row in rows):
            choices = [Choice(token) for token in self.model.likeliest(hidden).tolist()]
        else:
            choices = choose(self.model.logits(hidden), [row.draw for row in rows])
        for row, choice in zip(rows, choices, strict=True):
            request = row.request
            row.answered += 1
            if choice.id in self.base.stop_ids:
                self._leave(self._live.index(row), "stop")
                continue
            row.tokens.append(choice.id)
            self._load.tokens += 1
            request.on_token(Token(choice.id, choice.logprob, choice.top))
            if row.answered >= request.max_tokens or len(row.tokens) >= self.context:
                self._leave(self._live.index(row), "length")

    def _leave(self, place: int, reason: str) -> None:
        row = self._live[place]
        answering = sum(not each.reading for each in self._live)
        if place < answering:
            self._swap(place, answering - 1)
            place = answering - 1
        self._swap(place, len(self._live) - 1)
        self._live.pop()
        self.model.put(len(self._live), None)
        if row.request.started is not None:
            took = time.monotonic() - row.request.started
            self._seconds_each += 0.1 * (took - self._seconds_each)
        row.request.on_end(reason)

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            self._live[one], self._live[other] = self._live[other], self._live[one]
            self.model.swap(one, other, max(self._live[one].done, self._live[other].done))


class Worker:
    """A scheduler in a thread of its own."""

    def __init__(self, scheduler: Scheduler, *, on_error: Callable[[BaseException], None] | None = None) -> None:
        self.scheduler = scheduler
        self.context = scheduler.context
        self._on_error = on_error or (lambda error: None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="whit-scheduler", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, all or none. Raises `QueueFull`."""
        self.scheduler.submit(requests)

    def load(self) -> Load:
        """What it is doing."""
        return self.scheduler.load()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not answered is cancelled."""
        self._stop.set()
        self._thread.join(30)
        self.scheduler.abort("cancelled")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if not self.scheduler.step():
                    self.scheduler.wait(0.05)
            except Exception as error:  # one bad step must not end the server
                self._on_error(error)
                self.scheduler.abort("error")


_COUNTS = ("steps", "tokens", "prompt_tokens", "reused_tokens")


def choose(logits: torch.Tensor, draws: Sequence[Drawer]) -> list[Choice]:
    """The next token of each row; logits (rows, vocabulary), float32. The greedy rows are chosen together."""
    tokens = likeliest(logits).tolist()
    return [draw(logits[place], tokens[place]) for place, draw in enumerate(draws)]


def _content(request: Request) -> bytes:
    """What computed the keys and values of a prompt."""
    return b"" if request.adapter is None or request.adapter.answers_only else request.adapter.digest


def _reason(request: Request, now: float) -> str | None:
    if request.cancelled:
        return "cancelled"
    return "deadline" if request.deadline is not None and now > request.deadline else None
