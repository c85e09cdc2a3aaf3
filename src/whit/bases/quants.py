"""The number types of GGUF: sizes of their blocks, and exact dequantisation to float32.

Promises the same float32 values as ggml's reference (the `gguf` package), bit for bit. The types that
whit's own bases use are done here with torch, many times faster; the rest are left to `gguf`.
Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whit.errors import BaseError

if TYPE_CHECKING:
    import torch


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


def dequantise(raw: Any, kind: QuantType, shape: tuple[int, ...]) -> torch.Tensor:
    """`raw`: uint8 numpy array that holds exactly the tensor. Returns float32 of `shape`."""
    import torch

    flat = torch.from_numpy(raw)
    own = _OWN.get(kind.name)
    if own is not None:
        return own(flat, kind).reshape(shape)
    import gguf
    import numpy as np

    try:
        rows = raw.reshape(math.prod(shape[:-1]), -1)
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind.code))
    except (NotImplementedError, ValueError) as error:
        raise BaseError(f"the quantisation {kind.name} cannot be read here: {error}.") from error
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(shape)


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    import torch

    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _f32(flat: torch.Tensor, kind: QuantType) -> torch.Tensor:
    import torch

    return flat.view(torch.float32)


def _f16(flat: torch.Tensor, kind: QuantType) -> torch.Tensor:
    import torch

    return flat.view(torch.float16).float()


def _bf16(flat: torch.Tensor, kind: QuantType) -> torch.Tensor:
    import torch

    return flat.view(torch.bfloat16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """(n, 16) bytes -> (n, 32) float32: the low halves first, then the high ones, as ggml packs them."""
    import torch

    out = torch.empty(packed.shape[0], 32, dtype=torch.float32)
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4
    return out


def _q4_0(flat: torch.Tensor, kind: QuantType) -> torch.Tensor:
    blocks = flat.view(-1, kind.bytes)
    return _nibbles(blocks[:, 2:]).sub_(8).mul_(_half(blocks, 0))


def _q4_1(flat: torch.Tensor, kind: QuantType) -> torch.Tensor:
    blocks = flat.view(-1, kind.bytes)
    # two roundings (multiply, then add), as the reference does: a fused one would differ in the last bit
    return _nibbles(blocks[:, 4:]).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(flat: torch.Tensor, kind: QuantType) -> torch.Tensor:
    import torch

    blocks = flat.view(-1, kind.bytes)
    return blocks[:, 2:].contiguous().view(torch.int8).float().mul_(_half(blocks, 0))


def _tq2_0(flat: torch.Tensor, kind: QuantType) -> torch.Tensor:
    import torch

    blocks = flat.view(-1, kind.bytes)
    packed = blocks[:, :64].reshape(-1, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).reshape(1, 1, 4, 1)
    codes = ((packed >> shifts) & 3).reshape(-1, 256).float().sub_(1)
    return codes.mul_(_half(blocks, 64))


_OWN: dict[str, Callable[[torch.Tensor, QuantType], torch.Tensor]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "TQ2_0": _tq2_0,
}
