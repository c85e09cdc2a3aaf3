"""Rows whose adapters act on answers alone: prompts are read once, by the bare base, whoever answered them.

An adapter along such a basis (see `adapters/learned.py`) begins to act at a prompt's last token, the one that predicts
an answer's first (as activated LoRA does after its invocation: Greenewald et al., 2025, arXiv 2504.12397). So a
prompt's keys and values are every user's alike, and a pass over a row takes its answer's few tokens, through the layers
from the lowest adapted one on. What lies below these is computed once for each row. Kept up to a bound on memory;
beyond it, prompts are read anew at each pass. Knows nothing of what moves the numbers.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.llama.modeling_llama import rotate_half

from whit.adapters.tunable import BoundBasis
from whit.bases import Base
from whit.bases.memory import available_bytes
from whit.data.templates import Encoded
from whit.errors import UsageError
from whit.evaluation.decoding import decoder_of, window_of
from whit.training.batching import Batch, collate
from whit.training.sft import cross_entropy
from whit.training.upper import ALIKE, MOST_BYTES

_PROMPTS, _ROWS = 32, 64  # are read together
PROPOSED = 20  # tokens at each place of an answer are candidates
_ASKED = 640  # rows that the base is asked about

Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of some layers, each (rows, heads, tokens, dim)


@dataclass(frozen=True)
class _Read:
    """Prompts that were read: keys and values of layers from `first` on, and how many tokens each prompt has."""

    first: int
    pairs: Pairs
    lengths: torch.Tensor

    def of(self, layer: int, items: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, of some prompts, up to so many tokens."""
        keys, values = self.pairs[layer - self.first]
        return keys[items, :, :most], values[items, :, :most]


