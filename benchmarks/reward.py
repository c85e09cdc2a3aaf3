"""Training by reward in figures: rollouts against TRL's, a population as one batch against swaps, skill held out.

    python benchmarks/reward.py rollouts --base smollm2        tokens/s of drawn answers, against TRL's GRPOTrainer
    python benchmarks/reward.py population --base smollm2      64 candidates as rows of batches, against 64 swaps
    python benchmarks/reward.py skill --base smollm2 --gym chain_sum,max_terms=2,max_digits=2 --seeds 3
    python benchmarks/reward.py all --tiny                     everything, small, on a random base: a smoke test

`rollouts`: both draw `--samples` answers to each of `--prompts` prompts at temperature 1, every answer `--tokens` long
(the stop token is left out of the draw on both sides), with the adapter on: whit with a `tiny` one, TRL with PEFT's
LoRA r=8; TRL's side is the time inside `GRPOTrainer._generate`, its own generation step. `population`: the peer loads
each candidate's vector into the adapter in turn and answers the same prompts with whit's own batched decoder, so that
what is compared is the swap alone; with `--rows 1` a candidate answers one prompt. `skill`: `whit train --reward` for
each size, optimiser and seed, proved on held-out rows: skill apart from format, McNemar's p, seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import open_base, report, tell

from whit.adapters.targets import all_targets
from whit.adapters.tunable import BoundVector, tune_vector
from whit.adapters.vector import tiny_spec
from whit.bases import Base
from whit.evaluation.decoding import Decoder
from whit.settings import TrainSettings
from whit.training.rollouts import roll_out


def problems(base: Base, count: int) -> list[list[int]]:
    """Prompts of sums, as tokens."""
    draw = np.random.default_rng(0)
    texts = [f"What is {a} + {b}? Think, then answer." for a, b in draw.integers(10, 99, size=(count, 2)).tolist()]
    from whit.data.rows import Turn

    return [base.encode(str(text)) for text in base.template.render_many([(Turn("user", text),) for text in texts])]


def tiny_vector(base: Base, numbers: int = 13) -> BoundVector:
    targets = all_targets(name for name, _ in base.model.named_modules())
    bound = tune_vector(base, tiny_spec([target.index for target in targets], numbers))
    with torch.no_grad():
        bound.v.copy_(0.05 * torch.randn(numbers, generator=torch.Generator().manual_seed(0)))
    return bound


def timed(work: Callable[[], int]) -> float:
    """Tokens a second."""
    began = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - began)


def endless(base: Base) -> Base:
    """The same base without a token that ends an answer, so that all answers are equally long."""
    import copy

    other = copy.copy(base)
    other.stop_ids = ()
    return other


def rollouts(args: argparse.Namespace, base: Base) -> dict[str, Any]:
    prompts = problems(base, args.prompts)
    asked = [prompt for prompt in prompts for _ in range(args.samples)]
    free = endless(base)
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(args.rounds):
        bound = tiny_vector(base)
        try:

            def draw(bound: BoundVector = bound, turn: int = turn) -> int:
                return sum(len(each.ids) for each in roll_out(free, bound, asked, most=args.tokens, seed=(0, turn)))

            ours.append(timed(draw))
        finally:
            bound.detach()
        theirs.append(trl_rate(args, base, prompts))
        tell(f"round {turn}: whit {ours[-1]:.0f} tokens/s, TRL {theirs[-1]:.0f}")
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    return {
        "figure": "rollouts", "base": base.name, "prompts": args.prompts, "samples": args.samples,
        "tokens": args.tokens, "whit_tokens_per_s": statistics.median(ours),
        "trl_tokens_per_s": statistics.median(theirs), "ratio": ratio, "rounds": args.rounds,
    }  # fmt: skip


def trl_rate(args: argparse.Namespace, base: Base, prompts: list[list[int]]) -> float:
    """Tokens a second inside TRL's own generation, in one step of its trainer; model weights are the same."""
    import copy

    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    model = copy.deepcopy(base.model)
    # No token ends an answer: TRL then draws `max_completion_length` tokens, as whit does here.
    model.generation_config.eos_token_id = None
    spent: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, max_steps=1, num_generations=args.samples, temperature=1.0, top_k=0, top_p=1.0, beta=0.0,
            per_device_train_batch_size=args.prompts * args.samples, max_completion_length=args.tokens,
            report_to=[], use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False,
            save_strategy="no", logging_strategy="no", disable_tqdm=True, shuffle_dataset=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **more: [float(len(text)) for text in completions],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": base.decode(prompt)} for prompt in prompts]),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        )
        for source in (trainer.generation_config, trainer.model.generation_config):
            source.eos_token_id = None
        inner = trainer.model.generate

        def watched(*inputs: Any, **more: Any) -> Any:
            began = time.perf_counter()
            found = inner(*inputs, **more)
            width = more["input_ids"].shape[1] if "input_ids" in more else inputs[0].shape[1]
            spent.append((time.perf_counter() - began, found.shape[0] * (found.shape[1] - width)))
            return found

        trainer.model.generate = watched
        trainer.train()
    if not spent:
        raise SystemExit("TRL did not call model.generate; its trainer has changed")
    return sum(tokens for _, tokens in spent) / sum(seconds for seconds, _ in spent)


