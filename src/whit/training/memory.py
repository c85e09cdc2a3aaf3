"""How much memory a step of training takes beside the base, and layers that are computed twice to need less of it.

The estimate follows from sizes: what a frozen Llama-like layer keeps for the way back, the logits of the answers'
tokens, the adapter with its moments; by reward also the keys and values of the answers that are drawn together. It is
meant to refuse what cannot fit, not to be exact. Knows nothing of rows but their lengths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from whit.bases.memory import available_bytes, gigabytes
from whit.errors import UsageError
from whit.evaluation.decoding import PREFILL_TOKENS, ROWS

if TYPE_CHECKING:
    from whit.bases import Base
    from whit.data.templates import Encoded
    from whit.training.reward import RewardPlan

_MARGIN = 1.2  # what the formula leaves out
WAYS = ("checkpointing", "accumulate", "quantize")  # options that need less
_QUANTIZE = "--quantize nf4, which leaves more of the memory free"
SPARE = 320_000_000  # bytes that an allocator scatters, however small the step


def step_bytes(
    base: Base, rows: Sequence[Encoded], *, batch: int, accumulate: int, numbers: int, checkpointing: bool
) -> int:
    """Bytes that a step on the longest rows takes at most."""
    at_once = -(-batch // accumulate)
    longest = sorted((len(row.prompt_ids) + len(row.completion_ids) for row in rows), reverse=True)[:at_once]
    tokens = longest[0] * len(longest) if longest else 0
    answers = sum(sorted((len(row.completion_ids) for row in rows), reverse=True)[:at_once])
    return _way_back(base, tokens, answers, numbers, checkpointing)


def reward_bytes(base: Base, rows: Sequence[Encoded], plan: RewardPlan, numbers: int) -> int:
    """Bytes that a step by reward takes at most: to draw answers as long as they may be, or to learn from a group."""
    config, width = base.model.config, _width(base)
    hidden, inner, queries, keys = _widths(base)
    prompt = max((len(row.prompt_ids) for row in rows), default=0)
    drawn = min(ROWS, plan.batch * group_of(plan))
    # Keys and values of all layers, and one layer's spread over the heads.
    cache = drawn * (prompt + plan.most) * 2 * (int(config.num_hidden_layers) * keys + queries) * width
    first = min(drawn * prompt, max(PREFILL_TOKENS, prompt)) * (width * (4 * hidden + 3 * inner) + 4 * 2 * hidden)
    # Logits in the base's type and float32, their softmax and its sums.
    chances = drawn * int(config.vocab_size) * (width + 3 * 4)
    drawing = round(_MARGIN * (cache + first + chances + numbers * 4 * 6))
    if plan.optimizer in ("es", "cma"):
        return drawing
    # A group is computed at a time, behind one copy of its prompt.
    answers = plan.samples * plan.most
    return max(drawing, _way_back(base, prompt + answers, answers, numbers, False))


def group_of(plan: RewardPlan) -> int:
    """Answers to each prompt in a step."""
    return plan.population if plan.optimizer in ("es", "cma") else plan.samples


def _width(base: Base) -> int:
    return 4 if base.dtype == "float32" else 2


def _widths(base: Base) -> tuple[int, int, int, int]:
    """Of hidden states, of the MLP, of the queries, of the keys."""
    config = base.model.config
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    dim = int(getattr(config, "head_dim", None) or hidden // heads)
    return hidden, int(config.intermediate_size), heads * dim, int(getattr(config, "num_key_value_heads", heads)) * dim


def _way_back(base: Base, tokens: int, answers: int, numbers: int, checkpointing: bool) -> int:
    """Bytes of a pass forward and back over so many tokens, of which `answers` are learned from."""
    config, width = base.model.config, _width(base)
    hidden, inner, queries, keys = _widths(base)
    # A layer keeps, a token: its two norms' inputs (and their float32 copies), queries, keys and values before and
    # after the rotation, the attention's output, gate, its activation, up and their product.
    layer = width * (4 * hidden + 2 * (queries + 2 * keys) + queries + 4 * inner) + 4 * 2 * hidden
    layers = int(config.num_hidden_layers)
    kept = tokens * (layer + layers * width * hidden) if checkpointing else tokens * layers * layer
    # Logits in the base's type and float32, their softmax, and the gradient.
    logits = answers * int(config.vocab_size) * (width + 3 * 4)
    unpacked = 4 * 2 * max(hidden * inner, hidden * queries) if base.quantized else 0
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
    ways: Collection[str] = WAYS,
) -> int:
    """The bytes of a step. Raises `UsageError` with advice where they do not fit in what is free.

    With `processes` on this machine each takes such a step, of `batch` rows; `others` are the bytes of the bases that
    are still to be loaded by them. Of `WAYS` and `batch`, only `ways` are advised.
    """
    there = available_bytes(str(base.model.device))

    def needs(accumulate: int, checkpointing: bool, batch: int = batch) -> int:
        found = step_bytes(base, rows, batch=batch, accumulate=accumulate, numbers=numbers, checkpointing=checkpointing)
        return processes * (found + SPARE) + others

    needed = needs(accumulate, checkpointing)
    if there is None or needed <= there:
        return needed
    advice = []
    if "batch" in ways and (fewer := next((n for n in range(batch - 1, 0, -1) if needs(1, False, n) <= there), 0)):
        advice.append(f"--batch {processes * fewer} ({gigabytes(needs(1, False, fewer))})")
    twice = "checkpointing" in ways and not checkpointing
    if twice and needs(accumulate, True) <= there:
        advice.append(f"--checkpointing ({gigabytes(needs(accumulate, True))})")
    if "accumulate" in ways:
        parts = next((n for n in range(accumulate + 1, batch + 1) if needs(n, checkpointing) <= there), None)
        if parts is not None:
            advice.append(f"--accumulate {parts} ({gigabytes(needs(parts, checkpointing))})")
        if not advice and twice and needs(batch, True) <= there:
            advice.append(f"--checkpointing with --accumulate {batch} ({gigabytes(needs(batch, True))})")
    if "quantize" in ways and not base.quantized:
        advice.append(_QUANTIZE)
    what = f"a step of {batch} rows"
    if processes > 1:
        advice.append("fewer --processes")
        what += f" in each of {processes} processes"
        what += f" and {gigabytes(others)} for the bases of the others" if others else ""
    raise _refusal(what, needed, there, advice)


def require_reward_memory(base: Base, rows: Sequence[Encoded], plan: RewardPlan, numbers: int) -> int:
    """The bytes of a step by reward. Raises `UsageError` with advice where they do not fit in what is free."""
    there = available_bytes(str(base.model.device))

    def needs(plan: RewardPlan) -> int:
        return reward_bytes(base, rows, plan, numbers) + SPARE

    needed = needs(plan)
    if there is None or needed <= there:
        return needed
    name = "population" if plan.optimizer in ("es", "cma") else "samples"
    advice = []
    for field, said, least in (("most", "max-tokens", 1), (name, name, 2), ("batch", "batch", 1)):
        less = getattr(plan, field) // 4 * 2
        while less >= least and needs(replace(plan, **{field: less})) > there:
            less = less // 4 * 2
        if less >= least:
            advice.append(f"--{said} {less} ({gigabytes(needs(replace(plan, **{field: less})))})")
    if not base.quantized:
        advice.append(_QUANTIZE)
    what = f"a step of {plan.batch} prompts with {group_of(plan)} answers each, of up to {plan.most} tokens,"
    raise _refusal(what, needed, there, advice)


def _refusal(what: str, needed: int, there: int, advice: Sequence[str]) -> UsageError:
    return UsageError(
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
