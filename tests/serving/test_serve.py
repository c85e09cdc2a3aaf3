"""The server as clients meet it: the official client unchanged, bad input, rights, faults, and ending well."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import uvicorn

from whit.adapters.tunable import bind
from whit.data.rows import Turn
from whit.errors import UsageError
from whit.evaluation.decoding import Decoder
from whit.serving import limits
from whit.serving.auth import Caller, Rates, Rights, new_token
from whit.serving.payload import to_payload
from whit.serving.store import open_store
from whit.settings import ServeSettings
from whit.talk import Talk

SAY: list[Any] = [{"role": "user", "content": "my card was stolen"}]


class Server:
    """A server in a thread, with what it logs."""

    def __init__(self, base: Any, store: Path | None, *, tokens: bool = False, **options: Any) -> None:
        from whit.serving.api import build_app
        from whit.verbs import serve

        answer_seconds = options.pop("answer_seconds", 60.0)
        self.lines: list[dict[str, Any]] = []
        self.store = open_store(store) if store else None
        settings = ServeSettings(base=str(base.path), name="tiny", rows=8, dtype="float32", **options)
        self._entered = serve.service(settings, self.store, Talk(quiet=True))
        self.service = self._entered.__enter__()
        self.service.log = self.lines.append
        self.service.limits = limits.Limits(
            body=1 << 20, head_seconds=0.5, body_seconds=0.5, answer_seconds=answer_seconds
        )

        class Protocol(limits.PatientProtocol):
            head_seconds = 0.5

        config = uvicorn.Config(build_app(self.service, tokens=tokens), port=0, http=Protocol, lifespan="off",
                                log_config=None, ws="none")  # fmt: skip
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=60, **more)

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        self._entered.__exit__(None, None, None)
        if self.store:
            self.store.close()


def until(done: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def expected(base: Any, make: Callable[..., Any]) -> Callable[..., str]:
    """What the ordinary decoder answers to `SAY` with an adapter, or bare."""

    def answer(kind: str | None = None, seed: int = 0, most: int = 8, **more: Any) -> str:
        prompt = base.encode(base.template.render([Turn("user", SAY[0]["content"])]))
        if kind is None:
            return str(base.decode(Decoder(base).answers([prompt], most=most)[0]))
        bound = bind(base, make(kind, seed, **more))
        try:
            return str(base.decode(Decoder(base, bound).answers([prompt], most=most)[0]))
        finally:
            bound.detach()

    return answer


@pytest.fixture(scope="module")
def server(base: Any, make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("store") / "whit.db"
    with open_store(path) as store:
        store.add("alice", to_payload(make("tiny", 1)), by="test")
        store.add("alice", to_payload(make("xs", 2)), by="test", labels=["prod"])
        store.add("team/lora", to_payload(make("lora", 3, rank=3)), by="test")
        store.add("strange", to_payload(replace(make("tiny", 1), base="0" * 64)), by="test")
        store.add("broken", b"no adapter", by="test")
    running = Server(base, path)
    yield running
    running.close()


def text(answer: Any) -> str:
    return str(answer.choices[0].message.content)


# -- the official client


def test_the_official_client_gets_each_models_own_answer(
    server: Server, expected: Callable[..., str], make: Any
) -> None:
    client = server.client()
    models = {
        "tiny": expected(),
        "tiny:alice": expected("xs", 2),
        "tiny:alice@1": expected("tiny", 1),
        "tiny:alice@prod": expected("xs", 2),
        "tiny:team/lora": expected("lora", 3, rank=3),
        f"tiny:{make('tiny', 9).to_text()}": expected("tiny", 9),
        make("xs", 8).to_text(): expected("xs", 8),
    }
    assert len(set(models.values())) >= 5
    found: dict[str, str] = {}

    def one(model: str) -> None:
        found[model] = text(client.chat.completions.create(model=model, messages=SAY, temperature=0, max_tokens=8))

    threads = [threading.Thread(target=one, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == models
    listed = [each.id for each in client.models.list()]
    assert listed == ["tiny", "tiny:alice", "tiny:broken", "tiny:strange", "tiny:team/lora"]
    assert client.models.retrieve("tiny:team/lora").id == "tiny:team/lora"


def test_streams_say_the_same_as_whole_answers(server: Server) -> None:
    client = server.client()
    ask = {"model": "tiny:alice", "messages": SAY, "temperature": 1.1, "seed": 3, "max_tokens": 20, "n": 2}
    whole = client.chat.completions.create(**ask)
    said = ["", ""]
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == [choice.message.content for choice in whole.choices] and said[0] != said[1]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    again = client.chat.completions.create(**ask)
    assert [choice.message.content for choice in again.choices] == said


def test_stop_logprobs_and_length(server: Server) -> None:
    client = server.client()
    ask = {"model": "tiny", "messages": SAY, "temperature": 0, "max_tokens": 12}
    whole = text(client.chat.completions.create(**ask))
    stop = whole[3:5]
    cut = client.chat.completions.create(**ask, stop=[stop, "never there"])
    assert text(cut) == whole[: whole.index(stop)] and cut.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**ask, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text(cut)
    held = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(held) == 12 and all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in held)
    assert held[0].token == held[0].top_logprobs[0].token  # greedy


def test_completions(server: Server) -> None:
    client = server.client()
    found = client.completions.create(
        model="tiny", prompt=["send money", [70, 71, 72]], max_tokens=4, temperature=0, logprobs=1
    )
    assert [choice.index for choice in found.choices] == [0, 1]
    assert len(found.choices[0].logprobs.tokens) == 4 and found.usage.completion_tokens == 8
    streamed = client.completions.create(model="tiny", prompt="send money", max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == found.choices[0].text


def test_a_change_in_the_store_is_seen_by_the_next_request(server: Server, expected: Any, make: Any) -> None:
    client, store = server.client(), server.store
    assert store is not None
    ask = {"model": "tiny:carol", "messages": SAY, "temperature": 0, "max_tokens": 8}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ask)
    store.add("carol", to_payload(make("tiny", 4)), by="test")
    assert text(client.chat.completions.create(**ask)) == expected("tiny", 4)
    store.add("carol", to_payload(make("tiny", 5)), by="test")
    assert text(client.chat.completions.create(**ask)) == expected("tiny", 5)
    store.rollback("carol", by="test")
    assert text(client.chat.completions.create(**ask)) == expected("tiny", 4)
    store.remove("carol", by="test")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ask)


# -- bad input


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": SAY, "max_tokens": 2, **more}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (chat(model="gpt-9"), 404, "no model"),
        (chat(model="tiny:nobody"), 404, "no model"),
        (chat(model="tiny:../../etc/passwd"), 404, "no model"),
        (chat(model="/etc/passwd"), 404, "no model"),
        (chat(model="tiny:alice@9"), 404, "no model"),
        (chat(model=None), 400, "model must be"),
        (chat(model="tiny:strange"), 400, "made for the base"),
        (chat(model="tiny:broken"), 400, "not a whit adapter"),
        (chat(model="tiny:whit1_AAAA"), 400, "inline adapter"),
        (chat(model="whit1_" + "A" * 20_000), 400, "at most"),
        (chat(stop="x" * 1_000_000), 400, "stop must be"),
        (chat(stop=["x"] * 100_000), 400, "stop must be"),
        (chat(n=10_000), 400, "n must be"),
        (chat(n=True), 400, "n must be"),
        (chat(temperature=-1), 400, "temperature must be"),
        (chat(top_p=2), 400, "top_p must be"),
        (chat(max_tokens=0), 400, "max_tokens must be"),
        (chat(max_tokens=250), 400, "context"),
        (chat(messages=[{"role": "user", "content": "long " * 400}]), 400, "context"),
        (chat(messages=[]), 400, "messages must be"),
        (chat(messages=[{"role": "root", "content": "x"}]), 400, "role"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "must be text"),
        (chat(tools=[{"type": "function"}]), 400, "tools is not supported"),
        (chat(frequency_penalty=1.5), 400, "not supported"),
        (chat(made_up=1), 400, "not supported"),
        (chat(top_logprobs=3), 400, "needs logprobs"),
        (chat(seed=1 << 70), 400, "seed must be"),
        ([], 400, "JSON object"),
        ("x", 400, "JSON object"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_with_the_reason(server: Server, body: Any, status: int, said: str) -> None:
    answer = server.post(json=body)
    assert answer.status_code == status and said in answer.json()["error"]["message"]
    assert "Traceback" not in answer.text and str(Path(__file__).parent) not in answer.text


def test_bodies_that_are_no_json(server: Server) -> None:
    head = {"content-type": "application/json"}
    assert server.post(content=b"{", headers=head).status_code == 400
    assert server.post(content=b"[" * 100_000, headers=head).status_code == 400
    assert server.post(content=b'{"model": NaN}', headers=head).status_code == 400
    assert server.post(content=b"\xff\xfe", headers=head).status_code == 400
    assert server.post(content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    assert httpx.get(f"{server.url}/etc/passwd").status_code == 404


def test_a_body_of_100_mb_is_refused_before_it_is_read(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 104857600\r\n\r\n{")  # fmt: skip
        assert b" 413 " in raw.recv(100)

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    try:
        answer = server.post(content=parts(), headers={"content-type": "application/json"})
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # the server hung up while we were still sending


def test_slow_clients_are_let_go(server: Server) -> None:
    for begun in (b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he"):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.settimeout(20)
            raw.sendall(begun)
            while raw.recv(4096):
                pass  # ends: the server closes the connection
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.settimeout(20)
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 100\r\n\r\n{")  # fmt: skip
        assert b" 408 " in raw.recv(100)


def test_a_client_that_goes_away_takes_its_rows_with_it(server: Server) -> None:
    for stream in (True, False):
        ask = {"model": "tiny", "messages": SAY, "n": 8, "stream": stream, "max_tokens": 200, "temperature": 2.0}
        body = json.dumps(ask).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: server.service.backend.load().running > 0)
        until(lambda: server.service.backend.load().running == 0)


def test_a_strange_host_is_not_answered_on_loopback(server: Server) -> None:
    assert httpx.get(f"{server.url}/health", headers={"host": "evil.example"}).status_code == 421


def test_health_metrics_and_logs(server: Server) -> None:
    server.post(json=chat())
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/ready").status_code == 200
    page = httpx.get(f"{server.url}/metrics").text
    assert 'whit_requests_total{status="200"}' in page and "whit_first_token_seconds_count" in page
    until(lambda: any(line.get("model") == "tiny" and line["status"] == 200 for line in server.lines))
    assert "stolen" not in json.dumps(server.lines)
    assert all({"id", "tenant", "status", "seconds"} <= set(line) for line in server.lines)


# -- rights


@pytest.fixture
def guarded(base: Any, make: Callable[..., Any], tmp_path: Path) -> Iterator[tuple[Server, dict[str, str]]]:
    keys = {}
    with open_store(tmp_path / "whit.db") as store:
        store.add("team/alice", to_payload(make("tiny", 1)), by="test")
        store.add("other/bob", to_payload(make("tiny", 2)), by="test")
        for name, rights in {"team": Rights(("team/*",)), "all": Rights(), "slow": Rights(rate=6.0)}.items():
            keys[name], digest = new_token()
            store.add_token(name, digest, rights.to_json(), by="test")
    running = Server(base, tmp_path / "whit.db", tokens=True, waiting=4, waiting_each=3)
    yield running, keys
    running.close()


def test_every_route_asks_for_a_token(guarded: tuple[Server, dict[str, str]]) -> None:
    server, keys = guarded
    app = server.server.config.app
    paths = [route.path.replace("{name:path}", "tiny") for route in app.routes]
    assert len(paths) == 8
    for path in (*paths, "/", "/docs", "/nowhere"):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": keys["all"]}):
            for method in ("GET", "POST", "OPTIONS"):
                answer = httpx.request(method, f"{server.url}{path}", headers=headers)
                assert answer.status_code == 401, path
    good = {"authorization": f"Bearer {keys['all']}"}
    assert httpx.get(f"{server.url}/health", headers=good).status_code == 200
    kept = Path(server.store.path).read_bytes()  # type: ignore[union-attr]
    assert all(key.encode() not in kept for key in keys.values())


def test_a_token_cannot_learn_of_adapters_that_it_has_no_right_to(
    guarded: tuple[Server, dict[str, str]], make: Any
) -> None:
    server, keys = guarded
    client = server.client(keys["team"])
    assert [each.id for each in client.models.list()] == ["tiny", "tiny:team/alice"]
    said = []
    for model in ("tiny:other/bob", "tiny:other/nobody"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=model, messages=SAY)
        said.append(refused.value.body["message"].replace(model, ""))  # type: ignore[index]
    assert said[0] == said[1]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=make("tiny", 1).to_text(), messages=SAY)
    assert client.chat.completions.create(model="tiny:team/alice", messages=SAY, max_tokens=2).choices
    server.store.remove_token("team", by="test")  # type: ignore[union-attr]
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_rates_and_full_queues_are_told(guarded: tuple[Server, dict[str, str]]) -> None:
    server, keys = guarded
    slow = server.client(keys["slow"])
    slow.models.list()
    with pytest.raises(openai.RateLimitError) as refused:
        slow.models.list()
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 10
    with pytest.raises(openai.RateLimitError) as refused:
        server.client(keys["all"]).chat.completions.create(model="tiny", messages=SAY, n=4)
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_rates_count_by_token_and_refill() -> None:
    rates, caller = Rates(), Caller("x", Rights(rate=60))
    assert [rates.wait(caller, 0.0) for _ in range(10)] == [0.0] * 10
    assert rates.wait(caller, 0.0) == pytest.approx(1.0)
    assert rates.wait(caller, 1.1) == 0.0 and rates.wait(Caller("y", Rights(rate=60)), 0.0) == 0.0


def test_off_loopback_there_must_be_tokens(tmp_path: Path, base: Any) -> None:
    from whit.verbs.serve import serve

    with open_store(tmp_path / "whit.db"):
        pass
    for store in (None, str(tmp_path / "whit.db")):
        with pytest.raises(UsageError, match="every request needs a token"):
            serve(ServeSettings(base=str(base.path), store=store, host="0.0.0.0"))


# -- faults


def test_answers_that_take_too_long_are_told(base: Any) -> None:
    running = Server(base, None, answer_seconds=0.0)
    try:
        answer = running.post(json=chat())
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
        assert '"error"' in running.post(json=chat(stream=True)).text
        running.service.draining = True
        assert running.post(json=chat()).status_code == 503
        assert httpx.get(f"{running.url}/ready").status_code == 503
    finally:
        running.close()


def test_a_store_that_fails_is_a_503_without_its_path(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from whit.errors import StorageError

    def fail(*_: Any, **__: Any) -> Any:
        raise StorageError("the store /secret/place is damaged")

    monkeypatch.setattr(server.store, "find", fail)
    answer = server.post(json=chat(model="tiny:alice"))
    assert answer.status_code == 503 and "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
    assert server.post(json=chat()).status_code == 200  # the base needs no store


def test_two_servers_may_share_a_store(server: Server, base: Any, make: Any) -> None:
    assert server.store is not None
    # The model of `server` is adapted already; the other serves a base of its own from the same folder.
    other = Server(base, Path(server.store.path))  # type: ignore[attr-defined]
    try:
        server.store.add("shared", to_payload(make("tiny", 7)), by="one")
        assert other.post(json=chat(model="tiny:shared")).status_code == 200
        other.store.remove("shared", by="two")  # type: ignore[union-attr]
        assert server.post(json=chat(model="tiny:shared")).status_code == 404
    finally:
        other.close()


def test_sigterm_lets_answers_end(base: Any) -> None:
    words = ["serve", "--base", str(base.path), "--name", "tiny", "--port", "0", "--dtype", "float32", "--threads", "1"]
    code = "import sys; from whit.cli import main; sys.argv[0] = 'whit'; main()"
    with subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        line = ""
        while "serving" not in line:
            line = child.stderr.readline()
            assert line, "the server ended"
        url = line.split()[-1]
        ask = chat(max_tokens=150, stream=True, temperature=0)
        with httpx.stream("POST", f"{url}/chat/completions", json=ask, timeout=120) as answer:
            lines = answer.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            said = [line for line in lines if line]
        assert said[-1] == "data: [DONE]"
        assert child.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_the_description_holds(server: Server, tmp_path: Path) -> None:
    """schemathesis, against the server's own description."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    del schemathesis
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis has no program here")
    done = subprocess.run(
        [program, "run", f"{server.url}/openapi.json", "--max-examples", "8", "--phases", "examples,coverage,fuzzing",
         "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
         "unsupported_method", "--request-timeout", "30", "--seed", "1"],
        capture_output=True, text=True, timeout=1200, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def test_text_holds_back_what_may_be_a_stop_or_half_a_letter(base: Any) -> None:
    from whit.serving.answers import Text

    whole = "naïve 日本 END and more"
    ids = base.encode(whole)
    plain, stopped = Text(base.decode), Text(base.decode, ["END"])
    assert "".join([plain.add(each) for each in ids] + [plain.end()]) == whole
    pieces = [stopped.add(each) for each in ids]
    assert "".join(pieces) == "naïve 日本 " and stopped.stopped and stopped.end() == ""
    assert all("\ufffd" not in piece and "E" not in piece for piece in pieces)


def test_asyncio_is_not_blocked(server: Server) -> None:
    """While answers are computed, the event loop answers others."""

    async def both() -> float:
        async with httpx.AsyncClient(timeout=60) as client:
            long = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=chat(max_tokens=200, n=4)))
            began = time.monotonic()
            assert (await client.get(f"{server.url}/health")).status_code == 200
            took = time.monotonic() - began
            await long
            return took

    assert asyncio.run(both()) < 10


def test_the_base_is_loaded_in_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it the thread that serves, two OpenMP teams would share the processors; its errors still come out."""
    from whit.verbs import serve

    loading: list[threading.Thread] = []

    def no_base(*given: Any, **named: Any) -> Any:
        loading.append(threading.current_thread())
        raise UsageError("there is no such base")

    monkeypatch.setattr(serve.common, "open_base", no_base)
    with pytest.raises(UsageError, match="no such base"), serve.service(ServeSettings(), None, Talk(quiet=True)):
        pass
    assert loading[0] is not threading.current_thread()
    assert not loading[0].is_alive()
