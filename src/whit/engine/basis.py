"""A basis in the form that the engine reads: plain numbers, one checksum, no container library needed.

    offset size
      0     8   magic "WHITBAS1"
      8     4   rank r
     12     4   modules
     16    32   the base's fingerprint
     48    32   the basis's fingerprint
     80     4   CRC-32 of all that follows
     84     …   for each module: number, out, in (4 bytes each), U·S (out x r), V (in x r), both bfloat16

All integers are little-endian; matrices row by row. Knows the safetensors file that
`whit.adapters.basis.save_basis` writes only by that container's published layout.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from whit.errors import BaseError

if TYPE_CHECKING:
    from whit.adapters.basis import Basis

MAGIC = b"WHITBAS1"
_HEADER = struct.Struct("<8sII32s32sI")
_MODULE = struct.Struct("<III")
_LARGEST_HEAD = 1 << 24
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_basis(basis: Basis) -> bytes:
    """The bytes of a `whit.adapters.basis.Basis` for the engine."""
    import torch

    parts = []
    for target, us, v in zip(basis.targets, basis.outward, basis.inward, strict=True):
        parts.append(_MODULE.pack(target.index, us.shape[0], v.shape[0]))
        parts += [part.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes() for part in (us, v)]
    return _assemble(basis.rank, basis.base_fingerprint, basis.fingerprint, len(basis.targets), b"".join(parts))


def convert_basis(path: str | Path) -> bytes:
    """The same from a cached basis file (safetensors), without torch. Raises `BaseError` for a damaged file."""
    content = Path(path).read_bytes()
    damaged = f"{path}: not a whole basis file; delete it and it is computed again"
    if len(content) < 8:
        raise BaseError(damaged)
    (length,) = struct.unpack_from("<Q", content)
    if length > min(_LARGEST_HEAD, len(content) - 8):
        raise BaseError(damaged)
    try:
        head = json.loads(content[8 : 8 + length])
        about = head.pop("__metadata__")
        rank = int(about["rank"])
        modules: dict[int, tuple[str, int, int]] = {}
        for key, entry in head.items():
            name, _, side = key.rpartition(".")
            if side == "V":
                layer, _, projection = name.rpartition("layers.")[2].partition(".")
                index = int(layer) * len(_PROJECTIONS) + _PROJECTIONS.index(projection.rpartition(".")[2])
                modules[index] = (name, int(head[f"{name}.US"]["shape"][0]), int(entry["shape"][0]))
        parts = []
        for index in sorted(modules):
            name, out, wide = modules[index]
            parts.append(_MODULE.pack(index, out, wide))
            for side, rows in (("US", out), ("V", wide)):
                start, end = head[f"{name}.{side}"]["data_offsets"]
                part = content[8 + length + start : 8 + length + end]
                if head[f"{name}.{side}"]["dtype"] != "BF16" or len(part) != 2 * rows * rank:
                    raise BaseError(damaged)
                parts.append(part)
        return _assemble(rank, about["base"], about["fingerprint"], len(modules), b"".join(parts))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BaseError(damaged) from error


def fingerprint_of(content: bytes) -> str:
    """The fingerprint of a basis in the engine's form, 64 hex characters."""
    return content[48:80].hex()


def _assemble(rank: int, base: str, fingerprint: str, count: int, body: bytes) -> bytes:
    fingerprints = bytes.fromhex(base), bytes.fromhex(fingerprint)
    return _HEADER.pack(MAGIC, rank, count, *fingerprints, zlib.crc32(body)) + body
