"""Rollouts: many answers at once to be rewarded, from whit's batched decoder.

Promises that the tokens drawn depend on the seed, the step, the prompt's place and the sample's alone, so that a
resumed run draws the same; and that an answer which ended carries its stop token, because to stop was a choice too.
Knows nothing of rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.evaluation.decoding import GREEDY, Decoder, Sampling


@dataclass(frozen=True)
class Rollout:
    """One answer: its tokens (the stop token last, where it stopped), its text, whether the limit cut it off."""

    ids: list[int]
    text: str
    cut: bool


def roll_out(
    base: Base,
    bound: Bound | None,
    prompts: Sequence[Sequence[int]],
    *,
    most: int,
    seed: tuple[int, int] | None,
    vectors: torch.Tensor | None = None,
) -> list[Rollout]:
    """An answer of at most `most` tokens to each prompt: drawn at temperature 1, or greedy where `seed` is None.

    Without `bound` the bare base answers. `seed` is the run's seed and the step. `vectors`, shape (prompts, numbers),
    gives each prompt its own adapter.
    """
    sampling = GREEDY
    if seed is not None:
        sampling = Sampling(temperature=1.0, seed=(seed[0] << 32 ^ seed[1]) & (1 << 64) - 1, inverse=True)
    stops: dict[int, int] = {}
    found = Decoder(base, bound, vectors=vectors).answers(
        prompts, most=most, sampling=sampling, on_stop=stops.__setitem__
    )
    return [
        Rollout([*ids, stops[place]] if place in stops else ids, base.decode(ids), place not in stops)
        for place, ids in enumerate(found)
    ]
