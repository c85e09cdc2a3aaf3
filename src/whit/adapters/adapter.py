"""An adapter as users hold it: read from a file, a folder or its text form, shown, saved, applied to a base.

Vector adapters (`tiny`, `xs`) and `sparse` ones are compact files; `lora` adapters are PEFT folders. A folder made by
`whit train` holds either, with the card beside it. Pickled files (.bin, .pt, .pkl …) are refused outright.
Promises that an adapter of another base or basis is refused with the reason. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whit.adapters import compact
from whit.adapters.learned import look_beside
from whit.adapters.sparse import SparseSpec, encode
from whit.adapters.vector import VectorSpec
from whit.adapters.zipped import is_zip, unzipped
from whit.errors import AdapterError, DamagedAdapter, WrongBase, WrongBasis
from whit.files import atomic_write

if TYPE_CHECKING:
    from whit.adapters.basis import Basis
    from whit.adapters.lora import LoraWeights
    from whit.bases import Base

FILE_NAME = "adapter.whit"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LARGEST_FILE = 64 << 20


@dataclass(frozen=True)
class Adapter:
    """What tuning makes.

    `kind` is `tiny`, `xs`, `sparse` or `lora`; `base` and `basis` are fingerprints (16 or more hex characters; `basis`
    is empty for `sparse` and `lora`). Exactly one of `vector` (float32, shape (numbers,)) and `lora` is set; with the
    vector comes its `spec` or, of a sparse adapter, `sparse`.

    >>> import tempfile, whit
    >>> from whit.adapters.tunable import tune_vector
    >>> from whit.adapters.vector import tiny_spec
    >>> from whit.testing import write_tiny_base
    >>> base = whit.load_base(write_tiny_base(tempfile.mkdtemp()))
    >>> spec = tiny_spec(range(14), 13)
    >>> bound = tune_vector(base, spec)  # in training; here the numbers are made up
    >>> adapter = whit.Adapter.from_vector(spec, np.full(13, 0.5, np.float32), bound.basis)
    >>> bound.detach()
    >>> adapter.kind, adapter.numbers, adapter.payload_bytes
    ('tiny', 13, 26)
    >>> whit.Adapter.load(adapter.to_text()).numbers
    13
    >>> whit.bind(base, adapter).detach()  # in its place, and out again
    """

    kind: str
    base: str
    basis: str = ""
    spec: VectorSpec | None = None
    vector: NDArray[np.float32] | None = None
    number_type: str = "bfloat16"
    layers: int = 0
    lora: LoraWeights | None = None
    sparse: SparseSpec | None = None

    @classmethod
    def from_vector(
        cls, spec: VectorSpec, vector: NDArray[np.float32], basis: Basis, *, number_type: str = "bfloat16"
    ) -> Adapter:
        """An adapter along `basis`; the vector is rounded as it will be stored: what is used is what is kept."""
        return cls(
            kind=spec.kind,
            base=basis.base_fingerprint,
            basis=basis.fingerprint,
            spec=spec,
            vector=compact.round_to(vector, number_type),
            number_type=number_type,
            layers=max(target.layer for target in basis.targets) + 1,
        )

    @classmethod
    def from_sparse(
        cls, spec: SparseSpec, vector: NDArray[np.float32], base: Base, *, number_type: str = "bfloat16"
    ) -> Adapter:
        """A sparse adapter of `base`; the numbers are rounded as they will be stored."""
        layers = int(base.model.config.num_hidden_layers)
        held = compact.round_to(vector, number_type)
        return cls("sparse", base.fingerprint, "", None, held, number_type, layers, sparse=spec)

    @classmethod
    def mean(cls, adapters: Sequence[Adapter]) -> Adapter | None:
        """The mean of vector adapters of one shape along one basis (arXiv 2203.05482), or None where they are not.

        Adapters that were trained from the same start on the same rows in another order differ by the noise of their
        gradients, which a mean has less of.
        """
        first = adapters[0]
        vectors = [adapter.vector for adapter in adapters]
        shapes = {(adapter.kind, adapter.spec, adapter.sparse, adapter.base, adapter.basis) for adapter in adapters}
        if len(shapes) > 1 or any(vector is None for vector in vectors):
            return None
        total = np.stack([vector for vector in vectors if vector is not None]).astype(np.float64).sum(axis=0)
        mean = (total / len(adapters)).astype(np.float32)
        return replace(first, vector=compact.round_to(mean, first.number_type))

    @classmethod
    def from_bytes(cls, content: bytes) -> Adapter:
        """Read a compact file's bytes. Raises `DamagedAdapter`."""
        held = compact.unpack(content)
        if isinstance(held.spec, SparseSpec):
            return cls("sparse", held.base, "", None, held.vector, held.number_type, held.layers, sparse=held.spec)
        return cls(held.spec.kind, held.base, held.basis, held.spec, held.vector, held.number_type, held.layers)

    @classmethod
    def from_lora(cls, weights: LoraWeights) -> Adapter:
        """The adapter that a LoRA's tensors and settings are."""
        return cls(kind="lora", base=weights.base, lora=weights, number_type=weights.number_type)

    @classmethod
    def from_text(cls, text: str) -> Adapter:
        """Read the text form (`whit1_…`). Raises `DamagedAdapter`."""
        return cls.from_bytes(compact.from_text(text.strip()))

    @classmethod
    def load(cls, where: str | Path) -> Adapter:
        """Read a compact file, a folder that holds one or a PEFT LoRA, a zip of such a folder, or a text form.

        Raises `AdapterError` where there is none and `DamagedAdapter` where it cannot be read.
        """
        if isinstance(where, str) and where.startswith(compact.TEXT_PREFIX):
            return cls.from_text(where)
        path = Path(where)
        if path.suffix.lower() in _PICKLES:
            raise DamagedAdapter(
                f"{path}: pickled files can run code when read and are refused; convert it to safetensors"
            )
        if is_zip(path):
            with unzipped(path) as folder:
                return cls._from_folder(folder)
        look_beside(path if path.is_dir() else path.parent)
        if path.is_dir():
            return cls._from_folder(path)
        if not path.is_file():
            raise AdapterError(f"{path}: no adapter there; give a file, a folder made by `whit train`, or a text form")
        if path.stat().st_size > _LARGEST_FILE:
            raise DamagedAdapter(f"{path}: {path.stat().st_size} bytes, more than any compact adapter has")
        try:
            return cls.from_bytes(path.read_bytes())
        except DamagedAdapter as error:
            raise DamagedAdapter(f"{path}: {error}") from error

    @classmethod
    def _from_folder(cls, folder: Path) -> Adapter:
        if (folder / FILE_NAME).is_file():
            return cls.load(folder / FILE_NAME)
        if (folder / "adapter_config.json").is_file():
            from whit.adapters.lora import LoraWeights

            return cls.from_lora(LoraWeights.load(folder))
        pickles = sorted(item.name for item in folder.iterdir() if item.suffix.lower() in _PICKLES)
        if pickles:
            raise DamagedAdapter(
                f"{folder}: {pickles[0]} is a pickled file, which can run code when read; whit refuses it"
            )
        raise AdapterError(f"{folder}: no adapter in this folder ({FILE_NAME} or adapter_config.json)")

    @property
    def numbers(self) -> int:
        """How many trained numbers it has."""
        shape = self.spec or self.sparse
        return shape.numbers if shape else self._weights.numbers

    @property
    def is_compact(self) -> bool:
        """Whether it has a compact file and a text form: every kind but `lora`."""
        return self.vector is not None

    @property
    def payload_bytes(self) -> int:
        """Bytes of the trained numbers alone, and for `sparse` of their places."""
        if self.sparse:
            places = len(encode(self.sparse.places)[1])
            return places + self.numbers * compact.NUMBER_TYPES[self.number_type]
        if self.spec:
            return self.numbers * compact.NUMBER_TYPES[self.number_type]
        return self._weights.payload_bytes

    @property
    def _weights(self) -> LoraWeights:
        if self.lora is None:
            raise AdapterError(f"this {self.kind} adapter holds no LoRA weights")
        return self.lora

    def to_bytes(self) -> bytes:
        """The compact file. Raises `AdapterError` for `lora`, which is a PEFT folder instead."""
        shape = self.spec or self.sparse
        if shape is None or self.vector is None:
            raise AdapterError("a lora adapter has no compact file; save it as a folder")
        return compact.pack(
            shape,
            self.vector,
            number_type=self.number_type,
            base=self.base,
            basis=self.basis,
            layers=self.layers,
        )

    def to_text(self) -> str:
        """The text form: fits in a URL, a header, a column or a QR code when the adapter is small."""
        return compact.to_text(self.to_bytes())

    def save(self, folder: str | Path) -> Path:
        """Write into `folder`, aside and renamed; returns the file. Raises `StorageError`."""
        path = Path(folder)
        if self.lora is not None:
            return self.lora.save(path)
        atomic_write(path / FILE_NAME, self.to_bytes())
        return path / FILE_NAME

    def check_fits(self, base: Base, basis: Basis | None = None) -> None:
        """Raise `WrongBase` or `WrongBasis` where this adapter was made for another."""
        if self.base and not base.fingerprint.startswith(self.base[:16]):
            raise WrongBase(
                f"this adapter was made for the base {self.base[:16]}, but {base.name} is {base.fingerprint[:16]}; "
                "load the base that its card names"
            )
        if basis is not None and not basis.fingerprint.startswith(self.basis[:16]):
            raise WrongBasis(
                f"this adapter moves along the basis {self.basis[:16]}, but that of {base.name} at rank {basis.rank} "
                f"is {basis.fingerprint[:16]}; it was made by another version of whit's rules, or along a "
                "learned basis whose file (basis.whit) is not at hand: put it beside the adapter"
            )

    def describe(self) -> dict[str, Any]:
        """Kind, sizes and fingerprints (None where there is none), as plain values."""
        about: dict[str, Any] = {
            "kind": self.kind,
            "numbers": self.numbers,
            "payload_bytes": self.payload_bytes,
        }
        if self.spec:
            about |= {"rank": self.spec.rank, "groups": self.spec.groups, "modules": len(self.spec.targets)}
        elif self.sparse:
            about |= {"modules": len(self.sparse.targets)}
        else:
            about |= {"rank": self._weights.rank, "alpha": self._weights.alpha}
        number_type = self.number_type if self.is_compact else self._weights.number_type
        return about | {"base": self.base or None, "basis": self.basis or None, "number_type": number_type}
