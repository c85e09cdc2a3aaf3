"""What a run by reward tells its user of the answers that it drew."""

from __future__ import annotations

import pytest

from whit.training.reward import Measures
from whit.verbs.reward import remarks_on


def steps(flat: list[float], right: list[float]) -> list[Measures]:
    return [
        Measures(step=at, reward=good, right=good, skill=good, format=1.0, length=5.0, cut=0.0, flat=same, tokens=40)
        for at, (same, good) in enumerate(zip(flat, right, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("flat", "right", "told"),
    [
        ([0.2] * 5 + [1.0] * 15, [0.3] * 5 + [0.5] * 15, True),  # one answer to all, half of them right
        ([0.2] * 5 + [1.0] * 15, [0.3] * 5 + [1.0] * 15, False),  # all alike because all are right
        ([1.0] * 20, [0.5] * 20, False),  # it was so from the start: not what the run did
        ([0.2] * 20, [0.3] * 10 + [0.7] * 10, False),
    ],
)
def test_answers_that_have_become_one_are_told(flat: list[float], right: list[float], told: bool) -> None:
    said = [each for each in remarks_on(steps(flat, right), most=8) if "have become one" in each]
    assert bool(said) == told
    if said:
        assert "100 % of the last groups" in said[0] and "(20 % of the first), 50 % right" in said[0]
