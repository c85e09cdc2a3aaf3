"""Training by forward passes alone: a population of vectors is a batch whose rows have different adapters.

- `es`: OpenAI-ES (Salimans et al., arXiv 1703.03864): antithetic noise, g = 1/(N sigma) sum_i u_i e_i with u the
  centred ranks of the candidates' rewards (equal rewards share a rank), and Adam on g.
- `cma`: CMA-ES (Hansen, arXiv 1604.00772) from the optional package `cma`; for some hundred numbers at most.

Every candidate answers the same prompts of a step, greedily: common random numbers, so that candidates differ by their
vectors alone. Works on any base that can run forwards. Knows nothing of gradients, and so only of vector adapters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from whit.adapters.tunable import Bound, BoundVector
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import UsageError
from whit.rewards.reward import Reward
from whit.training.optimizers import Adam, schedule
from whit.training.reward import Rewarded, RewardLoop, RewardPlan, Watch, stride
from whit.training.rollouts import roll_out

LEARNING_RATE, SIGMA = 2.5e-2, 0.1  # of a small base
MOST_FOR_CMA = 2000  # numbers: their covariance is a matrix, and its eigenvectors are taken
_DIAGONAL_FROM = 300  # numbers: from here on CMA keeps the diagonal alone


def defaults(base: Base) -> tuple[float, float]:
    """The peak rate and the size of the noise where nobody says otherwise."""
    return LEARNING_RATE * stride(base), SIGMA * stride(base)


def centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from -0.5 (the worst) to 0.5; equal values share their mean rank, so that all equal gives all zero."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2  # from 0
    found: NDArray[np.float64] = ranks[inverse] / max(1, len(values) - 1) - 0.5
    return found


def noise(seed: int, step: int, pairs: int, numbers: int) -> NDArray[np.float32]:
    """A step's directions, shape (pairs, numbers): standard normal, the same on every machine."""
    draw = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    return draw.standard_normal((pairs, numbers), dtype=np.float32)


def train_evolution(
    base: Base,
    bound: Bound,
    rows: Sequence[Encoded],
    reward: Reward,
    plan: RewardPlan,
    score: Callable[[], float],
    *,
    watch: Watch | None = None,
) -> Rewarded:
    """Train `bound` from where it stands; `score()` answers the validation rows with its present state.

    Raises `UsageError` where the adapter has no vector, and what `RewardLoop.run` raises.
    """
    if not isinstance(bound, BoundVector):
        raise UsageError(f"--optimizer {plan.optimizer} works on vector adapters (tiny, xs, sparse); use grpo for lora")
    if plan.population < 2 or (plan.optimizer == "es" and plan.population % 2):
        raise UsageError(f"--population {plan.population}: es needs an even number, for its noise comes in pairs")
    kind = _Cma if plan.optimizer == "cma" else _Es
    return kind(base, bound, rows, reward, plan, score, watch).run()


class _Population(RewardLoop):
    """Steps that rate a population; what is made of the ratings is the subclass's."""

    bound: BoundVector

    def advance(self) -> None:
        """Rate every candidate on the step's prompts, as one batch; then move."""
        rows = self.prompts()
        candidates = self.candidates()
        vectors = torch.from_numpy(candidates).to(self.bound.v.device).repeat_interleave(len(rows), dim=0)
        asked = list(rows) * len(candidates)
        found = roll_out(
            self.base, self.bound, [row.prompt_ids for row in asked], most=self.plan.most, seed=None, vectors=vectors
        )
        grades = self.reward.grade([each.text for each in found], [row.row for row in asked])
        values = np.array([grade.reward for grade in grades]).reshape(len(candidates), len(rows)).mean(axis=1)
        flat = float(np.ptp(values) <= 1e-9)
        self.torn = True
        self.move(values)
        best = int(values.argmax()) * len(rows)
        self.sample = rows[0].row.prompt, found[best].text, grades[best].reward
        self.measure(grades, found, flat)

    @abstractmethod
    def candidates(self) -> NDArray[np.float32]:
        """The step's vectors, shape (population, numbers)."""

    @abstractmethod
    def move(self, values: NDArray[np.float64]) -> None:
        """Move the vector by the candidates' mean rewards."""


