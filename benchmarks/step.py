"""Speed of a training step with a vector adapter, against the same step of the bare base.

    python benchmarks/step.py --base smollm2

The peer computes the same loss and the gradient of its input embeddings: every activation's gradient, no adapter
(its layers are in place, unset, which costs a Python call each). The two take turns on the same batches; the ratio
is taken pair by pair, its median printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch.nn.functional as F
from common import examiner, open_base, report, task

from whit.adapters.targets import all_targets
from whit.adapters.tunable import tune_vector
from whit.adapters.vector import tiny_spec, xs_spec
from whit.bases import Base
from whit.evaluation.decoding import decoder_of
from whit.training.batching import Batch, collate
from whit.training.sft import loss_of


def bare_step(base: Base, batch: Batch) -> None:
    embedded = base.model.get_input_embeddings()(batch.tokens).detach().requires_grad_(True)
    hidden = decoder_of(base.model)(inputs_embeds=embedded, attention_mask=None, use_cache=False).last_hidden_state
    logits = base.model.get_output_embeddings()(hidden[batch.at[:, 0], batch.at[:, 1]])
    F.cross_entropy(logits.float(), batch.wanted).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    of = task("sst2", rows=options.batch * options.pairs, validation=2, dev=1)
    base = open_base(options.base)
    for parameter in base.model.parameters():
        parameter.requires_grad_(False)
    encoded = sorted(examiner(base, of, max_tokens=4).encode(of.train), key=lambda row: len(row.prompt_ids))
    batches = [collate(encoded[at : at + options.batch]) for at in range(0, len(encoded), options.batch)]
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    found = []
    for name, spec in (("xs r=2", xs_spec(indices, 2)), ("tiny 13", tiny_spec(indices, 13))):
        bound = tune_vector(base, spec)

        pairs: list[tuple[float, float]] = []
        for batch in (batches[0], *batches):
            began = time.perf_counter()
            with bound.active():
                loss_of(base, batch).mean().backward()
            middle = time.perf_counter()
            bare_step(base, batch)
            pairs.append((middle - began, time.perf_counter() - middle))
        bound.detach()
        ratios = sorted(alone / with_adapter for with_adapter, alone in pairs[1:])
        tokens = sum(batch.size for batch in batches)
        found.append(
            {
                "adapter": name,
                "numbers": spec.numbers,
                "rows": options.batch,
                "pairs": len(ratios),
                "tokens_per_second": round(tokens / sum(pair[0] for pair in pairs[1:])),
                "bare_tokens_per_second": round(tokens / sum(pair[1] for pair in pairs[1:])),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_least_most": [round(ratios[0], 3), round(ratios[-1], 3)],
            }
        )
    report(found)


if __name__ == "__main__":
    main()
