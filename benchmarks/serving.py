"""Tokens a second of 32 rows with own adapters, against the bare base, transformers' `generate` and PEFT's mixed batch.

    python benchmarks/serving.py --base smollm2
    python benchmarks/serving.py --base smollm2 --int8 --ways bare tiny xs generate --rounds 9
    python benchmarks/serving.py --base smollm2 --quality

The same prompts are answered for the same number of tokens: by the scheduler bare, each row with its own `tiny` and
each with its own `xs` or (`--ways lora`) LoRA of rank 8; by transformers' `generate` on the bare base; by PEFT with a
LoRA of rank 8 for each row (`adapter_names`). Only decoding is timed: the time to a first token is taken off. The ways
take turns, round by round; medians of the rounds' rates and ratios are printed. `generate` and PEFT compute in the
number type that is fastest here. `--quality` says instead what computing in 8 bits costs: logits against those in
float32 on text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import data_folder, open_base, random_lora, report, tell

from whit.adapters.adapter import Adapter
from whit.adapters.targets import all_targets
from whit.adapters.vector import tiny_spec, xs_spec
from whit.serving.payload import to_payload
from whit.serving.pool import Pool, Served
from whit.serving.rows import row_model
from whit.serving.scheduler import Request, Scheduler

WAYS = ("bare", "tiny", "xs", "lora", "generate", "peft")


class Bench:
    """One base, its prompts, and every way to answer them; each way gives tokens a second."""

    def __init__(self, name: str, rows: int, tokens: int, int8: bool) -> None:
        self.base, self.rows, self.tokens, self.int8 = open_base(name), rows, tokens, int8
        self.base.stop_ids = ()  # every row answers to the end
        self.name = name
        self.pool = Pool(self.base)
        self._peft: Any = None
        self.indices = [t.index for t in all_targets(name for name, _ in self.base.model.named_modules())]
        prompts = [self.base.encode(f"Request {row}: what is the weather like in Paris today?") for row in range(rows)]
        width = max(map(len, prompts))
        self.prompts = [prompt[:1] * (width - len(prompt)) + prompt for prompt in prompts]
        self.ids = torch.tensor(self.prompts)

    def own(self, kind: str) -> list[Served]:
        """A different adapter for each row."""
        if kind == "lora":
            loras = (random_lora(self.base, 8, size=0.01, seed=row) for row in range(self.rows))
            return [self.pool.ready(to_payload(each)) for each in loras]
        draw = np.random.default_rng(0)
        spec = tiny_spec(self.indices, 13) if kind == "tiny" else xs_spec(self.indices, 2)
        vectors = [draw.normal(0, 0.02, spec.numbers).astype(np.float32) for _ in range(self.rows)]
        return [self.pool.ready(to_payload(Adapter.from_vector(spec, v, self.pool.bases[2]))) for v in vectors]

    def scheduled(self, adapters: list[Any]) -> float:
        """The scheduler, once all prompts are read."""
        width = len(self.prompts[0])
        scheduler = Scheduler(
            self.base, self.pool.bases, rows=self.rows, context=width + self.tokens + 16, prefix_bytes=1, int8=self.int8
        )
        count = [0]

        def on_token(token: Any) -> None:
            count[0] += 1

        try:
            asked = zip(self.prompts, adapters, strict=True)
            scheduler.submit([Request(p, self.tokens, on_token, lambda reason: None, a) for p, a in asked])
            while count[0] < self.rows:
                scheduler.step()
            before, began = count[0], time.perf_counter()
            while scheduler.step():
                pass
            return (count[0] - before) / (time.perf_counter() - began)
        finally:
            scheduler.model.close()

    def generate(self) -> float:
        """transformers on the bare base."""
        return self._generated(self.base.model, self.tokens)

    def peft(self) -> float:
        """PEFT's mixed batch; a few tokens, for it is slow."""
        if self._peft is None:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
            self._peft = get_peft_model(open_base(self.name).model, config, adapter_name="user0")
            for row in range(1, self.rows):
                self._peft.add_adapter(f"user{row}", config)
            self._peft.eval()
        names = [f"user{row}" for row in range(self.rows)]
        return self._generated(self._peft, min(8, self.tokens), adapter_names=names)

    def _generated(self, model: Any, tokens: int, **more: Any) -> float:
        model.generation_config.eos_token_id = None
        mask = torch.ones_like(self.ids)

        def seconds(count: int) -> float:
            began = time.perf_counter()
            with torch.inference_mode():
                model.generate(
                    input_ids=self.ids,
                    attention_mask=mask,
                    max_new_tokens=count,
                    do_sample=False,
                    pad_token_id=0,
                    **more,
                )
            return time.perf_counter() - began

        first = seconds(1)
        return self.rows * (tokens - 1) / (seconds(tokens) - first)


