"""Tokens a second of 32 rows with own adapters, against the same rows on the bare base and against `generate`.

    python benchmarks/serving.py --base smollm2

The scheduler decodes the same prompts for the same number of tokens: bare, each row with its own `tiny`, each with its
own `xs`; transformers' `generate` on the bare base is the peer. The ways take turns, round by round; the median of
the rounds' ratios is printed. Last, the time from the bytes of an adapter that was never seen to its place in a slot.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import open_base, report, tell

from whit.adapters.adapter import Adapter
from whit.adapters.targets import all_targets
from whit.adapters.vector import tiny_spec, xs_spec
from whit.serving.payload import to_payload
from whit.serving.pool import Pool, Served
from whit.serving.scheduler import Request, Scheduler


def answer(scheduler: Scheduler, prompts: list[list[int]], adapters: list[Served | None], most: int) -> int:
    """Answer all prompts; how many tokens."""
    count = [0]

    def on_token(token: Any) -> None:
        count[0] += 1

    scheduler.submit(
        [Request(p, most, on_token, lambda reason: None, a) for p, a in zip(prompts, adapters, strict=True)]
    )
    while scheduler.step():
        pass
    return count[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    base = open_base(options.base)
    stops, base.stop_ids = base.stop_ids, ()  # every row answers to the end
    pool = Pool(base)
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    draw = np.random.default_rng(0)
    basis = pool.bases[2]

    def own(spec: Any) -> list[Served | None]:
        made = []
        for _ in range(options.rows):
            vector = draw.normal(0, 0.02, spec.numbers).astype(np.float32)
            made.append(pool.ready(to_payload(Adapter.from_vector(spec, vector, basis))))
        return list(made)

    prompts = [base.encode(f"Request {row}: what is the weather like in Paris today?") for row in range(options.rows)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = (torch.arange(width)[None] >= torch.tensor([[width - len(p)] for p in prompts])).long()

    def generate() -> int:
        # Outside the scheduler's life: the bare model as transformers has it.
        base.model.generation_config.eos_token_id = None
        with torch.inference_mode():
            out = base.model.generate(
                ids, attention_mask=mask, max_new_tokens=options.tokens, do_sample=False, pad_token_id=0
            )
        return int(out.shape[0] * (out.shape[1] - width))

    def scheduled(adapters: list[Served | None]) -> int:
        scheduler = Scheduler(base, pool.bases, rows=options.rows, context=width + options.tokens + 16, prefix_bytes=1)
        try:
            return answer(scheduler, prompts, adapters, options.tokens)
        finally:
            scheduler.model.close()

    bare: list[Served | None] = [None] * options.rows
    sets = {"tiny 13": own(tiny_spec(indices, 13)), "xs 840": own(xs_spec(indices, 2))}
    ways: dict[str, Callable[[], int]] = {"bare": lambda: scheduled(bare), "generate": generate}
    ways |= {name: (lambda some=some: scheduled(some)) for name, some in sets.items()}  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            tokens = way()
            rate = tokens / (time.perf_counter() - began)
            tell(f"round {round_}: {name} {rate:.0f} tokens/s")
            if round_:
                rates[name].append(rate)

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 3)

    scheduler = Scheduler(base, pool.bases, rows=1, context=width + 16, prefix_bytes=1)
    added = []
    for _ in range(20):
        spec = tiny_spec(indices, 13)
        payload = to_payload(Adapter.from_vector(spec, draw.normal(0, 0.02, 13).astype(np.float32), basis))
        began = time.perf_counter()
        served = pool.ready(payload)
        scheduler.model.put(0, served)
        added.append(1000 * (time.perf_counter() - began))
        scheduler.model.put(0, None)
    scheduler.model.close()
    base.stop_ids = stops
    report(
        [
            {
                "rows": options.rows,
                "tokens_each": options.tokens,
                "rounds": options.rounds,
                "tokens_per_second": {name: round(statistics.median(found)) for name, found in rates.items()},
                "tiny_over_bare": ratio("tiny 13", "bare"),
                "xs_over_bare": ratio("xs 840", "bare"),
                "tiny_over_generate": ratio("tiny 13", "generate"),
                "never_seen_adapter_ms": round(statistics.median(added), 2),
                "never_seen_adapter_ms_most": round(max(added), 2),
            }
        ]
    )


if __name__ == "__main__":
    main()
