"""One vector for each user, trained in one run: v_user = v_shared + w(n) d_user.

First the shared vector is trained on everyone's rows; then, with it held, rows of many users share batches and each
row's gradient goes to its own user's d. How far d counts is chosen on validation: w(n) = n / (n + k) for a user with n
rows, with k from `SHRINKAGES` (the form of an empirical-Bayes estimate; k = infinity is the shared adapter for all). A
user with few rows stays near the shared vector, one with none has it.

Optionally the directions come first: P, drawn at random otherwise, is trained on everybody's rows together with a
vector for each user, one of whose numbers begins alike for all; then it is rounded as it is stored and held. The two
phases above then begin at the mean of these vectors and at what each user's differs from it. Adapters of upper layers
alone cost as much as those layers (see `upper.py`), and those that act on answers alone as much as the answers (see
`answering.py`). Knows nothing of splits, verdicts or files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from whit.adapters.learned import LearnedBasis
from whit.adapters.tunable import BoundBasis, BoundVector
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import TrainingError
from whit.training.answering import PROPOSED, AnswerPasses
from whit.training.batching import named, order, steps_in
from whit.training.optimizers import schedule
from whit.training.upper import Passes, lowest_layer

SHRINKAGES = (0.0, 2.0, 8.0, 32.0, 128.0, math.inf)
_BETAS, _EPSILON, _CLIP = (0.9, 0.99), 1e-8, 1.0


@dataclass(frozen=True)
class PersonalPlan:
    """How a run proceeds: passes over the rows for the shared vector and for the users', rows a step, peak rates.

    `basis_epochs` above 0 are passes in which P is learned first, at `basis_rate`; with `answers_only`, for adapters
    that act on answers alone.
    """

    basis_epochs: float = 0.0
    basis_rate: float = 2e-2
    shared_epochs: float = 3.0
    epochs: float = 3.0
    batch: int = 16
    learning_rate: float = 1e-2
    personal_rate: float = 1e-2
    warmup: float = 0.1
    seed: int = 0
    answers_only: bool = False


@dataclass(frozen=True)
class Personal:
    """What was trained: `shared` (numbers,), `own` (users, numbers) unshrunk, and the shrinkage k that was chosen.

    `losses` is the mean validation loss of an answer's token, in nats, for each k that was tried. `basis` is what was
    learned for them all to move along, where it was.
    """

    users: tuple[str, ...]
    rows: tuple[int, ...]
    shared: NDArray[np.float32]
    own: NDArray[np.float32]
    shrinkage: float
    losses: Mapping[float, float]
    steps: int
    seconds: float
    basis: LearnedBasis | None = None

    def vector(self, user: str) -> NDArray[np.float32]:
        """A user's vector; the shared one for a user who was not there."""
        if user not in self.users:
            return self.shared
        place = self.users.index(user)
        own = np.float32(weight(self.rows[place], self.shrinkage)) * self.own[place]
        vector: NDArray[np.float32] = (self.shared + own).astype(np.float32)
        return vector


def weight(rows: int, shrinkage: float) -> float:
    """How far the own part of a user with so many rows counts: n / (n + k)."""
    return 0.0 if rows == 0 or math.isinf(shrinkage) else rows / (rows + shrinkage)


