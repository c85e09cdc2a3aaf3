"""How the next token of one row is chosen, from its own stream of random numbers.

One uniform draw a token, so that a seed gives the same answer in whatever batch the row is. Knows nothing of rows
beside it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

_BLOCK = 128
_SHARE = 256  # the likeliest tokens that are looked at first; they nearly always hold the share asked for


@dataclass(frozen=True)
class Sampling:
    """The likeliest token (temperature 0), or one drawn from the likeliest that make up `top_p`.

    `logprobs` is how many other tokens are reported with each (None: not even its own log-probability).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Choice:
    """A chosen token, its natural log-probability and the likeliest ones, if they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Drawer:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = random.Random(sampling.seed)
        #: Whether it takes the likeliest token and asks for nothing more.
        self.greedy = sampling.temperature <= 0 and sampling.logprobs is None

    def __call__(self, logits: torch.Tensor, likeliest: int) -> Choice:
        """The next token; logits (vocabulary,), float32. Log-probabilities are those at temperature 1."""
        token = likeliest if self.sampling.temperature <= 0 else self._draw(logits)
        if self.sampling.logprobs is None:
            return Choice(token)
        chances = torch.log_softmax(logits, dim=-1)
        values, ids = chances.topk(min(self.sampling.logprobs, len(chances)))
        return Choice(token, float(chances[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _draw(self, logits: torch.Tensor) -> int:
        sampling, uniform = self.sampling, self._random.random()
        chances = torch.softmax(logits.double() / sampling.temperature, dim=-1)
        if sampling.top_p >= 1.0:
            edges = chances.cumsum(-1)
            return _place(edges, uniform * float(edges[-1]))
        share, ids = chances.topk(min(_SHARE, len(chances)))
        if float(share.sum()) < sampling.top_p:
            share, ids = chances.sort(descending=True)
        edges = share.cumsum(-1)
        kept = int((edges - share < sampling.top_p).sum())
        return int(ids[_place(edges[:kept], uniform * float(edges[kept - 1]))])


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The first of the largest logits of each row, (rows,); logits (rows, vocabulary).

    By blocks: a maximum is found many times as fast as where it is.
    """
    rows, words = logits.shape
    if words % _BLOCK or words == _BLOCK:
        return logits.argmax(dim=-1)
    blocks = logits.view(rows, -1, _BLOCK)
    block = blocks.amax(dim=-1).argmax(dim=-1)
    within: torch.Tensor = blocks[torch.arange(rows, device=logits.device), block].argmax(dim=-1)
    return block * _BLOCK + within


def _place(edges: torch.Tensor, at: float) -> int:
    found = torch.searchsorted(edges, torch.tensor(at, dtype=edges.dtype, device=edges.device), right=True)
    return min(int(found), len(edges) - 1)
