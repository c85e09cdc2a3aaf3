"""A vector adapter as a plain LoRA: the same update, W + U S R Vᵀ, with B = U S R and A = Vᵀ.

The LoRA has the rank of the basis and alpha = rank, so that its scale is one; `PeftModel.from_pretrained`
reads the folder. Nothing is rounded: V is bfloat16 in the basis already, and B is kept in float32. It takes
thousands of times the bytes of the compact file and is for programs that know no vector adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from whit.adapters.lora import LoraWeights
from whit.adapters.targets import all_targets
from whit.adapters.vector import Expansion, VectorSpec
from whit.errors import AdapterError

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.adapters.basis import Basis
    from whit.bases import Base


def as_lora(adapter: Adapter, base: Base, basis: Basis | None = None) -> LoraWeights:
    """Any adapter of `base` as LoRA weights; those of a `lora` adapter are its own.

    `basis` spares looking it up. Raises `WrongBase` or `WrongBasis` where the adapter is of another, and
    `AdapterError` where it moves modules that the base does not have.
    """
    from whit.adapters.basis import basis_of

    adapter.check_fits(base)
    if adapter.lora is not None:
        adapter.lora.targets_in(all_targets(name for name, _ in base.model.named_modules()))
        return adapter.lora
    if adapter.spec is None or adapter.vector is None:
        raise AdapterError("the adapter is empty")
    spec = adapter.spec
    basis = basis or basis_of(base, spec.rank)
    adapter.check_fits(base, basis)
    R = Expansion(spec)(torch.from_numpy(adapter.vector))
    A, B = {}, {}
    for place, R_module in zip(placed(spec, basis), R, strict=True):
        name = basis.targets[place].name
        A[name] = basis.inward[place].float().T.contiguous()
        B[name] = basis.outward[place].float() @ R_module
    return LoraWeights(rank=spec.rank, alpha=float(spec.rank), A=A, B=B, base=base.fingerprint, base_name=base.name)


def placed(spec: VectorSpec, basis: Basis) -> list[int]:
    """The place in `basis` of each module of `spec`. Raises `AdapterError` where the base has no such module."""
    places = {target.index: place for place, target in enumerate(basis.targets)}
    for index in spec.targets:
        if index not in places:
            raise AdapterError(f"the adapter moves module {index}, which its base does not have")
    return [places[index] for index in spec.targets]
