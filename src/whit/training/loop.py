"""What every run shares: steps, evaluations, the best kept, an early stop, checkpoints, going on after an interrupt.

Promises that a run which is stopped or killed and resumed ends in the same numbers, bit for bit on CPU; that what is
scored is what would be stored; and that among equal scores the later state is kept. Knows nothing of how a step is
made: `Loop` is told by its subclass (supervised: `whit.training.sft`; by reward: `whit.training.reward`).
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from whit.adapters.adapter import Adapter
from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import Interrupted, ScoreError, TrainingError
from whit.training.batching import order
from whit.training.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What every plan says. `run` identifies settings, rows and base: a checkpoint of another run is refused."""

    batch: int
    learning_rate: float
    warmup: float = 0.03
    evaluations: int = 8
    patience: int = 4
    seed: int = 0
    run: str = ""
    checkpoint: Path | None = None
    checkpoint_seconds: float = 60.0


P = TypeVar("P", bound=Pace)


def with_seed(plan: P, seed: int) -> P:
    """The same plan from another seed, with a checkpoint of its own."""
    checkpoint = plan.checkpoint and plan.checkpoint.with_name(f"seed-{seed}-{plan.checkpoint.name}")
    return replace(plan, seed=seed, checkpoint=checkpoint, run=f"{plan.run}#{seed}")


@dataclass(frozen=True)
class Point:
    """One evaluation: step, mean training loss since the last one, validation score (0 to 1), seconds so far.

    The loss is NaN where nothing was learned yet, and in training by reward, which has none.
    """

    step: int
    loss: float
    score: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """The outcome: the best adapter on validation, the curve, and what it cost.

    `mean_of` is above 1 where the adapter is the mean of so many seeds'; curve and cost are then the best one's.
    """

    adapter: Adapter
    curve: tuple[Point, ...]
    best: Point
    steps: int
    seconds: float
    tokens: int
    stopped_early: bool
    mean_of: int = 1


