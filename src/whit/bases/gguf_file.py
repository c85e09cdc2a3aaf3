"""Reading GGUF files: header, metadata and tensors, with every length checked before it is believed.

Format: GGUF version 2 and 3, as in ggml's docs/gguf.md. Promises that nothing is allocated for a
count or a length which the file is too short to hold, and that a file that is no GGUF, truncated,
overlapping or of an unknown quantisation raises `BaseError` with the reason. Knows nothing of
architectures or of transformers: names and shapes are the file's own (shapes in torch's order).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.bases.quants import TYPES, QuantType
from whit.errors import BaseError

if TYPE_CHECKING:
    import torch

MAX_METADATA = 100_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4
MAX_STRING = 64 * 1024 * 1024
_ALIGNMENTS = {1 << power for power in range(0, 17)}

# metadata value types: code -> (struct format, size); 8 is string, 9 is array
_SCALARS: dict[int, tuple[str, int]] = {
    0: ("B", 1),
    1: ("b", 1),
    2: ("H", 2),
    3: ("h", 2),
    4: ("I", 4),
    5: ("i", 4),
    6: ("f", 4),
    7: ("?", 1),
    10: ("Q", 8),
    11: ("q", 8),
    12: ("d", 8),
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's place in the file. `shape` is in torch's order (rows first)."""

    name: str
    shape: tuple[int, ...]
    type: QuantType
    offset: int
    nbytes: int


class _Cursor:
    """A position in the mapped file that cannot leave it."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.size, self.at = data, path, len(data), 0

    def fail(self, what: str) -> BaseError:
        return BaseError(f"{self.path} is not a usable GGUF file: {what}. Fetch or copy it again.")

    def need(self, count: int, what: str) -> None:
        if count < 0 or count > self.size - self.at:
            raise self.fail(f"{what} wants {count} bytes at {self.at}, but the file ends at {self.size}")

    def scalar(self, code: str, size: int, what: str) -> Any:
        self.need(size, what)
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += size
        return value

    def u32(self, what: str) -> int:
        return int(self.scalar("I", 4, what))

    def u64(self, what: str) -> int:
        return int(self.scalar("Q", 8, what))

    def string(self, what: str) -> str:
        length = self.u64(what)
        if length > MAX_STRING:
            raise self.fail(f"{what} says it is {length} bytes long")
        self.need(length, what)
        raw = self.data[self.at : self.at + length]
        self.at += length
        # Token lists of real files hold bytes that are no UTF-8; they must not stop the reading.
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            code, size = _SCALARS[kind]
            return self.scalar(code, size, what)
        if kind == 8:
            return self.string(what)
        if kind == 9 and depth < 2:
            return self.array(what, depth)
        raise self.fail(f"{what} has the unknown value type {kind}")

    def array(self, what: str, depth: int) -> list[Any]:
        inner, count = self.u32(what), self.u64(what)
        if inner in _SCALARS:
            code, size = _SCALARS[inner]
            if count > (self.size - self.at) // size:
                raise self.fail(f"{what} says it has {count} entries, more than the file can hold")
            values = list(struct.unpack_from(f"<{count}{code}", self.data, self.at))
            self.at += count * size
            return values
        if inner not in (8, 9):
            raise self.fail(f"{what} has the unknown value type {inner}")
        # A string or an inner array takes at least 8 bytes: no count can make us allocate more than the file.
        if count > (self.size - self.at) // 8:
            raise self.fail(f"{what} says it has {count} entries, more than the file can hold")
        return [self.value(inner, what, depth + 1) for _ in range(count)]


class GgufFile:
    """A GGUF file whose header has been read and checked.

    `metadata`: str -> value. `tensors`: name -> GgufTensor. Raises `BaseError`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as handle:
                size = handle.seek(0, 2)
                if size < 24:
                    raise BaseError(f"{self.path} is not a GGUF file: it has only {size} bytes.")
                with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    self.metadata, self.tensors = _read_header(_Cursor(data, self.path))
        except OSError as error:
            raise BaseError(f"cannot read {self.path}: {error.strerror or error}.") from error

    def read(self, name: str) -> torch.Tensor:
        """The tensor as float32, dequantised, in torch's shape."""
        import numpy as np
        import torch

        from whit.bases.quants import dequantise

        tensor = self.tensors[name]
        with self.path.open("rb") as handle:
            raw = np.fromfile(handle, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
        if raw.size != tensor.nbytes:
            raise BaseError(f"{self.path} was cut short while it was being read ({name}).")
        return torch.from_numpy(dequantise(raw, tensor.type, tensor.shape))


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if cursor.data[:4] != b"GGUF":
        raise cursor.fail("it does not begin with the letters GGUF")
    cursor.at = 4
    version = cursor.u32("the version")
    if version not in (2, 3):
        raise cursor.fail(f"version {version} is not known (2 and 3 are)")
    tensor_count, metadata_count = cursor.u64("the tensor count"), cursor.u64("the metadata count")
    if tensor_count > MAX_TENSORS or metadata_count > MAX_METADATA:
        raise cursor.fail(f"it says it has {tensor_count} tensors and {metadata_count} metadata entries")
    metadata: dict[str, Any] = {}
    for index in range(metadata_count):
        key = cursor.string(f"the name of metadata entry {index}")
        if key in metadata:
            raise cursor.fail(f"the metadata entry {key!r} is there twice")
        metadata[key] = cursor.value(cursor.u32(f"the type of {key!r}"), f"metadata entry {key!r}")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in _ALIGNMENTS:
        raise cursor.fail(f"the alignment {alignment!r} is not a power of two")
    found = [_read_tensor(cursor, index) for index in range(tensor_count)]
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, relative, nbytes in found:
        if name in tensors:
            raise cursor.fail(f"the tensor {name!r} is there twice")
        if relative % alignment:
            raise cursor.fail(f"the tensor {name!r} is not aligned to {alignment} bytes")
        if nbytes > cursor.size - start - relative:
            raise cursor.fail(
                f"the tensor {name!r} wants {nbytes} bytes at {start + relative}, but the file ends at "
                f"{cursor.size}: it is truncated or damaged"
            )
        tensors[name] = GgufTensor(name, shape, kind, start + relative, nbytes)
    end = 0
    for tensor in sorted(tensors.values(), key=lambda item: item.offset):
        if tensor.offset < end:
            raise cursor.fail(f"the tensor {tensor.name!r} overlaps another")
        end = tensor.offset + tensor.nbytes
    return metadata, tensors


def _read_tensor(cursor: _Cursor, index: int) -> tuple[str, tuple[int, ...], QuantType, int, int]:
    name = cursor.string(f"the name of tensor {index}")
    dimensions = cursor.u32(f"the dimensions of {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"the tensor {name!r} says it has {dimensions} dimensions")
    sizes = [cursor.u64(f"the shape of {name!r}") for _ in range(dimensions)]
    code, relative = cursor.u32(f"the type of {name!r}"), cursor.u64(f"the place of {name!r}")
    kind = TYPES.get(code)
    if kind is None:
        known = ", ".join(sorted(item.name for item in TYPES.values()))
        raise cursor.fail(f"the tensor {name!r} has the unknown quantisation {code} (known: {known})")
    if 0 in sizes:
        raise cursor.fail(f"the tensor {name!r} is empty")
    if sizes[0] % kind.block:
        raise cursor.fail(f"the tensor {name!r} has rows of {sizes[0]}, no multiple of {kind.name}'s {kind.block}")
    count = 1
    for size in sizes:
        count *= size  # Python's integers cannot overflow
    return name, tuple(reversed(sizes)), kind, relative, count // kind.block * kind.bytes
