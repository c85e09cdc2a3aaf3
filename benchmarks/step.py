"""Speed of a training step with an adapter, against the same step of the bare base.

    python benchmarks/step.py --base smollm2

The peer computes the same loss of the same batch by the same code, and the gradient of its input embeddings: every
activation's gradient, no adapter (its layers are in place, unset, which costs a Python call each). The two take turns
on the same batches; the ratio is taken pair by pair, its median printed. Batches are computed as training computes
them (packed, a shared prefix once) and, for comparison, row by row from the first token. A LoRA is computed twice, by
whit's forward and by PEFT's own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import examiner, open_base, report, task

from whit.adapters.targets import all_targets
from whit.adapters.tunable import Bound, BoundLora, tune_lora, tune_vector
from whit.adapters.vector import tiny_spec, xs_spec
from whit.bases import Base
from whit.training.batching import Batch, collate
from whit.training.sft import loss_of, unshared


def bare_step(base: Base, batch: Batch) -> None:
    def differentiable(module: Any, arguments: Any, embedded: torch.Tensor) -> torch.Tensor:
        return embedded.requires_grad_(True)

    hook = base.model.get_input_embeddings().register_forward_hook(differentiable)
    loss_of(base, batch).mean().backward()
    hook.remove()


def with_pefts_forward(bound: BoundLora) -> BoundLora:
    """The same LoRA without whit's own forward, `whit.adapters.lora_layer`."""
    for layer in bound._layers:
        del layer.__dict__["forward"]
    return bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--adapters", nargs="+", choices=("xs", "tiny", "lora", "peft"), default=["xs", "tiny"])
    options = parser.parse_args()
    of = task("sst2", rows=options.batch * options.pairs, validation=2, dev=1)
    base = open_base(options.base)
    for parameter in base.model.parameters():
        parameter.requires_grad_(False)
    encoded = sorted(examiner(base, of, max_tokens=4).encode(of.train), key=lambda row: len(row.prompt_ids))
    batches = [collate(encoded[at : at + options.batch]) for at in range(0, len(encoded), options.batch)]
    targets = all_targets(name for name, _ in base.model.named_modules())
    indices = [target.index for target in targets]

    def lora() -> BoundLora:
        return tune_lora(base, targets, rank=8, alpha=16, dropout=0.0, seed=0)

    makers: dict[str, tuple[str, Callable[[], Bound]]] = {
        "xs": ("xs r=2", lambda: tune_vector(base, xs_spec(indices, 2))),
        "tiny": ("tiny 13", lambda: tune_vector(base, tiny_spec(indices, 13))),
        "lora": ("lora r=8", lora),
        "peft": ("lora r=8, PEFT's forward", lambda: with_pefts_forward(lora())),
    }
    found = []
    for name, make in (makers[key] for key in options.adapters):
        bound = make()
        for way, each in (("packed", batches), ("row by row", [unshared(batch) for batch in batches])):
            pairs: list[tuple[float, float]] = []
            for batch in (each[0], *each):
                began = time.perf_counter()
                with bound.active():
                    loss_of(base, batch).mean().backward()
                middle = time.perf_counter()
                bare_step(base, batch)
                pairs.append((middle - began, time.perf_counter() - middle))
            ratios = sorted(alone / with_adapter for with_adapter, alone in pairs[1:])
            tokens = sum(len(row.prompt_ids) + len(row.completion_ids) - 1 for row in encoded)
            found.append(
                {
                    "adapter": name,
                    "numbers": bound.numbers,
                    "rows": options.batch,
                    "computed": way,
                    "pairs": len(ratios),
                    "tokens_per_second": round(tokens / sum(pair[0] for pair in pairs[1:])),
                    "bare_tokens_per_second": round(tokens / sum(pair[1] for pair in pairs[1:])),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_least_most": [round(ratios[0], 3), round(ratios[-1], 3)],
                }
            )
        bound.detach()
    report(found)


if __name__ == "__main__":
    main()
