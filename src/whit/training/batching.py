"""The order in which rows are learned: shuffled by seed, rows of like length together, the same on every machine.

Promises that step s of epoch e is the same rows for the same seed, so that a resumed run continues exactly
where it stopped. Knows nothing of models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from whit.data.templates import Encoded
from whit.errors import DataError

_BUCKET = 16


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right.

    `tokens` (rows, width); `at` (targets, 2) are the row and the place whose hidden state predicts
    `wanted` (targets,); `rows` are their ids. The first `prefix` tokens are the same in every row, and none of
    them predicts a wanted token.
    """

    tokens: torch.Tensor
    at: torch.Tensor
    wanted: torch.Tensor
    rows: tuple[str, ...]
    prefix: int = 0

    @property
    def size(self) -> int:
        """Tokens in it, padding included."""
        return int(self.tokens.numel())


def named(ids: Sequence[str], rows: Sequence[Encoded]) -> str:
    """Those of `rows` that have these ids, for a message: with their lines, where they have no id of their own."""
    names = {row.row.id: row.row.name for row in rows}
    return ", ".join(names.get(identity, identity) for identity in ids)


def collate(rows: Sequence[Encoded]) -> Batch:
    """A batch of encoded rows; only completion tokens are wanted. Raises `DataError` where a row has none."""
    empty = [row.row.place for row in rows if not row.completion_ids]
    if empty:
        raise DataError(f"nothing to learn: every label of {empty[0]} is masked; give it an answer")
    width = max(len(row.prompt_ids) + len(row.completion_ids) - 1 for row in rows)
    tokens = torch.zeros((len(rows), width), dtype=torch.long)
    at: list[tuple[int, int]] = []
    wanted: list[int] = []
    for place, row in enumerate(rows):
        ids = [*row.prompt_ids, *row.completion_ids[:-1]]
        tokens[place, : len(ids)] = torch.tensor(ids)
        first = len(row.prompt_ids) - 1
        at += [(place, first + step) for step in range(len(row.completion_ids))]
        wanted += row.completion_ids
    columns = zip(*(row.prompt_ids[:-1] for row in rows), strict=False)
    prefix = len(list(itertools.takewhile(lambda ids: len(set(ids)) == 1, columns)))
    return Batch(tokens, torch.tensor(at), torch.tensor(wanted), tuple(row.row.id for row in rows), prefix)


@dataclass(frozen=True)
class Packed:
    """A batch as one sequence, the shared prefix first and then each row's own tokens, without padding.

    `tokens` and `positions` (1, length); `mask` (1, 1, length, length), True where a token (third axis) sees another
    (fourth): the prefix, and what came before in its own row; `at` (targets,) as in `Batch`, along the one sequence.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    at: torch.Tensor


def pack(batch: Batch) -> Packed:
    """The batch as one sequence, for rows that share an adapter: a prefix that they share is there once."""
    places = torch.arange(batch.tokens.shape[1])
    ends = torch.zeros(len(batch.rows), dtype=torch.long).scatter_reduce_(0, batch.at[:, 0], batch.at[:, 1] + 1, "amax")
    own = (places >= batch.prefix) & (places < ends[:, None])  # (rows, width)
    row_of, place_of = own.nonzero(as_tuple=True)
    head = torch.arange(batch.prefix)
    positions = torch.cat([head, place_of])
    segments = torch.cat([torch.full_like(head, -1), row_of])
    sees = (segments[None] == segments[:, None]) | (segments[None] == -1)
    mask = sees & torch.ones(len(segments), len(segments), dtype=torch.bool).tril()
    starts = batch.prefix + torch.cumsum(ends - batch.prefix, 0) - (ends - batch.prefix)
    at = starts[batch.at[:, 0]] + batch.at[:, 1] - batch.prefix
    tokens = torch.cat([batch.tokens[0, : batch.prefix], batch.tokens[row_of, place_of]])
    return Packed(tokens[None], positions[None], mask[None, None], at)


def steps_in(rows: int, batch: int, epochs: float) -> int:
    """How many steps `epochs` passes over `rows` rows take."""
    return max(1, round(math.ceil(rows / batch) * epochs))


def order(lengths: Sequence[int], batch: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Places of the rows of each step of one epoch: shuffled, and bucketed by length so that little is padding."""
    shuffled = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(lengths))
    steps: list[list[int]] = []
    for start in range(0, len(shuffled), batch * _BUCKET):
        # Rows of one length stay shuffled among themselves: a small set has other steps every epoch.
        bucket = sorted(shuffled[start : start + batch * _BUCKET].tolist(), key=lambda place: lengths[place])
        steps += [bucket[at : at + batch] for at in range(0, len(bucket), batch)]
    turn = np.random.Generator(np.random.Philox(key=[seed, epoch + (1 << 32)])).permutation(len(steps))
    return [steps[place] for place in turn.tolist()]
