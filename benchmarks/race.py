"""Wall time to the same reward: whit's GRPO on a few numbers against TRL's GRPOTrainer with PEFT's LoRA r=8.

    python benchmarks/race.py --data rows.jsonl --reward json --instruction '…' --target 0.4
    python benchmarks/race.py --gym syllogism --peer-rates 1e-4 1e-3

Both draw --samples answers to each of --batch prompts a step, of at most --tokens tokens at temperature 1, from the
same rows, graded by the same function, with the same advantages (normalised by group, no KL, one update a step). A
side has arrived when the mean reward of its last --window steps is --target; it stops there, or after --steps steps
or --minutes minutes. Seconds are of training, from its first step on. TRL runs with each of --peer-rates (its
defaults but for what would slow it here: no gradient checkpointing, no bfloat16 autocast); its fastest counts.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import open_base, report, tell

from whit.adapters.targets import all_targets
from whit.adapters.tunable import tune_lora, tune_vector
from whit.adapters.vector import tiny_spec
from whit.bases import Base
from whit.data.rows import Row, read_rows
from whit.data.templates import Encoded
from whit.evaluation.proof import Examiner
from whit.rewards import make_reward
from whit.rewards.gym import write_rows
from whit.rewards.reward import Reward
from whit.training.grpo import default_rate, train_grpo
from whit.training.reward import RewardPlan, RewardProgress


class Arrived(Exception):
    """The target is reached, or the time is over."""


class Course:
    """A side's rewards, step by step, and when it arrived; `at` raises `Arrived` where it should stop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.target, self.window, self.until = options.target, options.window, 60 * options.minutes
        self.rewards: list[float] = []
        self.seconds: float | None = None
        self.began = time.monotonic()

    def at(self, reward: float) -> None:
        self.rewards.append(reward)
        spent, last = time.monotonic() - self.began, self.rewards[-self.window :]
        tell(f"step {len(self.rewards)}: reward {reward:.3f}, {sum(last) / len(last):.3f} of late; {spent:.0f} s")
        if len(last) == self.window and sum(last) / len(last) >= self.target:
            self.seconds = spent
        if self.seconds is not None or spent > self.until:
            raise Arrived

    def to_json(self) -> dict[str, Any]:
        late = self.rewards[-self.window :]
        return {
            "seconds_to_target": self.seconds and round(self.seconds, 1), "steps": len(self.rewards),
            "seconds": round(time.monotonic() - self.began, 1), "reward_of_late": round(sum(late) / len(late), 4),
        }  # fmt: skip


def ours(options: argparse.Namespace, base: Base, rows: Sequence[Encoded], reward: Reward) -> dict[str, Any]:
    targets = all_targets(name for name, _ in base.model.named_modules())
    if options.numbers:
        bound: Any = tune_vector(base, tiny_spec([target.index for target in targets], options.numbers))
    else:
        bound = tune_lora(base, targets, rank=8, alpha=16, dropout=0.0, seed=0)
    rate = options.rate or default_rate(base, "tiny" if options.numbers else "lora")
    course: list[Course] = []

    def watch(progress: RewardProgress) -> None:
        course[0].at(progress.measures.reward)

    with tempfile.TemporaryDirectory() as folder:
        plan = RewardPlan(
            steps=options.steps, batch=options.batch, learning_rate=rate, most=options.tokens, samples=options.samples,
            evaluations=1, patience=1, seed=0, run="race", checkpoint=Path(folder) / "run.safetensors",
        )  # fmt: skip
        course.append(Course(options))
        try:
            train_grpo(base, bound, rows, reward, plan, lambda: 0.0, watch=watch)
        except Arrived:
            pass
        finally:
            bound.detach()
    return {"numbers": bound.numbers if options.numbers else "lora r=8", "rate": rate, **course[0].to_json()}


def theirs(
    options: argparse.Namespace, base: Base, rows: Sequence[Encoded], reward: Reward, rate: float
) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    by_id: dict[str, Row] = {row.row.id: row.row for row in rows}
    course: list[Course] = []

    def graded(completions: Sequence[str], row: Sequence[str], **more: Any) -> list[float]:
        grades = reward.grade(list(completions), [by_id[name] for name in row])
        course[0].at(sum(grade.reward for grade in grades) / len(grades))
        return [grade.reward for grade in grades]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, max_steps=options.steps, num_generations=options.samples, temperature=1.0, top_k=0,
            top_p=1.0, beta=0.0, per_device_train_batch_size=options.batch * options.samples, learning_rate=rate,
            max_completion_length=options.tokens, report_to=[], use_cpu=not torch.cuda.is_available(), bf16=False,
            gradient_checkpointing=False, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            shuffle_dataset=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=copy.deepcopy(base.model),
            reward_funcs=graded,
            args=config,
            train_dataset=Dataset.from_list(
                [{"prompt": base.decode(row.prompt_ids), "row": row.row.id} for row in rows]
            ),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        )
        course.append(Course(options))
        with contextlib.suppress(Arrived):
            trainer.train()
    return {"rate": rate, **course[0].to_json()}


def problems(options: argparse.Namespace, folder: Path) -> tuple[list[Row], str]:
    if options.data is not None:
        return list(read_rows(options.data))[: options.limit], options.reward
    return list(
        read_rows(write_rows(folder / "rows.jsonl", options.gym, count=options.limit, seed=7))
    ), f"gym:{options.gym}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--reward", default="label")
    parser.add_argument("--gym", default="syllogism")
    parser.add_argument("--instruction", default="Answer with the result alone.")
    parser.add_argument("--limit", type=int, default=800)
    parser.add_argument("--numbers", type=int, default=13, help="0 is LoRA r=8")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--peer-rates", type=float, nargs="*", default=[1e-4, 1e-3])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--target", type=float, default=0.4)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=8.0, help="of each side")
    options = parser.parse_args()
    base = open_base(options.base)
    with tempfile.TemporaryDirectory() as folder:
        rows, name = problems(options, Path(folder))
    reward = make_reward([name], rows)
    try:
        encoded = Examiner(base, reward.scorer, options.instruction, options.tokens).encode(rows)
        mine = ours(options, base, encoded, reward)
        peers = [theirs(options, base, encoded, reward, rate) for rate in options.peer_rates]
    finally:
        reward.close()
    times = [each["seconds_to_target"] for each in peers if each["seconds_to_target"]]
    most = max((each["seconds"] for each in peers), default=None)
    result: dict[str, Any] = {"reward": name, "target": options.target, "whit": mine, "trl": peers}
    if mine["seconds_to_target"] and times:
        result["whit_over_trl"] = round(mine["seconds_to_target"] / min(times), 3)
    elif mine["seconds_to_target"] and most:
        result["whit_over_trl_below"] = round(mine["seconds_to_target"] / most, 3)  # TRL did not arrive
    report([result])


if __name__ == "__main__":
    main()
