"""Adapters made ready to be served: their matrices, by content, the most recently used ones kept.

A vector adapter becomes R for every module of its rank's basis (zeros where it does not reach); a LoRA its A and B, and
a sparse adapter those that do the same.
Known by the SHA-256 of the payload, never by a name. Bases of directions are made before serving begins: a request
cannot ask for one that is not there, nor for a projection P larger than `MAX_PROJECTION`. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from whit.adapters.adapter import Adapter
from whit.adapters.basis import Basis, basis_of
from whit.adapters.interop.plain_lora import as_lora
from whit.adapters.learned import LearnedBasis, named_by
from whit.adapters.targets import all_targets
from whit.adapters.vector import Expansion, VectorSpec
from whit.errors import AdapterError, UsageError
from whit.serving.payload import digest_of, from_payload

if TYPE_CHECKING:
    from whit.adapters.lora import LoraWeights
    from whit.bases import Base

MAX_PROJECTION = 1 << 22  # numbers of P that serving one adapter may take: 16 MiB
_SPECS = 32
_SPARSE = 256  # numbers of a sparse adapter: in one row or column each, they may take a rank as large


@dataclass(frozen=True, eq=False)
class Served:
    """An adapter ready to be applied.

    `R` has shape (modules, r, r), float32, over all modules of the basis of that rank; or `A[name]` (r, in) and
    `B[name]` (out, r), with the scale already in B, in the base's number type. With `answers_only` prompts are read by
    the bare base but for their last token.
    """

    digest: bytes
    rank: int
    R: torch.Tensor | None = None
    A: Mapping[str, torch.Tensor] | None = None
    B: Mapping[str, torch.Tensor] | None = None
    answers_only: bool = False

    @property
    def size(self) -> int:
        """Bytes in memory."""
        parts = [self.R] if self.R is not None else [*(self.A or {}).values(), *(self.B or {}).values()]
        return sum(part.numel() * part.element_size() for part in parts)


class Pool:
    """Adapters for one base; `ranks` are those of the vector adapters that are served, `most` bytes are kept.

    `look_up` is called with the fingerprint of a learned basis that an adapter names, to fetch it if it is not known.
    """

    def __init__(
        self,
        base: Base,
        *,
        ranks: Sequence[int] = (2,),
        most: int = 256 << 20,
        look_up: Callable[[str], None] | None = None,
    ) -> None:
        self.base, self._most = base, most
        self._look_up = look_up or (lambda fingerprint: None)
        self._targets = all_targets(name for name, _ in base.model.named_modules())
        # Taken now: later the layers may stand behind others.
        self._shapes = {each.name: tuple(base.model.get_submodule(each.name).weight.shape) for each in self._targets}
        self.bases: dict[int, Basis] = {rank: basis_of(base, rank) for rank in ranks}
        self._expansions: OrderedDict[tuple[VectorSpec, str], Expansion] = OrderedDict()
        self._kept: OrderedDict[bytes, Served] = OrderedDict()
        self._bytes = 0
        self._guard = threading.Lock()

    def ready(self, payload: bytes, digest: bytes | None = None) -> Served:
        """The adapter behind a payload. Raises `AdapterError` where it is damaged or does not fit."""
        digest = digest or digest_of(payload)
        with self._guard:
            if found := self._kept.get(digest):
                self._kept.move_to_end(digest)
                return found
            made = self._make(from_payload(payload), digest)
            self._kept[digest] = made
            self._bytes += made.size
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].size
            return made

    def _make(self, adapter: Adapter, digest: bytes) -> Served:
        adapter.check_fits(self.base)
        if adapter.sparse is not None:
            if adapter.numbers > _SPARSE:
                raise UsageError(f"this server serves sparse adapters of up to {_SPARSE:,} numbers")
            return self._lora(as_lora(adapter, self.base), digest)
        if adapter.spec is None:
            assert adapter.lora is not None
            return self._lora(adapter.lora, digest)
        spec = adapter.spec
        basis = self.bases.get(spec.rank)
        if basis is None:
            served = ", ".join(map(str, sorted(self.bases)))
            raise UsageError(
                f"this server serves vector adapters of rank {served}; this one has rank {spec.rank} "
                f"(start it with --ranks {' '.join(map(str, sorted([*self.bases, spec.rank])))})"
            )
        if not basis.fingerprint.startswith(adapter.basis[:16]):
            self._look_up(adapter.basis)
            basis = named_by(adapter.basis, basis)
        adapter.check_fits(self.base, basis)
        if spec.kind == "tiny" and len(spec.targets) * spec.u * spec.rank**2 > MAX_PROJECTION:
            raise UsageError("this adapter's projection is too large to be served; train it with more groups")
        place = {target.index: at for at, target in enumerate(basis.targets)}
        if any(index not in place for index in spec.targets):
            raise AdapterError("the adapter moves a module that this base does not have")
        assert adapter.vector is not None
        R = torch.zeros(len(basis.targets), spec.rank, spec.rank)
        expansion = self._expansion(spec, basis.learned)
        R[[place[index] for index in spec.targets]] = expansion(torch.from_numpy(adapter.vector))
        answers_only = basis.learned is not None and basis.learned.answers_only
        return Served(digest, spec.rank, R=R.to(self.base.model.device), answers_only=answers_only)

    def _expansion(self, spec: VectorSpec, learned: LearnedBasis | None) -> Expansion:
        key = spec, learned.fingerprint if learned is not None else ""
        found = self._expansions.pop(key, None)
        if found is None:
            found = Expansion(spec, projection=learned.projections(spec) if learned is not None else None)
        self._expansions[key] = found
        if len(self._expansions) > _SPECS:
            self._expansions.popitem(last=False)
        return found

    def _lora(self, weights: LoraWeights, digest: bytes) -> Served:
        weights.targets_in(self._targets)
        for name in weights.A:
            if (weights.B[name].shape[0], weights.A[name].shape[1]) != self._shapes[name]:
                raise AdapterError(f"the LoRA's {name} has not the shape of the base's; it was made for another base")
        like = next(self.base.model.parameters())
        A = {name: part.to(like.device, like.dtype) for name, part in weights.A.items()}
        B = {name: (part.float() * weights.scale).to(like.device, like.dtype) for name, part in weights.B.items()}
        return Served(digest, weights.rank, A=A, B=B)