def train_personal(
    base: Base,
    bound: BoundVector,
    rows: Sequence[Encoded],
    users: Sequence[str],
    validation: Sequence[Encoded],
    validation_users: Sequence[str],
    plan: PersonalPlan,
    *,
    watch: Callable[[str, int, int, float], None] | None = None,
) -> Personal:
    """Train on `rows`, row i being of `users[i]`; `watch(phase, step, steps, loss)` is told of every step.

    Raises `TrainingError` where there is nothing to learn from, or the loss becomes NaN or infinite.
    """
    if not rows or not validation:
        raise TrainingError("personal training needs rows to learn from and rows to choose the shrinkage by")
    began = time.monotonic()
    names = tuple(sorted(set(users)))
    place = {name: at for at, name in enumerate(names)}
    whose = torch.tensor([place[user] for user in users])
    tell = watch or (lambda phase, step, steps, loss: None)
    device = bound.v.device
    shared = torch.zeros(1, bound.numbers, device=device)
    own = torch.zeros(len(names), bound.numbers, device=device)
    learned, zeroth = None, 0
    passes, check = _passes(base, bound, rows, validation, plan)
    if plan.basis_epochs > 0:
        if not isinstance(bound, BoundBasis):
            raise TrainingError("only tiny adapters move along a basis that can be learned")
        learned, zeroth = _learn_basis(bound, passes, whose, own, plan, tell)
        shared += own.mean(0)
    first = _descend(bound, passes, None, shared, None, plan.shared_epochs, plan.learning_rate, plan, "shared", tell)
    if learned is not None:
        own -= shared
    second = _descend(bound, passes, whose, own, shared, plan.epochs, plan.personal_rate, plan, "personal", tell)
    counts = tuple(int(count) for count in torch.bincount(whose, minlength=len(names)))
    losses: dict[float, float] = {}
    for k in SHRINKAGES:
        vectors = torch.stack(
            [
                shared[0] + weight(counts[place[user]], k) * own[place[user]] if user in place else shared[0]
                for user in validation_users
            ]
        )
        losses[k] = mean_loss(bound, check, vectors, plan.batch)
    # Among equals the stronger shrinkage: what was not shown to help is left out.
    best = min(reversed(SHRINKAGES), key=lambda k: losses[k])
    return Personal(
        names, counts, shared[0].cpu().numpy(), own.cpu().numpy(), best, losses, zeroth + first + second,
        time.monotonic() - began, learned,
    )  # fmt: skip


def _passes(
    base: Base,
    bound: BoundVector,
    rows: Sequence[Encoded],
    validation: Sequence[Encoded],
    plan: PersonalPlan,
) -> tuple[Passes | AnswerPasses, Passes | AnswerPasses]:
    """Those to learn from, and those to choose by."""
    first = lowest_layer(bound)
    if not plan.answers_only:
        return Passes(base, rows, first=first), Passes(base, validation, first=first)
    if plan.basis_epochs <= 0 or not isinstance(bound, BoundBasis):
        raise TrainingError("a basis says that its adapters act on answers alone, so one must be learned")
    both = AnswerPasses(base, bound, [*rows, *validation], first=first, proposed=PROPOSED)
    return both.part(range(len(rows))), both.part(range(len(rows), len(rows) + len(validation)))


