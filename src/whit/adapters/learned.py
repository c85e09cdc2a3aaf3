"""A learned basis: the tensors P of `tiny` adapters, learned from many users instead of drawn at random.

Such an adapter moves each module by R = Σᵢ vᵢ Pᵢ, as every `tiny` one does, but P is shared property: some kilobytes in
one file, known by its fingerprint, which stands in the adapters in the place of the plain basis's. It lies on top
of a base's plain basis, whose fingerprint it names in turn. Without the file the adapters are refused. A basis may say
that its adapters act on answers alone: from a prompt's last token on, behind a prompt that the bare base has read.

    offset size
      0     8   magic "whitbas1"
      8     1   rank r
      9     1   1 where adapters act on answers alone, else 0
     10     2   groups
     12     4   u, the numbers of a group
     16     2   modules
     18     8   first 8 bytes of the base's fingerprint
     26     8   first 8 bytes of the plain basis's fingerprint
     34   2·m   the modules' numbers, ascending
      …     …   P, shape (modules, u, r, r), bfloat16
     -4     4   CRC-32 of all that stands before it

All integers are little-endian; sizes are checked before anything is allocated. The fingerprint is the file's SHA-256.
Files are looked for beside the adapter, in the cache folder, and among what `remember` was told. Knows nothing of
training.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whit.adapters import compact
from whit.adapters.vector import MAX_RANK, VectorSpec
from whit.errors import DamagedAdapter, StorageError, UsageError, WrongBase, WrongBasis
from whit.files import atomic_write

if TYPE_CHECKING:
    from whit.adapters.basis import Basis

FILE_NAME = "basis.whit"
MAGIC = b"whitbas1"
MAX_BYTES = 64 << 20
_HEADER = struct.Struct("<8sBBHIH8s8s")
_KEPT = 64


@dataclass(frozen=True, eq=False)
class LearnedBasis:
    """P for the `tiny` adapters of one shape; `base` and `under` (the plain basis) are 16 hex characters.

    P is float32, shape (modules, u, r, r), of values that bfloat16 can hold. With `answers_only`, prompts are read by
    the bare base but for their last token.
    """

    base: str
    under: str
    rank: int
    groups: int
    targets: tuple[int, ...]
    P: NDArray[np.float32]
    answers_only: bool = False

    @property
    def fingerprint(self) -> str:
        """64 hex characters: the SHA-256 of the file."""
        cached = self.__dict__.get("_fingerprint")
        if cached is None:
            cached = hashlib.sha256(self.to_bytes()).hexdigest()
            object.__setattr__(self, "_fingerprint", cached)
        return str(cached)

    @classmethod
    def of(cls, spec: VectorSpec, basis: Basis, P: NDArray[np.float32], *, answers_only: bool = False) -> LearnedBasis:
        """P for adapters of this shape on a plain basis; rounded to bfloat16, as it is stored."""
        if spec.kind != "tiny":
            raise UsageError("a learned basis is for tiny adapters; name their size with --numbers")
        rounded = compact.round_to(np.ascontiguousarray(P, dtype=np.float32).ravel(), "bfloat16").reshape(P.shape)
        under = basis.base_fingerprint[:16], basis.fingerprint[:16]
        return cls(*under, spec.rank, spec.groups, spec.targets, rounded, answers_only)

    def to_bytes(self) -> bytes:
        """The file."""
        header = _HEADER.pack(
            MAGIC, self.rank, int(self.answers_only), self.groups, self.P.shape[1], len(self.targets),
            bytes.fromhex(self.base), bytes.fromhex(self.under),
        )  # fmt: skip
        bits = (self.P.ravel().view(np.uint32) >> 16).astype("<u2")
        body = header + np.array(self.targets, "<u2").tobytes() + bits.tobytes()
        return body + struct.pack("<I", zlib.crc32(body))

    @classmethod
    def from_bytes(cls, content: bytes) -> LearnedBasis:
        """Read a file. Raises `DamagedAdapter`, with the reason."""
        if not _HEADER.size + 4 <= len(content) <= MAX_BYTES or not content.startswith(MAGIC):
            raise DamagedAdapter("this is no learned basis of whit")
        _, rank, answers, groups, u, modules, base, under = _HEADER.unpack_from(content)
        start = _HEADER.size + 2 * modules
        if len(content) != start + 2 * modules * u * rank * rank + 4 or answers > 1:
            raise DamagedAdapter(f"the learned basis has {len(content)} bytes, not what its header calls for")
        if struct.unpack_from("<I", content, len(content) - 4)[0] != zlib.crc32(content[:-4]):
            raise DamagedAdapter("the learned basis's checksum is wrong: it was damaged on its way; fetch it again")
        targets = tuple(int(each) for each in np.frombuffer(content, "<u2", modules, _HEADER.size))
        if not 1 <= rank <= MAX_RANK or not 1 <= groups <= modules or u < 1:
            raise DamagedAdapter("the learned basis contradicts itself")
        if any(later <= target for target, later in pairwise(targets)):
            raise DamagedAdapter("the learned basis names its modules out of order")
        bits = np.frombuffer(content, "<u2", modules * u * rank * rank, start).astype(np.uint32) << 16
        P = bits.view(np.float32).reshape(modules, u, rank, rank)
        if not np.isfinite(P).all():
            raise DamagedAdapter("the learned basis holds NaN or infinite numbers")
        return cls(base.hex(), under.hex(), rank, groups, targets, P, bool(answers))

    @classmethod
    def load(cls, path: str | Path) -> LearnedBasis:
        """Read a file. Raises `DamagedAdapter` or `StorageError`."""
        try:
            with Path(path).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        try:
            return cls.from_bytes(content)
        except DamagedAdapter as error:
            raise DamagedAdapter(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the file, aside and renamed. Raises `StorageError`."""
        atomic_write(Path(path), self.to_bytes())

    def on(self, basis: Basis) -> Basis:
        """The plain basis with this one on top. Raises `WrongBase` or `WrongBasis` where it does not lie on it."""
        if not basis.base_fingerprint.startswith(self.base):
            raise WrongBase(
                f"the learned basis {self.fingerprint[:16]} was made for the base {self.base}, "
                f"not {basis.base_fingerprint[:16]}; load the base that it was learned with"
            )
        if basis.rank != self.rank or not basis.fingerprint.startswith(self.under):
            raise WrongBasis(
                f"the learned basis {self.fingerprint[:16]} lies on the basis {self.under} of rank {self.rank}, "
                f"not on {basis.fingerprint[:16]} of rank {basis.rank}; it was made by another version of whit's rules"
            )
        return replace(basis, learned=self)

    def projections(self, spec: VectorSpec) -> NDArray[np.float32]:
        """P for adapters of this shape. Raises `WrongBasis` where they have another."""
        shape = (spec.kind, spec.rank, spec.groups, spec.targets, spec.u)
        if shape != ("tiny", self.rank, self.groups, self.targets, self.P.shape[1]):
            raise WrongBasis(
                f"the learned basis {self.fingerprint[:16]} is for tiny adapters of {self.P.shape[1] * self.groups} "
                f"numbers on {len(self.targets)} modules; this adapter has another shape"
            )
        return self.P


