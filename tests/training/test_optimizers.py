"""The optimisers against their definitions: torch's Adam, and the natural gradient written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from whit.training.optimizers import Adam, NaturalGradient, schedule


def gradients(steps: int, sizes: list[tuple[int, ...]], scale: float) -> list[list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [[scale * torch.randn(size, generator=draw) for size in sizes] for _ in range(steps)]


@pytest.mark.parametrize("scale", [0.01, 10.0], ids=["within the clip", "clipped"])
def test_adam_is_torchs_with_the_norm_clipped(scale: float) -> None:
    sizes = [(5,), (2, 3)]
    ours, theirs = ([nn.Parameter(torch.ones(size)) for size in sizes] for _ in range(2))
    optimizer, reference = Adam(ours), torch.optim.Adam(theirs, lr=1.0, betas=(0.9, 0.99))
    for step, parts in enumerate(gradients(6, sizes, scale)):
        norm = math.sqrt(sum(float(part.square().sum()) for part in parts))
        for parameter, other, part in zip(ours, theirs, parts, strict=True):
            parameter.grad = part.clone()
            other.grad = part * min(1.0, 1.0 / (norm + 1e-6))
        rate = 0.1 / (step + 1)
        reference.param_groups[0]["lr"] = rate
        optimizer.step(rate, None)
        reference.step()
    for parameter, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)


def test_adam_goes_on_from_its_state_to_the_same_bits() -> None:
    sizes = [(4,), (3, 2)]
    parts = gradients(8, sizes, 1.0)

    def run(parameters: list[nn.Parameter], optimizer: Adam, some: list[list[torch.Tensor]]) -> None:
        for step in some:
            for parameter, part in zip(parameters, step, strict=True):
                parameter.grad = part.clone()
            optimizer.step(0.01, None)

    whole = [nn.Parameter(torch.ones(size)) for size in sizes]
    run(whole, Adam(whole), parts)
    first = [nn.Parameter(torch.ones(size)) for size in sizes]
    before = Adam(first)
    assert before.state() == {}
    run(first, before, parts[:3])
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    after = Adam(second)
    after.load(before.state())
    run(first, before, parts[3:])  # the saved state is a copy: going on here must not change it
    run(second, after, parts[3:])
    assert all(torch.equal(one, other) for one, other in zip(whole, second, strict=True))


def natural(
    G: list[np.ndarray], rate: float, *, memory: float, damping: float, momentum: float, trust: float
) -> np.ndarray:
    """The textbook's step, with numpy: v ← v − rate · (F + λI)⁻¹ g, F and g bias-corrected running means."""
    size = G[0].shape[1]
    v, F, g = np.ones(size), np.zeros((size, size)), np.zeros(size)
    for count, rows in enumerate(G, 1):
        F = memory * F + (1 - memory) * sum(np.outer(row, row) for row in rows) / len(rows)
        g = momentum * g + (1 - momentum) * rows.mean(axis=0)
        fisher, mean = F / (1 - memory**count), g / (1 - momentum**count)
        damped = fisher + damping * np.trace(fisher) / size * np.eye(size)
        move = np.linalg.inv(damped) @ mean
        length = math.sqrt(move @ fisher @ move)
        v = v - rate * move * min(1.0, trust / length)
    return v


@pytest.mark.parametrize("trust", [100.0, 0.2], ids=["free", "cut back"])
def test_natural_gradient_is_the_textbooks(trust: float) -> None:
    draw = np.random.default_rng(0)
    G = [draw.normal(size=(7, 3)) * (1, 5, 0.2) + (0.3, 0.1, 0) for _ in range(5)]
    v = nn.Parameter(torch.ones(3, dtype=torch.float64))
    settings = {"memory": 0.9, "damping": 0.05, "momentum": 0.8, "trust": trust}
    optimizer = NaturalGradient([v], **settings)
    for rows in G:
        optimizer.step(0.3, torch.from_numpy(rows))
    np.testing.assert_allclose(v.detach().numpy(), natural(G, 0.3, **settings), rtol=1e-9)


def test_natural_gradient_goes_on_from_its_state() -> None:
    draw = torch.Generator().manual_seed(0)
    G = [torch.randn(6, 4, generator=draw) for _ in range(6)]
    whole = nn.Parameter(torch.zeros(4))
    optimizer = NaturalGradient([whole])
    for rows in G:
        optimizer.step(0.1, rows)
    first = nn.Parameter(torch.zeros(4))
    before = NaturalGradient([first])
    for rows in G[:2]:
        before.step(0.1, rows)
    second = nn.Parameter(first.detach().clone())
    after = NaturalGradient([second])
    after.load(before.state())
    for rows in G[2:]:
        before.step(0.1, rows)
        after.step(0.1, rows)
    assert torch.equal(whole, second) and torch.equal(whole, first)


def test_natural_gradient_needs_each_rows_gradient() -> None:
    with pytest.raises(ValueError, match="each row"):
        NaturalGradient([nn.Parameter(torch.zeros(2))]).step(0.1, None)


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(one > other for one, other in itertools.pairwise(rates[10:]))
    assert rates[10] == 1.0 and rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[55] == pytest.approx(0.55)
    assert schedule(0, 1, 0.0) == 1.0 and schedule(500, 100, 0.1) == pytest.approx(0.1)
