"""GRPO: several answers to a prompt, each pushed by how much better than its fellows it was.

    A_i = (r_i - mean r) / (std r + eps)     group-normalised (Shao et al., arXiv 2402.03300)
    A_i = r_i - mean r                       Dr-GRPO (Liu et al., arXiv 2503.20783), with a constant in place of |o_i|
    loss = -1/N sum_i 1/|o_i| sum_t [min(rho A_i, clip(rho, 1-epsilon, 1+epsilon) A_i) - beta KL_t],   rho = pi / pi_old
    KL_t = pi_base / pi - log(pi_base / pi) - 1      an estimate of KL(pi || base) (Schulman, 2020: "k3")

beta is 0 unless asked for. Answers are drawn at temperature 1, the policy whose log-probabilities are followed. The
samples of a prompt are packed behind one copy of it (`whit.training.sft.loss_of`); a group in which all rewards are
equal has no advantages, and is computed only where there is a KL term. Works on every kind.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import TrainingError
from whit.rewards.reward import Grade, Reward
from whit.training.batching import Batch, collate, named
from whit.training.optimizers import Adam, schedule
from whit.training.reward import Rewarded, RewardLoop, RewardPlan, Watch, stride
from whit.training.rollouts import Rollout, roll_out
from whit.training.sft import loss_of

_EPSILON = 1e-4  # as TRL has it: keeps a group of nearly equal rewards from being blown up
LEARNING_RATES = {"tiny": 5e-2, "xs": 5e-2, "lora": 1e-3, "sparse": 5e-2}


def default_rate(base: Base, kind: str) -> float:
    """The peak rate where nobody says otherwise."""
    return LEARNING_RATES[kind] * stride(base)


def advantages(rewards: torch.Tensor, *, normalised: bool) -> torch.Tensor:
    """How much better than its group each answer was; shape (groups, samples), zero where a group is constant."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    flat = rewards.amax(dim=1, keepdim=True) - rewards.amin(dim=1, keepdim=True) <= 1e-9
    if normalised:
        centred = centred / (rewards.std(dim=1, keepdim=True) + _EPSILON)
    return torch.where(flat, torch.zeros_like(centred), centred)


