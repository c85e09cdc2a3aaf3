"""Baking: an adapter learns, without an instruction, the distributions that the base gives with it.

A teacher's distribution at each token of its answer is kept as its `k` likeliest tokens and the rest as one; the loss
is the divergence KL(teacher ‖ student) over these k + 1 parts, a lower bound of that over all tokens (context
distillation: Snell, Klein & Zhong, 2022, arXiv 2209.15189). Runs stop, resume and choose as supervised ones do. Knows
nothing of where answers come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import UsageError
from whit.training.batching import Batch, collate
from whit.training.loop import Trained
from whit.training.sft import Plan, Progress, Supervised, logits_of

TOP = 20
_ROWS = 16  # of a teacher's batch: what they share, the instruction, is computed once


@dataclass(frozen=True)
class Distributions:
    """A teacher's distributions at the tokens of one answer: `ids` and `logs` (log probabilities), (tokens, k)."""

    ids: torch.Tensor
    logs: torch.Tensor


def distributions(
    base: Base,
    rows: Sequence[Encoded],
    *,
    top: int = TOP,
    same: Sequence[Distributions] | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[Distributions]:
    """What the base expects, with whatever is active, at each token of the rows' answers; in the order of `rows`.

    Of its likeliest tokens, or of those that `same` tells of.
    """
    found: list[Distributions | None] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].prompt_ids) + len(rows[at].completion_ids))
    for start in range(0, len(order), _ROWS):
        places = order[start : start + _ROWS]
        with torch.inference_mode():
            logs = logits_of(base, collate([rows[at] for at in places])).float().log_softmax(-1)
            if same is None:
                best = logs.topk(min(top, logs.shape[-1]))
                chosen, values = best.indices, best.values
            else:
                chosen = torch.cat([same[at].ids for at in places]).to(logs.device)
                values = logs.gather(-1, chosen)
        sizes = [len(rows[at].completion_ids) for at in places]
        parts = zip(chosen.cpu().split(sizes), values.cpu().split(sizes), strict=True)
        for at, (ids, values) in zip(places, parts, strict=True):
            found[at] = Distributions(ids.clone(), values.clone())
        if on_done:
            on_done(start + len(places))
    return [one for one in found if one is not None]


def mean_of(told: Sequence[Distributions]) -> Distributions:
    """The mean of several teachers' probabilities, which tell of the same tokens."""
    logs = torch.stack([one.logs for one in told])
    return Distributions(told[0].ids, logs.logsumexp(0) - math.log(len(told)))


def divergence(logits: torch.Tensor, teacher: Distributions) -> torch.Tensor:
    """KL(teacher ‖ student) at each token, (tokens,), in nats, over the teacher's k tokens and the rest as one."""
    student = logits.float().log_softmax(-1)
    logs = teacher.logs.to(logits.device)
    mine = student.gather(-1, teacher.ids.to(logits.device))
    told = (logs.exp() * (logs - mine)).sum(-1)
    rest, my_rest = (_rest(part) for part in (logs, mine))
    return told + rest.exp() * (rest - my_rest)


def _rest(logs: torch.Tensor) -> torch.Tensor:
    """The logarithm of what the k probabilities leave, never below that of 1e-7."""
    return torch.log((1 - logs.exp().sum(-1)).clamp_min(1e-7))


def distil(
    base: Base,
    bound: Bound,
    rows: Sequence[Encoded],
    teacher: Sequence[Distributions],
    plan: Plan,
    score: Callable[[], float],
    *,
    watch: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train `bound` so that on `rows` it expects what `teacher` does; row i's distributions are `teacher[i]`.

    Raises `TrainingError` (NaN, nothing to learn from) and `Interrupted`; state is saved first.
    """
    return _Distillation(base, bound, rows, teacher, plan, score, watch or (lambda progress: None)).go()


class _Distillation(Supervised):
    """A supervised run with the divergence as its loss."""

    def __init__(
        self,
        base: Base,
        bound: Bound,
        rows: Sequence[Encoded],
        teacher: Sequence[Distributions],
        plan: Plan,
        score: Callable[[], float],
        watch: Callable[[Progress], None],
    ) -> None:
        if plan.optimizer != "adam":
            raise UsageError(f"--optimizer {plan.optimizer} does not learn distributions; use adam")
        super().__init__(base, bound, rows, plan, score, watch)
        self.teacher = {row.row.id: one for row, one in zip(rows, teacher, strict=True)}

    def accumulate(
        self, part: Batch, targets: int, rows: int, gradients: list[torch.Tensor]
    ) -> tuple[float, list[str]]:
        """Add one part's gradient; its share of the step's mean divergence, and the rows where it is not finite."""
        told = [self.teacher[name] for name in part.rows]
        together = Distributions(torch.cat([one.ids for one in told]), torch.cat([one.logs for one in told]))
        with self.bound.active():
            each = divergence(logits_of(self.base, part), together)
            (each.sum() / targets).backward()
        bad = ~torch.isfinite(each.detach()).cpu()
        return float(each.detach().sum()) / targets, [part.rows[at] for at in part.at[bad, 0].unique().tolist()]
