"""A reward: the weighted sum of its terms, and what keeping the format is worth besides.

    reward = Σ wₖ · scoreₖ + w_format · format

Every answer's `Grade` keeps apart what the sum is made of: `right` (the first term's score), `skill` (the same with
the format looked through) and `format`. Training follows the reward; whether it gained skill or only format is read
off the others. Knows nothing of models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whit.errors import ScoreError, UsageError
from whit.rewards.child import SECONDS
from whit.rewards.terms import Term, make_term

if TYPE_CHECKING:
    from whit.data.rows import Row
    from whit.evaluation.scoring import Scorer

_WEIGHTED = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+))\*(.+)", re.DOTALL)


@dataclass(frozen=True)
class Grade:
    """One answer's reward (any finite number), and apart from it, in [0, 1]: right, skill, format."""

    reward: float
    right: float
    skill: float
    format: float


class Reward:
    """Terms with their weights, the first of which is the skill that is meant."""

    def __init__(self, terms: Sequence[tuple[float, Term]], *, format_weight: float = 0.0) -> None:
        if not terms:
            raise UsageError("--reward: nothing is rewarded; give at least one, such as numeric")
        self.terms, self.format_weight = tuple(terms), format_weight

    @property
    def name(self) -> str:
        """All terms, as in `numeric + 0.1 regex:… + 0.2 format`."""
        parts = [term.name if weight == 1 else f"{weight:g} {term.name}" for weight, term in self.terms]
        return " + ".join(parts + ([f"{self.format_weight:g} format"] if self.format_weight else []))

    @property
    def scorer(self) -> Scorer:
        """The first term's judgement, for validation and the proof."""
        return self.terms[0][1].scorer

    def grade(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Grade]:
        """A grade for each answer to its row. Raises `ScoreError` with the row where a term fails."""
        scores = [(weight, term.scores(answers, rows)) for weight, term in self.terms]
        found: list[Grade] = []
        for place, first in enumerate(scores[0][1]):
            total = sum(weight * each[place].value for weight, each in scores) + self.format_weight * first.valid
            if not math.isfinite(total):
                raise ScoreError(f"{rows[place].place}: the reward became {total}; look at its weights")
            found.append(Grade(total, first.value, first.lenient, float(first.valid)))
        return found

    def close(self) -> None:
        """End the processes that terms started."""
        for _, term in self.terms:
            term.close()


def split_weight(text: str) -> tuple[float, str]:
    """`0.5*regex:x` as its weight and its term; a weight of 1 where none is written. Raises `UsageError`."""
    match = _WEIGHTED.fullmatch(text.strip())
    weight, name = (float(match[1]), match[2].strip()) if match else (1.0, text.strip())
    if not name or not math.isfinite(weight) or weight == 0:
        raise UsageError(f"--reward {text}: write a reward, or WEIGHT*REWARD with a weight that is not 0")
    return weight, name


def make_reward(
    texts: Sequence[str], rows: Sequence[Row], *, format_weight: float = 0.0, seconds: float = SECONDS
) -> Reward:
    """The reward that `texts` spell, one term each; `rows` are the training rows, from which labels are known.

    `seconds` is what a user's function may take for one answer. Raises `UsageError`, `DataError` or `ScoreError`.
    """
    made: list[tuple[float, Term]] = []
    try:
        for text in texts:
            weight, name = split_weight(text)
            made.append((weight, make_term(name, rows, seconds=seconds)))
    except BaseException:
        for _, term in made:
            term.close()
        raise
    return Reward(made, format_weight=format_weight)
