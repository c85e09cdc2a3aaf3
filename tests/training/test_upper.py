"""Rows passed through the upper layers alone: the same losses and gradients as through the whole base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from whit.adapters.targets import all_targets
from whit.adapters.tunable import BoundBasis, tune_vector
from whit.adapters.vector import tiny_spec
from whit.data.rows import Row, Turn
from whit.data.templates import Encoded, encode_rows
from whit.testing import tiny_base
from whit.training import upper
from whit.training.upper import Passes, lowest_layer


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny_base(layers=4, hidden=32, heads=2, kv_heads=1, ffn=64, context=128)


@pytest.fixture
def bound(base: Any) -> Iterator[BoundBasis]:
    indices = [t.index for t in all_targets(name for name, _ in base.model.named_modules()) if t.layer >= 2]
    made = tune_vector(base, tiny_spec(indices, 4), number_type="float32")
    assert isinstance(made, BoundBasis)
    yield made
    made.detach()


@pytest.fixture(scope="module")
def rows(base: Any) -> list[Encoded]:
    texts = ["a card", "much money, and more of it", "a", "what weather there is in paris today", "pears"]
    made = [
        Row(id=str(at), turns=(Turn("user", text),), completion=text[::-1][: 2 + at]) for at, text in enumerate(texts)
    ]
    return encode_rows(made, base.template, base.encode, stop_id=base.stop_ids[0])


def gradients(bound: BoundBasis, passes: Passes, places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    v = torch.linspace(-0.4, 0.4, len(places) * bound.numbers).view(len(places), -1).requires_grad_(True)
    with bound.rows(v):
        losses, batch = passes.losses(places)
    assert batch.rows == tuple(str(place) for place in places)
    losses.sum().backward()
    assert v.grad is not None
    return losses.detach(), v.grad


@pytest.mark.parametrize("limit", [1024, 8], ids=["packed", "padded"])
def test_the_upper_layers_alone_give_what_all_of_them_do(
    base: Any, bound: BoundBasis, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(upper, "packed_limit", lambda base: limit)
    assert lowest_layer(bound) == 2
    whole, above = Passes(base, rows, first=0), Passes(base, rows, first=2)
    assert whole.first == 0 and above.first == 2
    layers = list(base.model.model.layers)
    for places in ([0, 1, 2, 3, 4], [3], [4, 0]):
        wanted, gradient = gradients(bound, whole, places)
        found, mine = gradients(bound, above, places)
        assert torch.allclose(found, wanted, atol=1e-4) and torch.allclose(mine, gradient, atol=1e-4)
        assert float(gradient.abs().max()) > 1e-3
    assert list(base.model.model.layers) == layers and type(base.model.model.norm).__name__ == "LlamaRMSNorm"


def test_the_layers_below_are_computed_once(
    base: Any, bound: BoundBasis, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *given, at=at: ran.append(at))
        for at, layer in enumerate(base.model.model.layers)
    ]
    try:
        passes = Passes(base, rows, first=2)
        assert ran == [0, 1]
        passes.losses([0, 1])
        passes.losses([2])
        assert ran == [0, 1, 2, 2]  # of the last layer, what predicts an answer alone
    finally:
        for hook in hooks:
            hook.remove()


def test_what_would_not_fit_or_is_no_such_base_goes_through_whole(
    base: Any, bound: BoundBasis, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(base.model.config, "sliding_window", 16, raising=False)
        patch.setattr(upper, "window_of", lambda config: config.sliding_window)
        assert Passes(base, rows, first=2).first == 0
    monkeypatch.setattr(upper, "MOST_BYTES", 100)
    passes = Passes(base, rows, first=2)
    assert passes.first == 0 and len(passes.losses([0])[0]) > 0


def test_rows_that_share_an_adapter_have_the_same_losses(base: Any, bound: BoundBasis, rows: list[Encoded]) -> None:
    passes = Passes(base, rows, first=0)
    with torch.no_grad(), bound.using(torch.full((bound.numbers,), 0.3)):
        assert torch.allclose(passes.losses(range(5), shared=True)[0], passes.losses(range(5))[0], atol=1e-4)


def test_of_the_last_layer_what_predicts_an_answer_is_enough(base: Any, rows: list[Encoded]) -> None:
    indices = [t.index for t in all_targets(name for name, _ in base.model.named_modules()) if t.layer == 3]
    bound = tune_vector(base, tiny_spec(indices, 4), number_type="float32")
    assert isinstance(bound, BoundBasis)
    try:
        whole, above = Passes(base, rows, first=0), Passes(base, rows, first=lowest_layer(bound))
        assert above.first == 3
        for places in ([0, 1, 2, 3, 4], [2]):
            wanted, gradient = gradients(bound, whole, places)
            found, mine = gradients(bound, above, places)
            assert torch.allclose(found, wanted, atol=1e-4) and torch.allclose(mine, gradient, atol=1e-4)
            assert float(gradient.abs().max()) > 1e-3
    finally:
        bound.detach()


def test_a_prompt_that_many_rows_have_is_read_once(base: Any, bound: BoundBasis, rows: list[Encoded]) -> None:
    # Ten users' answers to one prompt, and others' to their own.
    asked = Turn("user", "what weather there is in paris today")
    many = [Row(id=str(5 + at), turns=(asked,), completion="sun"[: 1 + at % 3] * (1 + at)) for at in range(10)]
    both = [*rows, *encode_rows(many, base.template, base.encode, stop_id=base.stop_ids[0])]
    read: list[int] = []
    hook = base.model.model.layers[0].register_forward_hook(lambda layer, given, made: read.append(made.shape[1]))
    try:
        above = Passes(base, both, first=2)
    finally:
        hook.remove()
    # With the one among the five they are eleven, in one sequence that has their prompt once.
    same = [row for row in both if row.prompt_ids == both[5].prompt_ids]
    prompt = len(both[5].prompt_ids)
    assert len(same) == 11
    assert max(read) <= prompt + sum(len(row.completion_ids) for row in same)
    assert sum(read) <= sum(above.lengths) - 10 * (prompt - 1)
    places = [0, 5, 9, 14]
    wanted, gradient = gradients(bound, Passes(base, both, first=0), places)
    found, mine = gradients(bound, above, places)
    assert torch.allclose(found, wanted, atol=1e-4) and torch.allclose(mine, gradient, atol=1e-4)
