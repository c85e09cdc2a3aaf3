"""R of every slot, laid out so that an adapter comes into its slot in one step and a product uses it in one more.

Modules that read the same input (q, k and v; gate and up) are one group: z = Vᵀ x of all of them is one product, and so
is what R makes of it, with Rᵀ of each module along the diagonal of one matrix a slot. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from whit.adapters.targets import Target

_SHARED = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}


def groups_of(targets: Sequence[Target]) -> list[list[int]]:
    """Places in `targets` of the modules that share an input, in order."""
    places = range(len(targets))
    return [
        list(group) for _, group in groupby(places, lambda at: (targets[at].layer, _SHARED[targets[at].projection]))
    ]


class Blocks:
    """`groups[g]` has shape (rows, m·r, m·r) for the m modules of group g; its first index is a slot.

    `factors`, shape (modules, r), multiplies what comes from each column of V.
    """

    def __init__(
        self,
        modules: Sequence[int],
        rank: int,
        rows: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        factors: torch.Tensor | None = None,
    ) -> None:
        inside = torch.arange(rank)
        first, step, end, sizes = [], [], 0, [count * rank for count in modules]
        for count, size in zip(modules, sizes, strict=True):
            for place in range(count):
                at = place * rank + inside
                # Entry (i, j) of R stands at (j, i): rows of z are multiplied from the left.
                first.append(end + at[None, :] * size + at[:, None])
                step.append(size * size)
            end += rows * size * size
        self._first = torch.stack(first).to(device)
        self._step = torch.tensor(step, device=device)[:, None, None]
        self._factors = None if factors is None else factors[:, None, :].to(device)
        self._all = torch.zeros(end, dtype=dtype, device=device)
        self.groups, end = [], 0
        for size in sizes:
            self.groups.append(self._all[end : end + rows * size * size].view(rows, size, size))
            end += rows * size * size

    def put(self, slot: int, R: torch.Tensor | None) -> None:
        """R, shape (modules, r, r), into a slot; None empties it."""
        places = self._first + slot * self._step
        if R is None:
            self._all[places] = 0
        else:
            self._all[places] = (R if self._factors is None else R * self._factors).to(self._all.dtype)
