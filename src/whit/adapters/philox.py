"""Philox 4x32-10, the counter-based generator behind every random number that must be the same everywhere.

Promises the same words as the reference implementation (Random123) and as whit's engine in Rust: word
`4*b + lane` of a stream is lane `lane` of the block whose counter is `(b, stream[0], stream[1], stream[2])`.
Source: Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox_words(count: int, *, key: int, stream: tuple[int, int, int]) -> NDArray[np.uint32]:
    """The first `count` 32-bit words of a stream.

    `key` is a 64-bit number (its low half is the first key word), `stream` three 32-bit numbers that
    name the stream. Shape of the result: (count,).
    """
    blocks = -(-count // 4)
    if count < 0 or blocks > 0xFFFFFFFF:
        raise ValueError(f"a Philox stream has between 0 and 2**34 words, not {count}")
    counters = np.empty((blocks, 4), dtype=np.uint64)
    counters[:, 0] = np.arange(blocks, dtype=np.uint64)
    counters[:, 1:] = [word & 0xFFFFFFFF for word in stream]
    return philox_blocks(counters, key=key).reshape(-1)[:count]


def philox_blocks(counters: NDArray[np.uint64], *, key: int) -> NDArray[np.uint32]:
    """The blocks at these counters: shape (blocks, 4) of 32-bit numbers in, the same shape of words out."""
    c0, c1, c2, c3 = (np.ascontiguousarray(column, dtype=np.uint64) for column in counters.T)
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def philox_uniform(count: int, *, key: int, stream: tuple[int, int, int], variance: float) -> NDArray[np.float32]:
    """Numbers uniform on (-a, a) with the given variance, symmetric and never zero. Shape: (count,), float32.

    Each is `(2w + 1 - 2**32) / 2**32 * sqrt(3 * variance)` in float64, rounded once to float32: only
    operations that IEEE 754 rounds correctly, so that Python, Rust and JavaScript agree bit for bit.
    """
    words = philox_words(count, key=key, stream=stream).astype(np.float64)
    centred = (2.0 * words + 1.0 - 4294967296.0) / 4294967296.0
    numbers: NDArray[np.float32] = (centred * np.sqrt(3.0 * variance)).astype(np.float32)
    return numbers
