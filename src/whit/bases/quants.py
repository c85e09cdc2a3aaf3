"""The number types of GGUF: sizes of their blocks, and exact dequantisation to float32.

Promises the same float32 values as ggml's reference (the `gguf` package), bit for bit. The types that
whit's own bases use are done here in fewer passes; the rest are left to `gguf`.
Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whit.errors import BaseError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantType:
    """`block` values take `bytes` bytes."""

    name: str
    code: int
    block: int
    bytes: int


#: ggml's codes (enum ggml_type), without those that were removed from the format.
TYPES: dict[int, QuantType] = {
    code: QuantType(name, code, block, size)
    for name, code, block, size in [
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("Q4_0", 2, 32, 18),
        ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22),
        ("Q5_1", 7, 32, 24),
        ("Q8_0", 8, 32, 34),
        ("Q2_K", 10, 256, 84),
        ("Q3_K", 11, 256, 110),
        ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210),
        ("IQ4_NL", 20, 32, 18),
        ("IQ4_XS", 23, 256, 136),
        ("BF16", 30, 1, 2),
        ("TQ1_0", 34, 256, 54),
        ("TQ2_0", 35, 256, 66),
    ]
}


def dequantise(raw: Bytes, kind: QuantType, shape: tuple[int, ...]) -> Floats:
    """`raw`: uint8 array that holds exactly the tensor. Returns float32 of `shape`."""
    import numpy as np

    own = _OWN.get(kind.name)
    if own is not None:
        return own(raw.reshape(-1, kind.bytes)).reshape(shape)
    import gguf

    try:
        rows = raw.reshape(math.prod(shape[:-1]), -1)
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind.code))
    except (NotImplementedError, ValueError) as error:
        raise BaseError(f"the quantisation {kind.name} cannot be read here: {error}.") from error
    return np.ascontiguousarray(values, dtype=np.float32).reshape(shape)


# Each takes the blocks, (n, bytes of a block) uint8, and returns (n, values of a block) float32.
# numpy rather than torch: one thread reads as fast as the memory, and a second one only waits for it
# on a busy machine.


def _half(blocks: Bytes, start: int) -> Floats:
    import numpy as np

    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _f32(blocks: Bytes) -> Floats:
    import numpy as np

    return blocks.view(np.dtype("<f4"))


def _f16(blocks: Bytes) -> Floats:
    import numpy as np

    return blocks.view(np.dtype("<f2")).astype(np.float32)


def bf16(blocks: Bytes) -> Floats:
    """bfloat16 is the upper half of a float32. Takes (n, 2) uint8."""
    import numpy as np

    wide = blocks.view(np.dtype("<u2")).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _nibbles(packed: Bytes) -> Floats:
    """(n, 16) bytes -> (n, 32): the low halves first, then the high ones, as ggml packs them."""
    import numpy as np

    out = np.empty((packed.shape[0], 32), dtype=np.float32)
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4
    return out


def _q4_0(blocks: Bytes) -> Floats:
    out = _nibbles(blocks[:, 2:])
    out -= 8
    out *= _half(blocks, 0)
    return out


def _q4_1(blocks: Bytes) -> Floats:
    # two roundings (multiply, then add), as the reference does: a fused one would differ in the last bit
    out = _nibbles(blocks[:, 4:])
    out *= _half(blocks, 0)
    out += _half(blocks, 2)
    return out


def _q8_0(blocks: Bytes) -> Floats:
    import numpy as np

    out = blocks[:, 2:].view(np.int8).astype(np.float32)
    out *= _half(blocks, 0)
    return out


def _tq2_0(blocks: Bytes) -> Floats:
    import numpy as np

    packed = blocks[:, :64].reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    out = ((packed >> shifts) & 3).reshape(-1, 256).astype(np.float32)
    out -= 1
    out *= _half(blocks, 64)
    return out


_OWN: dict[str, Callable[[Bytes], Floats]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "TQ2_0": _tq2_0,
}
