"""A Llama decoder small enough to read, with projections that may be ternary while they are trained.

Promises the same logits as `transformers.LlamaForCausalLM` on the weights of `state_for_transformers`,
and, for ternary shapes, a forward that a GGUF file of type TQ2_0 stores exactly: one f16 scale for each
256 weights of a row. Knows nothing of tokens, files or training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.config import Shape

BLOCK = 256  # weights that share one scale in TQ2_0


def ternarise(weight: torch.Tensor) -> torch.Tensor:
    """The nearest {-s, 0, +s} of each block of 256, s = mean |w| of the block rounded to f16.

    `weight` is [out, in] with `in` a multiple of 256. Absmean rule of BitNet b1.58 (arXiv 2402.17764),
    with the scale per block in place of per matrix, because that is what TQ2_0 holds.
    """
    blocks = weight.view(weight.shape[0], -1, BLOCK)
    scale = blocks.abs().mean(dim=-1, keepdim=True).clamp(min=1e-4).half().float()
    return ((blocks / scale).clamp(-1, 1).round() * scale).view_as(weight)


class Projection(nn.Linear):
    """x Wᵀ without bias; ternary where asked, with the gradient passed straight through the rounding."""

    def __init__(self, inputs: int, outputs: int, *, ternary: bool):
        super().__init__(inputs, outputs, bias=False)
        if ternary and inputs % BLOCK:
            raise ValueError(f"a ternary projection needs rows of a multiple of {BLOCK}, not {inputs}")
        self.ternary = ternary

    def effective(self) -> torch.Tensor:
        """The weight that the forward uses and that the file stores, [out, in]."""
        if not self.ternary:
            return self.weight
        return self.weight + (ternarise(self.weight.detach()) - self.weight.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.effective())


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on [batch, heads, positions, head]; halves are paired, as transformers does."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention on [batch, heads, positions, head].

    Written out where a processor computes in bfloat16: at 512 positions PyTorch's fused kernel, forward and backward,
    takes 2.7 times as long there.
    """
    if q.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    batch, heads, length, head = q.shape
    q, k, v = (x.to(torch.bfloat16).reshape(batch * heads, length, head) for x in (q, k, v))
    later = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1).expand(batch * heads, -1, -1)
    shares = torch.baddbmm(later, q, k.transpose(1, 2), alpha=head**-0.5).softmax(dim=-1, dtype=q.dtype)
    return (shares @ v).view(batch, heads, length, head)


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm and beside a residual path."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        queries, keys, ternary = shape.heads * shape.head, shape.kv_heads * shape.head, shape.ternary
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.q_proj = Projection(shape.hidden, queries, ternary=ternary)
        self.k_proj = Projection(shape.hidden, keys, ternary=ternary)
        self.v_proj = Projection(shape.hidden, keys, ternary=ternary)
        self.o_proj = Projection(queries, shape.hidden, ternary=ternary)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.gate_proj = Projection(shape.hidden, shape.ffn, ternary=ternary)
        self.up_proj = Projection(shape.hidden, shape.ffn, ternary=ternary)
        self.down_proj = Projection(shape.ffn, shape.hidden, ternary=ternary)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        shape = self.shape
        h = self.input_layernorm(x)
        q = self.q_proj(h).view(batch, length, shape.heads, shape.head).transpose(1, 2)
        k = self.k_proj(h).view(batch, length, shape.kv_heads, shape.head).transpose(1, 2)
        v = self.v_proj(h).view(batch, length, shape.kv_heads, shape.head).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k = k.repeat_interleave(shape.heads // shape.kv_heads, dim=1)
        v = v.repeat_interleave(shape.heads // shape.kv_heads, dim=1)
        attended = attend(q, k, v)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Network(nn.Module):
    """Token ids [batch, positions] to logits [batch, positions, vocabulary]; the head is the embedding."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head, 2).double() / shape.head)
        angles = torch.outer(torch.arange(shape.context).double(), frequencies)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def initialise(self, seed: int) -> None:
        """Normal weights from `seed`; those that write to the residual path smaller with depth."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.ones_(parameter)
                continue
            std = 0.02 if name.startswith("embed") else parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.shape.layers)
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """The last hidden states, [batch, positions, hidden]."""
        length = ids.shape[1]
        if length > self.shape.context:
            raise ValueError(f"{length} positions, but the context is {self.shape.context}")
        x = self.embed_tokens(ids)
        cos, sin = self.cos[:length], self.sin[:length]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(self.hidden(ids), self.embed_tokens.weight)

    def loss(self, ids: torch.Tensor, labels: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
        """Cross-entropy (nats) of `labels` [batch, positions] at each position; -100 is not counted."""
        logits = self(ids).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction=reduction)

    def state_for_transformers(self) -> dict[str, torch.Tensor]:
        """Effective weights (float32) under the names of `LlamaForCausalLM`; the head is tied."""
        effective = {f"{n}.weight": m.effective() for n, m in self.named_modules() if isinstance(m, Projection)}
        return {transformers_name(n): effective.get(n, w).detach().clone() for n, w in self.state_dict().items()}


def transformers_name(name: str) -> str:
    """The name of one of `Network`'s weights in `LlamaForCausalLM`."""
    *block, module, weight = name.split(".")
    if module.endswith("_proj"):
        module = ("mlp." if module in ("gate_proj", "up_proj", "down_proj") else "self_attn.") + module
    return ".".join(["model", *block, module, weight])