class AnswerPasses:
    """`rows` by what is read of them once; `losses` computes their answers, each with an adapter of its own.

    `proposed` tokens of the base's at each place of an answer, and those of all answers, are the candidates that losses
    are over: no others matter while an adapter is small, and the head is half of the work otherwise. With None they are
    over the vocabulary. Raises `UsageError` for a base that is not of Llama's kind.
    """

    def __init__(
        self,
        base: Base,
        bound: BoundBasis,
        rows: Sequence[Encoded],
        *,
        first: int,
        proposed: int | None = None,
    ) -> None:
        require_alike(base)
        self.base, self.bound, self.rows = base, bound, rows
        self._decoder: Any = decoder_of(base.model)
        self._last = int(base.model.config.num_hidden_layers)
        self._own = [[row.prompt_ids[-1], *row.completion_ids[:-1]] for row in rows]
        self.lengths = [len(own) for own in self._own]
        prompts = sorted({tuple(row.prompt_ids[:-1]) for row in rows}, key=lambda ids: (len(ids), ids))
        places = {ids: at for at, ids in enumerate(prompts)}
        self._prompts = prompts
        self._item = torch.tensor([places[tuple(row.prompt_ids[:-1])] for row in rows])
        columns = zip(*prompts, strict=False)
        same = list(itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))
        self._prefix = [ids[0] for ids in same] if len(prompts) > 1 else []
        self._head: Any = base.model.get_output_embeddings()
        self._candidates: torch.Tensor | None = None
        with torch.no_grad(), bound.slots.using(None):
            self._begun = self._pass(torch.tensor([self._prefix]), None, range(self._last))[1] if self._prefix else None
            self._kept = self._keep(first) if self._fits(first) else None
            if proposed is not None:
                self._candidates = self._proposed(proposed)

    def part(self, places: range) -> AnswerPasses:
        """The same for some of the rows, of which nothing is read again."""
        some = copy.copy(self)
        some.rows, some.lengths = [self.rows[at] for at in places], [self.lengths[at] for at in places]
        some._own = [self._own[at] for at in places]
        some._item = self._item[list(places)]
        if self._kept is not None:
            some._kept = self._kept[0], [self._kept[1][at] for at in places]
        return some

    def losses(self, places: Sequence[int], *, shared: bool = False) -> tuple[torch.Tensor, Batch]:
        """The cross-entropy of each wanted token of some rows, (targets,), with what is bound; and their batch.

        Row i of the batch is `places[i]`. It is the same whether they `shared` an adapter or not.
        """
        batch = collate([self.rows[place] for place in places])
        hidden = self._wanted(places)
        if self._candidates is None:
            return cross_entropy(self._head(hidden), batch), batch
        logits = (hidden @ self._head.weight.detach()[self._candidates].mT).float()
        wanted = torch.searchsorted(self._candidates, batch.wanted.to(self._candidates.device))
        return nn.functional.cross_entropy(logits, wanted, reduction="none"), batch

    # -- what is computed once

    def _fits(self, first: int) -> bool:
        config, like = self.base.model.config, next(self.base.model.parameters())
        heads, dim = int(config.num_key_value_heads), int(self._decoder.layers[0].self_attn.head_dim)
        each = 2 * (self._last - first) * heads * dim * len(self._prompts) * max(map(len, self._prompts))
        size = like.element_size() * (each + sum(self.lengths) * int(config.hidden_size))
        free = available_bytes(self.base.model.device.type)
        return bool(size <= (MOST_BYTES if free is None else min(MOST_BYTES, free // 4)))

    def _keep(self, first: int) -> tuple[_Read, list[torch.Tensor]]:
        """Every prompt's keys and values from layer `first` on, and every row's states under that layer."""
        longest = max(map(len, self._prompts))
        lengths = torch.tensor([len(ids) for ids in self._prompts])
        pairs: Pairs = []
        states: list[torch.Tensor] = [torch.empty(0)] * len(self.rows)
        rows_of: dict[int, list[int]] = {}
        for row, item in enumerate(self._item.tolist()):
            rows_of.setdefault(item, []).append(row)
        for start in range(0, len(self._prompts), _PROMPTS):
            items = list(range(start, min(start + _PROMPTS, len(self._prompts))))
            read = self._read(items)
            if not pairs:
                shape = len(self._prompts), read.pairs[0][0].shape[1], longest, read.pairs[0][0].shape[3]
                pairs = [(keys.new_zeros(shape), values.new_zeros(shape)) for keys, values in read.pairs[first:]]
            for pair, found in zip(pairs, read.pairs[first:], strict=True):
                for kept, part in zip(pair, found, strict=True):
                    kept[start : start + len(items), :, : part.shape[2]] = part
            mine = sorted((row for item in items for row in rows_of[item]), key=lambda row: self.lengths[row])
            for at in range(0, len(mine), _ROWS):
                some = mine[at : at + _ROWS]
                below = self._through(some, read, self._item[some] - start, range(first), None)
                for place, row in enumerate(some):
                    states[row] = below[place, : self.lengths[row]].clone()
        return _Read(first, pairs, lengths), states

    def _proposed(self, count: int) -> torch.Tensor:
        """Ids of tokens, ascending: those of all answers, and so many that the base proposes at each place of some."""
        answers = {token for row in self.rows for token in row.completion_ids}
        found = [torch.tensor(sorted(answers), device=self.base.model.device)]
        spread = range(0, len(self.rows), max(1, len(self.rows) // _ASKED))
        for at in range(0, len(spread), _ROWS):
            logits = self._head(self._wanted(spread[at : at + _ROWS]))
            found.append(logits.topk(min(count, logits.shape[-1])).indices.flatten())
        together: torch.Tensor = torch.cat(found).unique()
        return together

    # -- passes

    def _wanted(self, places: Sequence[int]) -> torch.Tensor:
        """What predicts each wanted token of some rows, (targets, width)."""
        layers = range(self._last)
        if self._kept is None:
            items = sorted({int(self._item[place]) for place in places})
            with torch.no_grad(), self.bound.slots.using(None):
                read = self._read(items)
            at = torch.searchsorted(torch.tensor(items), self._item[list(places)])
            hidden = self._through(places, read, at, layers, None)
        else:
            read, states = self._kept
            own = pad_sequence([states[place] for place in places], batch_first=True)
            hidden = self._through(places, read, self._item[list(places)], layers[read.first :], own)
        counts = [self.lengths[place] for place in places]
        hidden = torch.cat([hidden[row, :count] for row, count in enumerate(counts)])
        found: torch.Tensor = self._decoder.norm(hidden)
        return found

    def _through(
        self, places: Sequence[int], read: _Read, items: torch.Tensor, layers: range, states: torch.Tensor | None
    ) -> torch.Tensor:
        """The states of some rows' own tokens after `layers`, behind their prompts; (rows, tokens, width)."""
        device = self.base.model.device
        if states is None:
            own = [torch.tensor(self._own[place], device=device) for place in places]
            states = self._decoder.embed_tokens(pad_sequence(own, batch_first=True))
        count, lengths = states.shape[1], read.lengths[items]
        most = int(lengths.max())
        unseen = torch.cat([
            (torch.arange(most) >= lengths[:, None])[:, None].expand(-1, count, -1),
            torch.ones(count, count, dtype=torch.bool).triu(1).expand(len(places), -1, -1),
        ], dim=2).to(device)  # fmt: skip
        mask = torch.zeros(unseen.shape, dtype=states.dtype, device=device).masked_fill_(unseen, float("-inf"))
        turn = self._turn(lengths.to(device)[:, None] + torch.arange(count, device=device))
        items = items.to(device)
        for at in layers:
            states, _ = self._layer(self._decoder.layers[at], states, turn, read.of(at, items, most), mask)
        return states

    def _read(self, items: Sequence[int]) -> _Read:
        """Some prompts, as the bare base reads them; in all layers."""
        start, device = len(self._prefix), self.base.model.device
        own = [torch.tensor(self._prompts[item][start:], dtype=torch.long, device=device) for item in items]
        lengths = torch.tensor([len(self._prompts[item]) for item in items])
        tokens = pad_sequence(own, batch_first=True)
        if self._begun is None:
            return _Read(0, self._pass(tokens, None, range(self._last))[1], lengths)
        begun = [
            (keys.expand(len(items), -1, -1, -1), values.expand(len(items), -1, -1, -1)) for keys, values in self._begun
        ]
        if not tokens.shape[1]:  # nobody's prompt goes on
            return _Read(0, begun, lengths)
        rest = self._pass(tokens, begun, range(self._last))[1]
        pairs = [
            (torch.cat([before[0], after[0]], dim=2), torch.cat([before[1], after[1]], dim=2))
            for before, after in zip(begun, rest, strict=True)
        ]
        return _Read(0, pairs, lengths)

    def _pass(self, tokens: torch.Tensor, begun: Pairs | None, layers: range) -> tuple[torch.Tensor, Pairs]:
        """`tokens` (rows, tokens) behind what was begun: states after `layers`, and the keys and values in them."""
        tokens = tokens.to(self.base.model.device)
        start, count = (begun[0][0].shape[2] if begun else 0), tokens.shape[1]
        states = self._decoder.embed_tokens(tokens)
        mask = states.new_zeros((count, start + count))
        mask[:, start:].masked_fill_(torch.ones_like(mask[:, start:], dtype=torch.bool).triu(1), float("-inf"))
        turn = self._turn(torch.arange(start, start + count, device=tokens.device)[None])
        pairs: Pairs = []
        for at in layers:
            states, pair = self._layer(self._decoder.layers[at], states, turn, begun[at] if begun else None, mask)
            pairs.append(pair)
        return states, pairs

    def _turn(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotary embedding, each (rows, 1, tokens, dim)."""
        like = next(self.base.model.parameters())
        cos, sin = self._decoder.rotary_emb(like.new_empty(0), position_ids=positions)
        return cos[:, None], sin[:, None]

    def _layer(
        self,
        layer: Any,
        x: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        before: tuple[torch.Tensor, torch.Tensor] | None,
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """One decoder layer on x (rows, tokens, width) behind keys and values; and those of x itself."""
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            y.view(*y.shape[:2], -1, attention.head_dim).transpose(1, 2)
            for y in (attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed))
        )
        cos, sin = turn
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        mixed = _attend(q * attention.scaling, k, v, before, mask).transpose(1, 2)
        x = x + attention.o_proj(mixed.reshape(*mixed.shape[:2], -1))
        found: torch.Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
        return found, (k, v)


def require_alike(base: Base) -> None:
    """Raise `UsageError` for a base whose layers are not computed as Llama's are."""
    config = base.model.config
    if config.model_type not in ALIKE or window_of(config) is not None:
        raise UsageError(
            f"--answers-only learns with bases of Llama's kind; {base.name} is of the kind {config.model_type}: leave "
            "the option out"
        )


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Grouped attention (rows, heads, tokens, dim) of few tokens to what came before them and to themselves.

    `mask` (…, tokens, before + tokens) is added. By products and a softmax: torch's own kernel for masks takes twice
    the time of a whole layer here, with a query of a few tokens.
    """
    rows, heads, count, dim = q.shape
    grouped = q.reshape(rows, k.shape[1], -1, dim)  # (rows, groups, heads of a group · tokens, dim)
    scores = grouped @ k.mT if before is None else torch.cat([grouped @ before[0].mT, grouped @ k.mT], dim=-1)
    if mask.dim() == 3:
        mask = mask[:, None, None]
    shares = (scores.view(rows, k.shape[1], -1, count, scores.shape[-1]) + mask).softmax(-1).view(scores.shape)
    start = shares.shape[-1] - count
    mixed = shares[..., start:] @ v
    if before is not None:
        mixed = mixed + shares[..., :start] @ before[1]
    return mixed.view(rows, heads, count, dim)
