"""Decoding: answers for many prompts at once, each row with its own adapter if it brings one.

Rows of like length share a batch; a prefix that all prompts share (system turn, instruction, few-shot
examples) is computed once; the key-value cache is allocated once a batch, and rows that are done leave it.
An adapter that acts on answers alone is applied from a prompt's last token on. Greedy by default, so that the same rows
give the same answers. Knows nothing of what answers mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin

from whit.errors import DataError

if TYPE_CHECKING:
    from whit.adapters.tunable import Bound
    from whit.bases import Base

PREFILL_TOKENS = 8192
ROWS = 64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most likely (temperature 0), or drawn from the top_p share.

    `inverse` draws by one uniform number a token (Philox, keyed by seed and prompt), for all rows at once and from all
    tokens: what training by reward samples with. `places` says which prompts these are where they are some of many:
    each draws as it would among all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    inverse: bool = False
    places: tuple[int, ...] = ()

    def place(self, at: int) -> int:
        """The place among all of the prompt at `at`."""
        return self.places[at] if self.places else at


GREEDY = Sampling()


class _RowLayer(CacheLayerMixin):
    """Keys and values of one layer, preallocated: (rows, heads, capacity, dim)."""

    def __init__(self, owner: RowCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, dim = key_states.shape
        shape = (rows, heads, self.owner.capacity, dim)
        self.keys = key_states.new_zeros(shape)
        self.values = value_states.new_zeros((*shape[:3], value_states.shape[-1]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        at, tokens = self.owner.at, key_states.shape[2]
        if isinstance(at, int):
            end = at + tokens
            self.keys[:, :, at:end] = key_states
            self.values[:, :, at:end] = value_states
        else:
            rows = torch.arange(at.shape[0], device=at.device)
            self.keys[rows, :, at] = key_states[:, :, 0]
            self.values[rows, :, at] = value_states[:, :, 0]
            end = self.owner.longest
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        at = self.owner.at
        return at if isinstance(at, int) else self.owner.longest - 1

    def get_max_length(self) -> int:
        return self.owner.capacity

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows go on."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]

    def repeat(self, rows: int, capacity: int) -> _RowLayer:
        """The same single row `rows` times, with more room behind it."""
        assert self.keys is not None and self.values is not None
        copy = _RowLayer(self.owner)
        length = self.keys.shape[2]
        copy.keys = self.keys.new_zeros((rows, self.keys.shape[1], capacity, self.keys.shape[3]))
        copy.values = self.values.new_zeros((rows, self.values.shape[1], capacity, self.values.shape[3]))
        copy.keys[:, :, :length], copy.values[:, :, :length] = self.keys, self.values
        copy.is_initialized = True
        return copy


class RowCache(Cache):
    """A key-value cache in which every row has its own length.

    `at` is where the next tokens go: one place for all rows (prefill), or one for each (decoding).
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.at: int | torch.Tensor = 0
        self.longest = 0
        super().__init__(layers=[_RowLayer(self) for _ in range(layers)])

    def repeat(self, rows: int, capacity: int) -> RowCache:
        """A cache of `rows` copies of this one's single row."""
        copy = RowCache(0, capacity)
        copy.layers = [layer.repeat(rows, capacity) for layer in self.layers]
        for layer in copy.layers:
            layer.owner = copy
        return copy

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows go on."""
        for layer in self.layers:
            layer.keep(rows)


class Decoder:
    """Decodes with one base, and with one adapter or none.

    `vectors`, shape (prompts, numbers), gives every prompt a vector of its own (for `BoundVector`).
    """

    def __init__(self, base: Base, bound: Bound | None = None, *, vectors: torch.Tensor | None = None) -> None:
        self.base, self.bound, self.model = base, bound, base.model
        self.vectors = None if vectors is None else vectors.to(base.model.device)
        self._bare = bound is not None and bound.answers_only  # how prompts are read
        self._decoder = decoder_of(base.model)
        self._head: nn.Module = base.model.get_output_embeddings()
        config = base.model.config
        self._layers = int(config.num_hidden_layers)
        self._window = window_of(config)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        most: int,
        sampling: Sampling = GREEDY,
        on_token: Callable[[int, int], None] | None = None,
        on_done: Callable[[int], None] | None = None,
        on_stop: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """The answer to each prompt as token ids, without the stop token; at most `most` tokens each.

        `on_token(prompt, id)` is called for each new token, `on_stop(prompt, id)` for the stop token that ends an
        answer, `on_done(answers so far)` after each batch. Raises `DataError` for a prompt that leaves no room in the
        context.
        """
        for place, prompt in enumerate(prompts):
            if not prompt or len(prompt) + 1 > self.base.context:
                raise DataError(
                    f"prompt {place} has {len(prompt)} tokens; {self.base.name} takes 1 to {self.base.context - 1}"
                )
        found: list[list[int]] = [[] for _ in prompts]
        done = 0
        with torch.inference_mode():
            prefix, cache = self._prefix(prompts)
            for places in _batches([len(prompt) for prompt in prompts], len(prefix)):
                rows = [list(prompts[place][len(prefix) :]) for place in places]
                for row, token in self._decode(rows, places, len(prefix), cache, most, sampling):
                    if token in self.base.stop_ids:
                        if on_stop:
                            on_stop(places[row], token)
                        continue
                    found[places[row]].append(token)
                    if on_token:
                        on_token(places[row], token)
                done += len(places)
                if on_done:
                    on_done(done)
        return found

    def _prefix(self, prompts: Sequence[Sequence[int]]) -> tuple[list[int], RowCache | None]:
        """The tokens that all prompts begin with, and their cache; none where it would not pay."""
        if len(prompts) < 2 or (self.vectors is not None and not self._bare):
            return [], None
        first, last = min(map(list, prompts)), max(map(list, prompts))
        same = 0
        while same < min(len(first), len(last)) - 1 and first[same] == last[same]:
            same += 1
        if same < 8:
            return [], None
        prefix = list(first[:same])
        cache = RowCache(self._layers, same)
        with self._reading([0]):
            self._forward(torch.tensor([prefix], device=self.model.device), cache, 0)
        return prefix, cache

    def logits(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """What is expected at each token of an answer, (tokens, vocabulary), float32."""
        device = self.model.device
        cache = RowCache(self._layers, len(prompt) + len(answer))
        with torch.inference_mode():
            if len(prompt) > 1:
                with self._reading([0]):
                    self._forward(torch.tensor([prompt[:-1]], device=device), cache, 0)
            with self._adapter([0]):
                rest = torch.tensor([[prompt[-1], *answer[:-1]]], device=device)
                found: torch.Tensor = self._head(self._forward(rest, cache, len(prompt) - 1)[0]).float()
        return found

    def _reading(self, places: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """What is active while prompts are read."""
        return contextlib.nullcontext() if self._bare else self._adapter(places)

    @contextlib.contextmanager
    def _adapter(self, places: Sequence[int]) -> Iterator[None]:
        if self.bound is None:
            yield
        elif self.vectors is None:
            with self.bound.active():
                yield
        else:
            from whit.adapters.tunable import BoundVector

            if not isinstance(self.bound, BoundVector):
                raise TypeError("only vector adapters take a vector for each row")
            with self.bound.rows(self.vectors[list(places)]):
                yield

    def _decode(
        self,
        rows: list[list[int]],
        places: Sequence[int],
        start: int,
        prefix: RowCache | None,
        most: int,
        sampling: Sampling,
    ) -> Iterator[tuple[int, int]]:
        device = self.model.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        width = int(lengths.max())
        capacity = min(start + width + most, self.base.context)
        cache = prefix.repeat(len(rows), capacity) if prefix else RowCache(self._layers, capacity)
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        draw: Callable[[torch.Tensor, Sequence[int]], torch.Tensor] = (
            _Inverse(sampling, places, most, device) if sampling.inverse else _Draw(sampling, places, device)
        )
        live = list(range(len(rows)))
        with self._reading(places):
            # Rows are padded on the right: causal attention never looks there, and decoding writes over it.
            hidden = self._forward(tokens, cache, start)
        hidden = hidden[torch.arange(len(rows), device=device), lengths - 1]
        at = lengths + start
        if self._bare:
            with self._adapter(places):  # the last tokens anew
                last = torch.tensor([[row[-1]] for row in rows], device=device)
                hidden = self._forward(last, cache, at - 1)[:, 0]
        for step in range(most):
            chosen = draw(self._head(hidden).float(), live)
            going = []
            for slot, token in enumerate(chosen.tolist()):
                yield live[slot], token
                if token not in self.base.stop_ids and int(at[slot]) < capacity:
                    going.append(slot)
            if not going or step == most - 1:
                return
            if len(going) < len(live):
                keep = torch.tensor(going, device=device)
                cache.keep(keep)
                at, chosen, live = at[keep], chosen[keep], [live[slot] for slot in going]
            with self._adapter([places[row] for row in live]):
                hidden = self._forward(chosen[:, None], cache, at)[:, 0]
            at = at + 1

    def _forward(self, tokens: torch.Tensor, cache: RowCache, at: int | torch.Tensor) -> torch.Tensor:
        """Hidden states (rows, tokens, width); new keys and values go into the cache at `at`."""
        cache.at = at
        count, device = tokens.shape[1], tokens.device
        if isinstance(at, int):
            cache.longest = at + count
            positions = torch.arange(at, at + count, device=device)[None]
        else:
            cache.longest = int(at.max()) + 1
            positions = at[:, None]
        keys = torch.arange(cache.longest, device=device)
        seen = keys[None, None, None, :] <= positions[:, None, :, None]
        mask: Any = seen
        if self._window is not None:
            near = keys[None, None, None, :] > positions[:, None, :, None] - self._window
            mask = {"full_attention": seen, "sliding_attention": seen & near}
        hidden: torch.Tensor = self._decoder(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions.expand(tokens.shape[0], -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden


class _Draw:
    """Chooses tokens; each prompt has its own stream of random numbers, whatever batch it is in."""

    def __init__(self, sampling: Sampling, places: Sequence[int], device: torch.device) -> None:
        self.sampling = sampling
        self._streams = [
            torch.Generator().manual_seed(sampling.seed * 1_000_003 + sampling.place(place))
            for place in places
            if sampling.temperature > 0
        ]

    def __call__(self, logits: torch.Tensor, live: Sequence[int]) -> torch.Tensor:
        if self.sampling.temperature <= 0:
            return logits.argmax(dim=-1)
        chances = torch.softmax(logits / self.sampling.temperature, dim=-1)
        ordered, order = chances.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.sampling.top_p, 0.0)
        drawn = [
            order[slot, torch.multinomial(ordered[slot].cpu(), 1, generator=self._streams[row])]
            for slot, row in enumerate(live)
        ]
        return torch.cat(drawn)


class _Inverse:
    """Chooses tokens by the inverse of the cumulative distribution; prompts have streams of their own."""

    def __init__(self, sampling: Sampling, places: Sequence[int], most: int, device: torch.device) -> None:
        self._temperature = sampling.temperature
        streams = [
            np.random.Philox(key=np.array([sampling.seed, sampling.place(place)], dtype=np.uint64)) for place in places
        ]
        drawn = np.stack([np.random.Generator(stream).random(most, dtype=np.float32) for stream in streams])
        self._uniform = torch.from_numpy(drawn).to(device)
        self._turn = 0

    def __call__(self, logits: torch.Tensor, live: Sequence[int]) -> torch.Tensor:
        sums = torch.softmax(logits / self._temperature, dim=-1).cumsum(dim=-1)
        # Scaled by the last sum, which rounding keeps from being one.
        at = self._uniform[list(live), self._turn][:, None] * sums[:, -1:]
        self._turn += 1
        return torch.searchsorted(sums, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def decoder_of(model: Any) -> nn.Module:
    """The part of a causal language model below its head."""
    decoder: nn.Module = model.get_decoder()
    return decoder


def window_of(config: Any) -> int | None:
    """How far back a base with sliding attention looks, in tokens; None where it looks at everything."""
    kinds = getattr(config, "layer_types", None) or ()
    return int(config.sliding_window) if "sliding_attention" in kinds else None


def _batches(lengths: Sequence[int], prefix: int) -> list[list[int]]:
    """Places of prompts, the longest first, in batches that share a length as nearly as can be."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    batches: list[list[int]] = []
    for place in order:
        widest = max(1, lengths[batches[-1][0]] - prefix) if batches else 1
        if batches and len(batches[-1]) < ROWS and (len(batches[-1]) + 1) * widest <= PREFILL_TOKENS:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
