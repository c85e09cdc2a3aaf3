"""How much memory a step of training takes beside the base, and layers that are computed twice to need less of it.

The estimate follows from sizes: what a frozen Llama-like layer keeps for the way back, the logits of the answers'
tokens, the adapter with its moments. It is meant to refuse what cannot fit, not to be exact. Knows nothing of rows but
their lengths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from whit.bases.memory import available_bytes, gigabytes
from whit.errors import UsageError

if TYPE_CHECKING:
    from whit.bases import Base
    from whit.data.templates import Encoded

_MARGIN = 1.2  # what the formula leaves out
SPARE = 320_000_000  # bytes that an allocator scatters, however small the step


def step_bytes(
    base: Base, rows: Sequence[Encoded], *, batch: int, accumulate: int, numbers: int, checkpointing: bool
) -> int:
    """Bytes that a step on the longest rows takes at most."""
    config = base.model.config
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    heads = int(config.num_attention_heads)
    dim = int(getattr(config, "head_dim", None) or hidden // heads)
    keys = int(getattr(config, "num_key_value_heads", heads)) * dim
    width = 4 if base.dtype == "float32" else 2
    # A layer keeps, a token: its two norms' inputs (and their float32 copies), queries, keys and values before and
    # after the rotation, the attention's output, gate, its activation, up and their product.
    layer = width * (4 * hidden + 2 * (heads * dim + 2 * keys) + heads * dim + 4 * inner) + 4 * 2 * hidden
    at_once = -(-batch // accumulate)
    longest = sorted((len(row.prompt_ids) + len(row.completion_ids) for row in rows), reverse=True)[:at_once]
    tokens = longest[0] * len(longest) if longest else 0
    answers = sum(sorted((len(row.completion_ids) for row in rows), reverse=True)[:at_once])
    layers = int(config.num_hidden_layers)
    kept = tokens * (layer + layers * width * hidden) if checkpointing else tokens * layers * layer
    # Logits in the base's type and float32, their softmax, and the gradient.
    logits = answers * int(config.vocab_size) * (width + 3 * 4)
    unpacked = 4 * 2 * max(hidden * inner, hidden * heads * dim) if base.quantized else 0
    return round(_MARGIN * (kept + logits + unpacked + numbers * 4 * 6))


def require_memory(
    base: Base,
    rows: Sequence[Encoded],
    *,
    batch: int,
    accumulate: int,
    numbers: int,
    checkpointing: bool,
    processes: int = 1,
    others: int = 0,
) -> int:
    """The bytes of a step. Raises `UsageError` with advice where they do not fit in what is free.

    With `processes` on this machine each takes such a step, of `batch` rows; `others` are the bytes of the bases that
    are still to be loaded by them.
    """
    device = str(base.model.device)
    there = available_bytes(device)

    def needs(accumulate: int, checkpointing: bool) -> int:
        found = step_bytes(base, rows, batch=batch, accumulate=accumulate, numbers=numbers, checkpointing=checkpointing)
        return processes * (found + SPARE) + others

    needed = needs(accumulate, checkpointing)
    if there is None or needed <= there:
        return needed
    advice = []
    if not checkpointing and needs(accumulate, True) <= there:
        advice.append(f"--checkpointing ({gigabytes(needs(accumulate, True))})")
    parts = next((n for n in range(accumulate + 1, batch + 1) if needs(n, checkpointing) <= there), None)
    if parts is not None:
        advice.append(f"--accumulate {parts} ({gigabytes(needs(parts, checkpointing))})")
    if not advice and needs(batch, True) <= there:
        advice.append(f"--checkpointing with --accumulate {batch} ({gigabytes(needs(batch, True))})")
    if not base.quantized:
        advice.append("--quantize nf4, which leaves more of the memory free")
    what = f"a step of {batch} rows"
    if processes > 1:
        advice.append("fewer --processes")
        what += f" in each of {processes} processes"
        what += f" and {gigabytes(others)} for the bases of the others" if others else ""
    raise UsageError(
        f"{what} would take about {gigabytes(needed)} of memory, and {gigabytes(there)} are free; try "
        f"{' or '.join(advice) if advice else 'shorter rows, or a machine with more memory'}"
    )


@contextlib.contextmanager
def checkpointed(base: Base, on: bool = True) -> Iterator[None]:
    """A block in which each layer keeps its input alone and is computed again on the way back (Chen et al., 2016).

    The way back must be gone while the adapter that went forward is still set. Calls with a cache, and calls without
    gradients, are as ever.
    """
    if not on:
        yield
        return
    layers = list(base.model.get_decoder().layers)
    for layer in layers:
        layer.forward = _twice(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import checkpoint

    def computed(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled() or named.get("past_key_values") is not None:
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=True, **named)

    return computed
