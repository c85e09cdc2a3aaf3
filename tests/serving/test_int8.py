"""The base in 8 bits: nearly the same answers, adapters of every kind, and no row depends on those beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from whit.adapters.tunable import bind
from whit.errors import UsageError
from whit.serving.int8 import Int8Model, orthogonal, suits
from whit.serving.payload import to_payload
from whit.serving.pool import Pool, Served
from whit.serving.scheduler import Request, Scheduler

TEXTS = ("my card was stolen", "what is the weather like in paris today, please?", "send money", "a", "10 + 32 is")


@pytest.fixture(scope="module")
def pool(base: Any) -> Pool:
    return Pool(base, ranks=(2, 3))


@pytest.fixture(scope="module")
def mixed(make: Callable[..., Any]) -> list[Any]:
    vectors = [make("tiny", 1), make("xs", 2), make("tiny", 5, rank=3), make("tiny", 6)]
    return [None, *vectors, make("lora", 3, rank=2), make("lora", 4, rank=5), make("lora", 7, rank=1)]


@pytest.mark.parametrize("size", [16, 48, 64, 576])
def test_turns_are_orthogonal_and_spread(size: int) -> None:
    Q = orthogonal(size, seed=1)
    assert torch.allclose(Q @ Q.mT, torch.eye(size), atol=1e-5)
    assert Q.abs().max() < 0.9 if size > 16 else True
    assert torch.equal(Q, orthogonal(size, seed=1)) and not torch.equal(Q, orthogonal(size, seed=2))


def exact(base: Any, adapter: Any, prompt: Sequence[int]) -> torch.Tensor:
    """Logits of every place as transformers computes them in float32."""
    with torch.inference_mode():
        if adapter is None:
            logits: torch.Tensor = base.model(torch.tensor([prompt])).logits[0]
            return logits
        bound = bind(base, adapter)
        try:
            with bound.active():
                logits = base.model(torch.tensor([prompt])).logits[0]
                return logits
        finally:
            bound.detach()


def test_logits_are_nearly_those_in_float32(base: Any, pool: Pool, mixed: list[Any]) -> None:
    """Of the bare base and with adapters of every kind, read at once and token by token."""
    prompts = [base.encode(TEXTS[at % len(TEXTS)])[:6] for at in range(len(mixed))]
    width = min(map(len, prompts))
    prompts = [prompt[:width] for prompt in prompts]
    wanted = torch.stack([exact(base, adapter, prompt) for adapter, prompt in zip(mixed, prompts, strict=True)])
    bare = torch.stack([exact(base, None, prompt) for prompt in prompts])
    model = Int8Model(base, len(mixed), 64, pool.bases)
    with torch.inference_mode():
        for slot, adapter in enumerate(mixed):
            model.put(slot, adapter and pool.ready(to_payload(adapter)))
        hidden = model.forward(0, prompts, [0] * len(prompts))
        whole = model.logits(hidden.flatten(0, 1)).view(wanted.shape)
        steps = []
        for at in range(width):
            hidden = model.forward(0, [prompt[at : at + 1] for prompt in prompts], [at] * len(prompts))
            steps.append(model.logits(hidden[:, 0]))
    for found in (whole, torch.stack(steps, 1)):
        error = (found - wanted).pow(2).mean((1, 2)).sqrt()
        assert (error < 0.05 * wanted.std()).all(), error / wanted.std()
        effect = (wanted - bare).pow(2).mean((1, 2)).sqrt()[1:]
        assert (error[1:] < 0.2 * effect).all()  # what an adapter does is far more than what rounding does


def answers(scheduler: Scheduler, jobs: list[tuple[Served | None, list[int], int]]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in jobs]
    for place, (served, prompt, most) in enumerate(jobs):
        request = Request(prompt, most, lambda token, at=place: found[at].append(token.id), lambda reason: None, served)  # type: ignore[misc]
        scheduler.submit([request])
        if place % 3 == 2:
            scheduler.step()  # others join while these are at work
    while scheduler.step():
        pass
    return found


def test_a_mixed_batch_is_separate_runs(base: Any, pool: Pool, mixed: list[Any]) -> None:
    ready = [adapter and pool.ready(to_payload(adapter)) for adapter in mixed * 3]
    jobs = [(each, base.encode(TEXTS[at % len(TEXTS)]), 5 + 3 * (at % 4)) for at, each in enumerate(ready)]
    alone = []
    for job in jobs:
        alone += answers(Scheduler(base, pool.bases, rows=1, context=128, int8=True), [job])
    assert len({tuple(each) for each in alone}) > len(jobs) // 2
    for prefill in (24, 512):
        together = Scheduler(base, pool.bases, rows=8, context=128, prefill=prefill, int8=True)
        assert answers(together, jobs) == alone
        assert answers(together, jobs) == alone  # and from what was kept of the prompts


def test_a_slot_that_is_left_is_bare_again(base: Any, pool: Pool, mixed: list[Any]) -> None:
    prompt = base.encode(TEXTS[0])
    model = Int8Model(base, 2, 64, pool.bases)
    with torch.inference_mode():
        before = model.forward(0, [prompt, prompt], [0, 0])
        for adapter in mixed[1:]:
            model.put(1, pool.ready(to_payload(adapter)))
            moved = model.forward(0, [prompt, prompt], [0, 0])
            assert torch.allclose(moved[0], before[0], atol=1e-5) and not torch.allclose(moved[1], before[1], atol=1e-2)
            model.put(1, None)
            assert torch.allclose(model.forward(0, [prompt, prompt], [0, 0]), before, atol=1e-5)


def test_other_bases_are_refused(base: Any, pool: Pool) -> None:
    assert suits(base) is None
    config = SimpleNamespace(**{**vars(base.model.config), "model_type": "gemma3_text", "layer_types": None})
    strange = SimpleNamespace(config=config)
    assert "Llama-like" in str(suits(replace(base, model=strange)))
    with pytest.raises(UsageError, match="--int8"):
        Int8Model(replace(base, model=strange), 1, 16, pool.bases)