def mean_loss(bound: BoundVector, passes: Passes | AnswerPasses, vectors: torch.Tensor, batch: int) -> float:
    """Mean cross-entropy of an answer's token, in nats; row i with `vectors[i]`."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for at in range(0, len(vectors), batch):
            some = range(at, min(at + batch, len(vectors)))
            with bound.rows(vectors[at : at + batch]):
                losses, _ = passes.losses(some)
            total, count = total + float(losses.sum()), count + len(losses)
    return total / count


def _learn_basis(
    bound: BoundBasis,
    passes: Passes | AnswerPasses,
    whose: torch.Tensor,
    table: torch.Tensor,
    plan: PersonalPlan,
    tell: Callable[[str, int, int, float], None],
) -> tuple[LearnedBasis, int]:
    """Train P together with the users' vectors in `table`, and let `bound` move along it; how many steps.

    What all want alike is learned first: each group's first number begins at 1 for everyone, along a P that begins at
    nought, so that every row moves it from the first step on. The other numbers begin at nought, along the drawn P.
    """
    drawn = bound.expansion.projection
    if drawn is None:
        raise TrainingError("only tiny adapters move along a basis that can be learned; name their size with --numbers")
    P = drawn.clone()
    P[:, 0] = 0.0
    table[:, :: bound.spec.u] = 1.0
    P.requires_grad_(True)
    bound.expansion.projection = P
    adam = torch.optim.Adam([P], lr=plan.basis_rate, betas=_BETAS, eps=_EPSILON)

    def also(share: float) -> None:
        # Many users push it at once: a step is as large as the schedule says, whoever was in the batch.
        torch.nn.utils.clip_grad_norm_([P], _CLIP)
        adam.param_groups[0]["lr"] = plan.basis_rate * share
        adam.step()
        adam.zero_grad(set_to_none=True)

    try:
        steps = _descend(
            bound, passes, whose, table, None, plan.basis_epochs, plan.personal_rate, plan, "basis", tell, also=also
        )
        values = P.detach().cpu().numpy()
        learned = LearnedBasis.of(bound.spec, bound.basis, values, answers_only=plan.answers_only)
    except BaseException:
        bound.expansion.projection = drawn
        raise
    bound.expansion.projection = torch.from_numpy(learned.P.copy()).to(drawn.device)
    bound.basis = learned.on(bound.basis)
    return learned, steps


def _descend(
    bound: BoundVector,
    passes: Passes | AnswerPasses,
    whose: torch.Tensor | None,
    table: torch.Tensor,
    under: torch.Tensor | None,
    epochs: float,
    rate: float,
    plan: PersonalPlan,
    phase: str,
    tell: Callable[[str, int, int, float], None],
    *,
    also: Callable[[float], None] | None = None,
) -> int:
    """Adam on the rows of `table` that a batch is about (`whose[i]` is row i's place in it; None: the one that there
    is); how many steps.

    Each place has its own moments and its own count of steps, so that a user who comes seldom moves as one who comes
    often would with as many rows; `under` is added to every vector and held. `also` is called after each backward pass
    with the share of the rate that the schedule gives.
    """
    moments, squares = torch.zeros_like(table), torch.zeros_like(table)
    turns = torch.zeros(len(table), 1, device=table.device)
    rows = passes.rows
    steps, per_epoch = steps_in(len(rows), plan.batch, epochs), math.ceil(len(rows) / plan.batch)
    turn: list[list[int]] = []
    for step in range(steps):
        epoch, within = divmod(step, per_epoch)
        if within == 0:
            turn = order(passes.lengths, plan.batch, seed=plan.seed, epoch=epoch)
        places = turn[within]
        mine = (
            torch.zeros(1, dtype=torch.long, device=table.device) if whose is None else whose[places].to(table.device)
        )
        each = table[mine] if under is None else table[mine] + under
        each = each.detach().requires_grad_(True)
        with bound.using(each[0] if whose is None else each):
            losses, batch = passes.losses(places, shared=whose is None)
        loss = losses.sum() / len(batch.wanted)
        # The mean over a batch would make a row's push depend on who else is in it.
        (losses.sum() * len(mine) / len(batch.wanted)).backward()
        assert each.grad is not None
        if not math.isfinite(float(loss.detach())) or not bool(torch.isfinite(each.grad).all()):
            raise TrainingError(
                f"the loss became infinite or NaN at step {step + 1} ({phase}), on rows {named(batch.rows, rows)}; "
                "look at those rows, or lower --learning-rate"
            )
        share = schedule(step, steps, plan.warmup)
        _adam(table, moments, squares, turns, mine, each.grad, rate * share)
        if also is not None:
            also(share)
        tell(phase, step + 1, steps, float(loss.detach()))
    return steps


def _adam(
    table: torch.Tensor,
    moments: torch.Tensor,
    squares: torch.Tensor,
    turns: torch.Tensor,
    mine: torch.Tensor,
    gradients: torch.Tensor,
    rate: float,
) -> None:
    """One step of Adam (Kingma & Ba, 2015) for the places in `mine`, on the mean of their rows' gradients."""
    here, index = mine.unique(return_inverse=True)
    sums = torch.zeros(len(here), table.shape[1], device=table.device).index_add_(0, index, gradients)
    g = sums / torch.bincount(index, minlength=len(here))[:, None]
    g = g * (_CLIP / g.norm(dim=1, keepdim=True).clamp(min=_CLIP))
    first, second = _BETAS
    turns[here] += 1
    moments[here] = first * moments[here] + (1 - first) * g
    squares[here] = second * squares[here] + (1 - second) * g * g
    m = moments[here] / (1 - first ** turns[here])
    s = squares[here] / (1 - second ** turns[here])
    table[here] -= rate * m / (s.sqrt() + _EPSILON)
