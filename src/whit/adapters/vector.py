"""Vector adapters: how a vector v of `numbers` becomes the r×r matrix R of every adapted module.

- `xs` (LoRA-XS, arXiv 2405.17604): R is the module's own r·r numbers.
- `tiny` (TinyLoRA, arXiv 2602.04118): R = Σᵢ vᵢ Pᵢ, with P fixed and random, and v shared by a group of modules.

Either way the adapted matrix is W + U S R Vᵀ. Modules are divided into groups evenly (sizes differ by one at
most), in their fixed order. P comes from Philox, uniform with variance 1/r: entry e of module m's (u, r, r)
tensor is word e of the stream (m, 0, "P"), so that it depends on neither the grouping nor the other modules.
Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whit.adapters.philox import philox_uniform
from whit.errors import UsageError

if TYPE_CHECKING:
    import torch

KINDS = ("tiny", "xs")
MAX_RANK = 64
MAX_SEED = 0xFFFF  # two bytes of the compact file
_MAX_PROJECTION = 1 << 28  # numbers in P of all modules together: one GiB
_P_STREAM = 0x50


@dataclass(frozen=True)
class VectorSpec:
    """The shape of a vector adapter.

    `targets` are the numbers of the adapted modules, ascending; `groups` how many vectors of
    `numbers // groups` numbers there are (for `xs`, one group a module); `seed` chooses P.
    """

    kind: str
    rank: int
    numbers: int
    groups: int
    targets: tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        modules, square = len(self.targets), self.rank * self.rank
        if self.kind not in KINDS:
            raise UsageError(f"unknown kind of vector adapter {self.kind!r}; there are {', '.join(KINDS)}")
        if modules == 0 or self.rank < 1 or self.numbers < 1:
            raise UsageError("a vector adapter needs at least one module, one rank and one number")
        if self.rank > MAX_RANK:
            raise UsageError(f"a vector adapter has a rank of at most {MAX_RANK}, not {self.rank}")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"the seed of P is between 0 and {MAX_SEED}, not {self.seed}")
        if self.targets[0] < 0 or any(later <= target for target, later in pairwise(self.targets)):
            raise UsageError("the modules of a vector adapter are named by their numbers, each once and in order")
        if self.kind == "xs" and (self.groups, self.numbers) != (modules, modules * square):
            raise UsageError(f"xs of rank {self.rank} on {modules} modules has {modules * square} numbers")
        if self.kind == "tiny" and (not 1 <= self.groups <= modules or self.numbers % self.groups):
            raise UsageError(f"{self.numbers} numbers cannot be shared by {self.groups} groups of {modules} modules")
        # Checked here and not only where specs are chosen: a file may claim anything, and P is as large as it says.
        if self.kind == "tiny" and self.u > (modules // self.groups) * square:
            raise UsageError(
                f"{self.u} numbers are more than {modules // self.groups} modules of rank {self.rank} can move by"
            )
        if self.kind == "tiny" and modules * self.u * square > _MAX_PROJECTION:
            raise UsageError(
                f"P of {modules} modules, {self.u} numbers and rank {self.rank} is too large; lower --rank"
            )

    @property
    def u(self) -> int:
        """Numbers in the vector of one group."""
        return self.numbers // self.groups

    def group_of(self) -> NDArray[np.int64]:
        """The group of each target, shape (modules,)."""
        return (np.arange(len(self.targets)) * self.groups // len(self.targets)).astype(np.int64)


def xs_spec(targets: Sequence[int], rank: int) -> VectorSpec:
    """LoRA-XS on these modules: rank² numbers each."""
    return VectorSpec("xs", rank, len(targets) * rank * rank, len(targets), tuple(targets))


def tiny_spec(
    targets: Sequence[int], numbers: int, *, rank: int = 2, groups: int | None = None, seed: int = 0
) -> VectorSpec:
    """TinyLoRA with exactly `numbers` numbers; without `groups`, as many as leave each at least `rank²` numbers.

    A group of m modules has m·r² dimensions to move in, so more numbers than that would be redundant.
    Raises `UsageError` with the nearest budgets where `numbers` cannot be reached.
    """
    modules, square = len(targets), rank * rank
    if groups and groups > modules:
        raise UsageError(f"--groups {groups}: more than the {modules} modules that are adapted; give fewer")
    choices = [groups] if groups else _groupings(numbers, modules, square)
    for choice in choices:
        fits = choice <= modules and numbers % choice == 0 and numbers // choice <= (modules // choice) * square
        if numbers > 0 and fits:
            return VectorSpec("tiny", rank, numbers, choice, tuple(targets), seed)
    near = nearest_budgets(numbers, modules, square, groups)
    raise UsageError(
        f"--numbers {numbers}: not reachable with rank {rank} on {modules} modules"
        + (f" in {groups} groups" if groups else f" (at most {modules * square})")
        + f"; near are {', '.join(str(budget) for budget in near)}"
        + (", or raise --rank" if numbers > modules * square else "")
    )


def _groupings(numbers: int, modules: int, square: int) -> list[int]:
    """Ways to divide, the preferred first: the most groups whose vectors still have r² numbers, else one group."""
    divisors = [groups for groups in range(1, min(numbers, modules) + 1) if numbers % groups == 0]
    full = [groups for groups in reversed(divisors) if numbers // groups >= square]
    return full + [groups for groups in divisors if groups not in full]


def nearest_budgets(numbers: int, modules: int, square: int, groups: int | None = None) -> list[int]:
    """Up to four numbers near `numbers` that `tiny` can have."""

    def reachable(candidate: int) -> bool:
        choices = [groups] if groups else range(1, min(candidate, modules) + 1)
        return any(
            candidate % choice == 0 and candidate // choice <= (modules // choice) * square for choice in choices
        )

    ceiling = modules * square
    ordered = sorted(range(1, ceiling + 1), key=lambda candidate: abs(candidate - numbers))
    return sorted([candidate for candidate in ordered[: 4 * modules] if reachable(candidate)][:4])


def projections(spec: VectorSpec) -> NDArray[np.float32]:
    """P for every target of a `tiny` adapter, shape (modules, u, r, r), float32."""
    size = spec.u * spec.rank * spec.rank
    stack = [
        philox_uniform(size, key=spec.seed, stream=(target, 0, _P_STREAM), variance=1.0 / spec.rank)
        for target in spec.targets
    ]
    return np.stack(stack).reshape(len(spec.targets), spec.u, spec.rank, spec.rank)


class Expansion:
    """From vectors to matrices R, differentiably.

    `projection` is P where it was learned (see `learned.py`). Called with v of shape (numbers,) it gives R of shape
    (modules, r, r); with one v for every row, shape (rows, numbers), it gives (modules, rows, r, r).
    """

    def __init__(self, spec: VectorSpec, *, device: str = "cpu", projection: NDArray[np.float32] | None = None) -> None:
        import torch

        self.spec = spec
        self._group = torch.from_numpy(spec.group_of()).to(device)
        self._P: torch.Tensor | None = None
        if spec.kind == "tiny":
            self._P = torch.from_numpy(projections(spec) if projection is None else projection.copy()).to(device)

    @property
    def projection(self) -> torch.Tensor | None:
        """P, shape (modules, u, r, r), of a `tiny` adapter."""
        return self._P

    @projection.setter
    def projection(self, P: torch.Tensor) -> None:
        self._P = P

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """R for v; float32."""
        import torch

        spec = self.spec
        if v.shape[-1] != spec.numbers or v.dim() not in (1, 2):
            raise ValueError(f"v has shape {tuple(v.shape)}; ({spec.numbers},) or (rows, {spec.numbers}) is needed")
        rows = v.float().reshape(-1, spec.groups, spec.u)
        if self._P is None:
            R = rows.reshape(-1, len(spec.targets), spec.rank, spec.rank).transpose(0, 1)
        elif spec.groups == 1:
            modules = len(spec.targets)
            R = (rows[:, 0] @ self._P.transpose(0, 1).reshape(spec.u, -1)).reshape(-1, modules, spec.rank, spec.rank)
            R = R.transpose(0, 1)
        else:
            R = torch.einsum("bmu,mujk->mbjk", rows[:, self._group], self._P)
        return R[:, 0] if v.dim() == 1 else R