def policy_loss(
    logp: torch.Tensor,
    old: torch.Tensor,
    batch: Batch,
    A: torch.Tensor,
    *,
    clip: float,
    length: int | None,
    anchor: tuple[float, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The sum over a batch's answers of the formula above; `logp` and `old` (targets,), `A` (answers,).

    An answer's tokens are divided by their number, or by `length` where that is given (Dr-GRPO). `anchor` is beta with
    the base's own log-probabilities (targets,).
    """
    answer = batch.at[:, 0].to(logp.device)
    each = A.to(logp.device)[answer]
    ratio = torch.exp(logp - old)
    gain = torch.minimum(ratio * each, ratio.clamp(1 - clip, 1 + clip) * each)
    if anchor is not None:
        beta, base = anchor
        gain = gain - beta * (torch.exp(base - logp) - (base - logp) - 1)
    tokens = torch.bincount(answer, minlength=len(A)).to(gain.dtype)
    share = tokens[answer] if length is None else torch.full_like(gain, float(length))
    return -(gain / share).sum()


@dataclass(frozen=True)
class Drawn:
    """Answers drawn to some prompts, and those groups of them that tell anything, each with its advantages.

    With a KL term every group tells something.
    """

    prompt: str
    found: Sequence[Rollout]
    grades: Sequence[Grade]
    batches: Sequence[tuple[Batch, torch.Tensor]]
    flat: float


def draw(
    base: Base, bound: Bound | None, rows: Sequence[Encoded], reward: Reward, plan: RewardPlan, *, step: int
) -> Drawn:
    """Draw `plan.samples` answers to each prompt with the adapter (None: the bare base) and grade them.

    What is drawn depends on `plan.seed` and `step` alone.
    """
    asked = [row for row in rows for _ in range(plan.samples)]
    found = roll_out(base, bound, [row.prompt_ids for row in asked], most=plan.most, seed=(plan.seed, step))
    grades = reward.grade([each.text for each in found], [row.row for row in asked])
    rewards = torch.tensor([grade.reward for grade in grades]).view(len(rows), plan.samples)
    A = advantages(rewards, normalised=_length(plan) is None)
    telling = [place for place in range(len(rows)) if bool(A[place].any())]
    batches = []
    for place in range(len(rows)) if plan.kl else telling:
        answers = found[place * plan.samples : (place + 1) * plan.samples]
        group = [Encoded(rows[place].row, rows[place].prompt_ids, answer.ids) for answer in answers]
        batches.append((collate(group), A[place]))
    return Drawn(rows[0].row.prompt, found, grades, batches, 1 - len(telling) / len(rows))


def group_losses(
    base: Base, rows: Sequence[Encoded], reward: Reward, plan: RewardPlan
) -> list[Callable[[], torch.Tensor]]:
    """For each group of the bare base's answers that tells anything, its loss as the model stands, a scalar.

    The gradient is the policy's: a sparse adapter's weights are chosen by it. Raises `TrainingError` where none tells.
    """
    drawn = draw(base, None, rows, reward, plan, step=(1 << 32) - 1)  # a step that no run comes to
    if not drawn.batches:
        raise TrainingError(
            f"to none of {len(rows)} prompts was one answer better than another, so no weight can be chosen; choose "
            "rows that the base sometimes gets right, or more --samples"
        )

    def loss(batch: Batch, A: torch.Tensor) -> torch.Tensor:
        logp = -loss_of(base, batch)
        return policy_loss(logp, logp.detach(), batch, A, clip=plan.clip, length=_length(plan)) / len(A)

    return [functools.partial(loss, batch, A) for batch, A in drawn.batches]


def _length(plan: RewardPlan) -> int | None:
    """The constant that Dr-GRPO has in place of an answer's length."""
    return plan.most if plan.optimizer == "dr-grpo" else None


def train_grpo(
    base: Base,
    bound: Bound,
    rows: Sequence[Encoded],
    reward: Reward,
    plan: RewardPlan,
    score: Callable[[], float],
    *,
    watch: Watch | None = None,
) -> Rewarded:
    """Train `bound` on the reward of its answers to `rows`; `score()` answers the validation rows.

    Raises `TrainingError`, `ScoreError` (a reward that fails) and `Interrupted`; the state is saved first.
    """
    return _Grpo(base, bound, rows, reward, plan, score, watch).run()


class _Grpo(RewardLoop):
    def prepare(self) -> None:
        """Adam."""
        self.optimizer = Adam(self.bound.parameters())

    def advance(self) -> None:
        """Draw, grade, and step `updates` times."""
        plan = self.plan
        drawn = draw(self.base, self.bound, self.prompts(), self.reward, plan, step=self.step)
        olds, bases = list[torch.Tensor](), list[torch.Tensor | None]()
        rate = plan.learning_rate * schedule(self.step, plan.steps, plan.warmup)
        for _ in range(plan.updates if drawn.batches else 0):
            for parameter in self.bound.parameters():
                parameter.grad = None
            for at, (batch, A) in enumerate(drawn.batches):
                if len(bases) == at:
                    bases.append(self._of_the_base(batch))
                with self.bound.active():
                    logp = -loss_of(self.base, batch)
                    if len(olds) == at:
                        olds.append(logp.detach())
                    bare = bases[at]
                    anchor = None if bare is None else (plan.kl, bare)
                    loss = policy_loss(logp, olds[at], batch, A, clip=plan.clip, length=_length(plan), anchor=anchor)
                    (loss / len(drawn.found)).backward()
                self._refuse_nan(loss, batch)
            self.torn = True
            self.optimizer.step(rate, None)
        self.torn = True
        self.sample = drawn.prompt, drawn.found[0].text, drawn.grades[0].reward
        self.measure(drawn.grades, drawn.found, drawn.flat)

    def _of_the_base(self, batch: Batch) -> torch.Tensor | None:
        """Log-probabilities without the adapter, where the KL term asks for them."""
        if not self.plan.kl:
            return None
        with torch.no_grad():
            return -loss_of(self.base, batch)

    def _refuse_nan(self, loss: torch.Tensor, batch: Batch) -> None:
        gradients = [part.grad for part in self.bound.parameters() if part.grad is not None]
        if math.isfinite(float(loss.detach())) and all(bool(torch.isfinite(part).all()) for part in gradients):
            return
        if not self.torn:
            self.save()
        raise TrainingError(
            f"the loss or its gradient became infinite or NaN at step {self.step + 1}, on row "
            f"{named(batch.rows[:1], self.rows)}; the last good state is kept. Lower --learning-rate"
        )

    def moments(self) -> dict[str, torch.Tensor]:
        """Adam's."""
        return self.optimizer.state()

    def take(self, moments: dict[str, torch.Tensor]) -> None:
        """Take over saved ones."""
        self.optimizer.load(moments)
