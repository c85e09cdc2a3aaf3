"""A base whose rows lie in slots: one preallocated key-value cache, and an adapter for each slot.

`forward` computes any span of slots, each at its own place and with its own adapter: `tiny` and `xs` of any rank whose
basis is there, and LoRAs of differing ranks, all in one batch. The result for a row is what it would be alone. While
it exists the model's projections are `RowLinear`s; `close` puts the bare ones back. Knows nothing of requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from whit.serving.blocks import Blocks, groups_of
from whit.serving.pool import Served
from whit.serving.sampling import likeliest

if TYPE_CHECKING:
    from whit.bases import Base

_STACKS = 4  # sets of stacked LoRAs that are kept: those that answer, and those that read

Stack = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]


class _Shared:
    """What R makes of z = Vᵀ x, for the modules that read the same x: computed by the first of them.

    `parts` holds, for each rank at work, V of all of them side by side and Rᵀ of every row (see `blocks.py`).
    """

    def __init__(self) -> None:
        self.parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._x: torch.Tensor | None = None
        self._moved: list[torch.Tensor] = []

    def of(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(rows · tokens, modules · r) for each rank."""
        if self._x is not x:
            self._moved = [torch.bmm(x @ inward, R).flatten(0, 1) for inward, R in self.parts]
            self._x = x
        return self._moved

    def clear(self) -> None:
        """Let go of what was computed."""
        self._x, self._moved = None, []


