"""`whit serve --ray`: replicas behind one address on one PostgreSQL store, tokens, and a node lost."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from whit.errors import UsageError
from whit.settings import ServeSettings
from whit.talk import Talk
from whit.verbs.remote_serve import _end, serve_there


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a fresh database."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    from serving.conftest import GivenPostgres, _own_postgres  # type: ignore[import-not-found]

    if given := os.environ.get("WHIT_POSTGRES"):
        there = GivenPostgres(given)
        yield there.address()
        there.stop()
    else:
        for server in _own_postgres():
            yield server.address()


def ask(port: int, model: str, secret: str) -> tuple[int, dict[str, Any]]:
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "card or cash?"}], "max_tokens": 3, "temperature": 0}
    )
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {secret}"} if secret else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read().decode()  # no JSON where Ray's proxy itself answers: it may not know the routes yet
        return error.code, json.loads(text) if text.startswith("{") else {"text": text}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_any_replica_serves_any_adapter_and_a_lost_node_is_survived(
    cluster: Any,
    second: Callable[..., Any],
    kill: Callable[[Any], None],
    postgres: str,
    base: Path,
    rows: Path,
    little: dict[str, Any],
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    import whit
    from whit.settings import StoreSettings
    from whit.verbs.store import store

    whit.train(rows, out=tmp_path / "one", **little)
    store(StoreSettings(action="add", words=("team/one", str(tmp_path / "one")), store=postgres))
    made = store(StoreSettings(action="token", words=("reader",), store=postgres, use=("team/*",)))
    secret = made.to_json()["token"]
    node = second()
    port = free_port()
    settings = ServeSettings(
        base=str(base), name="tiny", store=postgres, port=port, tokens=True, dtype="float32", context=128,
        ray=cluster.address, replicas=2, threads=1, drain=1.0,
    )  # fmt: skip
    stop, failed = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            serve_there(settings, talk=Talk(quiet=True), stop=stop)
        except BaseException as error:
            failed.append(error)

    serving = threading.Thread(target=run)
    serving.start()
    try:
        until = time.monotonic() + 200
        status, answer = 0, dict[str, Any]()
        while status != 200 and time.monotonic() < until and not failed:
            with contextlib.suppress(OSError):
                status, answer = ask(port, "tiny:team/one", secret)
            time.sleep(0.5)
        assert not failed, failed
        assert status == 200, answer
        found = {ask(port, "tiny:team/one", secret)[1]["choices"][0]["message"]["content"] for _ in range(6)}
        assert found == {answer["choices"][0]["message"]["content"]}
        assert ask(port, "tiny:team/one", "")[0] == 401 and ask(port, "tiny:team/one", "wrong")[0] == 401
        assert ask(port, "tiny:other", secret)[0] in (403, 404)
        kill(node)
        good, until = 0, time.monotonic() + 60
        while good < 5 and time.monotonic() < until:
            good = good + 1 if ask(port, "tiny:team/one", secret)[0] == 200 else 0
        assert good == 5, "what is left does not answer"
    finally:
        stop.set()
        serving.join(120)  # Ray Serve waits up to half a minute for the node that is gone
    assert not serving.is_alive() and not failed


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"store": "whit.db"}, "need a postgresql:// store"),
        ({"port": 0}, "the port must be named"),
        ({"host": "0.0.0.0"}, "every request needs a token"),
        ({"tokens": True}, "every request needs a token"),
    ],
)
def test_what_replicas_cannot_do_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        serve_there(ServeSettings(**{"ray": "127.0.0.1:1", **more}), talk=Talk(quiet=True))


@pytest.mark.parametrize(("all_of_it", "called"), [(True, ["shutdown"]), (False, ["delete"])])
def test_ending_never_waits_for_the_replicas_before_it_ends_ray_serve(all_of_it: bool, called: list[str]) -> None:
    seen: list[str] = []

    class Serve:
        def delete(self, name: str) -> None:
            seen.append("delete")
            raise TimeoutError("a node that is gone")

        def shutdown(self) -> None:
            seen.append("shutdown")

    _end(Serve(), all_of_it=all_of_it)
    assert seen == called
