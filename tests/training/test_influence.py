"""Influence: against leaving rows out and fitting again, and against a dense solve."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from whit.errors import DataError
from whit.training.gradients import Gradients
from whit.training.influence import influence, rows_wanted, solve


def logistic(x: torch.Tensor, y: torch.Tensor, *, ridge: float) -> torch.Tensor:
    """Weights of a ridge logistic regression, by Newton's method."""
    w = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(x @ w)
        g = x.T @ (p - y) / len(y) + ridge * w
        H = (x.T * (p * (1 - p))) @ x / len(y) + ridge * torch.eye(len(w), dtype=torch.float64)
        w = w - torch.linalg.solve(H, g)
    return w


def loss(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y, reduction="none")


def gradients(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> Gradients:
    ids = tuple(f"r{at}" for at in range(len(y)))
    G = ((torch.sigmoid(x @ w) - y)[:, None] * x).float()
    return Gradients(ids, loss(x, y, w), torch.ones(len(y), dtype=torch.long), G)


def problem(rows: int, judges: int, flipped: int = 0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    true = torch.randn(5, generator=draw, dtype=torch.float64)
    x = torch.randn(rows + judges, 5, generator=draw, dtype=torch.float64)
    y = (torch.rand(rows + judges, generator=draw, dtype=torch.float64) < torch.sigmoid(2 * x @ true)).double()
    y[:flipped] = 1 - y[:flipped]
    return x[:rows], y[:rows], x[rows:], y[rows:]


def test_it_foretells_what_leaving_a_row_out_changes() -> None:
    x, y, xv, yv = problem(120, 200, flipped=12)
    w = logistic(x, y, ridge=1e-3)
    found = influence(gradients(x, y, w), gradients(xv, yv, w), damping=1e-2)
    before = float(loss(xv, yv, w).mean())
    truth = []
    for left_out in range(len(y)):
        keep = torch.arange(len(y)) != left_out
        truth.append(before - float(loss(xv, yv, logistic(x[keep], y[keep], ridge=1e-3)).mean()))
    both = torch.stack([found.harm, torch.tensor(truth, dtype=torch.float64)])
    assert float(torch.corrcoef(both)[0, 1]) > 0.9
    # The rows that were flipped hurt.
    worst = found.harm.argsort(descending=True)[:20].tolist()
    assert sum(at < 12 for at in worst) >= 6 and float(found.harm[:12].mean()) > 3 * float(found.harm[12:].abs().mean())
    assert found.agreement > 0.5 and bool((found.leverage > 0).all())


def test_flipped_answers_are_doubted_more_than_their_loss_tells() -> None:
    found, plain = [], []
    for seed in range(4):
        x, y, xv, yv = problem(200, 60, flipped=20, seed=seed)
        w = logistic(x, y, ridge=1e-3)
        learned = gradients(x, y, w)
        for scores, into in ((influence(learned, gradients(xv, yv, w)).doubt, found), (learned.losses, plain)):
            into.append(sum(at < 20 for at in scores.argsort(descending=True)[:20].tolist()))
    assert sum(found) >= sum(plain) and sum(found) >= 4 * 10


def test_doubt_of_sure_answers_and_of_long_ones_is_finite() -> None:
    draw = torch.Generator().manual_seed(0)
    G = torch.randn(40, 6, generator=draw)
    G[:10] *= 1e-7
    losses = torch.cat([torch.full((10,), 1e-9), torch.full((30,), 80.0)]).double()
    some = Gradients(tuple(map(str, range(40))), losses, torch.full((40,), 60), G)
    found = influence(some, some)
    assert bool(torch.isfinite(found.doubt).all()) and bool((found.doubt >= 0).all())
    assert float(found.doubt[:10].max()) < float(found.doubt[10:].median())


def test_few_validation_rows_say_so() -> None:
    x, y, xv, yv = problem(60, 9)
    w = logistic(x, y, ridge=1e-3)
    with pytest.raises(DataError, match="9 validation rows are too few to say which rows hurt; give 10 or more"):
        influence(gradients(x, y, w), gradients(xv, yv, w))


def test_judges_that_are_noise_do_not_agree() -> None:
    x, y, _, _ = problem(300, 40)
    w = logistic(x, y, ridge=1e-3)
    draw = torch.Generator().manual_seed(1)
    noise = Gradients(tuple(map(str, range(40))), torch.ones(40), torch.ones(40), torch.randn(40, 5, generator=draw))
    found = influence(gradients(x, y, w), noise)
    assert found.agreement < 0.5


def test_rows_wanted_follow_spearman_and_brown() -> None:
    assert rows_wanted(0.25, 30) == 90  # three times as many: 3r / (1 + 2r) = 0.5
    assert rows_wanted(0.0, 30) is None and rows_wanted(-0.4, 30) is None


@settings(max_examples=25, deadline=None)
@given(rows=some.integers(1, 30), numbers=some.integers(1, 30), seed=some.integers(0, 99))
def test_both_ways_of_solving_are_the_dense_one(rows: int, numbers: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    G = torch.randn(rows, numbers, generator=draw, dtype=torch.float64)
    right = torch.randn(3, numbers, generator=draw, dtype=torch.float64)
    ridge = 0.3 * float(G.square().sum()) / rows / numbers
    H = G.T @ G / rows + ridge * torch.eye(numbers, dtype=torch.float64)
    assert torch.allclose(solve(G, right, 0.3), torch.linalg.solve(H, right.T).T, atol=1e-8)
