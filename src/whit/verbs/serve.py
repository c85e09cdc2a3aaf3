"""`whit serve`: one base and a store of adapters behind an OpenAI-compatible API, until it is told to stop.

Loopback by default; any other address needs tokens (`whit store token NAME`). SIGTERM or Ctrl-C lets answers under
way end. Lines about requests go to stderr as JSON, without prompts unless asked for.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from whit.errors import UsageError
from whit.settings import ServeSettings
from whit.talk import Talk
from whit.verbs import common

if TYPE_CHECKING:
    from whit.bases import Base
    from whit.serving.api import Service
    from whit.serving.store import Store

_T = TypeVar("_T")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(settings: ServeSettings, *, talk: Talk | None = None) -> None:
    """Serve until stopped. Raises `UsageError`, `BaseError` or `StorageError` before anything is answered."""
    said = talk or Talk(quiet=True)
    common.require_finite(settings)
    if settings.device != "cpu" and (settings.int8 or settings.ray):
        which = "--int8 is computed on CPUs" if settings.int8 else "replicas on a cluster compute on CPUs"
        raise UsageError(f"{which}; leave out --device {settings.device}")
    if settings.ray:
        from whit.verbs.remote_serve import serve_there

        serve_there(settings, talk=said)
        return
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UsageError("whit serve needs a web server: pip install 'whit[serve]'") from error
    with opened(settings) as store:
        tokens = needs_tokens(settings, store)
        with service(settings, store, said) as made:
            from whit.serving.api import build_app
            from whit.serving.limits import PatientProtocol

            class Server(uvicorn.Server):
                """Says where it listens, and that it is draining."""

                async def startup(self, sockets: Any = None) -> None:
                    await super().startup(sockets)
                    if self.started:
                        port = self.servers[0].sockets[0].getsockname()[1]
                        host = f"[{settings.host}]" if ":" in settings.host else settings.host
                        said.say(f"serving {made.models.base} at http://{host}:{port}/v1")

                async def shutdown(self, sockets: Any = None) -> None:
                    made.draining = True
                    await super().shutdown(sockets)

            config = uvicorn.Config(
                build_app(made, tokens=tokens),
                host=settings.host,
                port=settings.port,
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=settings.connections,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=max(1, round(settings.drain)),
                h11_max_incomplete_event_size=64 * 1024,
            )
            with _no_second_signal():
                Server(config).run()


@contextlib.contextmanager
def _no_second_signal() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more at its end; what is to be closed is closed all the same."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def service(settings: ServeSettings, store: Store | None, talk: Talk) -> Iterator[Service]:
    """Everything behind the routes, at work while the block runs."""
    from whit.serving.api import Service
    from whit.serving.limits import Limits
    from whit.serving.metrics import Metrics
    from whit.serving.models import Models
    from whit.serving.payload import learned_in
    from whit.serving.pool import Pool
    from whit.serving.scheduler import Scheduler, Worker

    def prepare() -> tuple[Base, Pool, Scheduler, str]:
        base = common.open_base(
            settings.base, dtype=settings.dtype, device=settings.device, threads=settings.threads, talk=talk
        )
        with talk.task("Preparing its directions"):
            look_up = None if store is None else lambda name: learned_in(store, name)
            pool = Pool(base, ranks=settings.ranks, look_up=look_up)
        name = settings.name or base.name.rpartition("/")[2]
        if ":" in name or not name.isprintable():
            raise UsageError(f"--name {name!r}: a model's name has no ':' in it")
        scheduler = Scheduler(
            base,
            pool.bases,
            rows=settings.rows,
            context=settings.context,
            waiting=settings.waiting,
            waiting_each=settings.waiting_each or max(1, settings.waiting // 2),
            prefix_bytes=settings.prefix_mb << 20,
            int8=settings.int8,
        )
        if settings.int8:
            talk.say(f"8 bits   {scheduler.model.how}")
        return base, pool, scheduler, name

    base, pool, scheduler, name = _in_passing(prepare)
    worker = Worker(scheduler, on_error=lambda error: _log({"error": f"{type(error).__name__}: {error}"}))
    limits = Limits(answer_seconds=settings.timeout, share=1 / settings.replicas if settings.ray else 1.0)
    made = Service(
        base, worker, Models(name, pool, store), store, Metrics(), _log, limits, settings.log_prompts,
        ready=lambda: worker.alive,
    )  # fmt: skip
    worker.start()
    try:
        yield made
    finally:
        worker.stop()
        scheduler.model.close()


def _in_passing(work: Callable[[], _T]) -> _T:
    """What `work` gives, done in a thread that ends with it.

    OpenMP keeps a team of threads for each thread that has computed. Where all teams together are more than the
    processors, threads sleep between operations instead of spinning, and a step of the scheduler takes far longer.
    """
    with ThreadPoolExecutor(1) as passing:
        return passing.submit(work).result()


@contextlib.contextmanager
def opened(settings: ServeSettings) -> Iterator[Store | None]:
    """The store that is served, None where there is none."""
    from whit.serving.store import open_store

    if settings.store is None:
        yield None
        return
    with open_store(settings.store, create=False) as store:
        yield store


def needs_tokens(settings: ServeSettings, store: Store | None) -> bool:
    """Whether requests need a token: always off loopback, on it where asked for."""
    away = settings.host not in LOOPBACK
    if not away and not settings.tokens:
        return False
    if store is None or not store.tokens():
        why = f"--host {settings.host} can be reached from elsewhere, so" if away else "with --tokens"
        raise UsageError(f"{why} every request needs a token, and there is none: whit store token NAME --store FILE")
    return True


def _log(line: dict[str, Any]) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(json.dumps({"at": stamp, **line}, ensure_ascii=True), file=sys.stderr, flush=True)