def quality(bench: Bench) -> dict[str, Any]:
    """The 8-bit base against float32 on text: loss, agreement of the likeliest token, Kullback-Leibler divergence."""
    texts = [json.loads(line) for line in (data_folder() / "gsm8k" / "dev.jsonl").open()][:16]
    whole = bench.base.encode("\n\n".join(f"{row.get('prompt')}\n{row.get('completion')}" for row in texts))
    parts = [whole[at : at + 256] for at in range(0, min(len(whole), 2048) - 255, 256)]
    base = open_base(bench.name, "float32")
    model = row_model(base, 1, 256, {}, int8=True)
    found: dict[str, list[float]] = {"loss": [], "loss_int8": [], "agree": [], "divergence": []}
    with torch.inference_mode():
        for part in parts:
            exact = base.model(torch.tensor([part])).logits[0].float().log_softmax(-1)
            rounded = model.logits(model.forward(0, [part], [0])[0]).log_softmax(-1)
            after = torch.tensor(part[1:])[:, None]
            found["loss"].append(float(-exact[:-1].gather(1, after).mean()))
            found["loss_int8"].append(float(-rounded[:-1].gather(1, after).mean()))
            found["agree"].append(float((exact.argmax(-1) == rounded.argmax(-1)).float().mean()))
            found["divergence"].append(float((exact.exp() * (exact - rounded)).sum(-1).mean()))
    return {"tokens": 256 * len(parts), **{name: round(statistics.mean(values), 4) for name, values in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["bare", "tiny", "xs", "generate", "peft"])
    parser.add_argument("--int8", action="store_true", help="the scheduler computes in 8 bits")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no round after so long")
    options = parser.parse_args()
    bench = Bench(options.base, options.rows, options.tokens, options.int8)
    if options.quality:
        report([{"8 bits against float32": quality(bench)}])
        return
    ways: dict[str, Callable[[], float]] = {}
    for name in options.ways:
        if name in ("generate", "peft"):
            ways[name] = getattr(bench, name)
        else:
            adapters: list[Any] = [None] * options.rows if name == "bare" else list(bench.own(name))
            ways[name] = lambda adapters=adapters: bench.scheduled(adapters)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    end = time.monotonic() + 60 * options.minutes
    for round_ in range(options.rounds + 1):
        if round_ > 1 and time.monotonic() > end:
            break
        # Every other round backwards: what follows what is not always the same.
        for name in list(ways)[:: -1 if round_ % 2 else 1]:
            rate = ways[name]()
            tell(f"round {round_}: {name} {rate:.1f} tokens/s")
            if round_:  # the first warms up
                rates[name].append(rate)
    ratios = {}
    for one in ("tiny", "xs", "lora"):
        for other in ("bare", "generate", "peft"):
            if one in rates and other in rates:
                found = sorted(a / b for a, b in zip(rates[one], rates[other], strict=True))
                ratios[f"{one}_over_{other}"] = {
                    "median": round(statistics.median(found), 3),
                    "least": round(found[0], 3),
                    "most": round(found[-1], 3),
                }
    rate = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    about = {"rows": options.rows, "tokens_each": options.tokens, "rounds": len(rates[options.ways[0]])}
    report([{**about, "int8": options.int8, "peers_in": bench.base.dtype, "tokens_per_second": rate, **ratios}])


if __name__ == "__main__":
    main()
