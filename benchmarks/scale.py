"""Quantised weights in memory, two processes against one, and a sweep on a cluster of which a node is killed.

    python benchmarks/scale.py memory
    python benchmarks/scale.py processes --threads 1
    python benchmarks/scale.py sweep here --base eeny --rows 4800 --epochs 2 --threads 2
    python benchmarks/scale.py sweep there --base eeny --rows 4800 --epochs 2

`memory` counts the bytes of all weights as they are held, and the peak of resident memory in one training step of 8
rows of 107 tokens, with layers kept and computed twice (Linux; `step` is that alone). `processes` trains the same `xs`
adapter on sst2 for `--steps` steps, once in one process and once in two, each with `--threads` threads, and times the
sum of the gradients in the team of two, for the numbers of the adapter and for as many as a LoRA of rank 8 has. What
nf4 costs in accuracy is printed by `python benchmarks/sst2.py xs --base smollm2:nf4 base` and `… xs base`.

`sweep here` is `whit sweep` over 12 variants one after another with `--threads` threads (2 of them are the same cores
that the cluster has); `sweep there` the same on two nodes of one CPU each, Ray's own processes on this machine, the
second of which is killed when half of the variants have ended and does not come back. Both in fresh processes, from the
command to its end, proof included. Cores are not the same all the time there, so core-seconds are compared: wall time
while a node lived, times one core, and here times the threads.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import data_folder, examiner, open_base, report, task, tell
from sst2 import fresh

from whit.data.rows import Row
from whit.data.templates import Encoded
from whit.training.batching import Batch, collate
from whit.training.memory import SPARE, checkpointed, step_bytes
from whit.training.parallel import Team, team_of, train_together
from whit.training.sft import LEARNING_RATES, Plan, loss_of, train

LORA = 2_442_240  # numbers of a LoRA of rank 8 on every projection of SmolLM2-135M


def memory(options: argparse.Namespace) -> None:
    held = {}
    for name in (options.base, f"{options.base}:int8", f"{options.base}:nf4"):
        model = open_base(name, "bfloat16").model
        parts = {part.data_ptr(): part for part in (*model.parameters(), *model.buffers())}
        held[name] = sum(part.numel() * part.element_size() for part in parts.values())
        report([{"base": name, "bytes": held[name], "share_of_bfloat16": round(held[name] / held[options.base], 4)}])
        del model, parts
    for more in ([], ["--checkpointing"]):  # in a process of its own each, whose memory holds nothing else
        subprocess.run([sys.executable, __file__, "step", "--base", options.base, *more], check=True)


def step_memory(options: argparse.Namespace, checkpointing: bool) -> None:
    """Bytes that one step takes beside the base: the estimate, and the peak of resident memory above what was held."""
    base, draw = open_base(options.base), torch.Generator().manual_seed(0)
    size = int(base.model.config.vocab_size)
    ids = torch.randint(0, size, (8, 107), generator=draw).tolist()
    rows = [Encoded(Row(str(at), (), ""), each[:104], each[104:]) for at, each in enumerate(ids)]
    bound = fresh(base, "xs")
    estimate = step_bytes(
        base, rows, batch=8, accumulate=1, numbers=bound.numbers, checkpointing=checkpointing
    ) + SPARE  # fmt: skip

    def step(batch: Batch) -> None:
        with checkpointed(base, checkpointing), bound.active():
            loss_of(base, batch).mean().backward()

    step(collate(rows[:1]))  # what is loaded and allocated once
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    step(collate(rows))
    report([{"base": options.base, "dtype": base.dtype, "rows": 8, "tokens": 107, "checkpointing": checkpointing,
             "estimated_bytes": estimate, "peak_bytes": resident("VmHWM") - before}])  # fmt: skip


def resident(which: str) -> int:
    """Bytes of this process, from its status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return 1024 * int(line.split()[1])


def steps(options: argparse.Namespace, team: Team) -> dict[str, Any]:
    """Examples a second of the middle steps, and the loss at the end."""
    of = task("sst2", rows=options.steps * options.batch, validation=10, dev=1)
    exam = examiner(open_base(options.base), of, max_tokens=4)
    bound = fresh(exam.base, "xs")
    plan = Plan(epochs=1.0, batch=options.batch, learning_rate=LEARNING_RATES["xs", "adam"], evaluations=1, patience=9)
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


