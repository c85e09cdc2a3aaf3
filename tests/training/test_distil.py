"""Baking's loss and runs: against torch's own divergence, learning what the teacher says, the same after a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as some

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import Interrupted, UsageError
from whit.training.batching import collate
from whit.training.distil import Distributions, distil, distributions, divergence
from whit.training.sft import Plan, Progress, logits_of

PLAN = Plan(epochs=6.0, batch=4, learning_rate=0.02, evaluations=3, patience=9)


@settings(max_examples=30, deadline=None)
@given(seed=some.integers(0, 99), top=some.integers(1, 12))
def test_the_divergence_is_a_lower_bound_and_exact_with_all_tokens(seed: int, top: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    told, mine = (2 * torch.randn(3, 12, generator=draw) for _ in range(2))
    whole = F.kl_div(mine.log_softmax(-1), told.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    best = told.log_softmax(-1).topk(top)
    found = divergence(mine, Distributions(best.indices, best.values))
    assert bool((found <= whole + 1e-4).all()) and bool((found >= -1e-4).all())
    if top == 12:
        assert torch.allclose(found, whole, atol=1e-4)
    same = divergence(told, Distributions(best.indices, best.values))
    assert float(same.abs().max()) < 1e-4


def test_distributions_are_the_bases_own_in_the_rows_order(base: Base, encode: Callable[..., list[Encoded]]) -> None:
    rows = encode(19)
    found = distributions(base, rows, top=5)
    assert [len(one.ids) for one in found] == [len(row.completion_ids) for row in rows]
    with torch.inference_mode():
        for row, one in zip(rows, found, strict=True):
            logs = logits_of(base, collate([row])).float().log_softmax(-1)
            assert torch.allclose(logs.gather(-1, one.ids), one.logs, atol=1e-4)
            assert torch.allclose(logs.topk(5).values, one.logs, atol=1e-4)


def teacher_of(rows: list[Encoded], vocabulary: int) -> list[Distributions]:
    """A teacher that is sure of the first token of each answer, and then of the next."""
    found = []
    for row in rows:
        ids = torch.tensor(row.completion_ids)[:, None]
        others = (ids + 1) % vocabulary
        found.append(
            Distributions(torch.cat([ids, others], 1), torch.log(torch.tensor([[0.9, 0.05]])).repeat(len(ids), 1))
        )
    return found


def test_it_learns_what_the_teacher_expects(
    base: Base, tune: Callable[..., Bound], encode: Callable[..., list[Encoded]]
) -> None:
    rows = encode(16)
    bound = tune("lora", rank=4)
    losses: list[float] = []

    def watch(progress: Progress) -> None:
        losses.append(progress.loss)

    plan = replace(PLAN, epochs=15.0, learning_rate=0.01)
    done = distil(base, bound, rows, teacher_of(rows, 320), plan, lambda: 0.5, watch=watch)
    assert done.steps == 60 and sum(losses[-4:]) < 0.75 * sum(losses[:4])


def test_a_stopped_run_goes_on_to_the_same_numbers(
    base: Base, tune: Callable[..., Bound], encode: Callable[..., list[Encoded]], tmp_path: Path
) -> None:
    rows = encode(12)
    teacher = teacher_of(rows, 320)
    plan = replace(PLAN, epochs=4.0, checkpoint=tmp_path / "run.safetensors", run="r")
    bound = tune("xs", rank=2)
    start = [parameter.detach().clone() for parameter in bound.parameters()]
    whole = distil(base, bound, rows, teacher, replace(plan, checkpoint=None), lambda: 0.5).adapter.vector

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise Interrupted("here")

    with torch.no_grad():
        for parameter, value in zip(bound.parameters(), start, strict=True):
            parameter.copy_(value)
    with pytest.raises(Interrupted):
        distil(base, bound, rows, teacher, plan, lambda: 0.5, watch=stop)
    again = distil(base, bound, rows, teacher, plan, lambda: 0.5).adapter.vector
    assert whole is not None and again is not None and (whole == again).all()


def test_other_optimisers_are_refused(
    base: Base, tune: Callable[..., Bound], encode: Callable[..., list[Encoded]]
) -> None:
    rows = encode(4)
    with pytest.raises(UsageError, match="natural does not learn distributions; use adam"):
        distil(base, tune("xs"), rows, teacher_of(rows, 320), replace(PLAN, optimizer="natural"), lambda: 0.5)