class RowLinear(nn.Module):
    """A linear layer whose rows may each move it: y = W x + U S R (Vᵀ x) + B A x.

    `vectors` holds, for each rank at work, (U S)ᵀ and where this module's part of the shared z stands; `lora` the rows
    it is for (None: all), A (rows, r, in) and B (rows, out, r).
    """

    def __init__(self, linear: nn.Linear, shared: _Shared) -> None:
        super().__init__()
        self.linear, self.shared = linear, shared
        self.vectors: list[tuple[torch.Tensor, slice]] = []
        self.lora: Stack | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y of shape (rows, tokens, out) for x of shape (rows, tokens, in)."""
        y = F.linear(x, self.linear.weight, self.linear.bias)
        if self.vectors:
            flat = y.view(-1, y.shape[-1])
            for (outward, at), moved in zip(self.vectors, self.shared.of(x), strict=True):
                flat.addmm_(moved[:, at], outward)
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


class SlotStore(ABC):
    """What every model over slots shares: keys and values of all slots, the adapter of each, and stacks of LoRAs."""

    how = "computed as transformers does"  # in words, for who runs it

    def __init__(
        self, base: Base, rows: int, context: int, dtype: torch.dtype, *, kept: torch.dtype | None = None
    ) -> None:
        self.base, self.context = base, context
        config, like = base.model.config, next(base.model.parameters())
        self._device, self._dtype = like.device, dtype
        heads = int(config.num_key_value_heads)
        dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        # Zeros, for what is masked out is still multiplied; and one place more, where padding is written.
        shape = (int(config.num_hidden_layers), 2, rows, heads, context + 1, dim)
        self._kv = torch.zeros(shape, dtype=kept or dtype, device=self._device)
        self._targets = all_targets(name for name, _ in base.model.named_modules())
        self._shapes = {each.name: base.model.get_submodule(each.name).weight.shape for each in self._targets}
        self._slots: list[Served | None] = [None] * rows
        self._blocks: dict[int, Blocks] = {}
        self._stacks: OrderedDict[tuple[bytes, ...], dict[str, tuple[torch.Tensor, torch.Tensor]]] = OrderedDict()

    @abstractmethod
    def forward(self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Hidden states (rows, tokens, width) of the slots from `first`; row i's tokens stand from `starts[i]` on."""

    @abstractmethod
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (rows, vocabulary) of hidden states (rows, width); float32."""

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """The likeliest token of each row, (rows,): the first of the largest `logits`."""
        return likeliest(self.logits(hidden))

    @abstractmethod
    def close(self) -> None:
        """Leave the base as it was."""

    def put(self, slot: int, adapter: Served | None) -> None:
        """The adapter of a slot from here on, or None for the bare base."""
        before = self._slots[slot]
        if before is not None and before.R is not None:
            self._blocks[before.rank].put(slot, None)
        if adapter is not None and adapter.R is not None:
            if adapter.rank not in self._blocks:
                raise AdapterError(f"there is no basis of rank {adapter.rank} here")
            self._blocks[adapter.rank].put(slot, adapter.R)
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

    def _ranks(self, first: int, rows: int) -> list[int]:
        """Ranks of the vector adapters in a span of slots."""
        here = self._slots[first : first + rows]
        return sorted({served.rank for served in here if served is not None and served.R is not None})

    def _loras(self, first: int, rows: int) -> dict[str, Stack]:
        """LoRAs of a span of slots by module: the rows they are for (None: all), and their A and B stacked."""
        here = enumerate(self._slots[first : first + rows])
        loras = [(row, served) for row, served in here if served is not None and served.A is not None]
        if not loras:
            return {}
        which = None
        if len(loras) < rows:
            which = torch.tensor([row for row, _ in loras], device=self._device)
        return {name: (which, A, B) for name, (A, B) in self._stacked([served for _, served in loras]).items()}

    def _stacked(self, loras: Sequence[Served]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B of several LoRAs by module, filled up with zeros to the largest rank."""
        key = tuple(served.digest for served in loras)
        if found := self._stacks.get(key):
            self._stacks.move_to_end(key)
            return found
        most = max(served.rank for served in loras)
        made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        parts = [self._lora(served) for served in loras]
        for name, (outward, inward) in self._shapes.items():
            if not any(name in each for each in parts):
                continue
            A = torch.zeros((len(loras), most, inward), dtype=self._dtype, device=self._device)
            B = torch.zeros((len(loras), outward, most), dtype=self._dtype, device=self._device)
            for row, (served, each) in enumerate(zip(loras, parts, strict=True)):
                if name in each:
                    A[row, : served.rank], B[row, :, : served.rank] = each[name]
            made[name] = A, B
        self._stacks[key] = made
        while len(self._stacks) > _STACKS:
            self._stacks.popitem(last=False)
        return made

    def _lora(self, served: Served) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B of one LoRA by module, as this model applies them."""
        assert served.A is not None and served.B is not None
        return {name: (served.A[name], served.B[name]) for name in served.A}


class RowModel(SlotStore):
    """The slots of one base as transformers computes it; `bases` are the directions of the ranks that are served."""

    def __init__(self, base: Base, rows: int, context: int, bases: Mapping[int, Basis]) -> None:
        like = next(base.model.parameters())
        super().__init__(base, rows, context, like.dtype)
        self._decoder, self._head = decoder_of(base.model), base.model.get_output_embeddings()
        self._window = window_of(base.model.config)
        self._cache = _SlotCache(self._kv)
        self._groups = groups_of(self._targets)
        self._shared = [_Shared() for _ in self._groups]
        self._layers: list[RowLinear] = []
        # For each rank, (U S)ᵀ of every module, and V of every group with its modules side by side.
        self._outward: dict[int, list[tuple[torch.Tensor, slice]]] = {rank: [] for rank in bases}
        self._inward: dict[int, list[torch.Tensor]] = {rank: [] for rank in bases}
        for places, shared in zip(self._groups, self._shared, strict=True):
            self._layers += [_replace(base.model, self._targets[at].name, shared) for at in places]
            for rank, basis in bases.items():
                V = torch.cat([basis.inward[at] for at in places], dim=1)
                self._inward[rank].append(V.mT.contiguous().mT.to(like))
                for place, at in enumerate(places):
                    span = slice(place * rank, (place + 1) * rank)
                    self._outward[rank].append((basis.outward[at].mT.contiguous().to(like), span))
        self._blocks = {
            rank: Blocks([len(places) for places in self._groups], rank, rows, dtype=self._dtype, device=self._device)
            for rank in bases
        }

    def close(self) -> None:
        """Put the bare linear layers back."""
        for target, layer in zip(self._targets, self._layers, strict=True):
            parent, _, leaf = target.name.rpartition(".")
            setattr(self.base.model.get_submodule(parent), leaf, layer.linear)

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
        for shared in self._shared:
            shared.clear()
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (rows, vocabulary) of hidden states (rows, width); float32."""
        logits: torch.Tensor = self._head(hidden).float()
        return logits

    def _apply(self, first: int, rows: int) -> None:
        """Hand every layer the adapters of a span of slots."""
        ranks, loras = self._ranks(first, rows), self._loras(first, rows)
        for group, shared in enumerate(self._shared):
            shared.parts = [
                (self._inward[rank][group], self._blocks[rank].groups[group][first : first + rows]) for rank in ranks
            ]
        for place, (target, layer) in enumerate(zip(self._targets, self._layers, strict=True)):
            layer.vectors = [self._outward[rank][place] for rank in ranks]
            layer.lora = loras.get(target.name)


def _replace(model: nn.Module, name: str, shared: _Shared) -> RowLinear:
    linear = model.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise AdapterError(f"{name} is already adapted; detach the other adapter first")
    parent, _, leaf = name.rpartition(".")
    layer = RowLinear(linear, shared)
    setattr(model.get_submodule(parent), leaf, layer)
    return layer


def row_model(base: Base, rows: int, context: int, bases: Mapping[int, Basis], *, int8: bool = False) -> SlotStore:
    """A model over slots: as transformers computes it, or in 8 bits. Raises `UsageError` where a base cannot be."""
    if not int8:
        return RowModel(base, rows, context, bases)
    from whit.serving.int8 import Int8Model

    return Int8Model(base, rows, context, bases)