class _Es(_Population):
    def prepare(self) -> None:
        """Adam, and the noise of the present step."""
        self.optimizer = Adam(self.bound.parameters())
        self._noise: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)

    def candidates(self) -> NDArray[np.float32]:
        """v + sigma e and v - sigma e."""
        half = noise(self.plan.seed, self.step, self.plan.population // 2, self.bound.numbers)
        self._noise = np.concatenate([half, -half])
        found: NDArray[np.float32] = self.bound.vector() + np.float32(self.plan.sigma) * self._noise
        return found

    def move(self, values: NDArray[np.float64]) -> None:
        """Adam along the estimated gradient."""
        if np.ptp(values) <= 1e-9:
            return
        u = centred_ranks(values).astype(np.float32)
        g = (u @ self._noise) / (len(values) * self.plan.sigma)
        self.bound.v.grad = -torch.from_numpy(g).to(self.bound.v.device)
        self.optimizer.step(self.plan.learning_rate * schedule(self.step, self.plan.steps, self.plan.warmup), None)

    def moments(self) -> dict[str, torch.Tensor]:
        """Adam's."""
        return self.optimizer.state()

    def take(self, moments: dict[str, torch.Tensor]) -> None:
        """Take over saved ones."""
        self.optimizer.load(moments)


class _Cma(_Population):
    """`cma` is a program with a state of its own: kept is what it was told, and a resumed run tells it again."""

    def prepare(self) -> None:
        """A fresh strategy. Raises `UsageError`."""
        try:
            import cma  # noqa: F401
        except ImportError as error:
            raise UsageError("--optimizer cma needs the package cma: pip install cma; or use es") from error
        if self.bound.numbers > MOST_FOR_CMA:
            raise UsageError(
                f"--optimizer cma: {self.bound.numbers:,} numbers are more than its {MOST_FOR_CMA:,}; use es"
            )
        self._start = self.bound.vector()
        self._told: list[NDArray[np.float64]] = []
        self._strategy = self._fresh()
        self._asked: list[Any] = []

    def _fresh(self) -> Any:
        import cma

        draw = np.random.Generator(np.random.Philox(key=np.array([self.plan.seed, 1 << 33], dtype=np.uint64)))
        options = {
            "popsize": self.plan.population,
            "seed": np.nan,  # numpy's global state is not ours to set
            "randn": lambda *shape: draw.standard_normal(shape),
            "verbose": -9,
            "verb_log": 0,
            "CMA_diagonal": self.bound.numbers >= _DIAGONAL_FROM,
        }
        return cma.CMAEvolutionStrategy(self._start.astype(np.float64), self.plan.sigma, options)

    def candidates(self) -> NDArray[np.float32]:
        """What the strategy asks for."""
        self._asked = self._strategy.ask()
        return np.stack(self._asked).astype(np.float32)

    def move(self, values: NDArray[np.float64]) -> None:
        """Tell it the costs, and take its mean."""
        self._strategy.tell(self._asked, [-float(value) for value in values])
        self._told.append(values)
        self.put([torch.from_numpy(np.asarray(self._strategy.mean, dtype=np.float32))])

    def moments(self) -> dict[str, torch.Tensor]:
        """Where it began and what it was told."""
        told = np.stack(self._told) if self._told else np.zeros((0, self.plan.population))
        return {"start": torch.from_numpy(self._start.copy()), "told": torch.from_numpy(told)}

    def take(self, moments: dict[str, torch.Tensor]) -> None:
        """Ask and tell all over again."""
        self._start = moments["start"].numpy().astype(np.float32)
        self._told = list(moments["told"].numpy())
        self._strategy = self._fresh()
        for values in self._told:
            self._strategy.tell(self._strategy.ask(), [-float(value) for value in values])
