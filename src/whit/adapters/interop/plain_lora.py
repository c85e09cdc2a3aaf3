"""A vector or sparse adapter as a plain LoRA: the same update, W + U S R Vᵀ, with B = U S R and A = Vᵀ.

The LoRA has the rank of the basis and alpha = rank, so that its scale is one; `PeftModel.from_pretrained`
reads the folder. Nothing is rounded: V is bfloat16 in the basis already, and B is kept in float32. It takes
thousands of times the bytes of the compact file and is for programs that know no vector adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from whit.adapters.learned import named_by
from whit.adapters.lora import LoraWeights
from whit.adapters.sparse import SparseSpec
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
    if adapter.sparse is not None:
        return _sparse(adapter, base, adapter.sparse)
    if adapter.spec is None or adapter.vector is None:
        raise AdapterError("the adapter is empty")
    spec = adapter.spec
    basis = basis or named_by(adapter.basis, basis_of(base, spec.rank))
    adapter.check_fits(base, basis)
    if basis.learned is not None and basis.learned.answers_only:
        raise AdapterError(
            "this adapter acts on answers alone, behind a prompt that the bare base has read; a LoRA would act on the "
            "prompt too. Run or serve it with whit, or train without --answers-only"
        )
    learned = basis.learned.projections(spec) if basis.learned is not None else None
    R = Expansion(spec, projection=learned)(torch.from_numpy(adapter.vector))
    A, B = {}, {}
    for place, R_module in zip(placed(spec, basis), R, strict=True):
        name = basis.targets[place].name
        A[name] = basis.inward[place].float().T.contiguous()
        B[name] = basis.outward[place].float() @ R_module
    return LoraWeights(rank=spec.rank, alpha=float(spec.rank), A=A, B=B, base=base.fingerprint, base_name=base.name)


def _sparse(adapter: Adapter, base: Base, spec: SparseSpec) -> LoraWeights:
    """Exactly: a matrix with entries in c columns and d rows has a rank of min(c, d) at most; the rest is padding."""
    names = {target.index: target.name for target in all_targets(name for name, _ in base.model.named_modules())}
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    assert adapter.vector is not None
    v = torch.from_numpy(adapter.vector)
    for index in spec.targets:
        if index not in names:
            raise AdapterError(f"the adapter moves module {index}, which its base does not have")
        name = names[index]
        module: Any = base.model.get_submodule(name)
        linear = getattr(module, "linear", None) or getattr(module, "base_layer", None) or module
        d, c = linear.weight.shape
        part, positions = spec.within(index)
        if int(positions[-1]) >= d * c:
            raise AdapterError(f"the adapter moves a weight that {name} does not have; it was made for another base")
        rows, columns = positions // c, positions % c
        few_columns = len(np.unique(columns)) <= len(np.unique(rows))
        own, place = np.unique(columns if few_columns else rows, return_inverse=True)
        # Along its columns: B holds each moved column, A picks the input; along its rows the other way about.
        picks = torch.zeros(len(own), c if few_columns else d)
        picks[torch.arange(len(own)), own] = 1.0
        values = torch.zeros(d if few_columns else c, len(own))
        values[rows if few_columns else columns, place] = v[part]
        parts[name] = (picks, values) if few_columns else (values.T, picks.T)
    rank, pad = max(len(A) for A, _ in parts.values()), torch.nn.functional.pad
    A = {name: pad(part, (0, 0, 0, rank - len(part))).contiguous() for name, (part, _) in parts.items()}
    B = {name: pad(part, (0, rank - part.shape[1])).contiguous() for name, (_, part) in parts.items()}
    return LoraWeights(rank=rank, alpha=float(rank), A=A, B=B, base=base.fingerprint, base_name=base.name)


def placed(spec: VectorSpec, basis: Basis) -> list[int]:
    """The place in `basis` of each module of `spec`. Raises `AdapterError` where the base has no such module."""
    places = {target.index: place for place, target in enumerate(basis.targets)}
    for index in spec.targets:
        if index not in places:
            raise AdapterError(f"the adapter moves module {index}, which its base does not have")
    return [places[index] for index in spec.targets]
