"""What GRPO and evolution share: what a run by reward is told, measures each step by, and stops at.

Promises that rewards which tell nothing (the same for every answer) end the run with a reason. Knows nothing of how a
step is made, nor of evaluations and checkpoints (`whit.training.loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.bases.dtypes import SMALL
from whit.data.templates import Encoded
from whit.errors import TrainingError
from whit.rewards.reward import Grade, Reward
from whit.training.loop import Loop, Pace, Trained, under
from whit.training.rollouts import Rollout

LARGER = 0.2  # of a small base's rates and noise, from 20 M parameters on: at the whole they move it into nonsense
PROMPTS = 4  # in a step, where nobody says otherwise
_PATIENT = 20  # steps in which no answer was better than another, from the first one on, before that ends the run


def stride(base: Base) -> float:
    """How far steps go where nobody says otherwise, of what suits a small base."""
    return 1.0 if base.parameters < SMALL else LARGER


@dataclass(frozen=True, kw_only=True)
class RewardPlan(Pace):
    """How a run proceeds.

    `batch` prompts a step; `samples` answers each (GRPO) or `population` candidates for all of them (evolution);
    `most` tokens an answer; `clip` is epsilon, `updates` the passes over a step's answers and `kl` beta (GRPO);
    `sigma` the size of evolution's noise.
    """

    steps: int
    most: int
    optimizer: str = "grpo"
    samples: int = 8
    population: int = 32
    sigma: float = 0.1
    clip: float = 0.2
    updates: int = 1
    kl: float = 0.0
    warmup: float = 0.1


@dataclass(frozen=True)
class Measures:
    """One step's answers: means of reward, right, skill and format, tokens an answer.

    `cut` is the share that the limit cut off, `flat` the share of groups in which every answer had the same reward.
    """

    step: int
    reward: float
    right: float
    skill: float
    format: float
    length: float
    cut: float
    flat: float
    tokens: int


@dataclass(frozen=True)
class RewardProgress:
    """Where a run is; told after every step. `sample` is one prompt, its answer and that one's reward."""

    step: int
    steps: int
    measures: Measures
    score: float | None
    seconds: float
    sample: tuple[str, str, float]


Watch = Callable[[RewardProgress], None]


@dataclass(frozen=True)
class Rewarded:
    """The outcome: what supervised training gives too, and each step's measures."""

    trained: Trained
    measures: tuple[Measures, ...] = field(default=())


class RewardLoop(Loop):
    """A run by reward. A subclass makes steps, and says what they depend on besides the adapter's numbers."""

    plan: RewardPlan

    def __init__(
        self,
        base: Base,
        bound: Bound,
        rows: Sequence[Encoded],
        reward: Reward,
        plan: RewardPlan,
        score: Callable[[], float],
        watch: Watch | None = None,
    ) -> None:
        lengths = [len(row.prompt_ids) for row in rows]
        super().__init__(base, bound, rows, plan, score, steps=plan.steps, lengths=lengths)
        self.reward, self.watch = reward, watch
        self.measures: list[Measures] = []
        self.sample = ("", "", 0.0)
        self.prepare()

    def prepare(self) -> None:
        """What the subclass needs before its first step."""

    def run(self) -> Rewarded:
        """Run to the end. Raises `TrainingError`, `ScoreError`, or `Interrupted`; the state is saved first."""
        return Rewarded(self.go(), tuple(self.measures))

    def prompts(self) -> list[Encoded]:
        """The rows of the present step."""
        return [self.rows[place] for place in self.places()]

    def measure(self, grades: Sequence[Grade], rollouts: Sequence[Rollout], flat: float) -> None:
        """Keep the measures of a step's answers."""
        count, tokens = len(grades), sum(len(each.ids) for each in rollouts)
        self.tokens += tokens
        self.measures.append(
            Measures(
                step=self.step + 1,
                reward=sum(grade.reward for grade in grades) / count,
                right=sum(grade.right for grade in grades) / count,
                skill=sum(grade.skill for grade in grades) / count,
                format=sum(grade.format for grade in grades) / count,
                length=tokens / count,
                cut=sum(each.cut for each in rollouts) / count,
                flat=flat,
                tokens=tokens,
            )
        )

    def tell(self) -> None:
        """Report the step. Raises `TrainingError` where from the first step on no answer was better than another."""
        self._refuse_flat()
        if self.watch is not None:
            score = self.curve[-1].score if self.curve else None
            self.watch(RewardProgress(self.step, self.steps, self.measures[-1], score, self.seconds, self.sample))

    def _refuse_flat(self) -> None:
        count = len(self.measures)
        if count < min(_PATIENT, max(1, self.steps // 2)) or any(each.flat < 1 for each in self.measures):
            return
        same = {round(each.reward, 12) for each in self.measures}
        said = f"{self.measures[0].reward:g} for every answer" if len(same) == 1 else "the same within every group"
        self.save()
        raise TrainingError(
            f"the reward was {said} in the first {count} steps, so there is nothing to learn from; choose rows that "
            "the base sometimes gets right, start from a supervised adapter (--warm-start), or look at the reward"
        )

    def moments(self) -> dict[str, torch.Tensor]:
        """What the way of moving depends on, besides the numbers; see `take`."""
        return {}

    def take(self, moments: dict[str, torch.Tensor]) -> None:
        """Take over what `moments` gave."""

    def state(self) -> dict[str, torch.Tensor]:
        """The moments."""
        return {f"state.{name}": part for name, part in self.moments().items()}

    def about(self) -> dict[str, Any]:
        """Each step's measures."""
        return {"measures": [asdict(each) for each in self.measures]}

    def restore(self, state: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        """Take over a saved state."""
        self.take(under("state.", state))
        self.measures = [Measures(**each) for each in about["measures"]]
