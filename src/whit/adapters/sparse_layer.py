"""The sparsely adapted layer: y = (W + ΔW) x, where ΔW has a few entries that may differ from row to row of the batch.

`SparseSlots` puts a `SparseLinear` in the place of every module that has a moved weight, and takes it out again. While
no numbers are set each behaves as the bare linear layer, bit for bit. Knows nothing of how places were chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from whit.adapters.sparse import SparseSpec
from whit.adapters.targets import all_targets
from whit.errors import AdapterError


class SparseLinear(nn.Module):
    """A frozen linear layer with n moved weights: entry j is added at row `outward[j]`, column `inward[j]` of W.

    `v` is None, (n,) for all rows, or (rows, n) for numbers each; x has shape (rows, tokens, in).
    """

    outward: torch.Tensor
    inward: torch.Tensor

    def __init__(self, linear: nn.Linear, positions: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        places = positions.to(linear.weight.device)
        self.register_buffer("outward", places // linear.in_features, persistent=False)
        self.register_buffer("inward", places % linear.in_features, persistent=False)
        self.v: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y = W x + ΔW x, shape (rows, tokens, out)."""
        y: torch.Tensor = self.linear(x)
        if self.v is None:
            return y
        v = self.v.to(x.dtype)
        if v.dim() == 2:
            if v.shape[0] != x.shape[0]:
                raise AdapterError(f"{v.shape[0]} adapters were set for a batch of {x.shape[0]} rows")
            v = v[:, None]
        return y.index_add(-1, self.outward, x.index_select(-1, self.inward) * v)


class SparseSlots:
    """Places for a sparse adapter in a model; numbers are set for all modules at once."""

    def __init__(self, model: nn.Module, spec: SparseSpec) -> None:
        names = {target.index: target.name for target in all_targets(name for name, _ in model.named_modules())}
        self._model = model
        self._layers: dict[str, SparseLinear] = {}
        self._parts: list[slice] = []
        for index in spec.targets:
            linear: Any = model.get_submodule(names[index]) if index in names else None
            if linear is None:
                raise AdapterError(f"the adapter moves module {index}, which its base does not have (or is adapted)")
            if not isinstance(linear, nn.Linear):
                raise AdapterError(f"{names[index]} is already adapted; detach the other adapter first")
            part, positions = spec.within(index)
            if int(positions[-1]) >= linear.weight.numel():
                raise AdapterError(
                    f"the adapter moves weight {positions[-1]} of {names[index]}, which has {linear.weight.numel()}; "
                    "it was made for another base"
                )
            self._parts.append(part)
            self._layers[names[index]] = SparseLinear(linear, torch.from_numpy(positions))
        self._swap(dict(self._layers))

    @contextlib.contextmanager
    def using(self, v: torch.Tensor) -> Iterator[None]:
        """The numbers v, (numbers,) or (rows, numbers), for the length of a block; then what was set before."""
        before = [layer.v for layer in self._layers.values()]
        for part, layer in zip(self._parts, self._layers.values(), strict=True):
            layer.v = v[..., part]
        try:
            yield
        finally:
            for layer, held in zip(self._layers.values(), before, strict=True):
                layer.v = held

    def detach(self) -> None:
        """Put the bare linear layers back. The model is then what it was before."""
        self._swap({name: layer.linear for name, layer in self._layers.items()})

    def _swap(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(parent), leaf, module)
