"""Which weights a sparse adapter moves: by gradient on a calibration set, pruned round by round to the last survivors.

First every weight of the targets is scored by its gradient on the bare base. The best, sixty-four times as many as
are wanted, are then moved by Adam; each is scored by how much of the fall of the loss it brought about, the sum over
steps of -g · change (loss change allocation: Lan et al., arXiv 1909.01440), and the best quarter goes on, three times
over. What the numbers became is forgotten: training begins at zero, with the places alone. The same losses and rate
give the same places. Knows nothing of where the losses come from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from whit.adapters.sparse import MAX_PLACES, SparseSpec
from whit.adapters.targets import Target, all_targets
from whit.adapters.tunable import tune_sparse
from whit.bases import Base
from whit.errors import TrainingError, UsageError
from whit.training.optimizers import Adam

_QUARTERS = 3


def find_places(
    base: Base,
    targets: Sequence[Target],
    numbers: int,
    losses: Sequence[Callable[[], torch.Tensor]],
    *,
    rate: float,
    on_round: Callable[[int, int], None] | None = None,
) -> SparseSpec:
    """The `numbers` weights of `targets` whose change lowers `losses` most.

    Each of `losses` is one calibration batch's loss as the model stands, a scalar. `on_round(passes so far, of)` is
    told of each pass over them. Raises `UsageError` for numbers that cannot be, `TrainingError` where the gradient is
    NaN, infinite or nothing.
    """
    sizes = {target.index: base.model.get_submodule(target.name).weight.numel() for target in targets}
    most = min(MAX_PLACES, sum(sizes.values()))
    if not 1 <= numbers <= most:
        raise UsageError(f"--numbers {numbers}: a sparse adapter of these modules has 1 to {most:,}")
    if not losses:
        raise TrainingError("there is nothing to tell the weights apart by; give more rows")
    every = all_targets(name for name, _ in base.model.named_modules())
    stride = max(base.model.get_submodule(target.name).weight.numel() for target in every)
    tell = on_round or (lambda done, of: None)
    counts = [min(most, numbers * 4**left) for left in range(_QUARTERS, -1, -1)]
    places = _steepest(base, targets, stride, counts[0], losses)
    v = torch.zeros(len(places))
    tell(1, _QUARTERS + 1)
    for turn, count in enumerate(counts[1:], start=2):
        places, v = _survivors(base, SparseSpec(stride, tuple(places.tolist())), v, count, losses, rate)
        tell(turn, _QUARTERS + 1)
    return SparseSpec(stride, tuple(places.tolist()))


def _steepest(
    base: Base, targets: Sequence[Target], stride: int, count: int, losses: Sequence[Callable[[], torch.Tensor]]
) -> torch.Tensor:
    """The places of the `count` weights with the largest gradients, ascending."""
    best, where = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    with _with_gradients(base, targets) as weights:
        for loss in losses:
            loss().backward()
        for index, weight in weights.items():
            if weight.grad is None:
                continue
            steep = weight.grad.detach().float().abs().flatten()
            if not bool(torch.isfinite(steep).all()):
                raise TrainingError("the gradient is NaN or infinite before the first step; look at the rows")
            top = steep.topk(min(count, len(steep)))
            best = torch.cat([best, top.values.cpu()])
            where = torch.cat([where, index * stride + top.indices.cpu()])
            weight.grad = None
    if not bool(best.any()):
        raise TrainingError("no weight changes the loss: every gradient is zero")
    return where[best.topk(count).indices].sort().values


@contextlib.contextmanager
def _with_gradients(base: Base, targets: Sequence[Target]) -> Iterator[dict[int, torch.Tensor]]:
    """A block in which the targets' matrices get gradients: what gets each, by number; for a packed one a stand-in."""
    layers: dict[int, Any] = {target.index: base.model.get_submodule(target.name) for target in targets}
    weights, packed = dict[int, torch.Tensor](), set(base.packed.values())
    try:
        for index, layer in layers.items():
            weight = layer.weight
            if layer in packed:
                weight = layer.stand_in = weight.new_zeros(()).expand(weight.shape)  # of one number
            weights[index] = weight.requires_grad_(True)
        yield weights
    finally:
        for index, weight in weights.items():
            weight.requires_grad_(False)
            weight.grad = None
            if layers[index] in packed:
                layers[index].stand_in = None


def _survivors(
    base: Base,
    spec: SparseSpec,
    v: torch.Tensor,
    count: int,
    losses: Sequence[Callable[[], torch.Tensor]],
    rate: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the places, the `count` that lowered the loss most when all were moved, ascending; and their numbers then."""
    bound = tune_sparse(base, spec, number_type="float32")
    try:
        with torch.no_grad():
            bound.v.copy_(v)
        optimizer = Adam(bound.parameters())
        lowered = torch.zeros_like(bound.v)
        for loss in losses:
            bound.v.grad = None
            with bound.active():
                loss().backward()
            assert bound.v.grad is not None
            if not bool(torch.isfinite(bound.v.grad).all()):
                raise TrainingError("the gradient became NaN or infinite while weights were chosen; lower the rate")
            g, before = bound.v.grad.clone(), bound.v.detach().clone()
            optimizer.step(rate, None)
            lowered -= g * (bound.v.detach() - before)
        kept = lowered.topk(count).indices.sort().values.cpu()
        return torch.tensor(spec.places)[kept], bound.v.detach().cpu()[kept]
    finally:
        bound.detach()
