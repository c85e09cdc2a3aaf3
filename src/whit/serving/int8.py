"""A Llama-like base computed in 8-bit integers over slots: the faster of the two models on a CPU.

Weights are rounded to int8 by output column, the inputs of every product to int8 by row; sums are exact integers, so
that a row's product does not depend on the rows beside it. Before rounding, the residual stream, the values of each
head and the inputs of down are turned by orthogonal matrices that are folded into the weights (QuaRot, arXiv
2404.00456): the few large coordinates of a language model are spread over all of them, and rounding costs little. The
norms' weights are folded too; q, k and v are one product, gate and up another. An adapter's Vᵀ stands as further
columns of the same product, so that z comes with it; R, U S and LoRAs are applied in float32. Keys and values stay
float32, or bfloat16 where steps are compiled (`native.py`).

Promises nothing about bases of other shapes: `suits` says which it takes. Knows nothing of requests.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from whit.adapters.basis import Basis
from whit.adapters.targets import Target
from whit.errors import UsageError
from whit.evaluation.decoding import decoder_of, window_of
from whit.serving import native
from whit.serving.blocks import Blocks, groups_of
from whit.serving.pool import Served
from whit.serving.rows import SlotStore, Stack

if TYPE_CHECKING:
    from whit.bases import Base

_QKV, _OUT, _GATE_UP, _DOWN = range(4)  # a layer's products
_BLOCK = 64  # inputs of down are turned in blocks of this many
_SPANS = 16  # spans of slots whose views are kept
_COLUMNS = 16  # a product's columns are filled up to a multiple of this

Move = tuple[slice, torch.Tensor, torch.Tensor]  # where z stands, R of the rows, U S


def suits(base: Base) -> str | None:
    """None where `Int8Model` can compute this base, else why it cannot."""
    config: Any = base.model.config
    if config.model_type not in ("llama", "mistral") or window_of(config) is not None:
        return f"8-bit serving takes Llama-like bases, and {base.name} is {config.model_type}"
    if config.hidden_act != "silu" or any(name.endswith("_proj.bias") for name, _ in base.model.named_parameters()):
        return f"{base.name} has biases or another activation than SiLU"
    if next(base.model.parameters()).device.type != "cpu":
        return "8-bit serving is for CPUs"
    return None


@dataclass
class _Group:
    """One product: `W` int8 (in, columns), `scale` (columns,), of which the first `out` are the modules' outputs.

    For each rank: `z` where the columns of Vᵀ stand, `US` (modules·r, out), and `R` (rows, modules·r, modules·r), Rᵀ of
    every module along its diagonal. `spans` are the outputs of each module by name.
    """

    W: torch.Tensor | native.Packed
    scale: torch.Tensor
    out: int
    spans: dict[str, slice]
    z: dict[int, slice] = field(default_factory=dict)
    US: dict[int, torch.Tensor] = field(default_factory=dict)
    R: dict[int, torch.Tensor] = field(default_factory=dict)


class _Turns:
    """The orthogonal matrices, and what they make of a module's rows and columns."""

    def __init__(self, config: Any) -> None:
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.dim = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        self.residual = orthogonal(int(config.hidden_size), seed=1)
        self.head = orthogonal(self.dim, seed=2)
        size, wide = _BLOCK, int(config.intermediate_size)
        while wide % size:
            size //= 2
        self.block = orthogonal(size, seed=3)

    def columns(self, projection: str, M: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        """M (any, in) for the turned inputs of a projection; `norm` is the weight of the norm before it."""
        if norm is not None:
            turned: torch.Tensor = (M * norm) @ self.residual
            return turned
        H = self.head if projection == "o_proj" else self.block
        return (M.reshape(len(M), -1, len(H)) @ H).flatten(1)

    def rows(self, projection: str, M: torch.Tensor) -> torch.Tensor:
        """M (out, any) for the turned outputs of a projection."""
        if projection in ("q_proj", "k_proj"):
            # Pairs side by side, as a complex product turns them.
            return M.reshape(-1, 2, self.dim // 2, M.shape[1]).transpose(1, 2).reshape(M.shape)
        if projection == "v_proj":
            return (self.head.mT @ M.reshape(-1, self.dim, M.shape[1])).reshape(M.shape)
        if projection in ("o_proj", "down_proj"):
            return self.residual.mT @ M
        return M


def orthogonal(size: int, *, seed: int) -> torch.Tensor:
    """A fixed orthogonal matrix (size, size) that spreads every coordinate: Hadamard's, times a random one."""
    odd, even = size, 1
    while odd % 2 == 0:
        odd, even = odd // 2, even * 2
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < even:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    draw = torch.Generator().manual_seed(seed)
    rest = torch.linalg.qr(torch.randn(odd, odd, dtype=torch.float64, generator=draw))[0].contiguous()
    signs = 1.0 - 2.0 * torch.randint(0, 2, (size, 1), generator=draw).double()
    return (signs * torch.kron(rest, H / even**0.5)).float()


class Int8Model(SlotStore):
    """The slots of one base in 8 bits; `bases` are the directions of the ranks that are served."""

    def __init__(
        self,
        base: Base,
        rows: int,
        context: int,
        bases: Mapping[int, Basis],
        *,
        library: native.Library | None = None,
        kept: torch.dtype | None = None,
    ) -> None:
        if why := suits(base):
            raise UsageError(f"{why}; serve it without --int8")
        self.turns = _Turns(base.model.config)
        library, turns = library or native.load(), self.turns
        fits = native.suits(len(turns.residual), turns.dim, len(turns.block), int(base.model.config.intermediate_size))
        self._code = library.code if fits else None
        super().__init__(base, rows, context, torch.float32, kept=torch.bfloat16 if self._code else kept)
        self._decoder: Any = decoder_of(base.model)
        self.eps = float(base.model.config.rms_norm_eps)
        self._embed: torch.Tensor = base.model.get_input_embeddings().weight
        self.groups: list[list[_Group]] = []
        self._spans: OrderedDict[tuple[int, ...], list[list[list[Move]]]] = OrderedDict()
        self._own: weakref.WeakKeyDictionary[Served, dict[str, tuple[torch.Tensor, torch.Tensor]]]
        self._own = weakref.WeakKeyDictionary()
        if self._code:
            self.how = "steps compiled for this processor"
        else:
            self.how = f"computed by PyTorch: {library.why or 'this base has sizes that are no multiples of 16'}"
        self._norms = {target.name: self._norm_before(target) for target in self._targets}
        with torch.no_grad():
            groups = [self._group(places, bases) for places in groups_of(self._targets)]
            self.groups = [groups[at : at + 4] for at in range(0, len(groups), 4)]
            for rank in bases:
                self._lay_out(rank, rows)
            head: torch.Tensor = base.model.get_output_embeddings().weight.float()
            norm: torch.Tensor = base.model.get_decoder().norm.weight.float()
            self._head, self._head_scale = self._kept((head * norm) @ turns.residual, len(head))
            # Cosines and sines of every place, each (places, dim / 2).
            self._turn = self._rotary(context)
        self._steps = native.Steps(self, self._code, rows) if self._code else None

    def close(self) -> None:
        """The base was never touched."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (rows, vocabulary) of hidden states (rows, width); float32."""
        if isinstance(self._head, native.Packed):
            logits = self._head.times(hidden, scaled=True)
        else:
            logits = _product(hidden, self._head).mul_(self._head_scale)
        return logits if logits.shape[1] == self._embed.shape[0] else logits[:, : self._embed.shape[0]]

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """The likeliest token of each row, (rows,), of hidden states (rows, width)."""
        return self._head.likeliest(hidden) if isinstance(self._head, native.Packed) else super().likeliest(hidden)

    def forward(self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Hidden states (rows, tokens, width) of the slots from `first`; row i's tokens stand from `starts[i]` on.

        They are the normed and turned ones that `logits` takes.
        """
        rows, width = len(tokens), max(map(len, tokens))
        if self._steps is not None:
            return self._compiled(self._steps, first, tokens, starts)
        loras = self._loras(first, rows)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens])
        places = torch.tensor(starts)[:, None] + torch.arange(width)
        longest = max(at + len(row) for at, row in zip(starts, tokens, strict=True))
        turns = self.turns
        each = turns.heads // turns.kv_heads
        seen = torch.arange(longest)[None, None, None, :] <= places[:, None, :, None]
        mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        # The queries that share a head of keys stand beside each other, as further tokens.
        mask = mask.expand(-1, -1, each, -1) if width == 1 else mask.repeat(1, 1, each, 1)
        h = self._embed[ids.view(-1)].float() @ turns.residual
        cos, sin = (part[places.clamp(max=self.context - 1)] for part in self._turn)
        turn = torch.complex(cos, sin).view(-1, 1, turns.dim // 2)
        span = (torch.arange(rows)[:, None], places.clamp(max=self.context))
        moves = self._moves(first, rows)
        at = slice(first, first + rows)
        for layer, (qkv, out, gate_up, down) in enumerate(self.groups):
            move = moves[layer]
            y = self._apply(self._normed(h), qkv, rows, move[_QKV], loras)
            a = self._attend(y, self._kv[layer][:, at], turn, span, mask, longest)
            self._add(h, a, out, rows, move[_OUT], loras)
            y = self._apply(self._normed(h), gate_up, rows, move[_GATE_UP], loras)
            wide = gate_up.out // 2
            a = F.silu(y[:, :wide]).mul_(y[:, wide : gate_up.out])
            a = (a.view(-1, len(turns.block)) @ turns.block).view(len(a), wide)
            self._add(h, a, down, rows, move[_DOWN], loras)
        return self._normed(h).view(rows, width, -1)

    def _compiled(
        self, steps: native.Steps, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> torch.Tensor:
        """`forward` by the library; what is beyond a row's tokens is nought."""
        counts = torch.tensor([len(row) for row in tokens])
        rows = torch.arange(len(tokens)).repeat_interleave(counts)
        columns = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        ids = torch.tensor([each for row in tokens for each in row])
        places = torch.tensor(starts)[rows] + columns
        states = steps.states(self._embed[ids].float(), self._kv, first + rows, places, self._turn, self._slots)
        hidden = torch.zeros(len(tokens), int(counts.max()), states.shape[1])
        hidden[rows, columns] = states
        return hidden

    def _moves(self, first: int, rows: int) -> list[list[list[Move]]]:
        """For each layer and product, what the vector adapters of a span of slots need; kept, for spans come again."""
        ranks = self._ranks(first, rows)
        key = first, rows, *ranks
        found = self._spans.pop(key, None)
        if found is None:
            at = slice(first, first + rows)
            found = [
                [[(group.z[rank], group.R[rank][at], group.US[rank]) for rank in ranks] for group in groups]
                for groups in self.groups
            ]
        self._spans[key] = found
        while len(self._spans) > _SPANS:
            self._spans.popitem(last=False)
        return found

    # -- one layer's parts; x (tokens of all rows, in)

    def _normed(self, h: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(h, (h.shape[1],), None, self.eps)

    def _apply(
        self, x: torch.Tensor, group: _Group, rows: int, moves: list[Move], loras: dict[str, Stack]
    ) -> torch.Tensor:
        """y, of which the first `group.out` columns count."""
        y = _product(x, group.W).mul_(group.scale)
        if moves or loras:
            self._adapt(y, y[:, : group.out], x, group, rows, moves, loras)
        return y

    def _add(
        self, h: torch.Tensor, x: torch.Tensor, group: _Group, rows: int, moves: list[Move], loras: dict[str, Stack]
    ) -> None:
        """The same, added to the residual stream."""
        y = _product(x, group.W)
        h.addcmul_(y[:, : group.out], group.scale[: group.out])
        if moves or loras:
            self._adapt(y, h, x, group, rows, moves, loras)

    def _adapt(
        self,
        y: torch.Tensor,
        to: torch.Tensor,
        x: torch.Tensor,
        group: _Group,
        rows: int,
        moves: list[Move],
        loras: dict[str, Stack],
    ) -> None:
        by_row = y.view(rows, -1, y.shape[1])
        for z, R, US in moves:
            to.addmm_(torch.bmm(by_row[..., z], R).flatten(0, 1), US)
        if loras:
            inputs = x.view(rows, -1, x.shape[1])
            for name, span in group.spans.items():
                if name not in loras:
                    continue
                which, A, B = loras[name]
                part = to[:, span].view(rows, -1, span.stop - span.start)
                if which is None:
                    part += torch.bmm(torch.bmm(inputs, A.mT), B.mT)
                else:
                    part.index_add_(0, which, torch.bmm(torch.bmm(inputs[which], A.mT), B.mT))

    def _attend(
        self,
        y: torch.Tensor,
        kv: torch.Tensor,
        turn: torch.Tensor,
        span: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """Attention's output (tokens of all rows, heads · dim); kv (2, rows, heads, places, dim) is written to."""
        turns, rows = self.turns, kv.shape[1]
        wide, dim, heads = turns.heads * turns.dim, turns.dim, turns.kv_heads
        queries_keys = y[:, : wide + heads * dim].view(len(y), -1, dim // 2, 2)
        torch.view_as_complex(queries_keys).mul_(turn)
        new = y[:, wide : wide + 2 * heads * dim]
        kv[:, span[0], :, span[1]] = new.view(rows, -1, 2, heads, dim).to(kv.dtype)
        keys, values = kv[:, :, :, :longest].to(y.dtype)
        q = y[:, :wide].view(rows, -1, heads, turns.heads // heads, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        out = out.view(rows, heads, turns.heads // heads, -1, dim)
        return out.permute(0, 3, 1, 2, 4).reshape(len(y), wide)

    # -- what is made before serving

    def _rotary(self, places: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._decoder.rotary_emb(self._embed, torch.arange(places)[None])
        half = self.turns.dim // 2
        return cos[0, :, :half].float().contiguous(), sin[0, :, :half].float().contiguous()

    def _norm_before(self, target: Target) -> torch.Tensor | None:
        layer = self._decoder.layers[target.layer]
        if target.projection in ("q_proj", "k_proj", "v_proj"):
            weight: torch.Tensor = layer.input_layernorm.weight.float()
            return weight
        if target.projection in ("gate_proj", "up_proj"):
            weight = layer.post_attention_layernorm.weight.float()
            return weight
        return None

    def _group(self, at: Sequence[int], bases: Mapping[int, Basis]) -> _Group:
        turns = self.turns
        targets = [self._targets[index] for index in at]
        parts, spans, end = [], {}, 0
        for target in targets:
            W = self.base.model.get_submodule(target.name).weight.float()
            W = turns.rows(target.projection, turns.columns(target.projection, W, self._norms[target.name]))
            parts.append(W)
            spans[target.name] = slice(end, end + len(W))
            end += len(W)
        group = _Group(torch.empty(0), torch.empty(0), end, spans)
        columns = end
        for rank, basis in bases.items():
            outwards = []
            for index, target in zip(at, targets, strict=True):
                Vt = basis.inward[index].float().mT
                parts.append(turns.columns(target.projection, Vt, self._norms[target.name]))
                outwards.append(turns.rows(target.projection, basis.outward[index].float()).mT)
            group.z[rank] = slice(columns, columns + rank * len(at))
            group.US[rank] = torch.block_diag(*outwards)  # type: ignore[no-untyped-call]
            columns = group.z[rank].stop
        group.W, group.scale = self._kept(torch.cat(parts), end)
        return group

    def _kept(self, W: torch.Tensor, out: int | None = None) -> tuple[torch.Tensor | native.Packed, torch.Tensor]:
        """W (columns, in), of which the first `out` are a group's outputs, in 8 bits as it is multiplied here."""
        rounded, scale = _rounded(W)
        if self._code is None:
            return rounded.mT, scale
        return native.Packed(self._code, rounded, scale, out or len(rounded)), scale

    def _lay_out(self, rank: int, rows: int) -> None:
        factors = []
        for groups in self.groups:
            for kind, group in enumerate(groups):
                # What goes to the residual stream is used before it is scaled.
                scale = group.scale[group.z[rank]] if kind in (_OUT, _DOWN) else torch.ones(len(group.spans) * rank)
                factors.append(scale.view(-1, rank))
        each = [len(group.spans) for groups in self.groups for group in groups]
        self._blocks[rank] = Blocks(
            each, rank, rows, dtype=self._dtype, device=self._device, factors=torch.cat(factors)
        )
        for place, group in enumerate(group for groups in self.groups for group in groups):
            group.R[rank] = self._blocks[rank].groups[place]

    def _lora(self, served: Served) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        found = self._own.get(served)
        if found is None:
            found = self._own[served] = self.turned(served)
        return found

    def turned(self, served: Served) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B of a LoRA by module, for inputs and outputs as they are turned here."""
        found = {}
        for target in self._targets:
            if served.A is not None and served.B is not None and target.name in served.A:
                A, B = served.A[target.name].float(), served.B[target.name].float()
                A = self.turns.columns(target.projection, A, self._norms[target.name])
                found[target.name] = A, self.turns.rows(target.projection, B)
        return found


def _rounded(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W (out, in) as int8 and the scale of every output; outputs filled up with zeros."""
    W = F.pad(W, (0, 0, 0, -len(W) % _COLUMNS))
    scale = (W.abs().amax(1) / 127).clamp_(min=1e-30)
    return (W / scale[:, None]).round_().to(torch.int8), scale


def _product(x: torch.Tensor, W: torch.Tensor | native.Packed) -> torch.Tensor:
    """x (tokens, in) times W (in, columns), but for the columns' scales; every row is rounded by itself."""
    assert isinstance(W, torch.Tensor), "packed ones are the library's"
    scale = x.abs().amax(-1, keepdim=True).mul_(1 / 127).clamp_(min=1e-30)
    return torch._int_mm((x / scale).round_().to(torch.int8), W) * scale
