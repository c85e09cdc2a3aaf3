"""The quick forward of LoRA layers is PEFT's own, forward and backward, and stands aside where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from whit.adapters.lora_layer import _Family
from whit.adapters.targets import all_targets, with_same_input
from whit.adapters.tunable import BoundLora, tune_lora
from whit.bases import Base, load_base


def _bound(base: Base, *, dropout: float = 0.0, skip: int = 1) -> BoundLora:
    """A LoRA with numbers in it, on all modules but each `skip`-th."""
    every = all_targets(name for name, _ in base.model.named_modules())
    some = [target for target in every if skip == 1 or target.index % skip]
    bound = tune_lora(base, some, rank=3, alpha=7, dropout=dropout, seed=1)
    with torch.no_grad():
        for place, part in enumerate(bound.parameters()):
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(place)) * 0.1)
    return bound


@pytest.fixture
def bound(base: Base) -> Iterator[BoundLora]:
    bound = _bound(base)
    yield bound
    bound.detach()


def _as_peft(bound: BoundLora) -> None:
    """Take the quick forward away."""
    for layer in bound._layers:
        del layer.__dict__["forward"]


def _loss(base: Base, ids: torch.Tensor) -> torch.Tensor:
    logits = base.model(input_ids=ids).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def _gradients(base: Base, bound: BoundLora, ids: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    for parameter in bound.parameters():
        parameter.grad = None
    with bound.active():
        loss = _loss(base, ids)
        loss.backward()
    found = [parameter.grad for parameter in bound.parameters()]
    assert all(part is not None and part.dtype == torch.float32 for part in found)
    return float(loss.detach()), [part for part in found if part is not None]


@pytest.mark.parametrize("skip", [1, 2, 3], ids=["all", "some siblings missing", "others missing"])
def test_losses_and_gradients_are_pefts(base: Base, ids: torch.Tensor, skip: int) -> None:
    bound = _bound(base, skip=skip)
    try:
        quick, found = _gradients(base, bound, ids)
        _as_peft(bound)
        slow, expected = _gradients(base, bound, ids)
    finally:
        bound.detach()
    assert quick == pytest.approx(slow, abs=1e-6)
    for got, wanted in zip(found, expected, strict=True):
        largest = float(wanted.abs().max())
        assert largest > 0
        assert torch.allclose(got, wanted, atol=1e-4 * largest, rtol=1e-4)


def test_gradients_in_bfloat16_are_as_close_to_exact_ones_as_pefts(base_folder: str, ids: torch.Tensor) -> None:
    def of(dtype: str, quick: bool) -> torch.Tensor:
        base = load_base(base_folder, dtype=dtype)
        bound = _bound(base)
        if not quick:
            _as_peft(bound)
        return torch.cat([part.flatten() for part in _gradients(base, bound, ids)[1]])

    exact = of("float32", quick=False)
    ours, pefts = ((of("bfloat16", quick) - exact).norm() / exact.norm() for quick in (True, False))
    assert pefts > 0  # otherwise nothing was rounded
    assert ours < 1.5 * pefts


def test_the_input_gets_its_gradient(base: Base, bound: BoundLora, ids: torch.Tensor) -> None:
    embedded = base.model.get_input_embeddings()(ids).detach()

    def gradient() -> torch.Tensor:
        x = embedded.clone().requires_grad_()
        with bound.active():
            base.model(inputs_embeds=x).logits.square().mean().backward()
        assert x.grad is not None
        return x.grad

    quick = gradient()
    _as_peft(bound)
    slow = gradient()
    assert torch.allclose(quick, slow, atol=1e-4 * float(slow.abs().max()), rtol=1e-4)


def test_numbers_that_change_are_seen(base: Base, bound: BoundLora, ids: torch.Tensor) -> None:
    """Between two blocks, by `load`, and between two batches of one block."""
    other = bound.export()
    with torch.no_grad():
        with bound.active():
            first = base.model(input_ids=ids).logits
            for parameter in bound.parameters():
                parameter.mul_(2)
            second = base.model(input_ids=ids).logits
            bound.load(other)
            third = base.model(input_ids=ids).logits
        for parameter in bound.parameters():
            parameter.mul_(2)
        with bound.active():
            fourth = base.model(input_ids=ids).logits
    assert (second - first).abs().max() > 0.01
    assert torch.allclose(third, first, atol=0.05)  # rounded to bfloat16 by the export
    assert torch.allclose(fourth, second, atol=0.1)
    assert (fourth - third).abs().max() > 0.01


def test_numbers_made_in_inference_mode(base: Base, ids: torch.Tensor) -> None:
    """As where an adapter is bound only to answer: torch counts no changes of such tensors."""
    with torch.inference_mode():
        bound = _bound(base)
        with bound.active():
            first = base.model(input_ids=ids).logits
            for parameter in bound.parameters():
                parameter.mul_(2)
            second = base.model(input_ids=ids).logits
        _as_peft(bound)
        with bound.active():
            expected = base.model(input_ids=ids).logits
        bound.detach()
    assert torch.allclose(second, expected, atol=1e-4)
    assert (second - first).abs().max() > 0.01


def test_outside_its_block_the_base_is_bare(base: Base, ids: torch.Tensor) -> None:
    with torch.no_grad():
        bare = base.model(input_ids=ids).logits
        bound = _bound(base)
        try:
            with bound.active():
                adapted = base.model(input_ids=ids).logits
            again = base.model(input_ids=ids).logits
        finally:
            bound.detach()
    assert torch.equal(again, bare)
    assert (adapted - bare).abs().max() > 0.01


def test_dropout_is_pefts(base: Base, ids: torch.Tensor) -> None:
    bound = _bound(base, dropout=0.5)
    try:
        bound.train(True)
        torch.manual_seed(3)
        with_forward = _gradients(base, bound, ids)
        _as_peft(bound)
        torch.manual_seed(3)
        without = _gradients(base, bound, ids)
        bound.train(False)
        quiet = _gradients(base, bound, ids)
    finally:
        bound.detach()
    assert with_forward[0] == without[0]
    assert all(torch.equal(got, wanted) for got, wanted in zip(with_forward[1], without[1], strict=True))
    assert quiet[0] != without[0]


def test_weights_that_learn_too_keep_pefts_forward(base: Base, bound: BoundLora, ids: torch.Tensor) -> None:
    """The quick one gives no gradient to W."""
    weight = bound._layers[0].base_layer.weight
    weight.requires_grad_(True)
    try:
        _gradients(base, bound, ids)
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0
    finally:
        weight.requires_grad_(False)
        weight.grad = None


def test_a_batch_computes_each_family_once(
    base: Base, bound: BoundLora, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept from one batch to the next, and nothing left over."""
    together: list[int] = []
    compute = _Family._compute

    def counted(family: _Family, x: torch.Tensor, layers: list[Any]) -> dict[nn.Module, torch.Tensor]:
        together.append(len(layers))
        return compute(family, x, layers)

    monkeypatch.setattr(_Family, "_compute", counted)
    with torch.no_grad(), bound.active():
        base.model(input_ids=ids)
        assert all(not family._ready and family._x is None for family in bound._quick._families)
    layers = len({name.rpartition(".")[0] for name in bound._names}) // 2
    assert together == [3, 1, 2, 1] * layers  # q, k, v; o; gate, up; down


def test_modules_with_the_same_input() -> None:
    names = [target.name for target in all_targets(
        f"model.layers.{layer}.{name}" for layer in range(2)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    )]  # fmt: skip
    assert with_same_input(names) == [[0, 1, 2], [3], [4, 5], [6], [7, 8, 9], [10], [11, 12], [13]]
    assert with_same_input([names[2], names[7], names[0]]) == [[0, 2], [1]]
    assert with_same_input([]) == []
