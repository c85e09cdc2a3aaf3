"""Adapters in the engine and in transformers, the same numbers in both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from whit.adapters.basis import Basis
from whit.adapters.layer import Slots
from whit.adapters.targets import all_targets
from whit.adapters.vector import Expansion, VectorSpec


def basis_for(model: Any, rank: int, seed: int = 0) -> Basis:
    """Random directions: what the engine does with them does not depend on where they came from."""
    targets = all_targets(name for name, _ in model.named_modules())
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, rank, generator=generator).mul(0.3).to(torch.bfloat16)

    shapes = [model.get_submodule(target.name).weight.shape for target in targets]
    return Basis(
        rank=rank,
        targets=targets,
        outward=tuple(draw(shape[0]) for shape in shapes),
        inward=tuple(draw(shape[1]) for shape in shapes),
        base_fingerprint="ab" * 32,
    )


@contextlib.contextmanager
def vector_in(model: Any, basis: Basis, spec: VectorSpec, v: torch.Tensor) -> Iterator[None]:
    """The model with a vector adapter; gradients flow to `v`."""
    slots = Slots(model, basis, spec.targets)
    try:
        with slots.using(Expansion(spec)(v)):
            yield
    finally:
        slots.detach()


@contextlib.contextmanager
def lora_in(model: Any, targets: list[int], rank: int, scale: float, numbers: torch.Tensor) -> Iterator[None]:
    """The model with a LoRA from the engine's flat numbers: A (r x in), then Bᵀ (r x out), module by module."""
    hooks, at = [], 0
    chosen = [target for target in all_targets(name for name, _ in model.named_modules()) if target.index in targets]
    for target in chosen:
        linear = model.get_submodule(target.name)
        out, wide = linear.weight.shape
        A = numbers[at : at + rank * wide].reshape(rank, wide)
        B = numbers[at + rank * wide : at + rank * (wide + out)].reshape(rank, out)
        at += rank * (wide + out)

        def change(_: Any, inputs: Any, y: Any, A: Any = A, B: Any = B) -> Any:
            return y + scale * (inputs[0] @ A.T) @ B

        hooks.append(linear.register_forward_hook(change))
    assert at == len(numbers)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def random_numbers(count: int, seed: int, scale: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, scale, count).astype(np.float32)
