"""What training tunes and decoding runs: an adapter bound to a model, whatever its kind.

`bind` gives a `Bound` for any adapter; `tune_vector`, `tune_sparse` and `tune_lora` give one that starts from nothing.
All have the same few members, so that neither training nor decoding asks what kind it holds. Knows nothing of data.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from whit.adapters.adapter import Adapter
from whit.adapters.basis import Basis, basis_of
from whit.adapters.layer import Slots
from whit.adapters.learned import named_by
from whit.adapters.lora import LoraWeights
from whit.adapters.lora_layer import QuickLora
from whit.adapters.sparse import SparseSpec
from whit.adapters.sparse_layer import SparseSlots
from whit.adapters.targets import Target
from whit.adapters.vector import Expansion, VectorSpec
from whit.bases.quantize import import_bitsandbytes
from whit.errors import AdapterError, UsageError

if TYPE_CHECKING:
    from whit.bases import Base


class Bound(ABC):
    """An adapter in its place in a model.

    Where `answers_only` is True, it is meant for a prompt's last token and the answer, behind a prompt that was read
    while it was not active.
    """

    @property
    def answers_only(self) -> bool:
        """Whether prompts are read by the bare base but for their last token."""
        return False

    @property
    @abstractmethod
    def numbers(self) -> int:
        """How many numbers it trains."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser steps: float32, in a fixed order."""

    @abstractmethod
    def active(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the model's forward applies the adapter; outside of it, the bare base answers."""

    @abstractmethod
    def export(self) -> Adapter:
        """The adapter as it would be stored, rounded to its number type."""

    @abstractmethod
    def load(self, adapter: Adapter) -> None:
        """Take over the numbers of an adapter of the same shape."""

    @abstractmethod
    def detach(self) -> None:
        """Take the adapter out; the model is the bare base again."""


class BoundVector(Bound):
    """An adapter that is one vector v for all rows of a batch, or one for each: `tiny`, `xs` and `sparse`."""

    def __init__(self, numbers: int, device: torch.device, number_type: str) -> None:
        self.v = nn.Parameter(torch.zeros(numbers, device=device))
        self.number_type = number_type

    @abstractmethod
    def using(self, v: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """A block in which v, (numbers,) or (rows, numbers), is applied."""

    @property
    def numbers(self) -> int:
        """How many numbers it trains."""
        return self.v.numel()

    def parameters(self) -> list[nn.Parameter]:
        """The vector."""
        return [self.v]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Every row of a batch gets this adapter's own vector."""
        with self.using(self.v):
            yield

    @contextlib.contextmanager
    def rows(self, vectors: torch.Tensor) -> Iterator[None]:
        """Row i of a batch gets `vectors[i]`; shape (rows, numbers). Gradients flow to each row's own vector."""
        with self.using(vectors):
            yield

    def vector(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A copy of v, float32, shape (numbers,)."""
        return self.v.detach().cpu().numpy().astype(np.float32, copy=True)

    @abstractmethod
    def fits(self, adapter: Adapter) -> bool:
        """Whether the adapter's vector means here what it means there."""

    def load(self, adapter: Adapter) -> None:
        """Take over the vector of an adapter of the same shape."""
        if adapter.vector is None or not self.fits(adapter):
            raise AdapterError("the adapter has another shape than the one it is loaded into")
        with torch.no_grad():
            self.v.copy_(torch.from_numpy(adapter.vector))


class BoundBasis(BoundVector):
    """A `tiny` or `xs` adapter, along a basis."""

    def __init__(self, base: Base, basis: Basis, spec: VectorSpec, *, number_type: str = "bfloat16") -> None:
        device = next(base.model.parameters()).device
        super().__init__(spec.numbers, device, number_type)
        self.spec, self.basis = spec, basis
        learned = basis.learned.projections(spec) if basis.learned is not None else None
        self.expansion = Expansion(spec, device=str(device), projection=learned)
        self.slots = Slots(base.model, basis, spec.targets)

    @property
    def answers_only(self) -> bool:
        """Whether the basis says so."""
        return self.basis.learned is not None and self.basis.learned.answers_only

    def using(self, v: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """A block in which v, (numbers,) or (rows, numbers), is applied."""
        return self.slots.using(self.expansion(v))

    def export(self) -> Adapter:
        """The adapter as it would be stored."""
        return Adapter.from_vector(self.spec, self.vector(), self.basis, number_type=self.number_type)

    def fits(self, adapter: Adapter) -> bool:
        """Whether it is of the same shape."""
        return adapter.spec == self.spec

    def detach(self) -> None:
        """Put the bare linear layers back."""
        self.slots.detach()


class BoundSparse(BoundVector):
    """A `sparse` adapter: v is added to single weights."""

    def __init__(self, base: Base, spec: SparseSpec, *, number_type: str = "bfloat16") -> None:
        super().__init__(spec.numbers, next(base.model.parameters()).device, number_type)
        self.base, self.spec = base, spec
        self.slots = SparseSlots(base.model, spec)

    def using(self, v: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """A block in which v, (numbers,) or (rows, numbers), is applied."""
        return self.slots.using(v)

    def export(self) -> Adapter:
        """The adapter as it would be stored."""
        return Adapter.from_sparse(self.spec, self.vector(), self.base, number_type=self.number_type)

    def fits(self, adapter: Adapter) -> bool:
        """Whether it moves the same weights."""
        return adapter.sparse == self.spec

    def detach(self) -> None:
        """Put the bare linear layers back."""
        self.slots.detach()


class BoundLora(Bound):
    """A LoRA in PEFT's own layers, with a quicker forward where it can be had (`lora_layer.py`)."""

    def __init__(
        self, base: Base, rank: int, alpha: float, dropout: float, targets: Sequence[Target], seed: int
    ) -> None:
        with contextlib.suppress(Exception):  # optional; PEFT tells what is wrong with it
            import_bitsandbytes()
        from peft import LoraConfig, inject_adapter_in_model

        self._base, self.rank, self.alpha, self.dropout = base, rank, alpha, dropout
        self._names = [target.name for target in targets]
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=self._names, bias="none")
        flags = {name: parameter.requires_grad for name, parameter in base.model.named_parameters()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, base.model)
        for name, parameter in base.model.named_parameters():
            if name in flags:
                parameter.requires_grad_(flags[name])
        self._layers = [base.model.get_submodule(name) for name in self._names]
        for parameter in self.parameters():
            # PEFT creates them in the base's number type; steps in bfloat16 would be lost to rounding.
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self._quick = QuickLora(self._names, self._layers)
        self._enable(False)
        self.train(False)  # new layers begin in training mode: answers would be drawn with dropout

    @property
    def numbers(self) -> int:
        """How many numbers it trains."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every module, in the fixed order of modules."""
        found: list[nn.Parameter] = []
        for layer in self._layers:
            found += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        return found

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The model's forward applies the LoRA."""
        self._enable(True)
        try:
            yield
        finally:
            self._enable(False)

    def _enable(self, on: bool) -> None:
        self._quick.forget()
        for layer in self._layers:
            layer._disable_adapters = not on

    def train(self, on: bool) -> None:
        """Switch dropout on or off."""
        for layer in self._layers:
            layer.lora_dropout.train(on)

    def export(self) -> Adapter:
        """The adapter as it would be stored: PEFT's tensors in bfloat16."""
        A = {name: layer.lora_A["default"].weight for name, layer in zip(self._names, self._layers, strict=True)}
        B = {name: layer.lora_B["default"].weight for name, layer in zip(self._names, self._layers, strict=True)}
        weights = LoraWeights(
            rank=self.rank,
            alpha=self.alpha,
            A={name: part.detach().to(torch.bfloat16).cpu().clone() for name, part in A.items()},
            B={name: part.detach().to(torch.bfloat16).cpu().clone() for name, part in B.items()},
            base=self._base.fingerprint,
            base_name=self._base.name,
            dropout=self.dropout,
        )
        return Adapter(kind="lora", base=self._base.fingerprint, lora=weights)

    def load(self, adapter: Adapter) -> None:
        """Take over the weights of an adapter of the same shape."""
        weights = adapter.lora
        if weights is None or set(weights.A) != set(self._names) or weights.rank != self.rank:
            raise AdapterError("the adapter has another shape than the one it is loaded into")
        for name, layer in zip(self._names, self._layers, strict=True):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            if weights.A[name].shape != A.shape or weights.B[name].shape != B.shape:
                raise AdapterError(
                    f"the LoRA's {name} is for a matrix of {weights.B[name].shape[0]} x {weights.A[name].shape[1]}, "
                    f"the base's has {B.shape[0]} x {A.shape[1]}; it was made for another base"
                )
        self._quick.forget()
        with torch.no_grad():
            for name, layer in zip(self._names, self._layers, strict=True):
                layer.lora_A["default"].weight.copy_(weights.A[name])
                layer.lora_B["default"].weight.copy_(weights.B[name])

    def detach(self) -> None:
        """Put the bare linear layers back."""
        for name, layer in zip(self._names, self._layers, strict=True):
            parent, _, leaf = name.rpartition(".")
            setattr(self._base.model.get_submodule(parent), leaf, layer.base_layer)
        # PEFT's note on the model; left there, the next LoRA would be told that there are two.
        self._base.model.__dict__.pop("peft_config", None)


def tune_lora(
    base: Base, targets: Sequence[Target], *, rank: int, alpha: float, dropout: float, seed: int
) -> BoundLora:
    """A fresh LoRA on `targets`: A as PEFT draws it, B zero. Raises `UsageError` for impossible settings."""
    if rank < 1 or not 0.0 <= dropout < 1.0 or alpha <= 0:
        raise UsageError(
            f"lora needs a rank of 1 or more, 0 <= dropout < 1 and alpha > 0, not {rank}, {dropout}, {alpha}"
        )
    return BoundLora(base, rank, alpha, dropout, targets, seed)


def tune_sparse(base: Base, spec: SparseSpec, *, number_type: str = "bfloat16") -> BoundSparse:
    """A fresh sparse adapter, v = 0. Raises `AdapterError` where the base has no such weights."""
    return BoundSparse(base, spec, number_type=number_type)


def tune_vector(base: Base, spec: VectorSpec, *, number_type: str = "bfloat16") -> BoundBasis:
    """A fresh vector adapter, v = 0: the model is the bare base until a step is taken."""
    return BoundBasis(base, basis_of(base, spec.rank), spec, number_type=number_type)


def bind(base: Base, adapter: Adapter) -> Bound:
    """Put an adapter in its place. Raises `WrongBase` or `WrongBasis` where it does not fit."""
    adapter.check_fits(base)
    if adapter.spec is not None:
        basis = named_by(adapter.basis, basis_of(base, adapter.spec.rank))
        adapter.check_fits(base, basis)
        bound: Bound = BoundBasis(base, basis, adapter.spec, number_type=adapter.number_type)
    elif adapter.sparse is not None:
        bound = BoundSparse(base, adapter.sparse, number_type=adapter.number_type)
    else:
        from whit.adapters.targets import all_targets

        weights = adapter.lora
        if weights is None:
            raise AdapterError("the adapter is empty")
        targets = weights.targets_in(all_targets(name for name, _ in base.model.named_modules()))
        bound = BoundLora(base, weights.rank, weights.alpha, weights.dropout, targets, seed=0)
    try:
        bound.load(adapter)
    except AdapterError:
        bound.detach()
        raise
    return bound
