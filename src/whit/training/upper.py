"""Rows that are passed through a base again and again, each with an adapter of its own: only as deep as they move it.

Adapters that move upper layers alone leave what is below them as the bare base has it. So that is computed once for
each row, with the tokens that all rows begin with computed once for many, and a prompt that several rows have once for
them; and kept. A pass takes the layers from the lowest adapted one on, and of the last layer what predicts an answer's
token: elsewhere its keys and values alone matter. States are kept up to a bound on memory, and for bases whose layers
are all alike; others are passed through whole. Knows nothing of what moves the numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.llama.modeling_llama import rotate_half

from whit.adapters.layer import AdaptedLinear
from whit.adapters.targets import PROJECTIONS
from whit.adapters.tunable import BoundBasis, BoundVector
from whit.bases import Base
from whit.bases.memory import available_bytes
from whit.data.templates import Encoded
from whit.evaluation.decoding import decoder_of, window_of
from whit.training.batching import Batch, collate, pack
from whit.training.sft import cross_entropy, loss_of, packed_limit, unshared

MOST_BYTES = 1 << 30  # of hidden states that are kept; and a quarter of the memory that is free at most
ALIKE = ("llama", "mistral")  # kinds of base of which a part of the layers is a base of its own
_ROWS = 16  # are read together
_SAME = 4  # rows that have the same prompt, and more, are read by themselves


def lowest_layer(bound: BoundVector) -> int:
    """The lowest decoder layer that an adapter moves, counted from 0."""
    return min(bound.spec.targets) // len(PROJECTIONS) if isinstance(bound, BoundBasis) else 0


class Passes:
    """`rows` and what the layers below `first` make of them; `losses` computes the layers above."""

    def __init__(self, base: Base, rows: Sequence[Encoded], *, first: int) -> None:
        self.base, self.rows = base, rows
        self.lengths = [len(row.prompt_ids) + len(row.completion_ids) for row in rows]
        self.first, self._states = 0, list[torch.Tensor]()
        if first and self._may_be_kept():
            self.first = first
            self._states = self._read()

    def _may_be_kept(self) -> bool:
        base, config = self.base, self.base.model.config
        size = sum(self.lengths) * int(config.hidden_size) * next(base.model.parameters()).element_size()
        alike = config.model_type in ALIKE and window_of(config) is None
        free = available_bytes(base.model.device.type)
        most = MOST_BYTES if free is None else min(MOST_BYTES, free // 4)
        return alike and size <= most

    def losses(self, places: Sequence[int], *, shared: bool = False) -> tuple[torch.Tensor, Batch]:
        """The cross-entropy of each wanted token of some rows, (targets,), with what is bound; and their batch.

        Row i of the batch is `places[i]`. `shared` promises that they all have the same adapter.
        """
        batch = collate([self.rows[place] for place in places])
        if not self.first:
            return loss_of(self.base, batch if shared else unshared(batch)), batch
        hidden = pad_sequence([self._states[place] for place in places], batch_first=True)
        decoder: Any = decoder_of(self.base.model)
        last = len(decoder.layers) - 1
        if self.first < last:
            with _layers(self.base, slice(self.first, last), normed=False) as part:
                hidden = part(inputs_embeds=hidden, use_cache=False).last_hidden_state
        logits = self.base.model.get_output_embeddings()(_predicting(decoder, hidden, batch))
        return cross_entropy(logits, batch), batch

    def _read(self) -> list[torch.Tensor]:
        """For each row, the states (tokens, width) of all but its last token, under layer `first`."""
        found: list[torch.Tensor] = [torch.empty(0)] * len(self.rows)
        with _layers(self.base, slice(0, self.first), normed=False) as decoder, torch.no_grad():
            for places in self._together():
                for place, states in zip(places, self._below(decoder, places), strict=True):
                    found[place] = states
        return found

    def _together(self) -> Iterator[list[int]]:
        """The places of all rows, some at a time: those with the same prompt together, others by length."""
        same: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(self.rows):
            same.setdefault(tuple(row.prompt_ids), []).append(place)
        single = [place for places in same.values() if len(places) < _SAME for place in places]
        for places in [*(places for places in same.values() if len(places) >= _SAME), single]:
            ordered = sorted(places, key=lambda place: self.lengths[place])
            for start in range(0, len(ordered), _ROWS):
                yield ordered[start : start + _ROWS]

    def _below(self, decoder: Any, places: Sequence[int]) -> list[torch.Tensor]:
        batch, device = collate([self.rows[place] for place in places]), self.base.model.device
        ends = [self.lengths[place] - 1 for place in places]
        own = [end - batch.prefix for end in ends]
        if batch.prefix + sum(own) > packed_limit(self.base):
            states = decoder(input_ids=batch.tokens.to(device), use_cache=False).last_hidden_state
            return [part[:end].clone() for part, end in zip(states, ends, strict=True)]
        packed = pack(batch)
        states = decoder(
            input_ids=packed.tokens.to(device), position_ids=packed.positions.to(device),
            attention_mask=packed.mask.to(device), use_cache=False,
        ).last_hidden_state[0]  # fmt: skip
        return [torch.cat([states[: batch.prefix], part]) for part in states[batch.prefix :].split(own)]


def _predicting(decoder: Any, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What predicts each wanted token, (targets, width), by `hidden` (rows, tokens, width) under the last layer.

    That layer asks, attends and feeds forward at the wanted places alone; keys and values are of all places.
    """
    layer, at = decoder.layers[-1], batch.at.to(hidden.device)
    attention, width = layer.self_attn, hidden.shape[1]
    counts = torch.bincount(at[:, 0], minlength=len(hidden))
    step = torch.arange(int(counts.max()), device=hidden.device)
    firsts = at[torch.cumsum(counts, 0) - counts, 1]
    places = (firsts[:, None] + step).clamp(max=width - 1)  # (rows, most wanted of a row)
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    positions = torch.arange(width, device=hidden.device)
    cos, sin = decoder.rotary_emb(hidden, position_ids=positions[None])  # each (1, tokens, head)

    def heads(product: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = product(x, apart=True) if isinstance(product, AdaptedLinear) else product(x)
        return y.view(*y.shape[:2], -1, attention.head_dim).transpose(1, 2)

    def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x * cos[:, None] + rotate_half(x) * sin[:, None]
        return found

    normed = layer.input_layernorm(hidden)
    q = turned(heads(attention.q_proj, normed[rows, places]), cos[0][places], sin[0][places])
    k, v = turned(heads(attention.k_proj, normed), cos, sin), heads(attention.v_proj, normed)
    seen = (positions <= places[..., None])[:, None]
    mixed = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, scale=attention.scaling, enable_gqa=True
    ).transpose(1, 2)
    found = hidden[rows, places] + attention.o_proj(mixed.reshape(*mixed.shape[:2], -1))
    found = decoder.norm(found + layer.mlp(layer.post_attention_layernorm(found)))
    wanted: torch.Tensor = found[at[:, 0], at[:, 1] - firsts[at[:, 0]]]
    return wanted


@contextlib.contextmanager
def _layers(base: Base, some: slice, *, normed: bool = True) -> Iterator[Any]:
    """The decoder with some of its layers; without the norm after the last where `normed` is False."""
    decoder: Any = decoder_of(base.model)
    layers, norm = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = layers[some], norm if normed else nn.Identity()
    try:
        yield decoder
    finally:
        decoder.layers, decoder.norm = layers, norm
