"""Gradients of single rows: against autograd row by row, for vectors and LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import TrainingError
from whit.training import gradients
from whit.training.batching import collate
from whit.training.gradients import row_gradients
from whit.training.sft import loss_of


def reference(base: Base, bound: Bound, row: Encoded) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one row alone."""
    for parameter in bound.parameters():
        parameter.grad = None
    with bound.active():
        loss = loss_of(base, collate([row])).sum()
    loss.backward()
    found = torch.cat([part.grad.flatten() for part in bound.parameters() if part.grad is not None])
    for parameter in bound.parameters():
        parameter.grad = None
    return float(loss.detach()), found


@pytest.mark.parametrize("kind", ["xs", "tiny", "lora"])
def test_they_are_each_rows_own(
    base: Base, tune: Callable[..., Bound], encode: Callable[..., list[Encoded]], kind: str
) -> None:
    bound = tune(kind, rank=1)
    with torch.no_grad():
        for parameter in bound.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    before = [parameter.detach().clone() for parameter in bound.parameters()]
    rows = encode(11)
    found = row_gradients(base, bound, rows, batch=4)
    assert found.ids == tuple(row.row.id for row in rows) and found.G.shape == (11, bound.numbers)
    for at, row in enumerate(rows):
        loss, g = reference(base, bound, row)
        assert float(found.losses[at]) == pytest.approx(loss, rel=1e-4)
        assert torch.allclose(found.G[at], g, atol=1e-4 * float(g.abs().max()))
    assert all(map(torch.equal, before, bound.parameters()))
    assert all(parameter.grad is None for parameter in bound.parameters())


def test_many_numbers_are_hashed_and_keep_their_inner_products(
    base: Base, tune: Callable[..., Bound], encode: Callable[..., list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, rows = tune("lora", rank=4), encode(8)
    assert bound.numbers > gradients.LARGEST
    hashed = row_gradients(base, bound, rows).G
    monkeypatch.setattr(gradients, "LARGEST", bound.numbers)
    whole = row_gradients(base, bound, rows).G
    assert hashed.shape == (8, 2048) and whole.shape == (8, bound.numbers)
    size = float((whole @ whole.T).diagonal().max())
    assert torch.allclose(hashed @ hashed.T, whole @ whole.T, atol=0.15 * size)


def test_rows_without_a_finite_loss_are_named(
    base: Base, tune: Callable[..., Bound], encode: Callable[..., list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(base: Base, batch: Any) -> torch.Tensor:
        losses = loss_of(base, batch)
        bad = torch.tensor([batch.rows[at] == "r3" for at in batch.at[:, 0].tolist()])
        return torch.where(bad, float("nan"), losses)

    monkeypatch.setattr(gradients, "loss_of", poisoned)
    bound = tune("xs")
    with pytest.raises(TrainingError, match=r"not finite on rows r3;"):
        row_gradients(base, bound, encode(6))
    with pytest.raises(TrainingError, match="no rows"):
        row_gradients(base, bound, [])
