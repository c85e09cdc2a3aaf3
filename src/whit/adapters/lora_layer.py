"""PEFT's LoRA layers computed quickly: y = W x + s B (A x), in the number type of the base.

PEFT's own forward multiplies and adds whole activations for an update of rank r, in float32 whatever the base is. Here
the update is added in place, forward and backward, narrow products lie down as in `layer.py`, and layers that are given
the same x are computed together. Layers that are anything but PEFT's plain LoRA over a frozen `nn.Linear`, or that drop
inputs out, keep PEFT's forward.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from whit.adapters.layer import flat
from whit.adapters.targets import with_same_input

_NAME = "default"


class QuickLora:
    """The forward of a model's LoRA layers; A and B stay where PEFT keeps them."""

    def __init__(self, names: Sequence[str], layers: Sequence[nn.Module]) -> None:
        from peft.tuners.lora import Linear

        plain = [
            place
            for place, layer in enumerate(layers)
            if type(layer) is Linear and type(layer.base_layer) is nn.Linear and not layer.lora_variant
        ]
        self._families = [
            _Family([layers[plain[place]] for place in places])
            for places in with_same_input([names[place] for place in plain])
        ]

    def forget(self) -> None:
        """Drop what was computed with A and B as they were."""
        for family in self._families:
            family.forget()


class _Family:
    """Layers that are given the same x; the first that is asked computes for all."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        for layer in layers:
            layer.forward = functools.partial(self.forward, layer)
        self.forget()

    def forget(self) -> None:
        self._x: torch.Tensor | None = None
        self._ready: dict[nn.Module, torch.Tensor] = {}
        self._cast: tuple[Any, list[torch.Tensor]] | None = None

    def forward(self, layer: Any, x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        y: torch.Tensor
        if others or named or not _quick(layer):
            y = type(layer).forward(layer, x, *others, **named)
            return y
        if self._x is not x or layer not in self._ready:
            alike = all(_quick(each) for each in self.layers)
            self._x, self._ready = x, self._compute(x, self.layers if alike else [layer])
        y = self._ready.pop(layer)
        if not self._ready:
            self._x = None
        return y

    def _compute(self, x: torch.Tensor, layers: list[Any]) -> dict[nn.Module, torch.Tensor]:
        learned = [part[_NAME].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]
        # Tensors made in inference mode count no changes: theirs are cast anew.
        tracked = not any(part.is_inference() for part in learned)
        key = (x.dtype, *layers, *(part._version for part in learned)) if tracked else None
        if self._cast is None or key is None or self._cast[0] != key:
            with torch.no_grad():
                As = torch.cat([A.to(x.dtype) for A in learned[0::2]])
                self._cast = key, [As, *(B.to(x.dtype) for B in learned[1::2])]
        frozen = [part for layer in layers for part in (layer.base_layer.weight, layer.base_layer.bias)]
        scales = [layer.scaling[_NAME] for layer in layers]
        found = _Lora.apply(x, scales, self._cast[1], frozen, *learned)  # type: ignore[no-untyped-call]
        return dict(zip(layers, found, strict=True))


def _quick(layer: Any) -> bool:
    dropout = layer.lora_dropout[_NAME]
    dropped = isinstance(dropout, nn.Dropout) and dropout.training
    return not (layer.disable_adapters or dropped or layer.merged or layer.base_layer.weight.requires_grad)


class _Lora(torch.autograd.Function):
    """Products of one x with several W + s B A, with their gradients written out.

    `casts` are the A's over each other, (layers · r, in), and each B, in x's number type; `frozen` each W and bias;
    `learned` each A and B in float32, to which the gradients go.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scales: list[float],
        casts: list[torch.Tensor],
        frozen: list[torch.Tensor | None],
        *learned: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        A, *Bs = casts
        z = A @ flat(x).mT
        found = []
        for at, (B, scale, part) in enumerate(zip(Bs, scales, z.chunk(len(Bs)), strict=True)):
            W, bias = frozen[2 * at : 2 * at + 2]
            assert W is not None
            y = nn.functional.linear(x, W, bias)
            y.view(-1, y.shape[-1]).addmm_(part.mT, B.mT, alpha=scale)
            found.append(y)
        ctx.scales = scales
        ctx.save_for_backward(x, z, A, *Bs, *frozen[0::2])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, z, A, *rest = ctx.saved_tensors
        Bs, Ws = rest[: len(given)], rest[len(given) :]
        wide = [flat(dy) for dy in given]
        dBs = [
            (part @ dy).mT.float().mul_(scale)
            for part, dy, scale in zip(z.chunk(len(Bs)), wide, ctx.scales, strict=True)
        ]
        dz = torch.cat([(B.mT @ dy.mT).mul_(scale) for B, dy, scale in zip(Bs, wide, ctx.scales, strict=True)])
        dAs = (dz @ flat(x)).float().chunk(len(Bs))
        dx: torch.Tensor | None = None
        if ctx.needs_input_grad[0]:
            dx = given[0] @ Ws[0]
            total = dx.view(-1, dx.shape[-1])
            for dy, W in zip(wide[1:], Ws[1:], strict=True):
                total.addmm_(dy, W)
            total.addmm_(dz.mT, A)
        gradients = [part for pair in zip(dAs, dBs, strict=True) for part in pair]
        return dx, None, None, None, *gradients
