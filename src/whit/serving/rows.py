"""A base whose rows lie in slots: one preallocated key-value cache, and an adapter for each slot.

`forward` computes any span of slots, each at its own place and with its own adapter: `tiny` and `xs` of any rank whose
basis is there, and LoRAs of differing ranks, all in one batch. The result for a row is what it would be alone. While
it exists the model's projections are `RowLinear`s; `close` puts the bare ones back. Knows nothing of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, CacheLayerMixin

from whit.adapters.basis import Basis
from whit.adapters.targets import all_targets
from whit.errors import AdapterError
from whit.evaluation.decoding import decoder_of, window_of
from whit.serving.pool import Served

if TYPE_CHECKING:
    from whit.bases import Base

_STACKS = 4  # sets of stacked LoRAs that are kept: those that answer, and those that read

Stack = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]


class RowLinear(nn.Module):
    """A linear layer whose rows may each move it: y = W x + U S R (Vᵀ x) + B A x.

    `vectors` holds (U S)ᵀ, V and R, the last of shape (rows, r, r), for each rank at work; `lora` the rows it is for
    (None: all), A (rows, r, in) and B (rows, out, r).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.vectors: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.lora: Stack | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y of shape (rows, tokens, out) for x of shape (rows, tokens, in)."""
        y = F.linear(x, self.linear.weight, self.linear.bias)
        for outward, inward, R in self.vectors:
            z = torch.bmm(x @ inward, R.mT)
            y.view(-1, y.shape[-1]).addmm_(z.view(-1, z.shape[-1]), outward)
        if self.lora is not None:
            rows, A, B = self.lora
            if rows is None:
                y.baddbmm_(torch.bmm(x, A.mT), B.mT)
            else:
                y.index_add_(0, rows, torch.bmm(torch.bmm(x[rows], A.mT), B.mT))
        return y


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values of all slots: (slots, heads, places, dim)."""

    def __init__(self, owner: _SlotCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.owner, self.keys, self.values = owner, keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("the slots are allocated from the start")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        owner = self.owner
        assert self.keys is not None and self.values is not None
        span = slice(owner.first, owner.first + key_states.shape[0])
        keys, values = self.keys[span], self.values[span]
        keys[owner.rows, :, owner.at] = key_states.transpose(1, 2)
        values[owner.rows, :, owner.at] = value_states.transpose(1, 2)
        return keys[:, :, : owner.longest], values[:, :, : owner.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.longest, 0

    def get_seq_length(self) -> int:
        return self.owner.longest

    def get_max_length(self) -> int:
        return self.owner.places


class _SlotCache(Cache):
    """The cache of all slots; `first`, `rows`, `at` and `longest` say which part of it a forward pass is about."""

    def __init__(self, store: torch.Tensor) -> None:
        self.first, self.longest, self.places = 0, 0, store.shape[-2]
        self.rows = self.at = torch.empty(0, dtype=torch.long)
        super().__init__(layers=[_SlotLayer(self, layer[0], layer[1]) for layer in store])


class RowModel:
    """The slots of one base; `bases` are the directions of the ranks that vector adapters may have."""

    def __init__(self, base: Base, rows: int, context: int, bases: Mapping[int, Basis]) -> None:
        self.base, self.context = base, context
        model, config = base.model, base.model.config
        self._decoder, self._head = decoder_of(model), model.get_output_embeddings()
        self._window = window_of(config)
        like = next(model.parameters())
        self._device, self._dtype = like.device, like.dtype
        heads = int(config.num_key_value_heads)
        dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        # Zeros, for what is masked out is still multiplied; and one place more, where padding is written.
        shape = (int(config.num_hidden_layers), 2, rows, heads, context + 1, dim)
        self._kv = torch.zeros(shape, dtype=self._dtype, device=self._device)
        self._cache = _SlotCache(self._kv)
        self._targets = all_targets(name for name, _ in model.named_modules())
        self._layers = {target.name: _replace(model, target.name) for target in self._targets}
        self._parts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._R: dict[int, torch.Tensor] = {}
        for rank, basis in bases.items():
            self._parts[rank] = [
                (out.mT.contiguous().to(like), inward.mT.contiguous().mT.to(like))
                for out, inward in zip(basis.outward, basis.inward, strict=True)
            ]
            self._R[rank] = torch.zeros((len(self._targets), rows, rank, rank), dtype=self._dtype, device=self._device)
        self._slots: list[Served | None] = [None] * rows
        self._stacks: OrderedDict[tuple[bytes, ...], dict[str, tuple[torch.Tensor, torch.Tensor]]] = OrderedDict()

    def close(self) -> None:
        """Put the bare linear layers back."""
        for name, layer in self._layers.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self.base.model.get_submodule(parent), leaf, layer.linear)

    def put(self, slot: int, adapter: Served | None) -> None:
        """The adapter of a slot from here on, or None for the bare base."""
        before = self._slots[slot]
        if before is not None and before.R is not None:
            self._R[before.rank][:, slot] = 0
        if adapter is not None and adapter.R is not None:
            if adapter.rank not in self._R:
                raise AdapterError(f"there is no basis of rank {adapter.rank} here")
            self._R[adapter.rank][:, slot] = adapter.R.to(self._dtype)
        self._slots[slot] = adapter

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange two slots of which the longer has `length` tokens."""
        kept = self._kv[:, :, one, :, :length].clone()
        self._kv[:, :, one, :, :length] = self._kv[:, :, other, :, :length]
        self._kv[:, :, other, :, :length] = kept
        first, second = self._slots[one], self._slots[other]
        self.put(one, second)
        self.put(other, first)

    def read(self, slot: int, start: int, end: int) -> torch.Tensor:
        """A copy of keys and values: (layers, 2, heads, tokens, dim)."""
        return self._kv[:, :, slot, :, start:end].clone()

    def write(self, slot: int, part: torch.Tensor) -> None:
        """Put what `read` gave at the beginning of a slot."""
        self._kv[:, :, slot, :, : part.shape[-2]] = part

    def forward(self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Hidden states (rows, tokens, width) of the slots from `first`; row i's tokens stand from `starts[i]` on."""
        device, rows = self._device, len(tokens)
        width = max(map(len, tokens))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], device=device)
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        cache = self._cache
        cache.first, cache.longest = first, max(at + len(row) for at, row in zip(starts, tokens, strict=True))
        cache.rows = torch.arange(rows, device=device)[:, None]
        cache.at = positions.clamp(max=self.context)
        keys = torch.arange(cache.longest, device=device)
        seen = keys[None, None, None, :] <= positions[:, None, :, None]
        mask: Any = seen
        if self._window is not None:
            near = keys[None, None, None, :] > positions[:, None, :, None] - self._window
            mask = {"full_attention": seen, "sliding_attention": seen & near}
        self._apply(first, rows)
        hidden: torch.Tensor = self._decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.clamp(max=self.context - 1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (rows, vocabulary) of hidden states (rows, width); float32."""
        logits: torch.Tensor = self._head(hidden).float()
        return logits

    def _apply(self, first: int, rows: int) -> None:
        """Hand every layer the adapters of a span of slots."""
        here = self._slots[first : first + rows]
        ranks = sorted({served.rank for served in here if served is not None and served.R is not None})
        loras = [(row, served) for row, served in enumerate(here) if served is not None and served.A is not None]
        stacks = self._stacked([served for _, served in loras]) if loras else {}
        which = None
        if loras and len(loras) < rows:
            which = torch.tensor([row for row, _ in loras], device=self._device)
        for place, (name, layer) in enumerate(self._layers.items()):
            layer.vectors = [(*self._parts[rank][place], self._R[rank][place, first : first + rows]) for rank in ranks]
            layer.lora = (which, *stacks[name]) if name in stacks else None

    def _stacked(self, loras: Sequence[Served]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B of several LoRAs by module, filled up with zeros to the largest rank."""
        key = tuple(served.digest for served in loras)
        if found := self._stacks.get(key):
            self._stacks.move_to_end(key)
            return found
        most = max(served.rank for served in loras)
        made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, layer in self._layers.items():
            if not any(name in (served.A or {}) for served in loras):
                continue
            outward, inward = layer.linear.weight.shape
            A = torch.zeros((len(loras), most, inward), dtype=self._dtype, device=self._device)
            B = torch.zeros((len(loras), outward, most), dtype=self._dtype, device=self._device)
            for row, served in enumerate(loras):
                if served.A is not None and served.B is not None and name in served.A:
                    A[row, : served.rank], B[row, :, : served.rank] = served.A[name], served.B[name]
            made[name] = A, B
        self._stacks[key] = made
        while len(self._stacks) > _STACKS:
            self._stacks.popitem(last=False)
        return made


def _replace(model: nn.Module, name: str) -> RowLinear:
    linear = model.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise AdapterError(f"{name} is already adapted; detach the other adapter first")
    parent, _, leaf = name.rpartition(".")
    layer = RowLinear(linear)
    setattr(model.get_submodule(parent), leaf, layer)
    return layer
