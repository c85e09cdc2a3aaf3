"""Losses, gradients and steps against PyTorch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.adapters import basis_for, lora_in, random_numbers, vector_in
from tests.engine.models import Shape, write_model
from whit.adapters.vector import VectorSpec, tiny_spec, xs_spec
from whit.engine import Engine, write_basis
from whit.errors import TrainingError, UsageError

ROWS = [([1, 40, 300, 7], [7, 262, 91]), ([1, 12], [200, 33, 5, 9, 2]), ([1, 8, 9, 10, 11, 12], [2])]
ALL = list(range(14))
WEIGHTS = [0.5, 1.0, 0.25]


def torch_loss(model: Any, rows: Any, weights: Any) -> tuple[torch.Tensor, list[float]]:
    total, each = torch.zeros(()), []
    for (prompt, completion), weight in zip(rows, weights, strict=True):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum")
        total = total + weight * loss
        each.append(float(loss.detach()))
    return total, each


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> None:
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    "spec", [tiny_spec(ALL, 12, rank=2, groups=3, seed=7), xs_spec([0, 2, 5, 6, 8, 13], 2), tiny_spec([10], 3, seed=1)]
)
def test_gradients_of_vectors(engine: Any, tiny_file: Any, spec: VectorSpec) -> None:
    model, basis = tiny_file[1], basis_for(tiny_file[1], 2)
    engine.add_basis(write_basis(basis))
    handle = engine.vector_adapter(spec.kind, 2, spec.targets, spec.numbers, groups=spec.groups, seed=spec.seed)
    v = random_numbers(spec.numbers, seed=2)
    engine.set_numbers(handle, v)
    trainer = engine.trainer(handle)
    losses = trainer.learn(ROWS, WEIGHTS)
    leaf = torch.from_numpy(v).requires_grad_()
    with vector_in(model, basis, spec, leaf):
        total, each = torch_loss(model, ROWS, WEIGHTS)
        total.backward()
    np.testing.assert_allclose(losses, each, rtol=1e-4)
    np.testing.assert_allclose(trainer.losses(ROWS), losses, rtol=0, atol=0)
    close(trainer.state("gradient"), leaf.grad.numpy())


@pytest.mark.parametrize("targets", [ALL, [3, 6], [7, 11, 12]])
def test_gradients_of_lora(engine: Any, tiny_file: Any, targets: list[int]) -> None:
    handle = engine.lora_adapter(3, 6.0, targets)
    numbers = random_numbers(len(engine.numbers(handle)), seed=2, scale=0.1)
    engine.set_numbers(handle, numbers)
    trainer = engine.trainer(handle)
    losses = np.concatenate([trainer.learn([row], [weight]) for row, weight in zip(ROWS, WEIGHTS, strict=True)])
    leaf = torch.from_numpy(numbers).requires_grad_()
    with lora_in(tiny_file[1], targets, 3, 2.0, leaf):
        total, each = torch_loss(tiny_file[1], ROWS, WEIGHTS)
        total.backward()
    np.testing.assert_allclose(losses, each, rtol=1e-4)
    close(trainer.state("gradient"), leaf.grad.numpy())


def test_gradients_through_a_ternary_untied_base(tmp_path: Any, tokenizer_json: Any) -> None:
    from gguf import GGMLQuantizationType

    shape = Shape(dim=256, ffn=256, heads=4, kv_heads=1, layers=2, tied=False)
    model = write_model(tmp_path / "m.gguf", tokenizer_json, GGMLQuantizationType.TQ2_0, shape)
    engine = Engine.open(tmp_path / "m.gguf", variant="simd")
    handle = engine.lora_adapter(2, 2.0, ALL)
    numbers = random_numbers(len(engine.numbers(handle)), seed=2, scale=0.05)
    engine.set_numbers(handle, numbers)
    trainer = engine.trainer(handle)
    trainer.learn(ROWS, WEIGHTS)
    leaf = torch.from_numpy(numbers).requires_grad_()
    with lora_in(model, ALL, 2, 1.0, leaf):
        torch_loss(model, ROWS, WEIGHTS)[0].backward()
    close(trainer.state("gradient"), leaf.grad.numpy())


def test_steps_are_those_of_adamw(engine: Any) -> None:
    handle = engine.lora_adapter(2, 2.0, [0, 8])
    leaf = torch.from_numpy(engine.numbers(handle).copy()).requires_grad_()
    trainer = engine.trainer(handle, decay=0.01, clip=0.5, epsilon=1e-6)
    adam = torch.optim.AdamW([leaf], lr=0.01, weight_decay=0.01, eps=1e-6)
    for step in range(6):
        trainer.learn(ROWS)
        # The engine's own gradient: Adam divides by its size, so that rounding in a tiny one would show.
        leaf.grad = torch.from_numpy(trainer.state("gradient").copy())
        norm = torch.nn.utils.clip_grad_norm_([leaf], 0.5)
        adam.param_groups[0]["lr"] = 0.01 / (step + 1)
        adam.step()
        assert trainer.step(0.01 / (step + 1)) == pytest.approx(float(norm), rel=1e-5)
        np.testing.assert_allclose(engine.numbers(handle), leaf.detach().numpy(), rtol=0, atol=2e-6)
    assert trainer.steps == 6 and not trainer.state("gradient").any()


def test_training_learns_and_a_resumed_run_is_the_same(engine: Any, tiny_file: Any) -> None:
    first = engine.lora_adapter(4, 8.0, ALL, seed=3)
    trainer = engine.trainer(first)
    before = trainer.losses(ROWS).sum()
    for _ in range(10):
        trainer.learn(ROWS)
        trainer.step(0.01)
    state = trainer.state("mean"), trainer.state("square"), trainer.steps
    numbers = engine.numbers(first)
    for _ in range(10):
        trainer.learn(ROWS)
        trainer.step(0.01)
    assert trainer.losses(ROWS).sum() < 0.2 * before

    other = Engine.open(tiny_file[0])
    second = other.lora_adapter(4, 8.0, ALL)
    other.set_numbers(second, numbers)
    resumed = other.trainer(second)
    resumed.restore(*state)
    for _ in range(10):
        resumed.learn(ROWS)
        resumed.step(0.01)
    np.testing.assert_array_equal(other.numbers(second), engine.numbers(first))


def test_what_cannot_be_learnt_is_told_and_changes_nothing(engine: Any) -> None:
    handle = engine.lora_adapter(1, 1.0, [0])
    before = engine.numbers(handle)
    trainer = engine.trainer(handle)
    for rows in ([([], [1])], [([1], [])], [([1] * 250, [2] * 7)], [([1], [50_000])]):
        with pytest.raises(UsageError, match="row 0"):
            trainer.learn(rows)
    with pytest.raises(UsageError, match="whole numbers"):
        trainer.learn([([-1], [2])])
    trainer.learn(ROWS)
    with pytest.raises(TrainingError, match="not finite"):
        trainer.step(float("nan"))
    np.testing.assert_array_equal(engine.numbers(handle), before)
