"""Optimisers for a handful of numbers: Adam, and the natural gradient that per-row gradients give for free.

Both keep their state in plain tensors, so that a checkpoint needs no pickle. Rates follow one schedule: a
linear rise, then a cosine fall to a tenth. Knows nothing of models or data.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import nn


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the peak rate at `step` (from 0): linear rise over `warmup`, cosine fall to 0.1."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Optimizer(Protocol):
    """A step from gradients, and a state that can be saved."""

    per_row: bool
    """Whether `step` wants each row's gradient, shape (rows, numbers), instead of `.grad`."""

    def step(self, rate: float, rows: torch.Tensor | None) -> None:
        """Move the parameters; `rate` is the learning rate of this step."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, besides the parameters."""
        ...

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved state."""
        ...


class Adam:
    """Adam (Kingma & Ba, 2015) with the gradient's norm clipped to `clip`; beta 0.9 and 0.99, no decay.

    A handful of numbers see large, noisy gradients; the shorter memory of 0.99 follows them sooner than 0.999.
    """

    per_row = False

    def __init__(self, parameters: list[nn.Parameter], *, clip: float = 1.0) -> None:
        self.parameters, self.clip = parameters, clip
        self._inner = torch.optim.Adam(parameters, lr=1.0, betas=(0.9, 0.99))

    def step(self, rate: float, rows: torch.Tensor | None) -> None:
        """One step from `.grad`."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self._inner.param_groups[0]["lr"] = rate
        self._inner.step()

    def state(self) -> dict[str, torch.Tensor]:
        """First and second moments and the count of steps."""
        found: dict[str, torch.Tensor] = {}
        for place, parameter in enumerate(self.parameters):
            for name, value in self._inner.state.get(parameter, {}).items():
                found[f"{place}.{name}"] = value.detach().clone()
        return found

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved state."""
        for key, value in state.items():
            place, _, name = key.partition(".")
            parameter = self.parameters[int(place)]
            # torch keeps the count of steps on the CPU, wherever the moments are.
            self._inner.state[parameter][name] = value.clone() if name == "step" else value.to(parameter.device).clone()


class NaturalGradient:
    """Natural gradient with the full empirical Fisher matrix of one vector (Amari, 1998).

    F is a running mean of gᵢ gᵢᵀ over rows i, where gᵢ is row i's gradient; the step is (F + damping · tr(F)/n · I)⁻¹ g
    with momentum, cut back so that its length in the metric F is at most `trust`.
    """

    per_row = True

    def __init__(
        self,
        parameters: list[nn.Parameter],
        *,
        memory: float = 0.98,
        damping: float = 0.1,
        momentum: float = 0.9,
        trust: float = 1.0,
    ) -> None:
        (self.v,) = parameters
        size = self.v.numel()
        self.memory, self.damping, self.momentum, self.trust = memory, damping, momentum, trust
        self.F = torch.zeros(size, size, dtype=torch.float64)
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    def step(self, rate: float, rows: torch.Tensor | None) -> None:
        """One step from the gradients of the batch's rows, shape (rows, numbers)."""
        if rows is None:
            raise ValueError("the natural gradient needs each row's gradient")
        G = rows.detach().to("cpu", torch.float64)
        self.count += 1
        self.F.mul_(self.memory).add_(G.T @ G / G.shape[0], alpha=1 - self.memory)
        self.mean.mul_(self.momentum).add_(G.mean(0), alpha=1 - self.momentum)
        F = self.F / (1 - self.memory**self.count)
        g = self.mean / (1 - self.momentum**self.count)
        ridge = self.damping * F.diagonal().mean() + 1e-30
        move = torch.linalg.solve(F + ridge * torch.eye(F.shape[0], dtype=F.dtype), g)
        length = torch.sqrt((move @ F @ move).clamp_min(0))
        move = move * torch.clamp(self.trust / (length + 1e-30), max=1.0)
        with torch.no_grad():
            self.v.sub_((rate * move).to(self.v.device, self.v.dtype))

    def state(self) -> dict[str, torch.Tensor]:
        """F, the mean gradient and the count of steps."""
        return {"F": self.F.clone(), "mean": self.mean.clone(), "count": self.count.clone()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved state."""
        self.F, self.mean, self.count = state["F"].clone(), state["mean"].clone(), state["count"].clone()
