"""What GRPO and evolution share: steps, evaluations, the best kept, checkpoints, and going on after an interrupt.

Promises that a run which is stopped or killed and resumed ends in the same numbers, bit for bit on CPU; that what is
scored is what would be stored; and that rewards which tell nothing (the same for every answer) end the run with a
reason. Knows nothing of how a step is made: `Loop` is told by its subclass.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import Interrupted, TrainingError
from whit.rewards.reward import Grade, Reward
from whit.training.batching import order
from whit.training.checkpoint import load_checkpoint, save_checkpoint
from whit.training.rollouts import Rollout
from whit.training.sft import Point, Trained

_PATIENT = 20  # steps in which no answer was better than another, from the first one on, before that ends the run


@dataclass(frozen=True)
class RewardPlan:
    """How a run proceeds.

    `batch` prompts a step; `samples` answers each (GRPO) or `population` candidates for all of them (evolution);
    `most` tokens an answer; `clip` is epsilon and `updates` the passes over a step's answers (GRPO); `sigma` the
    size of evolution's noise. `run` identifies settings, rows and base.
    """

    steps: int
    batch: int
    learning_rate: float
    most: int
    optimizer: str = "grpo"
    samples: int = 8
    population: int = 32
    sigma: float = 0.1
    clip: float = 0.2
    updates: int = 1
    warmup: float = 0.1
    evaluations: int = 8
    patience: int = 4
    seed: int = 0
    run: str = ""
    checkpoint: Path | None = None
    checkpoint_seconds: float = 60.0


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


class Loop(ABC):
    """A run by reward. A subclass makes steps and says what they depend on besides the adapter's numbers."""

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
        if not rows:
            raise TrainingError("there are no rows to train on")
        self.base, self.bound, self.rows, self.reward, self.plan = base, bound, rows, reward, plan
        self.score, self.watch = score, watch or (lambda progress: None)
        self.lengths = [len(row.prompt_ids) for row in rows]
        every = plan.steps / plan.evaluations
        self.marks = {max(1, round(every * turn)) for turn in range(1, plan.evaluations + 1)}
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.curve: list[Point] = []
        self.measures: list[Measures] = []
        self.best: Point | None = None
        self.best_parameters: list[torch.Tensor] = []
        self.exact: list[torch.Tensor] | None = None  # the numbers, while rounded ones stand in for them
        self.torn = False  # whether an interrupt now would find half a step
        self._epoch: tuple[int, list[list[int]]] | None = None

    @abstractmethod
    def advance(self) -> tuple[Measures, tuple[str, str, float]]:
        """One step; `torn` is True while it changes what `state` and the numbers say."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, besides the numbers."""

    @abstractmethod
    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved state."""

    def go(self) -> Rewarded:
        """Run to the end. Raises `TrainingError`, `ScoreError`, or `Interrupted`; the state is saved first."""
        self._load()
        began = time.monotonic() - self.seconds
        saved = time.monotonic()
        try:
            self._evaluate_if_due(began)
            while self.step < self.plan.steps and not self._done_early():
                measures, sample = self.advance()
                self.measures.append(measures)
                self.tokens += measures.tokens
                self.step += 1
                self.torn = False
                self.seconds = time.monotonic() - began
                self._refuse_flat()
                if self._evaluate_if_due(began) or time.monotonic() - saved > self.plan.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
                score = self.curve[-1].score if self.curve else None
                self.watch(RewardProgress(self.step, self.plan.steps, measures, score, self.seconds, sample))
        except (KeyboardInterrupt, Interrupted) as error:
            if not self.torn:
                self._save()
            where = (
                f"; go on with the same command and --resume ({self.plan.checkpoint})" if self.plan.checkpoint else ""
            )
            raise Interrupted(f"stopped at step {self.step} of {self.plan.steps}{where}") from error
        assert self.best is not None
        self.put(self.best_parameters)
        trained = Trained(
            adapter=self.bound.export(),
            curve=tuple(self.curve),
            best=self.best,
            steps=self.step,
            seconds=time.monotonic() - began,
            tokens=self.tokens,
            stopped_early=self.step < self.plan.steps,
        )
        return Rewarded(trained, tuple(self.measures))

    def prompts(self) -> list[Encoded]:
        """The rows of the present step."""
        per_epoch = -(-len(self.rows) // self.plan.batch)
        epoch, within = divmod(self.step, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, order(self.lengths, self.plan.batch, seed=self.plan.seed, epoch=epoch)
        return [self.rows[place] for place in self._epoch[1][within]]

    def measure(self, grades: Sequence[Grade], rollouts: Sequence[Rollout], flat: float) -> Measures:
        """The measures of a step's answers."""
        count, tokens = len(grades), sum(len(each.ids) for each in rollouts)
        return Measures(
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

    def put(self, values: Sequence[torch.Tensor]) -> None:
        """Set the numbers."""
        with torch.no_grad():
            for parameter, value in zip(self.bound.parameters(), values, strict=True):
                parameter.copy_(value)

    def _refuse_flat(self) -> None:
        """Stop where from the first step on no answer was ever better than another."""
        enough = min(_PATIENT, max(1, self.plan.steps // 2))
        if len(self.measures) != enough or any(each.flat < 1 for each in self.measures):
            return
        same = {round(each.reward, 12) for each in self.measures}
        said = f"{self.measures[0].reward:g} for every answer" if len(same) == 1 else "the same within every group"
        self._save()
        raise TrainingError(
            f"the reward was {said} in the first {enough} steps, so there is nothing to learn from; choose rows that "
            "the base sometimes gets right, start from a supervised adapter (--warm-start), or look at the reward"
        )

    def _evaluate_if_due(self, began: float) -> bool:
        due = self.step == 0 or self.step in self.marks
        if not due or (self.curve and self.curve[-1].step == self.step):
            return False
        self.exact = exact = [parameter.detach().clone() for parameter in self.bound.parameters()]
        try:
            self.bound.load(self.bound.export())  # rounded, as it would be stored
            score = self.score()
        finally:
            self.put(exact)
        self.exact = None
        self.seconds = time.monotonic() - began
        point = Point(self.step, float("nan"), score, self.seconds)
        self.torn = True
        self.curve.append(point)
        if self.best is None or score > self.best.score or (score == self.best.score and self._moved_only(exact)):
            self.best, self.best_parameters = point, exact
        self.torn = False
        return True

    def _moved_only(self, now: Sequence[torch.Tensor]) -> bool:
        """Whether nothing has scored above the start yet, and these numbers are others than those kept."""
        return not self._risen() and not all(map(torch.equal, now, self.best_parameters))

    def _risen(self) -> bool:
        return self.best is not None and self.best.score > self.curve[0].score

    def _done_early(self) -> bool:
        if self.best is None or not self._risen():
            return False
        return sum(point.step > self.best.step for point in self.curve) >= self.plan.patience

    def _save(self) -> None:
        if self.plan.checkpoint is None or self.best is None:
            return
        now = self.exact if self.exact is not None else self.bound.parameters()
        tensors = {f"now.{at}": part.detach() for at, part in enumerate(now)}
        tensors |= {f"best.{at}": part for at, part in enumerate(self.best_parameters)}
        tensors |= {f"state.{name}": part for name, part in self.state().items()}
        about: dict[str, Any] = {
            "run": self.plan.run,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "measures": [asdict(each) for each in self.measures],
            "curve": [vars(point) for point in self.curve],
            "best": vars(self.best),
        }
        save_checkpoint(self.plan.checkpoint, tensors, about)

    def _load(self) -> None:
        found = load_checkpoint(self.plan.checkpoint, run=self.plan.run) if self.plan.checkpoint else None
        if found is None:
            return
        tensors, about = found
        count = len(self.bound.parameters())
        self.put([tensors[f"now.{at}"] for at in range(count)])
        self.best_parameters = [tensors[f"best.{at}"] for at in range(count)]
        prefix = "state."
        self.restore({name[len(prefix) :]: part for name, part in tensors.items() if name.startswith(prefix)})
        self.step, self.tokens, self.seconds = about["step"], about["tokens"], about["seconds"]
        self.measures = [Measures(**each) for each in about["measures"]]
        self.curve = [Point(**point) for point in about["curve"]]
        self.best = Point(**about["best"])
