"""The weights of a sparse adapter are chosen for what they do to the loss, and training moves those alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from whit.adapters.sparse import SparseSpec
from whit.adapters.targets import Target, all_targets
from whit.adapters.tunable import BoundSparse, tune_sparse
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import Interrupted, TrainingError, UsageError
from whit.training.batching import collate
from whit.training.evolution import train_evolution
from whit.training.grpo import group_losses, train_grpo
from whit.training.reward import RewardPlan, RewardProgress
from whit.training.sft import Plan, Progress, loss_of, train
from whit.training.sparse import find_places

Encode = Callable[[int], list[Encoded]]


def targets_of(base: Base) -> tuple[Target, ...]:
    return all_targets(name for name, _ in base.model.named_modules())


def losses_of(base: Base, rows: list[Encoded]) -> list[Callable[[], torch.Tensor]]:
    def mean(part: list[Encoded]) -> torch.Tensor:
        return loss_of(base, collate(part)).mean()

    return [functools.partial(mean, rows[at : at + 8]) for at in range(0, len(rows), 8)]


def trained_loss(base: Base, rows: list[Encoded], spec: SparseSpec) -> float:
    """The loss after a short run over these places."""
    bound = tune_sparse(base, spec, number_type="float32")
    try:
        plan = Plan(epochs=8, batch=8, learning_rate=0.05, evaluations=1)
        kept = train(base, bound, rows, plan, lambda: 0.0).adapter
        bound.load(kept)
        with torch.no_grad(), bound.active():
            return float(loss_of(base, collate(rows)).mean())
    finally:
        bound.detach()


def test_the_places_that_are_found_lower_the_loss_more_than_others(base: Base, encode: Encode) -> None:
    rows, targets = encode(32), targets_of(base)
    spec = find_places(base, targets, 13, losses_of(base, rows), rate=0.05)
    assert spec.numbers == 13
    sizes = {target.index: base.model.get_submodule(target.name).weight.numel() for target in targets}
    assert all(place % spec.stride < sizes[place // spec.stride] for place in spec.places)
    with torch.no_grad():
        before = float(loss_of(base, collate(rows)).mean())
    draw = np.random.default_rng(0)
    others = []
    for _ in range(3):
        chosen = [targets[at] for at in draw.integers(len(targets), size=13)]
        places = {each.index * spec.stride + int(draw.integers(sizes[each.index])) for each in chosen}
        others.append(trained_loss(base, rows, SparseSpec(spec.stride, tuple(sorted(places)))))
    found = trained_loss(base, rows, spec)
    assert before - found > 1.2 * (before - min(others)) and before - found > 2 * (before - np.mean(others))


def test_the_same_losses_give_the_same_places_within_the_targets(base: Base, encode: Encode) -> None:
    rows, told = encode(16), list[tuple[int, int]]()
    some = tuple(target for target in targets_of(base) if target.projection in ("o_proj", "down_proj"))
    found = [
        find_places(base, some, 5, losses_of(base, rows), rate=0.05, on_round=lambda *at: told.append(at))
        for _ in range(2)
    ]
    assert found[0] == found[1] and {*found[0].targets} <= {target.index for target in some}
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2
    # All the weights there are: nothing is left to choose.
    one = some[:1]
    whole = base.model.get_submodule(one[0].name).weight.numel()
    assert find_places(base, one, whole, losses_of(base, rows), rate=0.05).numbers == whole


def test_what_cannot_be_chosen_is_told(base: Base, encode: Encode) -> None:
    targets, losses = targets_of(base), losses_of(base, encode(8))
    weights = sum(base.model.get_submodule(target.name).weight.numel() for target in targets)
    for numbers in (0, weights + 1):
        with pytest.raises(UsageError, match=r"has 1 to [\d,]+"):
            find_places(base, targets, numbers, losses, rate=0.05)
    with pytest.raises(TrainingError, match="nothing to tell"):
        find_places(base, targets, 3, [], rate=0.05)
    with pytest.raises(TrainingError, match="NaN or infinite"):
        find_places(base, targets, 3, [lambda: losses[0]() * float("nan")], rate=0.05)
    with pytest.raises(TrainingError, match="every gradient is zero"):
        find_places(base, targets, 3, [lambda: losses[0]() * 0], rate=0.05)


def _spec(base: Base) -> SparseSpec:
    stride = max(base.model.get_submodule(target.name).weight.numel() for target in targets_of(base))
    down = next(target for target in targets_of(base) if target.projection == "down_proj")
    return SparseSpec(stride, tuple(down.index * stride + 7 * at for at in range(12)))


@pytest.mark.parametrize("optimizer", ["adam", "grpo", "dr-grpo", "es"])
def test_stopped_and_resumed_it_ends_in_the_same_bits(
    base: Base, encode: Encode, tmp_path: Path, optimizer: str
) -> None:
    from whit.rewards.reward import Grade

    class Letters:
        name = "letters"

        def grade(self, answers: list[str], rows: list[object]) -> list[Grade]:
            shares = [sum(answer.encode()) % 101 / 100 for answer in answers]  # any change of an answer tells
            return [Grade(share, 0.0, 0.0, 1.0) for share in shares]

    rows, path = encode(12), tmp_path / "run.safetensors"

    def go(checkpoint: Path | None, stop: int = 0) -> np.ndarray:
        def watch(progress: Progress | RewardProgress) -> None:
            if progress.step == stop:
                raise KeyboardInterrupt

        bound = tune_sparse(base, _spec(base))
        try:
            if optimizer == "adam":
                plan = Plan(epochs=2, batch=4, learning_rate=0.1, evaluations=2, run="k", checkpoint=checkpoint)
                train(base, bound, rows, plan, lambda: 0.0, watch=watch)
            else:
                kind = train_evolution if optimizer == "es" else train_grpo
                by_reward = RewardPlan(
                    steps=6, batch=4, learning_rate=0.1, most=4, samples=4, population=4, sigma=8.0, evaluations=2,
                    optimizer=optimizer, run="k", checkpoint=checkpoint,
                )  # fmt: skip
                kind(base, bound, rows, Letters(), by_reward, lambda: 0.0, watch=watch)  # type: ignore[arg-type]
            return bound.vector()
        finally:
            bound.detach()

    whole = go(None)
    assert np.abs(whole).max() > 0
    with pytest.raises(Interrupted, match="step 3 of 6"):
        go(path, stop=3)
    assert np.array_equal(go(path), whole)


def test_by_reward_the_policys_gradient_chooses(base: Base, encode: Encode) -> None:
    from whit.rewards.reward import Grade

    class Letters:
        name = "letters"

        def __init__(self, same: bool) -> None:
            self.same = same

        def grade(self, answers: list[str], rows: list[object]) -> list[Grade]:
            return [Grade(0.5 if self.same else float(len(answer) % 2), 0.0, 0.0, 1.0) for answer in answers]

    plan = RewardPlan(steps=6, batch=4, learning_rate=0.1, most=4, samples=4)
    losses = group_losses(base, encode(6), Letters(False), plan)  # type: ignore[arg-type]
    assert losses and find_places(base, targets_of(base), 5, losses, rate=0.05).numbers == 5
    with pytest.raises(TrainingError, match="no weight can be chosen"):
        group_losses(base, encode(6), Letters(True), replace(plan, optimizer="dr-grpo"))  # type: ignore[arg-type]


def test_the_kinds_bound_is_a_vector_like_the_others(base: Base) -> None:
    bound = tune_sparse(base, _spec(base))
    assert isinstance(bound, BoundSparse) and bound.numbers == 12 and bound.parameters() == [bound.v]
    bound.detach()