GRID = """
data = {data}
[train]
base = {base}
instruction = "Classify the sentiment of the movie review. Answer with one word, positive or negative."
limit = {rows}
validation = 0.15
test = 0.15
epochs = {epochs}
evaluations = 2
validation-rows = 40
shots = []
[grid]
kind = ["lora"]
rank = [2, 4, 8, 16]
learning-rate = [0.0005, 0.001, 0.002]
"""


def sweep(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        grid = Path(place) / "grid.toml"
        data = json.dumps(str(data_folder() / "sst2" / "train.jsonl"))
        grid.write_text(GRID.format(data=data, base=json.dumps(options.base), rows=options.rows, epochs=options.epochs))
        if options.where == "here":
            took, _, found = swept(grid, [], threads=options.threads)
            row = {
                "threads": options.threads,
                "seconds": round(took, 1),
                "core_seconds": round(took * options.threads, 1),
            }
        else:
            row, found = on_two_nodes(grid)
    ended = [each for each in found["variants"] if each["error"] is None]
    scores = {each["name"]: each["score"] for each in ended}
    report([{"sweep": options.where, "base": options.base, "rows": options.rows, "epochs": options.epochs,
             "variants": len(found["variants"]), "ended": len(ended), **row,
             "winner": next(each["name"] for each in ended if each["kept"]),
             "scores": scores, "verdict": found["verdict"]}])  # fmt: skip


def swept(
    grid: Path, more: Sequence[str], on_half: Callable[[], None] | None = None, *, threads: int = 1
) -> tuple[float, float, Any]:
    """`whit sweep` in a process of its own: seconds until its end, and until `on_half` was called; its JSON."""
    command = [sys.executable, "-c", "from whit.cli import main; main()", "sweep", str(grid), "--threads", str(threads)]
    command += ["--json", "--out", str(grid.parent / "out"), *more]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    out = grid.with_suffix(".json")
    began, ended, half = time.perf_counter(), 0, 0.0
    with (
        out.open("wb") as answer,
        subprocess.Popen(command, stdout=answer, stderr=subprocess.PIPE, text=True, env=env) as running,
    ):
        assert running.stderr is not None
        for line in running.stderr:
            tell(line.rstrip())
            ended += " on validation (" in line
            if ended == 6 and half == 0.0:
                half = time.perf_counter() - began
                if on_half is not None:
                    on_half()
    if running.returncode:
        sys.exit(f"whit sweep ended with {running.returncode}")
    return time.perf_counter() - began, half, json.loads(out.read_text("utf-8"))


def kill(cluster: Any, node: Any) -> None:
    """End a node as a power cut does, its workers with it."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    cluster.remove_node(node, allow_graceful=False)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


def on_two_nodes(grid: Path) -> tuple[dict[str, Any], Any]:
    from ray.cluster_utils import Cluster

    os.environ["OMP_NUM_THREADS"] = "1"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        took, half, found = swept(grid, ["--ray", cluster.address], lambda: kill(cluster, second))
    finally:
        cluster.shutdown()
    return {"seconds": round(took, 1), "killed_after": round(half, 1), "core_seconds": round(took + half, 1)}, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "step", "processes", "sweep"))
    parser.add_argument("where", nargs="?", choices=("here", "there"), default="here", help="sweep: where")
    parser.add_argument("--rows", type=int, default=1200, help="sweep: rows of sst2, with those held out")
    parser.add_argument("--epochs", type=float, default=1.0, help="sweep: of each variant")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true", help="step: compute layers twice")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with team_of(1, []) as team:
            found = steps(options, team)
            for count in (found["numbers"], LORA):
                sums(team, count)
    elif options.what == "sweep":
        sweep(options)
    elif options.what == "memory":
        memory(options)
    elif options.what == "step":
        step_memory(options, options.checkpointing)
    else:
        tell("one process, then two")
        processes(options)


if __name__ == "__main__":
    main()
