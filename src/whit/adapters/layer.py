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
        # Held column by column: their transposes, which the update multiplies by, are then contiguous.
        for name, part in (("US", outward), ("V", inward)):
            held = part.mT.contiguous().mT.to(device=like.device, dtype=like.dtype)
            self.register_buffer(name, held, persistent=False)
        self.R: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y = W x + U S R (Vᵀ x), shape (rows, tokens, out)."""
        if self.R is None:
            y: torch.Tensor = self.linear(x)
            return y
        R = self.R.to(x.dtype)
        if R.dim() == 3 and R.shape[0] != x.shape[0]:
            raise AdapterError(f"{R.shape[0]} adapters were set for a batch of {x.shape[0]} rows")
        # A packed layer's matrix is unpacked at each look: it must not be kept for the way back.
        if getattr(self.linear, "packed", False) or self.linear.weight.requires_grad:
            adapted: torch.Tensor = self.linear(x) + ((x @ self.V) @ R.mT) @ self.US.mT
        else:
            weight, bias = self.linear.weight, self.linear.bias
            adapted = _Adapted.apply(x, R, weight, bias, self.US, self.V)  # type: ignore[no-untyped-call]
        return adapted


class _Adapted(torch.autograd.Function):
    """The adapted product with its gradients written out.

    Autograd would keep and add whole activations for an update of rank r; here the update is added in place, forward
    and backward, and only z = Vᵀ x, of width r, is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        R: torch.Tensor,
        W: torch.Tensor,
        bias: torch.Tensor | None,
        US: torch.Tensor,
        V: torch.Tensor,
    ) -> torch.Tensor:
        z = x @ V
        y = nn.functional.linear(x, W, bias)
        y.view(-1, y.shape[-1]).addmm_((z @ R.mT).reshape(-1, z.shape[-1]), US.mT)
        ctx.save_for_backward(z, R, W, US, V)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        z, R, W, US, V = ctx.saved_tensors
        wide = dy @ US
        dR = dx = None
        if ctx.needs_input_grad[1]:
            dR = wide.mT @ z if R.dim() == 3 else wide.flatten(0, -2).mT @ z.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            dx = dy @ W
            dx.view(-1, dx.shape[-1]).addmm_((wide @ R).reshape(-1, z.shape[-1]), V.mT)
        return dx, dR, None, None, None, None


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
