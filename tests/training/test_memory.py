"""Memory: layers computed twice give the same gradients, and what cannot fit is refused with advice that fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import UsageError
from whit.training import memory, sft
from whit.training.batching import collate
from whit.training.memory import checkpointed, require_memory, require_reward_memory, reward_bytes, step_bytes
from whit.training.reward import RewardPlan


@pytest.mark.parametrize("kind", ["xs", "lora"])
@pytest.mark.parametrize("packed", [1024, 8])
def test_computing_twice_gives_the_same_gradients(
    base: Base,
    tune: Callable[..., Bound],
    encode: Callable[..., list[Encoded]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    packed: int,
) -> None:
    monkeypatch.setattr(
        sft, "packed_limit", lambda base: packed
    )  # with 8, the rows' shared prefix goes through a cache
    bound, batch = tune(kind), collate(encode(6))
    with torch.no_grad():
        for parameter in bound.parameters():
            parameter.add_(0.1)
    found = []
    calls: list[int] = []
    layer = base.model.get_decoder().layers[0].self_attn  # the last module's way is not gone to its end again
    hook = layer.register_forward_hook(lambda *given: calls.append(1))
    for on in (False, True):
        calls.clear()
        for parameter in bound.parameters():
            parameter.grad = None
        with checkpointed(base, on), bound.active():
            sft.loss_of(base, batch).sum().backward()
        found.append(torch.cat([part.grad.flatten() for part in bound.parameters() if part.grad is not None]))
        if packed == 1024:
            assert len(calls) == (2 if on else 1)
    hook.remove()
    assert torch.allclose(found[0], found[1], atol=1e-5 * float(found[0].abs().max()))
    assert "forward" not in base.model.get_decoder().layers[0].__dict__


def test_answers_are_as_ever(base: Base, encode: Callable[..., list[Encoded]]) -> None:
    from whit.evaluation.decoding import Decoder

    prompts = [row.prompt_ids for row in encode(3)]
    expected = Decoder(base).answers(prompts, most=4)
    with checkpointed(base):
        assert Decoder(base).answers(prompts, most=4) == expected


def test_the_estimate_follows_the_step(base: Base, encode: Callable[..., list[Encoded]]) -> None:
    rows = encode(32)

    def needs(**more: object) -> int:
        given = {"batch": 16, "accumulate": 1, "numbers": 100, "checkpointing": False, **more}
        return step_bytes(base, rows, **given)  # type: ignore[arg-type]

    assert (
        needs(batch=32) > 1.8 * needs() and needs(accumulate=4) < 0.4 * needs() and needs(checkpointing=True) < needs()
    )


def test_what_cannot_fit_is_refused_with_advice_that_fits(
    base: Base, encode: Callable[..., list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encode(32)
    monkeypatch.setattr(memory, "SPARE", 0)
    whole = step_bytes(base, rows, batch=16, accumulate=1, numbers=10, checkpointing=False)
    twice = step_bytes(base, rows, batch=16, accumulate=1, numbers=10, checkpointing=True)
    monkeypatch.setattr(memory, "available_bytes", lambda device: (whole + twice) // 2)
    with pytest.raises(
        UsageError, match=r"a step of 16 rows would take about .* try --checkpointing .* or --accumulate"
    ) as told:
        require_memory(base, rows, batch=16, accumulate=1, numbers=10, checkpointing=False)
    parts = int(re.search(r"--accumulate (\d+)", str(told.value)).group(1))  # type: ignore[union-attr]
    assert require_memory(base, rows, batch=16, accumulate=parts, numbers=10, checkpointing=False) > 0
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10)
    with pytest.raises(UsageError, match="--quantize nf4"):
        require_memory(base, rows, batch=16, accumulate=1, numbers=10, checkpointing=False)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert require_memory(base, rows, batch=16, accumulate=1, numbers=10, checkpointing=False) == whole


def test_every_process_is_counted_with_its_base(
    base: Base, encode: Callable[..., list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encode(32)

    def require(there: int, **more: int) -> int:
        monkeypatch.setattr(memory, "available_bytes", lambda device: there)
        return require_memory(base, rows, batch=8, accumulate=1, numbers=10, checkpointing=False, **more)

    alone = require(1 << 60)
    assert require(1 << 60, processes=3, others=1000) == 3 * alone + 1000
    with pytest.raises(
        UsageError, match=r"of 8 rows in each of 3 processes and 0\.50 GB for the .* fewer --processes$"
    ):
        require(3 * alone, processes=3, others=500_000_000)
    with pytest.raises(UsageError, match=r"in each of 3 processes would take"):
        require(2 * alone, processes=3)


def test_a_step_by_reward_that_cannot_fit_is_refused_with_advice_that_fits(
    base: Base, encode: Callable[..., list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, plan = encode(32), RewardPlan(steps=1, batch=4, learning_rate=0.1, most=64, samples=8)
    whole = reward_bytes(base, rows, plan, 10)
    assert reward_bytes(base, rows, replace(plan, most=128), 10) > 1.5 * whole
    assert reward_bytes(base, rows, replace(plan, samples=16), 10) > 1.5 * whole
    assert reward_bytes(base, rows, replace(plan, optimizer="es", population=8), 10) < whole, "there is no way back"
    monkeypatch.setattr(memory, "SPARE", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda device: whole - 1)
    with pytest.raises(UsageError, match=r"of 4 prompts with 8 answers each, of up to 64 tokens, would take") as told:
        require_reward_memory(base, rows, plan, 10)
    advised = dict(re.findall(r"--(max-tokens|samples|batch) (\d+)", str(told.value)))
    assert {"max-tokens", "samples"} <= advised.keys()
    for name, field in (("max-tokens", "most"), ("samples", "samples")):
        assert require_reward_memory(base, rows, replace(plan, **{field: int(advised[name])}), 10) < whole


def test_only_what_can_be_had_is_advised(
    base: Base, encode: Callable[..., list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encode(32)
    whole = step_bytes(base, rows, batch=16, accumulate=1, numbers=10, checkpointing=False)
    monkeypatch.setattr(memory, "SPARE", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda device: whole - 1)
    with pytest.raises(UsageError, match=r"try --batch 15 \(\d\.\d\d GB\)$"):
        require_memory(base, rows, batch=16, accumulate=1, numbers=10, checkpointing=False, ways=("batch",))
