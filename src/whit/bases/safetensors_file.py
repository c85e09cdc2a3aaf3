"""Reading safetensors files: the header is checked against the file before a tensor is read.

Promises that a header which is too long, not JSON, or whose tensors leave, overlap or do not fill the
file raises `BaseError` with the reason. Knows nothing of architectures.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import BaseError

if TYPE_CHECKING:
    import torch

#: the format's own limit (safetensors README)
MAX_HEADER = 100 * 1024 * 1024
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's place: `offset` counts from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """A safetensors file whose header has been read and checked. Raises `BaseError`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as handle:
                size = handle.seek(0, 2)
                handle.seek(0)
                prefix = handle.read(8)
                length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
                if not 2 <= length <= min(MAX_HEADER, size - 8):
                    raise self._fail(f"its header says it is {length} bytes long in a file of {size}")
                header = handle.read(length)
        except OSError as error:
            raise BaseError(f"cannot read {self.path}: {error.strerror or error}.") from error
        self.tensors = self._check(header, 8 + length, size)

    def _fail(self, what: str) -> BaseError:
        return BaseError(f"{self.path} is not a usable safetensors file: {what}. Fetch or copy it again.")

    def _check(self, header: bytes, start: int, size: int) -> dict[str, StoredTensor]:
        try:
            entries = json.loads(header)
        except (ValueError, RecursionError) as error:
            raise self._fail(f"its header is not JSON ({error})") from None
        if not isinstance(entries, dict):
            raise self._fail("its header is not a JSON object")
        tensors = {}
        for name, entry in entries.items():
            if name != "__metadata__":
                tensors[name] = self._entry(name, entry, start, size)
        end = start
        for tensor in sorted(tensors.values(), key=lambda item: (item.offset, item.nbytes)):
            if tensor.offset != end:
                raise self._fail(f"the tensor {tensor.name!r} leaves a gap or overlaps another")
            end += tensor.nbytes
        if end != size:
            raise self._fail(f"its tensors end at {end}, the file at {size}: it is truncated or damaged")
        return tensors

    def _entry(self, name: str, entry: Any, start: int, size: int) -> StoredTensor:
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise self._fail(f"the entry of {name!r} lacks dtype, shape or data_offsets") from None
        numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise self._fail(f"the entry of {name!r} has sizes that are no whole numbers")
        if not isinstance(dtype, str) or dtype not in _SIZES:
            raise self._fail(
                f"the tensor {name!r} has the number type {dtype!r}; a base needs one of {', '.join(_SIZES)}"
            )
        nbytes = math.prod(shape) * _SIZES[dtype]
        if end - begin != nbytes or start + end > size:
            raise self._fail(f"the tensor {name!r} of shape {shape} does not fit its place: truncated or damaged")
        return StoredTensor(name, dtype, tuple(shape), start + begin, nbytes)

    def read(self, name: str) -> torch.Tensor:
        """The tensor as float32."""
        import numpy as np
        import torch

        tensor = self.tensors[name]
        with self.path.open("rb") as handle:
            raw = np.fromfile(handle, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
        if raw.size != tensor.nbytes:
            raise BaseError(f"{self.path} was cut short while it was being read ({name}).")
        dtype: torch.dtype = getattr(torch, _DTYPES[tensor.dtype])
        return torch.from_numpy(raw).view(dtype).float().reshape(tensor.shape)
