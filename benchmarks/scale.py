"""Quantised weights in memory, and two processes against one: examples a second, and what crosses between them.

    python benchmarks/scale.py memory
    python benchmarks/scale.py processes --threads 1

`memory` counts the bytes of all weights as they are held. `processes` trains the same `xs` adapter on sst2 for
`--steps` steps, once in one process and once in two, each with `--threads` threads, and times the sum of the gradients
in the team of two, for the numbers of the adapter and for as many as a LoRA of rank 8 has. What nf4 costs in accuracy
is printed by `python benchmarks/sst2.py xs --base smollm2:nf4 base` and `python benchmarks/sst2.py xs base`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from typing import Any

import torch
from common import examiner, open_base, report, task, tell
from sst2 import fresh

from whit.training.parallel import Team, team_of, train_together
from whit.training.sft import LEARNING_RATES, Plan, train

LORA = 2_442_240  # numbers of a LoRA of rank 8 on every projection of SmolLM2-135M


def memory(options: argparse.Namespace) -> None:
    held = {}
    for name in (options.base, f"{options.base}:int8", f"{options.base}:nf4"):
        model = open_base(name, "bfloat16").model
        parts = {part.data_ptr(): part for part in (*model.parameters(), *model.buffers())}
        held[name] = sum(part.numel() * part.element_size() for part in parts.values())
        report([{"base": name, "bytes": held[name], "share_of_bfloat16": round(held[name] / held[options.base], 4)}])


def steps(options: argparse.Namespace, team: Team) -> dict[str, Any]:
    """Examples a second of the middle steps, and the loss at the end."""
    of = task("sst2", rows=options.steps * options.batch, validation=10, dev=1)
    exam = examiner(open_base(options.base), of, max_tokens=4)
    kind, bound = fresh(exam.base, "xs")
    plan = Plan(epochs=1.0, batch=options.batch, learning_rate=LEARNING_RATES[kind, "adam"], evaluations=1, patience=9)
    ticks: list[float] = []
    losses: list[float] = []

    def watch(progress: Any) -> None:
        ticks.append(time.perf_counter())
        losses.append(progress.loss)

    encoded = exam.encode(of.train, learn=True)
    if team.size > 1:
        train_together(exam.base, bound, encoded, plan, lambda: 0.5, team, watch=watch)
    else:
        train(exam.base, bound, encoded, plan, lambda: 0.5, watch=watch)
    numbers = bound.numbers
    bound.detach()
    took = [after - before for before, after in itertools.pairwise(ticks)]
    rate = options.batch / statistics.median(took)
    return {"numbers": numbers, "examples_per_second": round(rate, 2), "last_loss": losses[-1]}


def sums(team: Team, numbers: int) -> float:
    """Milliseconds of one sum over the team."""
    took = []
    for _ in range(20):
        values = torch.ones(numbers + 1)
        began = time.perf_counter()
        team.sum(values)
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def processes(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    one = steps(options, Team())
    report([{"processes": 1, "threads": options.threads, "base": options.base, **one}])
    torch.set_num_threads(2 * options.threads)  # divided among the two
    with team_of(2, [sys.executable, __file__, *sys.argv[1:], "--worker"]) as team:
        two = steps(options, team)
        crossing = {str(count): round(sums(team, count), 3) for count in (two["numbers"], LORA)}
    report([{"processes": 2, "threads": options.threads, "base": options.base, **two,
             "times_one": round(two["examples_per_second"] / one["examples_per_second"], 3),
             "bytes_a_step": 4 * (two["numbers"] + 1), "ms_of_a_sum_by_numbers": crossing}])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "processes"))
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with team_of(1, []) as team:
            found = steps(options, team)
            for count in (found["numbers"], LORA):
                sums(team, count)
    elif options.what == "memory":
        memory(options)
    else:
        tell("one process, then two")
        processes(options)


if __name__ == "__main__":
    main()
