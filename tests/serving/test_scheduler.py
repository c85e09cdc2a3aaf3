"""A mixed batch is separate runs; rows come and go; caches go by content; queues are bounded and fair."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from whit.adapters.tunable import bind
from whit.errors import DamagedAdapter, UsageError, WrongBase
from whit.evaluation.decoding import Decoder
from whit.serving.payload import from_payload, to_payload
from whit.serving.pool import Pool, Served
from whit.serving.sampling import Drawer, Sampling, likeliest
from whit.serving.scheduler import QueueFull, Request, Scheduler, Worker

TEXTS = ("my card was stolen", "what is the weather like in paris today, please?", "send money", "a", "10 + 32 is")


class Answer:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[Any] = []
        self.reason: str | None = None


@pytest.fixture(scope="module")
def pool(base: Any) -> Pool:
    return Pool(base, ranks=(2, 3))


@pytest.fixture
def scheduler(base: Any, pool: Pool) -> Iterator[Scheduler]:
    made = Scheduler(base, pool.bases, rows=8, context=128, prefill=24)
    yield made
    made.model.close()


def ask(prompt: Sequence[int], adapter: Served | None = None, **more: Any) -> tuple[Request, Answer]:
    answer = Answer()

    def on_token(token: Any) -> None:
        answer.tokens.append(token.id)
        answer.logprobs.append((token.logprob, token.top))

    def on_end(reason: str) -> None:
        assert answer.reason is None
        answer.reason = reason

    return Request(prompt, more.pop("max_tokens", 12), on_token, on_end, adapter, **more), answer


def finish(scheduler: Scheduler, most: int = 2000) -> None:
    for _ in range(most):
        if not scheduler.step():
            return
    raise AssertionError("the scheduler does not end")


@pytest.fixture(scope="module")
def mixed(make: Callable[..., Any]) -> list[Any]:
    """Adapters of every kind and of several ranks, and the bare base."""
    vectors = [make("tiny", 1), make("xs", 2), make("tiny", 5, rank=3), make("tiny", 6)]
    return [None, *vectors, make("lora", 3, rank=2), make("lora", 4, rank=5), make("lora", 7, rank=1)]


def alone(base: Any, adapter: Any, prompt: list[int], most: int) -> list[int]:
    """What the ordinary decoder answers, one prompt and one adapter at a time."""
    if adapter is None:
        return Decoder(base).answers([prompt], most=most)[0]
    bound = bind(base, adapter)
    try:
        return Decoder(base, bound).answers([prompt], most=most)[0]
    finally:
        bound.detach()


def test_a_mixed_batch_is_separate_runs(base: Any, pool: Pool, mixed: list[Any]) -> None:
    jobs = [(adapter, base.encode(TEXTS[at % len(TEXTS)]), 5 + 3 * (at % 4)) for at, adapter in enumerate(mixed * 3)]
    expected = [alone(base, adapter, prompt, most) for adapter, prompt, most in jobs]
    assert len({tuple(each) for each in expected}) > len(jobs) // 2  # the adapters do change the answers
    scheduler = Scheduler(base, pool.bases, rows=8, context=128, prefill=24)
    try:
        answers = []
        for at, (adapter, prompt, most) in enumerate(jobs):
            served = adapter and pool.ready(to_payload(adapter))
            request, answer = ask(prompt, served, max_tokens=most)
            scheduler.submit([request])
            answers.append(answer)
            if at % 3 == 2:
                scheduler.step()  # others join while these are at work
        finish(scheduler)
        assert [answer.tokens for answer in answers] == expected
        assert {answer.reason for answer in answers} <= {"stop", "length"}
    finally:
        scheduler.model.close()
    assert all(type(module).__name__ != "RowLinear" for module in base.model.modules())


def test_log_probabilities_are_those_of_a_full_pass(base: Any, scheduler: Scheduler) -> None:
    prompt = base.encode(TEXTS[1])
    request, answer = ask(prompt, max_tokens=6, sampling=Sampling(logprobs=3))
    scheduler.submit([request, ask(base.encode("noise"))[0]])
    finish(scheduler)
    ids = torch.tensor([[*prompt, *answer.tokens]])
    full = torch.log_softmax(base.model(ids).logits[0].float(), dim=-1)
    for at, (token, (logprob, top)) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
        expected = full[len(prompt) - 1 + at]
        assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
        assert [each[0] for each in top] == expected.topk(3).indices.tolist()


def test_a_seed_gives_the_same_answer_in_any_company(
    base: Any, scheduler: Scheduler, pool: Pool, mixed: list[Any]
) -> None:
    prompt, sampling = base.encode(TEXTS[0]), Sampling(temperature=1.3, top_p=0.9, seed=7)
    first, one = ask(prompt, sampling=sampling)
    scheduler.submit([first])
    finish(scheduler)
    other, two = ask(prompt, sampling=sampling)
    crowd = [ask(base.encode(text), pool.ready(to_payload(mixed[5])))[0] for text in TEXTS]
    scheduler.submit([*crowd, other])
    finish(scheduler)
    third, three = ask(prompt, sampling=Sampling(temperature=1.3, top_p=0.9, seed=8))
    scheduler.submit([third])
    finish(scheduler)
    assert one.tokens == two.tokens != three.tokens


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        chances = torch.softmax(logits / temperature, -1)
        kept = chances * ((chances.cumsum(-1) - chances) < top_p)
        draw = Drawer(Sampling(temperature, top_p, seed=1))
        seen = torch.zeros(4)
        for _ in range(4000):
            seen[draw(logits, 0).id] += 1
        assert torch.allclose(seen / 4000, kept / kept.sum(), atol=0.03)


@pytest.mark.parametrize("words", [7, 128, 384, 390, 1280])
def test_the_likeliest_is_the_first_of_the_largest(words: int) -> None:
    generator = torch.Generator().manual_seed(words)
    logits = torch.randint(0, 9, (64, words), generator=generator).float()  # with many ties
    assert torch.equal(likeliest(logits), logits.argmax(-1))
    assert [int((row == row.max()).nonzero()[0]) for row in logits] == likeliest(logits).tolist()


def test_a_known_beginning_is_not_read_again_and_changes_nothing(base: Any, pool: Pool, mixed: list[Any]) -> None:
    prompt = base.encode("the same long instruction for everyone who asks: " + TEXTS[1])
    assert len(prompt) > 33
    more = prompt + base.encode(" and more")
    expected = [alone(base, mixed[1], prompt, 12), alone(base, mixed[1], more, 12)]
    served = pool.ready(to_payload(mixed[1]))
    scheduler = Scheduler(base, pool.bases, rows=8, context=128, prefill=24)
    try:
        answers = []
        for ids in (prompt, prompt, more):
            request, answer = ask(ids, served)
            scheduler.submit([request])
            finish(scheduler)
            answers.append((request, answer))
    finally:
        scheduler.model.close()
    assert answers[0][0].reused == 0 and answers[1][0].reused >= 32 and answers[2][0].reused >= 32
    assert [answer.tokens for _, answer in answers] == [expected[0], expected[0], expected[1]]


def test_the_cache_goes_by_content_and_never_by_name(base: Any, pool: Pool, make: Callable[..., Any]) -> None:
    """An adapter replaced under its name is answered afresh; the same content under any name is reused."""
    prompt = base.encode("the same long instruction for everyone who asks: " + TEXTS[0])
    order = (make("tiny", 1), make("tiny", 2), make("tiny", 1), None)
    expected = [alone(base, adapter, prompt, 12) for adapter in order]
    assert expected[0] != expected[1]
    scheduler = Scheduler(base, pool.bases, rows=8, context=128, prefill=24)
    try:
        reused, answers = [], []
        for adapter in order:
            request, answer = ask(prompt, adapter and pool.ready(to_payload(adapter)))
            scheduler.submit([request])
            finish(scheduler)
            reused.append(request.reused)
            answers.append(answer.tokens)
    finally:
        scheduler.model.close()
    assert reused[0] == reused[1] == reused[3] == 0 and reused[2] > 0
    assert answers == expected


def test_the_prefix_cache_stays_within_its_bytes(base: Any, pool: Pool) -> None:
    scheduler = Scheduler(base, pool.bases, rows=2, context=128, prefix_bytes=60_000)
    try:
        for number in range(6):
            request, _ = ask(base.encode(f"{number} " * 40), max_tokens=1)
            scheduler.submit([request])
            finish(scheduler)
            assert 0 < scheduler.prefixes.bytes <= 60_000
    finally:
        scheduler.model.close()


def test_the_queue_is_bounded_in_all_and_for_each_tenant(base: Any, pool: Pool) -> None:
    scheduler = Scheduler(base, pool.bases, rows=2, context=64, waiting=6, waiting_each=4)
    try:
        many = [ask([5], tenant="ann")[0] for _ in range(5)]
        with pytest.raises(QueueFull):
            scheduler.submit(many)
        scheduler.submit(many[:4])
        with pytest.raises(QueueFull) as full:
            scheduler.submit([ask([5], tenant="ann")[0]])
        assert full.value.seconds >= 1
        scheduler.submit([ask([5], tenant="bob")[0] for _ in range(2)])
        with pytest.raises(QueueFull):
            scheduler.submit([ask([5], tenant="cat")[0]])
        assert scheduler.load().waiting == 6
        scheduler.abort("cancelled")
        assert scheduler.load().waiting == 0
    finally:
        scheduler.model.close()


def test_a_tenant_with_much_work_does_not_hold_up_another(base: Any, pool: Pool) -> None:
    scheduler = Scheduler(base, pool.bases, rows=2, context=64)
    try:
        order: list[str] = []

        def one(tenant: str) -> Request:
            return Request([5, 6], 3, lambda token: None, lambda reason: order.append(tenant), tenant=tenant)

        scheduler.submit([one("ann") for _ in range(10)])
        scheduler.submit([one("bob") for _ in range(2)])
        finish(scheduler)
        assert len(order) == 12 and "bob" in order[:2] and order[:5].count("bob") == 2
    finally:
        scheduler.model.close()


def test_deadlines_and_cancelling(base: Any, scheduler: Scheduler) -> None:
    late, never = ask([5, 6], deadline=time.monotonic() - 1)
    gone, cancelled = ask([5, 6], max_tokens=100)
    stays, answered = ask([5, 6], max_tokens=20)
    slow, cut = ask([7], max_tokens=100, deadline=time.monotonic() + 0.02)
    scheduler.submit([late, gone, stays, slow])
    scheduler.step()
    gone.cancel()
    time.sleep(0.03)
    finish(scheduler)
    assert (never.reason, never.tokens) == ("deadline", [])
    assert cancelled.reason in ("cancelled", "stop") and len(cancelled.tokens) <= 2
    assert answered.reason in ("stop", "length") and answered.tokens == alone(base, None, [5, 6], 20)
    assert cut.reason in ("deadline", "stop") and scheduler.load().running == 0


def test_answers_end_at_the_context(base: Any, scheduler: Scheduler) -> None:
    request, answer = ask([5] * 120, max_tokens=100)
    scheduler.submit([request])
    finish(scheduler)
    assert answer.reason == "stop" or len(answer.tokens) == 8


def test_what_does_not_fit_is_refused(base: Any, pool: Pool, make: Callable[..., Any]) -> None:
    from dataclasses import replace

    with pytest.raises(WrongBase):
        pool.ready(to_payload(replace(make("tiny", 1), base="0" * 64)))
    with pytest.raises(UsageError, match="rank 4"):
        pool.ready(to_payload(make("xs", 0, rank=4)))


def test_payloads_come_back(make: Callable[..., Any]) -> None:
    for adapter in (make("tiny", 1), make("xs", 1), make("lora", 1, rank=3)):
        content = to_payload(adapter)
        assert to_payload(from_payload(content)) == content


def test_a_damaged_lora_is_refused_without_a_path_of_ours(make: Callable[..., Any]) -> None:
    content = to_payload(make("lora", 1, rank=3))
    for damaged in (content[:40], content[:-8], content.replace(b'"r": 3', b'"r": 4'), content.replace(b"F32", b"F33")):
        with pytest.raises(DamagedAdapter, match="the adapter"):
            from_payload(damaged)


@pytest.mark.parametrize("int8", [False, True])
def test_adapters_that_come_and_go_leave_nothing_in_memory(base: Any, make: Callable[..., Any], int8: bool) -> None:
    """Each request's adapter is made anew, as a pool with too little room for its users does."""
    pool = Pool(base, ranks=(2, 3), most=1)
    kinds = (("tiny", 2), ("xs", 3), ("lora", 3), ("lora", 5))
    payloads = [to_payload(make(kind, seed, rank=rank)) for seed in range(4) for kind, rank in kinds]
    scheduler = Scheduler(base, pool.bases, rows=8, context=128, int8=int8, prefix_bytes=1 << 16)

    def blocks(rounds: int) -> int:
        for at in range(rounds):
            for payload in payloads:
                scheduler.submit([ask([5 + at % 7, 9], pool.ready(payload), max_tokens=2)[0]])
            finish(scheduler)
        gc.collect()
        return sys.getallocatedblocks()

    try:
        before = blocks(8)  # what is made once and kept
        assert blocks(20) - before < 20 * len(payloads)  # less than one block a request
    finally:
        scheduler.model.close()


def test_a_worker_answers_and_outlives_a_bad_step(
    base: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[BaseException] = []
    worker = Worker(scheduler, on_error=errors.append)
    worker.start()
    real = scheduler.model.forward
    monkeypatch.setattr(scheduler.model, "forward", lambda *a: 1 / 0)
    request, failed = ask([5])
    worker.submit([request])
    until(lambda: failed.reason is not None)
    monkeypatch.setattr(scheduler.model, "forward", real)
    request, answer = ask([5], max_tokens=3)
    worker.submit([request])
    until(lambda: answer.reason is not None)
    worker.stop()
    assert failed.reason == "error" and isinstance(errors[0], ZeroDivisionError)
    assert answer.tokens == alone_bare(base, [5], 3) and not worker.alive


def alone_bare(base: Any, prompt: list[int], most: int) -> list[int]:
    layers = [module for module in base.model.modules() if type(module).__name__ == "RowLinear"]
    for layer in layers:
        layer.vectors, layer.lora = [], None
    return alone(base, None, prompt, most)


def until(done: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)
