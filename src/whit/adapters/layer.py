"""The adapted layer: y = W x + U S R (Vᵀ x), where R may differ from row to row of the batch.

`Slots` puts an `AdaptedLinear` in the place of every target of a model and takes it out again. While no R
is set, each behaves as the bare linear layer, bit for bit. The result for a row of a mixed batch is the
result that the row would have alone. Knows nothing of kinds: it is handed R.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from whit.adapters.basis import Basis
from whit.errors import AdapterError


class AdaptedLinear(nn.Module):
    """A frozen linear layer and its place for an adapter.

    x has shape (rows, tokens, in); R is None, (r, r) for all rows, or (rows, r, r) for a matrix each.
    """

    US: torch.Tensor
    V: torch.Tensor

    def __init__(self, linear: nn.Linear, outward: torch.Tensor, inward: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        like = linear.weight
        self.register_buffer("US", outward.to(device=like.device, dtype=like.dtype), persistent=False)
        self.register_buffer("V", inward.to(device=like.device, dtype=like.dtype), persistent=False)
        self.R: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y = W x + U S R (Vᵀ x), shape (rows, tokens, out)."""
        y: torch.Tensor = self.linear(x)
        if self.R is None:
            return y
        R = self.R.to(x.dtype)
        if R.dim() == 3 and R.shape[0] != x.shape[0]:
            raise AdapterError(f"{R.shape[0]} adapters were set for a batch of {x.shape[0]} rows")
        z = (x @ self.V) @ R.mT
        if self.US.requires_grad or y.requires_grad or z.requires_grad:
            return y + z @ self.US.mT
        flat = y.view(-1, y.shape[-1])
        return flat.addmm_(z.reshape(-1, z.shape[-1]), self.US.mT).view_as(y)


class Slots:
    """Places for a vector adapter in a model.

    `targets` are numbers of modules (see `targets.py`); R is set for all of them at once.
    """

    def __init__(self, model: nn.Module, basis: Basis, targets: Sequence[int]) -> None:
        by_index = {target.index: place for place, target in enumerate(basis.targets)}
        self._model = model
        self._layers: list[AdaptedLinear] = []
        self._names: list[str] = []
        for index in targets:
            if index not in by_index:
                raise AdapterError(f"the adapter moves module {index}, which the basis of this base does not have")
            place = by_index[index]
            name = basis.targets[place].name
            linear = model.get_submodule(name)
            if not isinstance(linear, nn.Linear):
                raise AdapterError(f"{name} is already adapted; detach the other adapter first")
            self._names.append(name)
            self._layers.append(AdaptedLinear(linear, basis.outward[place], basis.inward[place]))
        self._swap(dict(zip(self._names, self._layers, strict=True)))

    def set(self, R: torch.Tensor | None) -> None:
        """R of shape (modules, r, r) or (modules, rows, r, r), or None for the bare base."""
        for place, layer in enumerate(self._layers):
            layer.R = None if R is None else R[place]

    @contextlib.contextmanager
    def using(self, R: torch.Tensor | None) -> Iterator[None]:
        """`set(R)` for the length of a block, then what was set before."""
        before = [layer.R for layer in self._layers]
        self.set(R)
        try:
            yield
        finally:
            for layer, R_before in zip(self._layers, before, strict=True):
                layer.R = R_before

    def detach(self) -> None:
        """Put the bare linear layers back. The model is then what it was before."""
        self._swap({name: layer.linear for name, layer in zip(self._names, self._layers, strict=True)})

    def _swap(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(parent), leaf, module)
