"""The compact adapter file: a header of 34 bytes, the payload, a checksum; and its text form.

    offset size
      0     4   magic "whit"
      4     1   version (1)
      5     1   kind: 1 tiny, 2 xs, 3 sparse
      6     1   number type: 1 bfloat16, 2 float16, 3 float32
      7     1   rank r
      8     1   projections: bit i for the i-th of q k v o gate up down; bit 7: a map of modules follows
      9     1   decoder layers of the base
     10     2   seed of P
     12     2   groups
     14     4   numbers
     18     8   first 8 bytes of the base's fingerprint
     26     8   first 8 bytes of the basis's fingerprint
     34   2+n   (only with bit 7) length of the map in bytes, then the map: bit i for module i
      …     …   payload: numbers x size of the number type, little-endian
     -4     4   CRC-32 of all that stands before it

A sparse adapter has no basis; it differs in this:

      7     1   k, how many low bits of each place stand by themselves (see `sparse.py`)
      8     1   0
     10   2+2   0, and 0
     26   4+4   stride, and the length of the places in bytes
     34     …   the places, then the payload

All integers are little-endian. Thirteen numbers in bfloat16 make 26 bytes of payload in 64 of file. The text
form is "whit1_" and the base64url of the file without padding: 92 characters for those thirteen. Lengths are
checked against what was given before anything is allocated. Knows nothing of models.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whit.adapters import sparse
from whit.adapters.sparse import SparseSpec
from whit.adapters.targets import PROJECTIONS
from whit.adapters.vector import VectorSpec
from whit.errors import DamagedAdapter, UsageError, WhitError

MAGIC = b"whit"
VERSION = 1
TEXT_PREFIX = "whit1_"
MAX_NUMBERS = 1 << 22
NUMBER_TYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
_HEADER = struct.Struct("<4sBBBBBBHHI8s8s")
_KIND_CODES = {"tiny": 1, "xs": 2, "sparse": 3}
_TYPE_CODES = {"bfloat16": 1, "float16": 2, "float32": 3}
_MAP = 0x80
_MAX_BYTES = _HEADER.size + 2 + 8192 + 4 * MAX_NUMBERS + 4  # the places of a sparse one take far less


@dataclass(frozen=True)
class Compact:
    """What a compact file holds. Fingerprints are 16 hex characters (`basis` empty for `sparse`); `layers` is how many
    decoder layers the base has; `vector` is float32, shape (numbers,)."""

    spec: VectorSpec | SparseSpec
    number_type: str
    base: str
    basis: str
    layers: int
    vector: NDArray[np.float32]


def round_to(vector: NDArray[np.float32], number_type: str) -> NDArray[np.float32]:
    """What `vector` is after it was stored as `number_type`; float32."""
    return _unpack(_pack(vector, number_type), number_type)


def pack(
    spec: VectorSpec | SparseSpec, vector: NDArray[np.float32], *, number_type: str, base: str, basis: str, layers: int
) -> bytes:
    """The bytes of a compact file. `layers` is how many decoder layers the base has.

    Raises `UsageError` where the vector does not fit the spec or holds NaN or infinity.
    """
    if number_type not in NUMBER_TYPES:
        raise UsageError(f"unknown number type {number_type!r}; there are {', '.join(NUMBER_TYPES)}")
    if vector.shape != (spec.numbers,) or spec.numbers > MAX_NUMBERS:
        raise UsageError(
            f"the vector has shape {vector.shape}, the adapter {spec.numbers} numbers (at most {MAX_NUMBERS})"
        )
    payload = _pack(vector, number_type)
    if not np.isfinite(_unpack(payload, number_type)).all():
        raise UsageError(f"the vector holds numbers that {number_type} cannot: NaN, infinite or too large")
    if max(spec.targets) >= layers * len(PROJECTIONS):
        raise UsageError(f"module {max(spec.targets)} is none of a base with {layers} layers")
    shape, extra, along = _described(spec, layers, basis)
    try:
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            _KIND_CODES[spec.kind],
            _TYPE_CODES[number_type],
            *shape[:2],
            layers,
            *shape[2:],
            spec.numbers,
            bytes.fromhex(base[:16]),
            along,
        )
    except (struct.error, ValueError) as error:
        raise UsageError(f"this adapter does not fit the compact file: {error}") from error
    body = header + extra + payload
    return body + struct.pack("<I", zlib.crc32(body))


def _described(
    spec: VectorSpec | SparseSpec, layers: int, basis: str
) -> tuple[tuple[int, int, int, int], bytes, bytes]:
    """Rank, projections, seed and groups as the header has them; what follows it; and its last eight bytes."""
    if isinstance(spec, SparseSpec):
        k, places = sparse.encode(spec.places)
        return (k, 0, 0, 0), places, struct.pack("<II", spec.stride, len(places))
    mask, extra = _mask(spec.targets, layers), b""
    if mask is None:
        chosen = np.zeros(max(spec.targets) + 1, dtype=np.uint8)
        chosen[list(spec.targets)] = 1
        bits = np.packbits(chosen, bitorder="little").tobytes()
        extra = struct.pack("<H", len(bits)) + bits
    try:
        along = bytes.fromhex(basis[:16])
    except ValueError as error:
        raise UsageError(f"this adapter does not fit the compact file: {error}") from error
    return (spec.rank, _MAP if mask is None else mask, spec.seed, spec.groups), extra, along


def unpack(content: bytes) -> Compact:
    """Read a compact file. Raises `DamagedAdapter`, with the reason, for anything that `pack` did not write."""
    if len(content) > _MAX_BYTES:
        raise DamagedAdapter(f"not a whit adapter: {len(content)} bytes, more than the {_MAX_BYTES} any could have")
    if content[:4] != MAGIC:
        raise DamagedAdapter("not a whit adapter: it does not begin with the letters whit")
    if len(content) < _HEADER.size + 4:
        raise DamagedAdapter(f"the adapter is truncated: {len(content)} bytes, fewer than any whole one has")
    _, version, kind, number, rank, mask, layers, seed, groups, numbers, base, basis = _HEADER.unpack_from(content)
    if version != VERSION:
        raise DamagedAdapter(f"the adapter is of format version {version}; this whit reads version {VERSION}")
    names = {code: name for name, code in _KIND_CODES.items()}
    types = {code: name for name, code in _TYPE_CODES.items()}
    if kind not in names or number not in types:
        raise DamagedAdapter(f"the adapter's kind ({kind}) or number type ({number}) is unknown to this whit")
    if numbers > MAX_NUMBERS:
        raise DamagedAdapter(f"the adapter claims {numbers} numbers; the most is {MAX_NUMBERS}")
    start = _HEADER.size
    targets = _targets_of(mask, layers)
    if names[kind] == "sparse":
        if numbers > sparse.MAX_PLACES:
            raise DamagedAdapter(f"the adapter claims {numbers} places; the most is {sparse.MAX_PLACES}")
        length = struct.unpack("<II", basis)[1]
        if length > sparse.most_bytes(numbers):
            raise DamagedAdapter(f"the adapter has {length} bytes for its {numbers} places, more than they can take")
        start += length
    elif mask & _MAP:
        targets, start = _read_map(content, start)
    end = start + numbers * NUMBER_TYPES[types[number]]
    if len(content) != end + 4:
        raise DamagedAdapter(f"the adapter has {len(content)} bytes where its header calls for {end + 4}")
    if struct.unpack_from("<I", content, end)[0] != zlib.crc32(content[:end]):
        raise DamagedAdapter("the adapter's checksum is wrong: it was damaged on its way; fetch or copy it again")
    try:
        spec: VectorSpec | SparseSpec
        if names[kind] == "sparse":
            found = sparse.decode(content[_HEADER.size : start], numbers, rank)
            spec = SparseSpec(struct.unpack("<II", basis)[0], found)
            targets, basis = spec.targets, b""
        else:
            spec = VectorSpec(names[kind], rank, numbers, groups, targets, seed)
    except (WhitError, ValueError) as error:
        raise DamagedAdapter(f"the adapter contradicts itself: {error}") from error
    if targets and max(targets) >= layers * len(PROJECTIONS):
        raise DamagedAdapter(f"the adapter names module {max(targets)} of a base with {layers} layers")
    vector = _unpack(content[start:end], types[number])
    if not np.isfinite(vector).all():
        raise DamagedAdapter("the adapter holds NaN or infinite numbers")
    held = Compact(spec, types[number], base.hex(), basis.hex(), layers, vector)
    # One adapter has one spelling, so that whoever keeps adapters may know them by their bytes.
    if pack(spec, vector, number_type=held.number_type, base=held.base, basis=held.basis, layers=layers) != content:
        raise DamagedAdapter("the adapter spells its modules or places in a way that whit does not write")
    return held


def to_text(content: bytes) -> str:
    """The text form of a compact file: letters, digits, `-` and `_` only."""
    return TEXT_PREFIX + base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def from_text(text: str) -> bytes:
    """The bytes behind a text form. Raises `DamagedAdapter`."""
    if not text.startswith(TEXT_PREFIX):
        raise DamagedAdapter(f"not the text form of an adapter: it does not begin with {TEXT_PREFIX}")
    body = text[len(TEXT_PREFIX) :]
    if len(body) > _MAX_BYTES * 4 // 3 + 4:
        raise DamagedAdapter(f"the text form has {len(body)} characters, more than any adapter's")
    try:
        content = base64.b64decode(body.encode("ascii") + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise DamagedAdapter(f"the text form is damaged: {error}") from error
    if to_text(content) != text:
        raise DamagedAdapter("the text form is damaged: its last character carries bits that mean nothing")
    return content


def _pack(vector: NDArray[np.float32], number_type: str) -> bytes:
    values = np.ascontiguousarray(vector, dtype="<f4")
    if number_type == "float32":
        return values.tobytes()
    if number_type == "float16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    # bfloat16: round to nearest, ties to even, on the upper half of the float32.
    bits = values.view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), np.uint64(0x7FC0), rounded & np.uint64(0xFFFF)).astype("<u2").tobytes()


def _unpack(payload: bytes, number_type: str) -> NDArray[np.float32]:
    if number_type == "float32":
        return np.frombuffer(payload, dtype="<f4").astype(np.float32)
    if number_type == "float16":
        return np.frombuffer(payload, dtype="<f2").astype(np.float32)
    return (np.frombuffer(payload, dtype="<u2").astype("<u4") << 16).view("<f4").astype(np.float32)


def _mask(targets: tuple[int, ...], layers: int) -> int | None:
    """The bit mask of projections, where the targets are those projections in every layer."""
    mask = 0
    for target in targets:
        mask |= 1 << (target % len(PROJECTIONS))
    return mask if _targets_of(mask, layers) == targets else None


def _targets_of(mask: int, layers: int) -> tuple[int, ...]:
    width = len(PROJECTIONS)
    return tuple(layer * width + bit for layer in range(layers) for bit in range(width) if mask >> bit & 1)


def _read_map(content: bytes, start: int) -> tuple[tuple[int, ...], int]:
    if len(content) < start + 2:
        raise DamagedAdapter("the adapter is truncated within its map of modules")
    length = struct.unpack_from("<H", content, start)[0]
    if length > 8192 or len(content) < start + 2 + length:
        raise DamagedAdapter("the adapter is truncated within its map of modules")
    bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8, count=length, offset=start + 2), bitorder="little")
    return tuple(int(place) for place in np.flatnonzero(bits)), start + 2 + length
