"""The gateway: which tier answers, what happens when one fails, what it costs, what is written down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from upstreams import TIERS, Answer, FakeModel, Reply, Upstream, call, config, gateway, say

from whit.routing.app import App
from whit.routing.errors import NotCleared
from whit.routing.ledger import Ledger, read_ledger
from whit.routing.report import summarise
from whit.routing.tiers.answer import End
from whit.routing.tiers.remote import RemoteClient
from whit.routing.tiers.wire import Wire

REMOTE = TIERS.replace('tiers = ["local", "cheap", "strong"]', 'tiers = ["cheap", "strong"]')
MASKING = TIERS.replace("[gateway]", '[[tenant]]\nname = "m"\npolicy = "masking"\n[gateway]')
CARD = "4111 1111 1111 1111"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whit.routing.gateway.pause", lambda attempt, after, left: 0.0 if after < left else None)


def ask(
    of: Any, *bodies: Any, upstream: Upstream | None = None, model: FakeModel | None = None, **more: Any
) -> list[Reply]:
    async def run() -> list[Reply]:
        app = App(gateway(of, upstream, model))
        return [await call(app, body, **more) for body in bodies]

    return asyncio.run(run())


def test_the_smallest_tier_answers(tmp_path: Path) -> None:
    upstream = Upstream()
    (reply,) = ask(config(tmp_path), say("hello"), upstream=upstream)
    assert reply.status == 200 and reply.text.strip() == "from the local tier" and not upstream.received
    assert reply.headers["x-whit-tier"] == "local" == reply.json["model"]


@pytest.mark.parametrize("stream", [False, True])
def test_each_kind_of_remote_answers(tmp_path: Path, stream: bool) -> None:
    upstream = Upstream()
    for name, path in (("cheap", "/v1/chat/completions"), ("strong", "/v1/messages")):
        (reply,) = ask(config(tmp_path), say("hello", model=name, stream=stream), upstream=upstream)
        assert (reply.streamed if stream else reply.text) == "from afar" and reply.headers["x-whit-tier"] == name
        assert upstream.urls[-1].endswith(path)
        if stream:
            assert reply.events[-1] == "[DONE]"
        else:
            assert reply.json["usage"]["completion_tokens"] == 20 and b"theirs" not in reply.body


def test_nothing_of_the_clients_is_passed_on_but_the_request(tmp_path: Path) -> None:
    upstream = Upstream()
    body = say("hello", model="cheap", user="me-canary", metadata={"a": "canary"}, base_url="https://evil.example")
    ask(
        config(tmp_path),
        body,
        upstream=upstream,
        headers={"x-secret": "canary", "cookie": "canary", "user-agent": "canary"},
    )
    assert b"canary" not in upstream.received[0] and b"evil" not in upstream.received[0]
    assert upstream.bodies[0]["model"] == "small" and b"cheap-key" in upstream.received[0]


def test_what_is_sensitive_stays_inside_whoever_asks_for_what(tmp_path: Path) -> None:
    upstream = Upstream()
    for body in (say(CARD), say(CARD, model="strong"), say(CARD, model="legal"), say(CARD, stream=True)):
        (reply,) = ask(config(tmp_path), body, upstream=upstream)
        assert reply.headers["x-whit-tier"] == "local"
    (reply,) = ask(
        config(tmp_path), say("hello", model="strong"), upstream=upstream, headers={"x-whit-label": "secret"}
    )
    assert reply.headers["x-whit-tier"] == "local" and not upstream.received


@pytest.mark.parametrize("stream", [False, True])
def test_where_inside_is_down_it_gets_an_error_that_says_so(tmp_path: Path, stream: bool) -> None:
    upstream = Upstream()
    (reply,) = ask(config(tmp_path), say(CARD, stream=stream), upstream=upstream, model=FakeModel(fails=True))
    assert (
        reply.status == 503 and reply.code == "inside_unavailable" and "stays inside" in reply.json["error"]["message"]
    )
    assert not upstream.received and b"4111" not in reply.body
    (reply,) = ask(config(tmp_path, text=REMOTE), say(CARD), upstream=upstream)
    assert reply.status == 403 and not upstream.received


@pytest.mark.parametrize("fault", ["connect", "reset", "500", "429", "html", "broken", "huge", "302", "401", "400"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tier_that_fails_is_left_for_the_next(tmp_path: Path, fault: str, stream: bool) -> None:
    upstream = Upstream(faults=[fault, fault] if fault in ("connect", "reset", "500", "429") else [fault])
    (reply,) = ask(config(tmp_path, text=REMOTE), say("hello", stream=stream), upstream=upstream)
    assert reply.status == 200 and reply.headers["x-whit-tier"] == "strong"
    assert "elsewhere" not in " ".join(upstream.urls)


def test_a_tier_is_asked_again_before_it_is_left(tmp_path: Path) -> None:
    (reply,) = ask(config(tmp_path, text=REMOTE), say("hello"), upstream=Upstream(faults=["500"]))
    assert reply.headers["x-whit-tier"] == "cheap"


def test_when_all_fail_the_error_is_ours(tmp_path: Path) -> None:
    upstream = Upstream(faults=["401"] * 8)
    (reply,) = ask(config(tmp_path, text=REMOTE), say("hello"), upstream=upstream)
    assert reply.status >= 500 and not any(word in reply.body for word in (b"key-1234", b"example", b'"key"'))


@pytest.mark.parametrize("fault", ["cut", "endless"])
def test_after_the_first_piece_no_other_tier_takes_over(tmp_path: Path, fault: str) -> None:
    upstream = Upstream(faults=[fault], says="a long answer that is cut off in the middle")
    (reply,) = ask(config(tmp_path, text=REMOTE), say("hello", stream=True, max_tokens=20), upstream=upstream)
    assert reply.status == 200 and "error" in reply.events[-1] and len(upstream.received) == 1
    assert reply.headers["x-whit-tier"] == "cheap" and reply.events[-1] != "[DONE]"


def test_too_slow_is_too_late(tmp_path: Path) -> None:
    upstream = Upstream(faults=["slow"] * 4)
    (reply,) = ask(config(tmp_path, text=REMOTE), say("hello"), upstream=upstream, headers={"x-whit-timeout": "0.2"})
    assert reply.status == 504


def test_a_breaker_opens_and_others_answer(tmp_path: Path) -> None:
    upstream = Upstream(faults=["html", ""] * 5)
    replies = ask(config(tmp_path, text=REMOTE), *[say("hello")] * 6, upstream=upstream)
    assert all(reply.status == 200 for reply in replies)
    assert "tier_resting" in replies[-1].headers["x-whit-reason"] and "strong" in upstream.urls[-1]


def test_a_tier_whose_places_are_taken_is_left_for_the_next_and_is_not_at_fault(tmp_path: Path) -> None:
    text = TIERS.replace('key_env = "CHEAP_KEY"', 'key_env = "CHEAP_KEY"\nconcurrency = 1').replace("= 5\n", "= 0.5\n")

    async def run() -> None:
        upstream = Upstream(faults=["slow"])  # the first, which holds the only place until it is too late
        made = gateway(config(tmp_path, text=text.replace("retries = 1", "retries = 0")), upstream)
        first = asyncio.create_task(call(App(made), say("hello", model="cheap")))
        while not upstream.received:
            await asyncio.sleep(0.01)
        others = await asyncio.gather(*(call(App(made), say("hello", model="cheap")) for _ in range(7)))
        assert all(reply.status == 200 for reply in [*others, await first])
        told = made.metrics.text()
        full = [line for line in told.splitlines() if 'code="tier_full"' in line]
        assert not full or made.state.breakers["cheap"].begin()
        assert not made.state.breakers["cheap"].open
        left = made.state.wires["cheap"]._places
        assert left.free == 1, "every place was given back"

    asyncio.run(run())


def test_masked_there_and_restored_here(tmp_path: Path) -> None:
    for stream in (False, True):
        upstream = Upstream(says="you said ECHO!")
        body = say(f"pay with {CARD} for jo@example.org", model="cheap", stream=stream)
        (reply,) = ask(config(tmp_path, text=MASKING), body, upstream=upstream)
        assert reply.headers["x-whit-tier"] == "cheap"
        assert b"4111" not in upstream.received[0] and b"jo@" not in upstream.received[0]
        said = reply.streamed if stream else reply.text
        assert said == f"you said pay with {CARD} for jo@example.org!"


def test_an_unsure_local_answer_is_left_for_the_next_tier(tmp_path: Path) -> None:
    of = config(tmp_path, "min_confidence = 0.8\n")
    (sure,) = ask(of, say("hello"), model=FakeModel(confidence=0.9))
    (unsure,) = ask(of, say("hello"), model=FakeModel(confidence=0.5))
    assert (sure.headers["x-whit-tier"], unsure.headers["x-whit-tier"]) == ("local", "cheap")
    upstream = Upstream(faults=["401"] * 4)
    (alone,) = ask(of, say("hello"), model=FakeModel(confidence=0.5), upstream=upstream)
    assert alone.status == 200 and alone.headers["x-whit-tier"] == "local"
    (inside,) = ask(of, say(CARD), model=FakeModel(confidence=0.5))
    assert inside.headers["x-whit-tier"] == "local"


class Wavering(FakeModel):
    """Says another thing when it is asked for another sample."""

    def __init__(self, first: str, second: str, least: float = 0.9) -> None:
        super().__init__()
        self.both, self.least, self.seeds = (first, second), least, []  # type: ignore[var-annotated]

    def generate(self, turns: Any, *, on_text: Any, **more: Any) -> End:
        self.seeds.append((more["temperature"], more["seed"]))
        on_text(self.both[more["temperature"] > 0])
        return End("stop", 5, 4, 0.9, self.least)


@pytest.mark.parametrize(
    ("rule", "model", "tier", "says"),
    [
        ("agree = true", Wavering("Paris.", " paris"), "local", ""),
        ("agree = true", Wavering("Paris", "Lyon"), "cheap", "two samples disagree"),
        ("min_least = 0.5", Wavering("Paris", "Lyon", 0.4), "cheap", "its least sure token 0.40 below 0.5"),
        ("min_least = 0.5", Wavering("Paris", "Lyon", 0.6), "local", ""),
        ("must_match = '[0-9]+'", Wavering("Paris", "Lyon"), "cheap", "has not the form"),
        ("must_match = '[0-9]+'", Wavering(" 42\n", "Lyon"), "local", ""),
    ],
)
def test_signals_of_a_route(tmp_path: Path, rule: str, model: Wavering, tier: str, says: str) -> None:
    text = TIERS.replace("[route.legal]", f"[route.task]\n{rule}\n[route.legal]")
    (reply,) = ask(config(tmp_path, text=text), say("capital?", model="task"), model=model)
    assert reply.headers["x-whit-tier"] == tier and says in reply.headers["x-whit-reason"]
    assert "Lyon" not in reply.headers["x-whit-reason"] and "Paris" not in reply.headers["x-whit-reason"]
    assert len(model.seeds) == 1 + rule.startswith("agree") and len(set(model.seeds)) == len(model.seeds)
    (inside,) = ask(config(tmp_path, text=text), say(f"capital? {CARD}", model="task"), model=model)
    assert inside.headers["x-whit-tier"] == "local", "what must stay inside is answered, sure or not"


def test_sampled_rows_are_compared_by_their_own_clearance(tmp_path: Path) -> None:
    upstream = Upstream(says="from the other tier")

    async def run() -> None:
        made = gateway(config(tmp_path, "sample = 1.0\n",
                              TIERS.replace('ledger = ""', 'ledger = "l.db"')), upstream)  # fmt: skip
        for body in (say("hello"), say(f"mine is {CARD}"), say("hi", stream=True), say("hello", model="cheap")):
            assert (await call(App(made), body)).status == 200
        assert (await call(App(made), say("hush"), headers={"x-whit-label": "secret"})).status == 200
        await made.close()

    asyncio.run(run())
    records = list(read_ledger(tmp_path / "l.db"))
    compared = [record for record in records if record.outcome == "sampled"]
    assert len(compared) == 2 and {record.tier for record in compared} == {"strong"}
    assert all(record.agreement == 0.75 and record.cost > 0 for record in compared)
    assert len(upstream.received) == 3 and not any(b"4111" in each or b"hush" in each for each in upstream.received)
    summary = summarise(records)
    assert (summary.requests, summary.sampled, summary.agreement) == (5, 2, 0.75)
    assert "75.0%" in summary.to_text() and summary.cost == sum(record.cost for record in records)


def test_a_sampled_row_that_fails_harms_nobody(tmp_path: Path) -> None:
    async def run() -> Reply:
        made = gateway(config(tmp_path, "sample = 1\n"), Upstream(faults=["401"] * 9))
        reply = await call(App(made), say("hello"))
        await made.close()
        return reply

    assert asyncio.run(run()).status == 200


def test_budgets_are_hard(tmp_path: Path) -> None:
    tenant = '[[tenant]]\nname = "t"\npolicy = "remote"\nbudget = 0.006\n[gateway]'
    upstream = Upstream()
    replies = ask(
        config(tmp_path, text=TIERS.replace("[gateway]", tenant)), *[say("hi", max_tokens=50)] * 200, upstream=upstream
    )
    good = [reply for reply in replies if reply.status == 200]
    assert 1 < len(good) < 200 and replies[-1].status == 429 and replies[-1].code == "insufficient_quota"
    cost = sum(0.00005 if reply.headers["x-whit-tier"] == "cheap" else 0.0011 for reply in good)
    assert cost <= 0.006


def test_idempotent_requests_are_answered_once(tmp_path: Path) -> None:
    async def run() -> None:
        upstream = Upstream()
        app = App(gateway(config(tmp_path, text=REMOTE), upstream))
        key = {"idempotency-key": "k"}
        first, second = await asyncio.gather(call(app, say("a"), headers=key), call(app, say("a"), headers=key))
        assert first.body == second.body and len(upstream.received) == 1
        assert (await call(app, say("b"), headers=key)).status == 422
        upstream.faults = ["401"] * 2
        assert (await call(app, say("c"), headers={"idempotency-key": "l"})).status >= 500
        assert (await call(app, say("c"), headers={"idempotency-key": "l"})).status == 200

    asyncio.run(run())


def test_a_key_whose_request_was_cut_off_can_be_used_again(tmp_path: Path) -> None:
    async def run() -> None:
        upstream = Upstream(says="x" * 3000)
        app = App(gateway(config(tmp_path, text=REMOTE), upstream))
        key, body = {"idempotency-key": "k"}, say("hello", stream=True, max_tokens=4000)
        cut = await call(app, body, headers=key, leave_after=3)
        whole = await call(app, body, headers=key)
        assert "[DONE]" not in cut.events and whole.events[-1] == "[DONE]" and len(upstream.received) == 2
        assert (await call(app, body, headers=key)).body == whole.body and len(upstream.received) == 2

    asyncio.run(run())


def test_a_client_that_leaves_ends_the_work(tmp_path: Path) -> None:
    async def run() -> None:
        made = gateway(config(tmp_path, text=REMOTE), Upstream(says="x" * 3000))
        reply = await call(App(made), say("hello", stream=True, max_tokens=4000), leave_after=3)
        await asyncio.sleep(0.05)
        assert "[DONE]" not in reply.events and made.state.users == 0

    asyncio.run(run())


def test_the_ledger_has_every_request_and_no_text(tmp_path: Path) -> None:
    async def run() -> None:
        ledger = Ledger(str(tmp_path / "l.db"))
        made = gateway(config(tmp_path), Upstream(), ledger=ledger)
        app = App(made)
        for body in (say(f"canary {CARD}"), say("canary", model="cheap"), say("canary", model="strong", stream=True)):
            await call(app, body)
        await made.close()
        assert b'tier="cheap"' in (await call(app, method="GET", path="/metrics")).body

    asyncio.run(run())
    records = list(read_ledger(tmp_path / "l.db"))
    assert [record.tier for record in records] == ["local", "cheap", "strong"]
    assert records[0].kinds == records[0].causes == "card" and records[0].allowed == "local" and records[0].cost == 0
    assert "holds card" in records[0].reason and records[1].causes == ""
    assert records[1].cost == pytest.approx((10 * 1 + 20 * 2) / 1e6)
    assert records[2].cost == records[2].cost_strong == pytest.approx((10 * 10 + 20 * 50) / 1e6)
    everything = b"".join(path.read_bytes() for path in tmp_path.glob("l.db*"))
    assert b"canary" not in everything and b"4111" not in everything


def test_a_remote_client_needs_its_own_clearance(tmp_path: Path) -> None:
    async def run() -> None:
        upstream = Upstream()
        state = gateway(config(tmp_path), upstream).state
        from whit.routing.planning import declared
        from whit.routing.request import read_request

        def cleared(text: str) -> Any:
            request = read_request(b'{"messages":[{"role":"user","content":"' + text.encode() + b'"}]}')
            return state.gate.clear(request, declared(state.config, state.config.tenants[0], None, None))

        secret, public = cleared(CARD), cleared("hello")
        wire: Wire = state.wires["cheap"]
        for forged in (None, secret.clearance, "cheap"):
            with pytest.raises(NotCleared):
                RemoteClient(wire, forged)  # type: ignore[arg-type]
            with pytest.raises(NotCleared):
                await wire.post(forged, "/x", {}, {"canary": 1}, 5)  # type: ignore[arg-type]
        client = RemoteClient(wire, public.clearance)
        with pytest.raises(NotCleared):
            client.answer(secret, None)  # type: ignore[arg-type]
        assert not upstream.received

    asyncio.run(run())


def test_reload_keeps_what_is_under_way(tmp_path: Path) -> None:
    from whit.routing.server import reload

    async def run() -> None:
        made = gateway(config(tmp_path), Upstream())
        app, said = App(made), []  # type: ignore[var-annotated]
        (tmp_path / "tiers.toml").write_text("[[tier]]\nname = 5\n")
        assert not reload(made, said.append) and "tiers.toml:2" in said[0]
        assert (await call(app, say("hello"))).status == 200
        (tmp_path / "tiers.toml").write_text('[[tier]]\nname = "only"\nkind = "whit"\nbase = "fake"\n')
        assert reload(made, said.append)
        assert (await call(app, say("hello"))).headers["x-whit-tier"] == "only"
        await made.close()

    asyncio.run(run())


def test_answers_under_way_end_by_the_config_before(tmp_path: Path) -> None:
    from whit.routing.server import reload

    async def run() -> None:
        go_on = asyncio.Event()

        class Slow(Upstream):
            async def handle(self, *given: Any) -> Answer:
                answer = await super().handle(*given)
                pieces = answer.pieces

                async def slowly() -> AsyncIterator[bytes]:
                    yield pieces[0]
                    await go_on.wait()
                    for piece in pieces[1:]:
                        yield piece

                answer.chunks = slowly  # type: ignore[method-assign]
                return answer

        made = gateway(config(tmp_path), Slow())
        app, before = App(made), made.state
        calls = [
            asyncio.create_task(call(app, say("hello", model="cheap", stream=stream))) for stream in (True, False) * 10
        ]
        while before.users < len(calls):
            await asyncio.sleep(0.01)
        (tmp_path / "tiers.toml").write_text('[[tier]]\nname = "only"\nkind = "whit"\nbase = "fake"\n')
        assert reload(made, lambda text: None) and made.state is not before
        assert (await call(app, say("hello"))).headers["x-whit-tier"] == "only"
        go_on.set()
        replies = await asyncio.gather(*calls)
        assert all(reply.status == 200 and reply.headers["x-whit-tier"] == "cheap" for reply in replies)
        assert all((reply.streamed if reply.events else reply.text) == "from afar" for reply in replies)
        await made.close()
        assert before.users == 0

    asyncio.run(run())


def test_a_local_tier_is_left_for_what_it_cannot_do(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    called, none, kept = ask(
        config(tmp_path), say("weather?", tools=tools), say("weather?", tools=tools, tool_choice="none"),
        say(f"weather? {CARD}", tools=tools),
    )  # fmt: skip
    assert (called.headers["x-whit-tier"], none.headers["x-whit-tier"]) == ("cheap", "local")
    assert kept.status == 400 and kept.code == "inside_unavailable" and "stays inside" in str(kept.json)
    wanted = {"response_format": {"type": "json_object"}}
    (prose,) = ask(config(tmp_path), say("as JSON", **wanted))
    (made,) = ask(config(tmp_path), say("as JSON", **wanted), model=FakeModel(says='{"a": 1}'))
    assert (prose.headers["x-whit-tier"], made.headers["x-whit-tier"]) == ("cheap", "local")


def test_why_it_was_kept_from_a_tier_is_told(tmp_path: Path) -> None:
    (found, declared) = ask(config(tmp_path), say(f"my {CARD}", model="cheap"), say("hello", model="nothing known"))
    assert "holds card: stays inside, without cheap, strong" in found.headers["x-whit-reason"]
    assert "stays" not in declared.headers["x-whit-reason"] and declared.headers["x-whit-tier"] == "local"


def test_no_cookie_of_a_tier_is_kept(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[1:-1]
                seen.append({name.lower(): value for name, _, value in (line.partition(": ") for line in lines)})
                await reader.readexactly(int(seen[-1]["content-length"]))
                answer = b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: who=you; Path=/\r\ncontent-type: application/json\r\n")
                writer.write(b"content-length: %d\r\n\r\n%b" % (len(answer), answer))
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        # By name, for jars keep no cookie of an address.
        text = TIERS.replace("https://cheap.example", f"http://localhost:{port}").replace("= 5\n", "= 60\n")
        made = gateway(config(tmp_path, text=text), transport=None)
        for _ in range(2):
            assert (await call(App(made), say("hello", model="cheap"))).status == 200
        await made.close()
        server.close()

    asyncio.run(run())
    assert len(seen) == 2 and not any("cookie" in headers for headers in seen)
    known = {"authorization", "content-type", "content-length", "host", "user-agent", "accept-encoding"}
    assert set(seen[0]) == set(seen[1]) == known


def test_a_budget_that_runs_out_in_the_middle_of_a_stream_was_set_aside_before_it(tmp_path: Path) -> None:
    text = REMOTE.replace("[gateway]", '[[tenant]]\nname = "t"\nbudget = 0.002\n[gateway]')
    upstream = Upstream(says="word " * 40)

    async def run() -> tuple[list[Reply], float | None]:
        made = gateway(config(tmp_path, text=text), upstream)
        bodies = [say("hello", model="cheap", stream=True, max_tokens=200) for _ in range(8)]
        replies = await asyncio.gather(*(call(App(made), body) for body in bodies))
        return list(replies), made.budgets.left("t")

    replies, left = asyncio.run(run())
    answered = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    assert answered and refused and len(answered) + len(refused) == len(replies)
    assert all(reply.events[-1] == "[DONE]" for reply in answered), "what was begun is ended"
    assert {reply.code for reply in refused} == {"insufficient_quota"} and left is not None and left >= 0
