"""A mixed batch is separate runs; gradients land in each row's own vector; nothing stays behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whit.adapters import layer as layer_module
from whit.adapters.basis import Basis
from whit.adapters.layer import AdaptedLinear, Siblings, Slots
from whit.adapters.tunable import BoundBasis
from whit.adapters.vector import VectorSpec
from whit.bases import Base
from whit.errors import AdapterError

NAMES = ["tied", "even", "uneven", "some", "xs", "xs some"]


@pytest.fixture(params=NAMES)
def spec(request: pytest.FixtureRequest, specs: dict[str, VectorSpec]) -> VectorSpec:
    return specs[request.param]


def _vectors(rows: int, numbers: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, numbers, generator=torch.Generator().manual_seed(seed)) * 0.3


def test_a_mixed_batch_is_separate_runs(base: Base, basis: Basis, spec: VectorSpec, ids: torch.Tensor) -> None:
    bound = BoundBasis(base, basis, spec)
    try:
        vectors = _vectors(len(ids), spec.numbers)
        vectors[2] = 0
        with torch.no_grad():
            with bound.rows(vectors):
                mixed = base.model(input_ids=ids).logits
            bare = base.model(input_ids=ids).logits
            for row in range(len(ids)):
                bound.v.copy_(vectors[row])
                with bound.active():
                    alone = base.model(input_ids=ids[row : row + 1]).logits[0]
                assert torch.allclose(mixed[row], alone, atol=2e-5, rtol=0)
        assert torch.allclose(mixed[2], bare[2], atol=2e-5, rtol=0)
        for row in (0, 1, 3):
            assert (mixed[row] - bare[row]).abs().max() > 0.01
    finally:
        bound.detach()


def test_gradients_land_in_each_rows_own_vector(base: Base, basis: Basis, spec: VectorSpec, ids: torch.Tensor) -> None:
    bound = BoundBasis(base, basis, spec)
    try:
        vectors = _vectors(len(ids), spec.numbers).requires_grad_()

        def loss(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            flat = logits[:, :-1].reshape(-1, logits.shape[-1])
            return nn.functional.cross_entropy(flat, rows[:, 1:].reshape(-1), reduction="sum")

        with bound.rows(vectors):
            loss(base.model(input_ids=ids).logits, ids).backward()
        assert vectors.grad is not None
        for row in range(len(ids)):
            bound.v.grad = None
            with torch.no_grad():
                bound.v.copy_(vectors[row])
            with bound.active():
                loss(base.model(input_ids=ids[row : row + 1]).logits, ids[row : row + 1]).backward()
            assert bound.v.grad is not None
            scale = float(bound.v.grad.abs().max())
            assert scale > 0
            assert torch.allclose(vectors.grad[row], bound.v.grad, atol=1e-4 * scale, rtol=1e-4)
        assert all(parameter.grad is None for parameter in base.model.parameters())
    finally:
        bound.detach()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    tokens=st.integers(1, 4),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    rank=st.integers(1, 4),
    seed=st.integers(0, 1000),
    grad=st.booleans(),
    bias=st.booleans(),
)
def test_the_layer_is_the_equation(
    rows: int, tokens: int, sides: tuple[int, int], rank: int, seed: int, grad: bool, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    wide, tall = sides
    linear = nn.Linear(wide, tall, bias=bias).requires_grad_(False)
    US, V = torch.randn(tall, rank, generator=generator), torch.randn(wide, rank, generator=generator)
    layer = AdaptedLinear(linear, US, V)
    x = torch.randn(rows, tokens, wide, generator=generator)
    assert torch.equal(layer(x), linear(x))
    layer.R = torch.randn(rows, rank, rank, generator=generator, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        y = layer(x)
    for row in range(rows):
        W = linear.weight + US @ layer.R[row] @ V.T
        expected = nn.functional.linear(x[row], W, linear.bias)
        assert torch.allclose(y[row], expected, atol=1e-4, rtol=1e-4)
        layer_R, layer.R = layer.R, layer.R[row]
        assert torch.allclose(layer(x[row : row + 1])[0], y[row], atol=1e-4, rtol=1e-4)
        layer.R = layer_R


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    asked=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=8),
    bare=st.sets(st.integers(0, 2), max_size=1),
    per_row=st.booleans(),
)
def test_siblings_answer_as_if_alone(seed: int, asked: list[tuple[int, int]], bare: set[int], per_row: bool) -> None:
    """Whoever is asked, in whatever order and of whichever x: the values and the gradients of a layer alone."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    made = [
        (nn.Linear(5, tall, bias=tall == 4).requires_grad_(False), draw(tall, rank), draw(5, rank))
        for tall, rank in ((3, 2), (4, 1), (6, 2))
    ]
    inputs = [draw(2, 3, 5) for _ in range(2)]
    matrices = [draw(*([2] if per_row else []), part[1].shape[1], part[1].shape[1]) for part in made]

    def run(layers: list[AdaptedLinear]) -> list[torch.Tensor]:
        given = [x.clone().requires_grad_() for x in inputs]
        own = [R.clone().requires_grad_() for R in matrices]
        for place, layer in enumerate(layers):
            layer.R = None if place in bare else own[place]
        found = [layers[place](given[at]) for place, at in asked]
        sum(((y * (turn + 1)).sum() for turn, y in enumerate(found)), torch.zeros(())).backward()
        zeros = [torch.zeros_like(R) if R.grad is None else R.grad for R in own]
        return [*found, *zeros, *[torch.zeros_like(x) if x.grad is None else x.grad for x in given]]

    together = [AdaptedLinear(*part) for part in made]
    Siblings(together)
    for one, other in zip(run(together), run([AdaptedLinear(*part) for part in made]), strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def test_siblings_are_computed_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One product for those that share an input, and nothing kept once all were asked."""
    layers = [AdaptedLinear(nn.Linear(4, 3).requires_grad_(False), torch.ones(3, 1), torch.ones(4, 1)) for _ in "ab"]
    family, x, calls = Siblings(layers), torch.ones(1, 2, 4), list[int]()
    real = layer_module._Adapted.apply
    monkeypatch.setattr(layer_module._Adapted, "apply", lambda *given: calls.append(1) or real(*given))
    for layer in layers:
        layer.R = torch.ones(1, 1)
    for layer in layers:
        layer(x)
    assert len(calls) == 1 and family._x is None and not family._ready


def test_the_wrong_number_of_rows(base: Base, basis: Basis, specs: dict[str, VectorSpec], ids: torch.Tensor) -> None:
    bound = BoundBasis(base, basis, specs["xs"])
    try:
        with bound.rows(_vectors(3, specs["xs"].numbers)), pytest.raises(AdapterError, match=r"3 adapters.* 4 rows"):
            base.model(input_ids=ids)
    finally:
        bound.detach()


def test_detached_is_the_bare_base_bit_for_bit(base: Base, basis: Basis, spec: VectorSpec, ids: torch.Tensor) -> None:
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
        bound = BoundBasis(base, basis, spec)
        with torch.no_grad():
            bound.v.copy_(_vectors(1, spec.numbers)[0])
        assert torch.equal(base.model(input_ids=ids).logits, before)
        with bound.active():
            assert not torch.equal(base.model(input_ids=ids).logits, before)
        assert torch.equal(base.model(input_ids=ids).logits, before)
        bound.detach()
        assert torch.equal(base.model(input_ids=ids).logits, before)


def test_blocks_nest_and_end_on_errors(base: Base, basis: Basis, specs: dict[str, VectorSpec]) -> None:
    bound = BoundBasis(base, basis, specs["xs"])
    layer = base.model.model.layers[0].self_attn.q_proj
    one, two = _vectors(2, specs["xs"].numbers)
    try:
        with bound.rows(one[None]):
            first = layer.R
            with pytest.raises(RuntimeError), bound.rows(two[None]):
                assert not torch.equal(layer.R, first)
                raise RuntimeError
            assert layer.R is first
        assert layer.R is None
    finally:
        bound.detach()


def test_a_place_is_taken_once(base: Base, basis: Basis) -> None:
    slots = Slots(base.model, basis, [0, 1])
    try:
        with pytest.raises(AdapterError, match="already adapted"):
            Slots(base.model, basis, [1, 2])
        with pytest.raises(AdapterError, match="module 99"):
            Slots(base.model, basis, [99])
    finally:
        slots.detach()


def test_a_bfloat16_base(base_folder: str, specs: dict[str, VectorSpec], ids: torch.Tensor) -> None:
    from whit.adapters.tunable import tune_vector
    from whit.bases import load_base

    base = load_base(base_folder, dtype="bfloat16")
    spec = specs["even"]
    bound = tune_vector(base, spec)
    with torch.no_grad():
        vectors = _vectors(len(ids), spec.numbers)
        with bound.rows(vectors):
            mixed = base.model(input_ids=ids).logits.float()
        for row in range(len(ids)):
            bound.v.copy_(vectors[row])
            with bound.active():
                alone = base.model(input_ids=ids[row : row + 1]).logits.float()[0]
            assert np.allclose(mixed[row], alone, atol=0.05)
