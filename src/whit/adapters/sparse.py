"""Sparse adapters: a few single weights of the base, each moved by a number of its own; and their places as bytes.

The adapted matrix is W + ΔW, where ΔW is zero but at `places`. A place is module · stride + position: the module's
number in the fixed order (see `targets.py`) and the weight's position in its matrix, row by row; `stride` is at least
the weights of the largest matrix. Sorted places are coded as Elias and Fano did (Elias, J. ACM 21, 1974; Fano, MIT
memo 61, 1971): k low bits of each, then the high bits in unary; about 2 + log2(weights / places) bits each. Knows
nothing of models or of how places are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from whit.errors import UsageError

MAX_PLACES = 1 << 18
MAX_STRIDE = (1 << 32) - 1
MAX_MODULES = 7 * 255
_MAX_LOW = 44


@dataclass(frozen=True)
class SparseSpec:
    """Which weights a sparse adapter moves: `places`, ascending, each below `MAX_MODULES * stride`."""

    stride: int
    places: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= MAX_STRIDE:
            raise UsageError(f"the stride of a sparse adapter is between 1 and {MAX_STRIDE}, not {self.stride}")
        if not 1 <= len(self.places) <= MAX_PLACES:
            raise UsageError(f"a sparse adapter has 1 to {MAX_PLACES:,} numbers, not {len(self.places):,}")
        if self.places[0] < 0 or any(later <= place for place, later in pairwise(self.places)):
            raise UsageError("the weights of a sparse adapter are named by their places, each once and in order")
        if self.places[-1] >= MAX_MODULES * self.stride:
            raise UsageError(f"a sparse adapter moves modules 0 to {MAX_MODULES - 1}, not {self.targets[-1]}")

    @property
    def kind(self) -> str:
        """`sparse`."""
        return "sparse"

    @property
    def numbers(self) -> int:
        """How many weights it moves."""
        return len(self.places)

    @property
    def targets(self) -> tuple[int, ...]:
        """The numbers of the modules that have a moved weight, ascending."""
        return tuple(sorted({place // self.stride for place in self.places}))

    def within(self, module: int) -> tuple[slice, NDArray[np.int64]]:
        """Which of the numbers are module's, and their positions in its matrix."""
        every = np.array(self.places, dtype=np.int64)
        first, last = np.searchsorted(every, [module * self.stride, (module + 1) * self.stride])
        return slice(int(first), int(last)), every[first:last] - module * self.stride


def encode(places: tuple[int, ...]) -> tuple[int, bytes]:
    """k and the bytes that hold the places; of the k that take fewest bytes, the smallest."""
    k = min(range(_MAX_LOW + 1), key=lambda low: (size_of(len(places), places[-1], low), low))
    every = np.array(places, dtype=np.int64)
    low = every[:, None] >> np.arange(k, dtype=np.int64) & 1
    high = np.zeros((places[-1] >> k) + len(places), dtype=np.uint8)
    high[(every >> k) + np.arange(len(places))] = 1
    parts = (low.astype(np.uint8).ravel(), high)
    return k, b"".join(np.packbits(part, bitorder="little").tobytes() for part in parts)


def size_of(count: int, last: int, k: int) -> int:
    """Bytes that `count` places up to `last` take with k low bits."""
    return (count * k + 7) // 8 + ((last >> k) + count + 7) // 8


def most_bytes(count: int) -> int:
    """The most bytes that `encode` needs for so many places, wherever they are."""
    return 8 * count + 8


def decode(content: bytes, count: int, k: int) -> tuple[int, ...]:
    """The places that `encode` wrote. Raises `ValueError` where the bytes cannot be that; allocates by their length."""
    split = (count * k + 7) // 8
    if not 0 <= k <= _MAX_LOW or len(content) < split:
        raise ValueError(f"{len(content)} bytes do not hold {count} places of {k} low bits")
    whole = np.frombuffer(content, dtype=np.uint8)
    low = np.unpackbits(whole[:split], bitorder="little")[: count * k].reshape(count, k).astype(np.int64)
    ones = np.flatnonzero(np.unpackbits(whole[split:], bitorder="little"))
    if len(ones) != count:
        raise ValueError(f"there are {len(ones)} places where {count} are claimed")
    high = ones - np.arange(count)
    found = (high << k) + (low << np.arange(k, dtype=np.int64)).sum(axis=1)
    return tuple(found.tolist())
