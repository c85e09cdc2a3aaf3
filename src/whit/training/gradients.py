"""Each row's gradient with respect to an adapter's numbers.

A vector adapter gives them from ordinary batches: every row brings a copy of the vector, and its gradient is that
row's. A LoRA gives them row by row; where it has more than `LARGEST` numbers they are hashed into that many by signs
(a count sketch: Charikar, Chen & Farach-Colton, 2002), which keeps inner products in the mean. Knows nothing of what
they are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from whit.adapters.tunable import Bound, BoundVector
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import TrainingError
from whit.training.batching import Batch, collate
from whit.training.sft import loss_of, unshared

LARGEST = 2048


@dataclass(frozen=True)
class Gradients:
    """Of each row: `losses` (rows,) in nats over the whole answer, its `tokens` (rows,), and G (rows, numbers)."""

    ids: tuple[str, ...]
    losses: torch.Tensor
    tokens: torch.Tensor
    G: torch.Tensor


def row_gradients(
    base: Base,
    bound: Bound,
    rows: Sequence[Encoded],
    *,
    batch: int = 8,
    on_done: Callable[[int], None] | None = None,
) -> Gradients:
    """The gradient of each row's loss at the adapter's present numbers, in the order of `rows`; nothing is changed.

    Raises `TrainingError` that names the rows whose loss or gradient is not finite.
    """
    if not rows:
        raise TrainingError("there are no rows to take gradients of")
    sketch = _Sketch(bound.numbers)
    losses = torch.zeros(len(rows), dtype=torch.float64)
    tokens = torch.tensor([len(row.completion_ids) for row in rows])
    G = torch.zeros(len(rows), min(bound.numbers, LARGEST))
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].prompt_ids) + len(rows[at].completion_ids))
    size = batch if isinstance(bound, BoundVector) else 1
    for start in range(0, len(order), size):
        places = order[start : start + size]
        part = collate([rows[at] for at in places])
        found, each = _vector(base, bound, part) if isinstance(bound, BoundVector) else _single(base, bound, part)
        losses[places], G[places] = found, sketch(each)
        if on_done:
            on_done(start + len(places))
    bad = ~(torch.isfinite(losses) & torch.isfinite(G).all(1))
    if bool(bad.any()):
        names = [rows[at].row.name for at in bad.nonzero()[:, 0].tolist()]
        raise TrainingError(
            f"the loss or its gradient is not finite on rows {', '.join(names[:10])}; look at those rows"
        )
    return Gradients(tuple(row.row.id for row in rows), losses, tokens, G)


def _vector(base: Base, bound: BoundVector, part: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (rows,) and gradients (rows, numbers) of one batch, in one pass."""
    each = bound.v.detach().expand(len(part.rows), -1).clone().requires_grad_(True)
    with bound.rows(each):
        losses = loss_of(base, unshared(part))
    losses.sum().backward()
    assert each.grad is not None
    return _by_row(losses, part), each.grad.detach().float().cpu()


def _single(base: Base, bound: Bound, part: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a batch of one row, for an adapter whose numbers all rows share."""
    parameters = bound.parameters()
    for parameter in parameters:
        parameter.grad = None
    with bound.active():
        losses = loss_of(base, part)
    losses.sum().backward()
    parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    flat = torch.cat([part.detach().flatten().float().cpu() for part in parts])
    for parameter in parameters:
        parameter.grad = None
    return _by_row(losses, part), flat[None]


def _by_row(losses: torch.Tensor, part: Batch) -> torch.Tensor:
    summed = torch.zeros(len(part.rows), dtype=torch.float64)
    return summed.index_add_(0, part.at[:, 0], losses.detach().double().cpu())


class _Sketch:
    """(rows, numbers) to at most `LARGEST` columns: each number is added to one of them, with a sign, by seed."""

    def __init__(self, numbers: int) -> None:
        self._to: torch.Tensor | None = None
        if numbers > LARGEST:
            draw = torch.Generator().manual_seed(0)
            self._to = torch.randint(LARGEST, (numbers,), generator=draw)
            self._sign = torch.randint(2, (numbers,), generator=draw).float() * 2 - 1

    def __call__(self, G: torch.Tensor) -> torch.Tensor:
        if self._to is None:
            return G
        return torch.zeros(G.shape[0], LARGEST).index_add_(1, self._to, G * self._sign)
