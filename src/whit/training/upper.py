"""Rows that are passed through a base again and again, each with an adapter of its own: only as deep as they move it.

Adapters that move upper layers alone leave what is below them as the bare base has it. So that is computed once for
each row, with the tokens that all rows begin with computed once for many, and kept; a pass takes the layers from the
lowest adapted one on. It is kept up to a bound on memory, and for bases whose layers are all alike; others are passed
through whole. Knows nothing of what moves the numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from whit.adapters.targets import PROJECTIONS
from whit.adapters.tunable import BoundBasis, BoundVector
from whit.bases import Base
from whit.bases.memory import available_bytes
from whit.data.templates import Encoded
from whit.evaluation.decoding import decoder_of, window_of
from whit.training.batching import Batch, collate, pack
from whit.training.sft import cross_entropy, loss_of, packed_limit, unshared

MOST_BYTES = 1 << 30  # of hidden states that are kept; and a quarter of the memory that is free at most
_ALIKE = ("llama", "mistral")  # kinds of base of which a part of the layers is a base of its own
_ROWS = 16  # are read together


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
        alike = config.model_type in _ALIKE and window_of(config) is None
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
        with _layers(self.base, slice(self.first, None)) as decoder:
            hidden = decoder(inputs_embeds=hidden, use_cache=False).last_hidden_state
        at = batch.at.to(hidden.device)
        logits = self.base.model.get_output_embeddings()(hidden[at[:, 0], at[:, 1]])
        return cross_entropy(logits, batch), batch

    def _read(self) -> list[torch.Tensor]:
        """For each row, the states (tokens, width) of all but its last token, under layer `first`."""
        found: list[torch.Tensor] = [torch.empty(0)] * len(self.rows)
        ordered = sorted(range(len(self.rows)), key=lambda place: self.lengths[place])
        with _layers(self.base, slice(0, self.first), normed=False) as decoder, torch.no_grad():
            for start in range(0, len(ordered), _ROWS):
                places = ordered[start : start + _ROWS]
                for place, states in zip(places, self._below(decoder, places), strict=True):
                    found[place] = states
        return found

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
