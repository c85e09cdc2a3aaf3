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
from whit.adapters.targets import with_same_input
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
        self.siblings = Siblings([self])

    def forward(self, x: torch.Tensor, *, apart: bool = False) -> torch.Tensor:
        """y = W x + U S R (Vᵀ x), shape (rows, tokens, out).

        `apart` says that the layers which are given the same x in a whole forward are not given this one.
        """
        if self.R is None:
            y: torch.Tensor = self.linear(x)
            return y
        if self.R.dim() == 3 and self.R.shape[0] != x.shape[0]:
            raise AdapterError(f"{self.R.shape[0]} adapters were set for a batch of {x.shape[0]} rows")
        # A packed layer's matrix is unpacked at each look: it must not be kept for the way back.
        if getattr(self.linear, "packed", False) or self.linear.weight.requires_grad:
            adapted: torch.Tensor = self.linear(x) + ((x @ self.V) @ self.R.to(x.dtype).mT) @ self.US.mT
            return adapted
        return self.siblings.answer(self, x, apart=apart)


class Siblings:
    """Adapted layers that are given the same x, one after another: q, k and v; gate and up.

    The first that is asked computes for all, with one product Vᵀ x; the others take what is ready. On the way back the
    gradients of x are added up in place.
    """

    def __init__(self, layers: Sequence[AdaptedLinear]) -> None:
        self.layers = list(layers)
        self._V = torch.cat([layer.V.mT for layer in layers]).mT
        place = 0
        for layer in layers:
            layer.siblings = self
            layer.V = self._V[:, place : place + layer.V.shape[1]]
            place += layer.V.shape[1]
        self.forget()

    def forget(self) -> None:
        """Drop what is ready and was not asked for."""
        self._x: torch.Tensor | None = None
        self._ready: dict[AdaptedLinear, torch.Tensor] = {}

    def answer(self, layer: AdaptedLinear, x: torch.Tensor, *, apart: bool = False) -> torch.Tensor:
        """The adapted product of one layer; `apart`: and of no other."""
        if self._x is not x or layer not in self._ready:
            alike = not apart and all(
                each.R is not None and not each.linear.weight.requires_grad for each in self.layers
            )
            asked = self.layers if alike else [layer]
            parts = [
                part
                for each in asked
                if each.R is not None
                for part in (each.R.to(x.dtype), each.linear.weight, each.linear.bias, each.US)
            ]
            V = self._V if alike else layer.V
            found = _Adapted.apply(x, V, *parts)  # type: ignore[no-untyped-call]
            self._x, self._ready = x, dict(zip(asked, found, strict=True))
        y = self._ready.pop(layer)
        if not self._ready:
            self._x = None
        return y


class _Adapted(torch.autograd.Function):
    """Adapted products of one x with their gradients written out.

    Autograd would keep and add whole activations for an update of rank r; here the update is added in place, forward
    and backward, and only z = Vᵀ xᵀ, of r rows, is kept. V holds the layers' columns side by side; `parts` are
    R, W, bias and U S of each layer. Narrow products are taken lying down, (r, in) by (in, positions): upright, with
    r columns, they take some four times as long on CPUs.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, V: torch.Tensor, *parts: Any) -> tuple[torch.Tensor, ...]:
        z = V.mT @ flat(x).mT
        found, place = [], 0
        for R, W, bias, US in _by_four(parts):
            rank = R.shape[-1]
            y = nn.functional.linear(x, W, bias)
            y.view(-1, y.shape[-1]).addmm_(_each(R, z[place : place + rank]).mT, US.mT)
            found.append(y)
            place += rank
        ctx.save_for_backward(z, V, *parts)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        z, V, *parts = ctx.saved_tensors
        gradients: list[torch.Tensor | None] = []
        inner: list[torch.Tensor] = []
        dx: torch.Tensor | None = None
        place = 0
        for at, (dy, (R, W, _, US)) in enumerate(zip(given, _by_four(parts), strict=True)):
            rank = R.shape[-1]
            wide, narrow = US.mT @ flat(dy).mT, z[place : place + rank]
            place += rank
            dR = None
            if ctx.needs_input_grad[2 + 4 * at]:
                dR = wide @ narrow.mT if R.dim() == 2 else _by_row(wide, len(R)) @ _by_row(narrow, len(R)).mT
            gradients += [dR, None, None, None]
            if not ctx.needs_input_grad[0]:
                continue
            inner.append(_each(R.mT, wide))
            if dx is None:
                dx = dy @ W
            else:
                dx.view(-1, dx.shape[-1]).addmm_(flat(dy), W)
        if dx is not None:
            dx.view(-1, dx.shape[-1]).addmm_(torch.cat(inner).mT, V.mT)
        return dx, None, *gradients


def flat(x: torch.Tensor) -> torch.Tensor:
    """(rows, tokens, width) as (positions, width)."""
    return x.reshape(-1, x.shape[-1])


def _by_row(z: torch.Tensor, rows: int) -> torch.Tensor:
    """(r, positions) as (rows, r, tokens)."""
    return z.view(len(z), rows, -1).transpose(0, 1)


def _each(R: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """R z of shape (r, positions), with one R for all positions or one for each row's."""
    return R @ z if R.dim() == 2 else (R @ _by_row(z, len(R))).transpose(0, 1).reshape(z.shape)


def _by_four(parts: Sequence[Any]) -> list[Sequence[Any]]:
    return [parts[at : at + 4] for at in range(0, len(parts), 4)]


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
        alike = with_same_input(self._names)
        self._families = [Siblings([self._layers[place] for place in places]) for places in alike]
        self._swap(dict(zip(self._names, self._layers, strict=True)))

    def set(self, R: torch.Tensor | None) -> None:
        """R of shape (modules, r, r) or (modules, rows, r, r), or None for the bare base."""
        self._give([None] * len(self._layers) if R is None else R.unbind())

    def _give(self, each: Sequence[torch.Tensor | None]) -> None:
        for family in self._families:
            family.forget()
        for layer, R in zip(self._layers, each, strict=True):
            layer.R = R

    @contextlib.contextmanager
    def using(self, R: torch.Tensor | None) -> Iterator[None]:
        """`set(R)` for the length of a block, then what was set before."""
        before = [layer.R for layer in self._layers]
        self.set(R)
        try:
            yield
        finally:
            self._give(before)

    def detach(self) -> None:
        """Put the bare linear layers back. The model is then what it was before."""
        self._swap({name: layer.linear for name, layer in zip(self._names, self._layers, strict=True)})

    def _swap(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(parent), leaf, module)
