"""Adapters that act on answers alone, served: the ordinary decoder's answers, and prompts read once for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving.test_scheduler import TEXTS, alone, ask, finish
from whit.adapters.adapter import Adapter
from whit.adapters.basis import basis_of
from whit.adapters.learned import LearnedBasis, remember
from whit.adapters.targets import all_targets
from whit.adapters.vector import projections, tiny_spec
from whit.serving.payload import to_payload
from whit.serving.pool import Pool
from whit.serving.scheduler import Scheduler

PROMPT = "the same long instruction for everyone who asks: " + TEXTS[1]


@pytest.fixture(scope="module")
def pool(base: Any) -> Pool:
    return Pool(base, ranks=(2, 3))


@pytest.fixture(scope="module")
def own(base: Any) -> Callable[[int], Adapter]:
    """`own(seed)`: an adapter along a learned basis that says so."""
    spec = tiny_spec([target.index for target in all_targets(name for name, _ in base.model.named_modules())], 13)
    learned = LearnedBasis.of(spec, basis_of(base, 2), projections(spec), answers_only=True)
    remember(learned)
    basis = learned.on(basis_of(base, 2))

    def make(seed: int) -> Adapter:
        vector = 1.5 * np.random.default_rng(seed).normal(size=13).astype(np.float32)
        return Adapter.from_vector(spec, vector.astype(np.float32), basis)

    return make


def test_a_mixed_batch_is_separate_runs(base: Any, pool: Pool, own: Any, make: Callable[..., Any]) -> None:
    kinds = [own(1), None, make("tiny", 1), own(2), make("lora", 3), own(3), make("xs", 2), own(1)]
    prompts = [*TEXTS, "x" * 15, "x" * 17, PROMPT]  # some are just a block and the token that is left
    jobs = [(kinds[at % 8], base.encode(prompts[at % 7]), 4 + at % 5) for at in range(28)]
    jobs.append((own(1), base.encode("a")[:1], 5))  # nothing of it is read bare
    expected = [alone(base, adapter, prompt, most) for adapter, prompt, most in jobs]
    bare = [alone(base, None, prompt, most) for _, prompt, most in jobs]
    assert sum(one != other for one, other in zip(expected, bare, strict=True)) > 14
    scheduler = Scheduler(base, pool.bases, rows=8, context=128, prefill=24)
    try:
        answers = []
        for at, (adapter, prompt, most) in enumerate(jobs):
            request, answer = ask(prompt, adapter and pool.ready(to_payload(adapter)), max_tokens=most)
            scheduler.submit([request])
            answers.append(answer)
            if at % 3 == 2:
                scheduler.step()
        finish(scheduler)
    finally:
        scheduler.model.close()
    assert [answer.tokens for answer in answers] == expected
    assert {answer.reason for answer in answers} <= {"stop", "length"}


def test_a_prompt_is_read_once_for_all_of_them_and_the_base(base: Any, pool: Pool, own: Any) -> None:
    prompt = base.encode(PROMPT)
    order = (own(1), own(2), None, own(1))
    scheduler = Scheduler(base, pool.bases, rows=8, context=128, prefill=256)
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
    assert answers == [alone(base, adapter, prompt, 12) for adapter in order]
    assert answers[0] != answers[1] != answers[2]
    assert reused[0] == 0 and all(each >= 32 for each in reused[1:])


def test_a_prompt_of_whole_blocks_and_one_token_more(base: Any, pool: Pool, own: Any) -> None:
    """All of it but the last token is known already: the row answers in its first step."""
    prompt = base.encode(PROMPT)[:33]
    expected = [alone(base, own(seed), prompt, 1) for seed in (1, 2)]
    scheduler = Scheduler(base, pool.bases, rows=4, context=128, prefill=256)
    try:
        for seed in (1, 2):
            request, answer = ask(prompt, pool.ready(to_payload(own(seed))), max_tokens=1)
            scheduler.submit([request])
            scheduler.step()
            assert answer.tokens == expected[seed - 1] and request.reused == 32 * (seed - 1)
    finally:
        scheduler.model.close()


@pytest.mark.parametrize("together", [True, False])
def test_in_8_bits_the_prompt_is_the_bases(base: Any, pool: Pool, own: Any, together: bool) -> None:
    """What a row says does not depend on who is beside it, and differs from the base only by its adapter."""
    prompt = base.encode(PROMPT)
    exact = [alone(base, adapter, prompt, 1) for adapter in (own(1), own(2), own(3), None)]
    scheduler = Scheduler(base, pool.bases, rows=8, context=128, int8=True)
    try:
        jobs = [ask(prompt, pool.ready(to_payload(own(seed)))) for seed in (1, 2, 3)] + [ask(prompt)]
        for request, _ in jobs:
            scheduler.submit([request])
            if not together:
                finish(scheduler)
        finish(scheduler)
        answers = [answer.tokens for _, answer in jobs]
        assert len({tuple(tokens) for tokens in answers}) == 4
        assert sum(one[:1] == other for one, other in zip(answers, exact, strict=True)) >= 3  # but for rounding
    finally:
        scheduler.model.close()
