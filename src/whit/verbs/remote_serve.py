"""`whit serve --ray ADDRESS`: replicas on a Ray cluster behind one address, all on one PostgreSQL store.

Any replica serves any adapter, since an adapter is an input: there is nothing to place, to load or to warm. Ray Serve
brings the address (on the head node), deals out the requests, and replaces a replica that is lost. Each replica is what
`whit serve` is on one machine, with the same gate: loopback, or a token on every route. A token's rate is divided among
the replicas. Until it is told to stop; if this process is killed the replicas go on, and the same command finds them.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from whit.errors import ClusterError, UsageError
from whit.settings import ServeSettings, as_plain
from whit.talk import Talk
from whit.verbs.serve import needs_tokens, opened

if TYPE_CHECKING:
    from whit.cluster.connection import Cluster

APP = "whit"
_POSTGRES = ("postgresql://", "postgres://")
_held: list[Any] = []  # in a replica: its service, with what closes it


def serve_there(settings: ServeSettings, *, talk: Talk, stop: threading.Event | None = None) -> None:
    """Serve until stopped. Raises `UsageError`, `StorageError` or `ClusterError` before anything is answered."""
    if settings.store is not None and not settings.store.startswith(_POSTGRES):
        raise UsageError(f"--store {settings.store}: replicas on several machines need a postgresql:// store")
    if settings.port == 0:
        raise UsageError("--port 0: on a cluster the port must be named")
    with opened(settings) as store:
        tokens = needs_tokens(settings, store)
    from whit.cluster.connection import connected

    assert settings.ray is not None
    with connected(settings.ray) as cluster:
        serve = _ray_serve()
        cpus = cluster.threads(settings.threads, settings.replicas)
        room = sum(each // cpus for each in cluster.cpus)
        if room < settings.replicas:
            raise UsageError(
                f"--replicas {settings.replicas} of {cpus} CPUs: there is room for {room} at {settings.ray}; "
                "give fewer replicas, or fewer --threads"
            )
        own = replace(settings, threads=cpus)
        where = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}/v1"
        with _deployed(serve, cluster, own, tokens, talk):
            talk.say(f"serving {settings.base} at {where} (on the head node) by {settings.replicas} replicas")
            _wait(stop or threading.Event())
            talk.say("stopping")


@contextlib.contextmanager
def _deployed(serve: Any, cluster: Cluster, settings: ServeSettings, tokens: bool, talk: Talk) -> Iterator[None]:
    """The replicas at work while the block runs."""
    text = json.dumps(as_plain(settings))

    # Within this function, so that it is sent as it is, with the text in it.
    def application() -> Any:
        from whit.verbs.remote_serve import application_of

        return application_of(text, tokens)

    try:
        # What runs there of others is left alone; then the address is theirs too.
        others = set(serve.status().applications) - {APP}
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": settings.host, "port": settings.port, "request_timeout_s": settings.timeout + settings.drain,
            },
            logging_config={"log_level": "WARNING"},
        )  # fmt: skip
        made = serve.deployment(
            name="replica", num_replicas=settings.replicas, ray_actor_options={"num_cpus": settings.threads},
            max_ongoing_requests=settings.rows + settings.waiting, max_queued_requests=settings.waiting,
            graceful_shutdown_timeout_s=max(1.0, settings.drain), health_check_period_s=5,
        )(serve.ingress(application)(_Replica))  # fmt: skip
        with talk.task(f"Starting {settings.replicas} replicas"):
            serve.run(made.bind(), name=APP, route_prefix="/", _local_testing_mode=False)
    except KeyboardInterrupt:
        _end(serve, all_of_it=not others)
        raise
    except Exception as error:
        first = " ".join(str(error).split())[:300] or type(error).__name__
        _end(serve, all_of_it=not others)
        raise ClusterError(f"{cluster.address}: the replicas did not start ({first})") from error
    try:
        yield
    finally:
        _end(serve, all_of_it=not others)


class _Replica:
    """One replica, as Ray Serve sees it."""

    def check_health(self) -> None:
        """Raises where the replica can answer nothing any more; Ray Serve then replaces it."""
        if _held and not _held[0].ready():
            raise RuntimeError("the thread that computes has ended")


def application_of(text: str, tokens: bool) -> Any:
    """In a replica: the application, its service at work until the process ends."""
    from whit.serving.api import build_app
    from whit.verbs.serve import service

    plain: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()
    }
    settings = ServeSettings(**plain)
    stack = contextlib.ExitStack()
    store = stack.enter_context(opened(settings))
    made = stack.enter_context(service(settings, store, Talk()))
    _held[:] = [made, stack]
    return build_app(made, tokens=tokens)


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise UsageError("whit serve --ray needs Ray Serve: pip install 'whit[ray-serve]'") from error
    return serve


def _end(serve: Any, *, all_of_it: bool) -> None:
    """Take the replicas away, and Ray Serve with them where nothing else runs on it. It gives itself half a minute for
    that; taking them away first, by themselves, would wait a whole one for a node that is gone."""
    with contextlib.suppress(Exception):
        if all_of_it:
            serve.shutdown()
        else:
            serve.delete(APP)


def _wait(stop: threading.Event) -> None:
    """Until a signal, or `stop`."""
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with contextlib.suppress(KeyboardInterrupt):
            while not stop.wait(1.0):
                pass
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