def population(args: argparse.Namespace, base: Base) -> dict[str, Any]:
    prompts = problems(base, args.rows)
    free, bound = endless(base), tiny_vector(base)
    draw = torch.Generator().manual_seed(1)
    candidates = 0.1 * torch.randn(args.population, bound.numbers, generator=draw)
    try:
        asked = prompts * args.population
        vectors = candidates.repeat_interleave(len(prompts), dim=0)

        def together() -> list[list[int]]:
            return Decoder(free, bound, vectors=vectors).answers(asked, most=args.tokens)

        def swapped() -> list[list[int]]:
            found: list[list[int]] = []
            for vector in candidates:
                with torch.no_grad():
                    bound.v.copy_(vector)
                found += Decoder(free, bound).answers(prompts, most=args.tokens)
            return found

        ratios, seconds = [], []
        for turn in range(args.rounds):
            began = time.perf_counter()
            one = together()
            middle = time.perf_counter()
            other = swapped()
            ended = time.perf_counter()
            ratios.append((ended - middle) / (middle - began))
            seconds.append((middle - began, ended - middle))
            same = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
            one_batch, swaps = seconds[-1]
            tell(f"round {turn}: one batch {one_batch:.2f} s, swaps {swaps:.2f} s, {100 * same:.1f} % equal")
    finally:
        bound.detach()
    return {
        "figure": "population", "base": base.name, "population": args.population, "prompts_each": args.rows,
        "tokens": args.tokens, "batch_s": statistics.median(a for a, _ in seconds),
        "swaps_s": statistics.median(b for _, b in seconds), "ratio": statistics.median(ratios), "answers_equal": same,
    }  # fmt: skip


def skill(args: argparse.Namespace, base_name: str) -> list[dict[str, Any]]:
    from whit.verbs.reward import train_reward

    found = []
    for optimizer in args.optimizers:
        for numbers in args.numbers:
            for seed in range(args.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    settings = TrainSettings(
                        data=args.data, base=base_name, out=Path(folder) / "out", limit=args.limit, seed=seed,
                        reward=(args.reward or f"gym:{args.gym}",), optimizer=optimizer, epochs=args.epochs,
                        numbers=numbers if numbers else None, kind="tiny" if numbers else "lora",
                        rank=None if numbers else 8, evaluations=4, max_tokens=args.tokens, samples=args.samples,
                        population=args.candidates, batch=args.batch, instruction=args.instruction,
                    )  # fmt: skip
                    result = train_reward(settings)
                plain, about = result.to_json(), result.card
                found.append(
                    {
                        "figure": "skill", "task": args.gym if args.data is None else args.data.stem,
                        "base": base_name, "optimizer": optimizer, "numbers": result.adapter.numbers, "seed": seed,
                        **{key: plain[key] for key in (
                            "rows", "base", "tuned", "difference", "interval", "p_value", "base_skill", "tuned_skill",
                            "skill_difference", "skill_interval", "skill_p_value", "format_difference", "verdict",
                            "answers", "seconds",
                        )},
                        "baselines": {name: each["score"] for name, each in plain["baselines"].items()},
                        "forgetting": about.forgetting.after - about.forgetting.before,
                    }
                )  # fmt: skip
                tell(f"{optimizer} {result.adapter.numbers} numbers seed {seed}: {plain['sentence']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rollouts", "population", "skill", "all"))
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a random tiny base and small sizes: a smoke test")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--population", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--gym", default="chain_sum,max_terms=2,max_digits=2")
    parser.add_argument("--reward", help="instead of --gym, with --data")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--instruction")
    parser.add_argument("--optimizers", nargs="+", default=["grpo", "es"])
    parser.add_argument("--numbers", type=int, nargs="+", default=[13, 52, 210], help="0 is LoRA r=8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=32)
    args = parser.parse_args()
    if args.tiny:
        from whit.testing import write_tiny_base

        folder = tempfile.mkdtemp()
        args.base, args.dtype = str(write_tiny_base(folder, hidden=32, heads=2, kv_heads=1, ffn=64)), "float32"
        args.rounds, args.prompts, args.samples, args.tokens, args.population = 1, 2, 2, 4, 4
        args.numbers, args.optimizers, args.seeds, args.limit, args.epochs = [13], ["grpo", "es"], 1, 60, 0.2
        args.candidates = 4
    rows: list[dict[str, Any]] = []
    if args.what != "skill":
        base = open_base(args.base, args.dtype)
        if args.what in ("population", "all"):
            rows.append(population(args, base))
        if args.what in ("rollouts", "all"):
            rows.append(rollouts(args, base))
    if args.what in ("skill", "all"):
        rows += skill(args, args.base)
    report(rows)


if __name__ == "__main__":
    main()