class Loop(ABC):
    """A run. A subclass makes steps, and says what they depend on besides the adapter's numbers."""

    def __init__(
        self,
        base: Base,
        bound: Bound,
        rows: Sequence[Encoded],
        plan: Pace,
        score: Callable[[], float],
        *,
        steps: int,
        lengths: Sequence[int],
    ) -> None:
        """`steps` in all; `lengths` (rows,) in tokens, by which rows are put together. Raises `TrainingError`."""
        if not rows:
            raise TrainingError("there are no rows to train on")
        self.base, self.bound, self.rows, self.plan, self.score = base, bound, rows, plan, score
        self.steps, self.lengths = steps, lengths
        every = steps / plan.evaluations
        self.marks = {max(1, round(every * turn)) for turn in range(1, plan.evaluations + 1)}
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.losses: list[float] = []
        self.curve: list[Point] = []
        self.best: Point | None = None
        self.best_parameters: list[torch.Tensor] = []
        self.exact: list[torch.Tensor] | None = None  # the numbers, while rounded ones stand in for them
        self.torn = False  # whether an interrupt now would find half a step
        self._epoch: tuple[int, list[list[int]]] | None = None

    @abstractmethod
    def advance(self) -> None:
        """One step, all but its count; `torn` is True from where it changes what `state` and the numbers say."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, besides the numbers."""

    @abstractmethod
    def restore(self, state: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        """Take over a saved state; `about` has what `about` gave."""

    @abstractmethod
    def tell(self) -> None:
        """Called after every step and its evaluation; raising `Interrupted` stops the run, its state saved."""

    def about(self) -> dict[str, Any]:
        """Plain values to be saved beside `state`."""
        return {}

    def kept(self) -> list[torch.Tensor]:
        """The numbers that are scored and may be kept: copies."""
        return [parameter.detach().clone() for parameter in self.bound.parameters()]

    def go(self) -> Trained:
        """Run to the end. Raises what `advance` raises, or `Interrupted`; the state is saved first."""
        self._load()
        began = time.monotonic() - self.seconds
        saved = time.monotonic()
        try:
            # What the start scores belongs to the curve; it also becomes the state to fall back to. In a resumed
            # run this is the evaluation, if any, that the interrupt cut short.
            self._evaluate_if_due(began)
            while self.step < self.steps and not self._done_early():
                self.advance()
                self.step += 1
                self.torn = False
                self.seconds = time.monotonic() - began
                if self._evaluate_if_due(began) or time.monotonic() - saved > self.plan.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                self.tell()
        except (KeyboardInterrupt, Interrupted) as error:
            if not self.torn:
                self.save()
            where = (
                f"; go on with the same command and --resume ({self.plan.checkpoint})" if self.plan.checkpoint else ""
            )
            raise Interrupted(f"stopped at step {self.step} of {self.steps}{where}") from error
        except ScoreError as error:
            if not self.torn:
                self.save()
            if self.plan.checkpoint is None or not self.plan.checkpoint.is_file():
                raise
            raise ScoreError(f"{error}; once that is mended, go on with the same command and --resume") from error
        assert self.best is not None
        self.put(self.best_parameters)
        return Trained(
            adapter=self.bound.export(),
            curve=tuple(self.curve),
            best=self.best,
            steps=self.step,
            seconds=time.monotonic() - began,
            tokens=self.tokens,
            stopped_early=self.step < self.steps,
        )

    def places(self) -> list[int]:
        """The places of the present step's rows."""
        epoch, within = divmod(self.step, math.ceil(len(self.rows) / self.plan.batch))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, order(self.lengths, self.plan.batch, seed=self.plan.seed, epoch=epoch)
        return self._epoch[1][within]

    def put(self, values: Sequence[torch.Tensor]) -> None:
        """Set the numbers."""
        with torch.no_grad():
            for parameter, value in zip(self.bound.parameters(), values, strict=True):
                parameter.copy_(value)

    def beside(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One tensor for each of the numbers, on their device: a checkpoint is read on the CPU."""
        return [part.to(held.device) for held, part in zip(self.bound.parameters(), values, strict=True)]

    def _evaluate_if_due(self, began: float) -> bool:
        due = self.step == 0 or self.step in self.marks
        if not due or (self.curve and self.curve[-1].step == self.step):
            return False
        self.exact = exact = [parameter.detach().clone() for parameter in self.bound.parameters()]
        kept = self.kept()
        try:
            # What is scored is what would be stored: rounded to its number type.
            self.put(kept)
            self.bound.load(self.bound.export())
            score = self.score()
        finally:
            self.put(exact)
        self.exact = None
        self.seconds = time.monotonic() - began
        loss = sum(self.losses) / len(self.losses) if self.losses else float("nan")
        point = Point(self.step, loss, score, self.seconds)
        self.torn = True
        self.losses = []
        self.curve.append(point)
        if self._to_keep(score, kept):
            self.best, self.best_parameters = point, kept
        self.torn = False
        return True

    def _to_keep(self, score: float, numbers: Sequence[torch.Tensor]) -> bool:
        """Whether it is the best so far; among equals the later one: its rate was lower, and it has seen more."""
        if self.best is None or score > self.best.score:
            return True
        return score == self.best.score and not all(map(torch.equal, numbers, self.best_parameters))

    def _done_early(self) -> bool:
        # A score that never rose does not stop a run: there is nothing to lose yet.
        if self.best is None or self.best.score <= self.curve[0].score:
            return False
        first = next(point for point in self.curve if point.score == self.best.score)
        return sum(point.step > first.step for point in self.curve) >= self.plan.patience

    def save(self) -> None:
        """Write the checkpoint, if the plan has one and there is a state to fall back to."""
        if self.plan.checkpoint is None or self.best is None:
            return
        now = self.exact if self.exact is not None else self.bound.parameters()
        tensors = {f"now.{at}": part.detach() for at, part in enumerate(now)}
        tensors |= {f"best.{at}": part for at, part in enumerate(self.best_parameters)}
        about: dict[str, Any] = {
            "run": self.plan.run,
            "step": self.step,
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "losses": self.losses,
            "curve": [vars(point) for point in self.curve],
            "best": vars(self.best),
        }
        save_checkpoint(self.plan.checkpoint, tensors | self.state(), about | self.about())

    def _load(self) -> None:
        found = load_checkpoint(self.plan.checkpoint, run=self.plan.run) if self.plan.checkpoint else None
        if found is None:
            return
        tensors, about = found
        count = len(self.bound.parameters())
        self.put([tensors[f"now.{at}"] for at in range(count)])
        self.best_parameters = self.beside([tensors[f"best.{at}"] for at in range(count)])
        self.step, self.tokens, self.seconds = about["step"], about["tokens"], about["seconds"]
        self.losses = list(about["losses"])
        self.curve = [Point(**point) for point in about["curve"]]
        self.best = Point(**about["best"])
        self.restore(tensors, about)


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: part for name, part in tensors.items() if name.startswith(prefix)}