_known: OrderedDict[str, LearnedBasis] = OrderedDict()


def remember(learned: LearnedBasis, *, cache: bool = False) -> None:
    """Let adapters that name it find it: in this process, and with `cache` on this machine."""
    _known[learned.fingerprint[:16]] = learned
    while len(_known) > _KEPT:
        _known.popitem(last=False)
    if cache:
        with contextlib.suppress(StorageError):  # the file in the adapter's folder is what counts
            learned.save(_cached(learned.fingerprint))


def find(fingerprint: str) -> LearnedBasis | None:
    """The learned basis that an adapter names, where it is known to this process or in the cache folder."""
    key = fingerprint[:16]
    if len(key) < 16:
        return None
    if key not in _known and _cached(key).is_file():
        with contextlib.suppress(DamagedAdapter, StorageError):
            learned = LearnedBasis.load(_cached(key))
            if learned.fingerprint.startswith(key):
                remember(learned)
    return _known.get(key)


def look_beside(folder: Path) -> None:
    """Remember the learned basis that lies in an adapter's folder, if there is one. Raises `DamagedAdapter`."""
    if (folder / FILE_NAME).is_file():
        remember(LearnedBasis.load(folder / FILE_NAME))


def named_by(fingerprint: str, basis: Basis) -> Basis:
    """`basis`, or with the learned one on top that an adapter names. Raises `WrongBasis` where it cannot lie there."""
    if basis.fingerprint.startswith(fingerprint[:16]):
        return basis
    learned = find(fingerprint)
    return basis if learned is None else learned.on(basis)


def _cached(fingerprint: str) -> Path:
    from whit.bases.cache import cache_folder

    return cache_folder() / "basis" / "learned" / f"{fingerprint[:16]}.whit"
