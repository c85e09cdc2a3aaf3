"""sst2 with SmolLM2-135M: accuracy on dev, and time to a validation accuracy, of whit's adapters and of TRL + PEFT.

    python benchmarks/sst2.py xs lora tiny:120 tiny:13 trl:5e-4 trl:1e-3

Every system learns from the same first 2,000 training rows, is watched on the 300 rows after them, and is scored
once on dev with the state that was best on those 300. Seconds are of training alone, evaluation left out. TRL's
SFTTrainer runs with its defaults but for what would slow it here (bfloat16 autocast and gradient checkpointing
are off), one pass instead of three (so that its rate falls sooner, which makes it reach the target sooner) and the
learning rate named after it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Task, examiner, mean, open_base, report, task, tell

from whit.adapters.sparse import SparseSpec
from whit.adapters.targets import Target, all_targets, select_targets
from whit.adapters.tunable import Bound, tune_lora, tune_sparse, tune_vector
from whit.adapters.vector import tiny_spec, xs_spec
from whit.data.templates import Encoded
from whit.evaluation.proof import Examiner
from whit.evaluation.scoring import Score
from whit.evaluation.verdict import compare
from whit.talk import Talk
from whit.training.sft import LEARNING_RATES, Plan, Progress, batch_losses, train
from whit.training.sparse import find_places
from whit.verbs.runs import CALIBRATION, best_or_mean

TARGET = 0.86


def fresh(base: Any, name: str, rows: Sequence[Encoded] = (), chosen: SparseSpec | None = None) -> Bound:
    """An adapter at its start; the places of a sparse one are `chosen`, or found on `rows` as `whit train` does."""
    name, _, where = name.partition("@")
    targets = all_targets(module for module, _ in base.model.named_modules())
    if where:
        patterns, _, layers = where.partition("@")
        first, _, last = layers.partition("-")
        some = select_targets(targets, patterns.split("+")) if patterns else targets
        targets = tuple(each for each in some if int(first or 0) <= each.layer <= int(last or each.layer))
    indices = [target.index for target in targets]
    kind, _, size = name.partition(":")
    if kind == "lora":
        return tune_lora(base, targets, rank=int(size or 8), alpha=16.0, dropout=0.0, seed=0)
    if kind == "xs":
        return tune_vector(base, xs_spec(indices, int(size or 2)))
    if kind == "sparse":
        return tune_sparse(base, chosen or places_of(base, targets, int(size), rows))
    numbers, _, groups = size.partition("/")
    return tune_vector(base, tiny_spec(indices, int(numbers), groups=int(groups) if groups else None))


def places_of(base: Any, targets: Sequence[Target], numbers: int, rows: Sequence[Encoded]) -> SparseSpec:
    losses = batch_losses(base, rows, rows=CALIBRATION, batch=4, seed=0)
    return find_places(base, targets, numbers, losses, rate=LEARNING_RATES["sparse", "adam"], on_round=tell_round)


def tell_round(done: int, of: int) -> None:
    tell(f"choosing weights: round {done}/{of}")


def run_whit(name: str, of: Task, exam: Examiner, options: argparse.Namespace) -> tuple[dict[str, Any], list[Score]]:
    kind = name.partition("@")[0].partition(":")[0]
    encoded = exam.encode(of.train, learn=True)
    watch_rows = exam.encode(of.validation)
    spent = {"evaluation": 0.0}
    curve: list[tuple[float, float]] = []
    state: dict[str, float] = {}
    began = time.monotonic()

    def score(bound: Bound) -> float:
        started = time.monotonic()
        values = exam.score(exam.answer(watch_rows, bound), of.validation)
        spent["evaluation"] += time.monotonic() - started
        accuracy = sum(item.value for item in values) / len(values)
        curve.append((started - began - spent["evaluation"] + (time.monotonic() - started), accuracy))
        tell(f"{name}: {curve[-1][0]:.0f} s of training, validation {accuracy:.3f}")
        return accuracy

    def watch(progress: Progress) -> None:
        state["loss"] = progress.loss
        if progress.step % 20 == 0:
            tell(f"{name}: step {progress.step}/{progress.steps}, loss {progress.loss:.3f}")

    rate = options.rate or LEARNING_RATES[kind, options.optimizer]
    epochs = options.lora_epochs if kind == "lora" else options.epochs
    begin = partial(fresh, exam.base, name, encoded)
    if kind == "sparse":  # its places are chosen once, for all seeds
        first = begin()
        begin = partial(begin, chosen=first.spec)
        first.detach()
    every = []
    for seed in range(options.seed, options.seed + options.seeds):
        plan = Plan(
            epochs=epochs, batch=options.batch, learning_rate=rate, optimizer=options.optimizer,
            evaluations=options.evaluations, patience=99, seed=seed,
        )  # fmt: skip
        bound = begin()
        every.append(train(exam.base, bound, encoded, plan, partial(score, bound), watch=watch))
        bound.detach()
    # As `whit train --seeds` keeps it; the seconds are those of all seeds.
    done = best_or_mean(every, begin, score, Talk())
    bound = begin()
    bound.load(done.adapter)
    held = exam.system(name, "adapter", of.dev, bound=bound)
    numbers, payload = bound.numbers, done.adapter.payload_bytes
    bound.detach()
    reached = next((seconds for seconds, accuracy in curve if accuracy >= TARGET), None)
    row = {
        "system": name, "numbers": numbers, "payload_bytes": payload, "optimizer": options.optimizer, "rate": rate,
        "dev_accuracy": round(mean(held), 4), "dev_rows": len(of.dev), "best_step": done.best.step, "steps": done.steps,
        "seeds": options.seeds, "mean_of": done.mean_of,
        "seconds_of_training": round(curve[-1][0], 1), "seconds_to_0.86": reached and round(reached, 1),
        # A prefix that rows share counts once for each row, though it is computed once a step.
        "tokens_per_second": round(sum(each.tokens for each in every) / curve[-1][0]),
        "curve": [(round(seconds, 1), round(accuracy, 4)) for seconds, accuracy in curve],
    }  # fmt: skip
    return row, list(held.scores)


def run_trl(name: str, of: Task, exam: Examiner, options: argparse.Namespace) -> tuple[dict[str, Any], list[Score]]:
    import tempfile

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    base = exam.base
    rate = float(name.partition(":")[2] or 5e-4)
    rows = [
        {
            # As the examiner asks: the instruction stands in the user's turn.
            "prompt": [{"role": "user", "content": f"{of.instruction}\n\n{row.prompt}"}],
            "completion": [{"role": "assistant", "content": row.completion}],
        }
        for row in of.train
    ]
    watch_rows = exam.encode(of.validation)
    curve: list[tuple[float, float]] = []
    clock = {"began": 0.0, "evaluation": 0.0}
    best: dict[str, Any] = {"score": -1.0, "state": {}, "step": 0}
    steps = int(len(rows) * options.trl_epochs / 8)
    marks = {max(1, round(steps * turn / options.evaluations)) for turn in range(1, options.evaluations + 1)}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            if state.global_step not in marks:
                return
            started = time.monotonic()
            model.eval()
            values = exam.score(exam.answer(watch_rows), of.validation)
            model.train()
            accuracy = sum(item.value for item in values) / len(values)
            curve.append((started - clock["began"] - clock["evaluation"], accuracy))
            if accuracy > best["score"]:
                trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
                best.update(score=accuracy, state=trained, step=state.global_step)
            clock["evaluation"] += time.monotonic() - started
            tell(f"{name}: {curve[-1][0]:.0f} s of training, validation {accuracy:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, learning_rate=rate, num_train_epochs=options.trl_epochs, report_to=[],
            bf16=False, gradient_checkpointing=False, save_strategy="no", logging_steps=20, seed=options.seed,
            dataset_num_proc=None, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=base.model, args=config, train_dataset=Dataset.from_list(rows), processing_class=base.tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Watch()],
        )  # fmt: skip
        numbers = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        clock["began"] = time.monotonic()
        trainer.train()
        with torch.no_grad():
            for parameter_name, parameter in trainer.model.named_parameters():
                if parameter_name in best["state"]:
                    parameter.copy_(best["state"][parameter_name])
        trainer.model.eval()
        held = exam.system("TRL + PEFT lora r=8", "adapter", of.dev)
        trainer.model.unload()
    reached = next((seconds for seconds, accuracy in curve if accuracy >= TARGET), None)
    row = {
        "system": name, "numbers": numbers, "payload_bytes": numbers * 4, "optimizer": "adamw",
        "rate": rate,
        "dev_accuracy": round(mean(held), 4), "dev_rows": len(of.dev), "best_step": best["step"], "steps": steps,
        "seconds_of_training": round(curve[-1][0], 1), "seconds_to_0.86": reached and round(reached, 1),
        "curve": [(round(seconds, 1), round(accuracy, 4)) for seconds, accuracy in curve],
    }  # fmt: skip
    return row, list(held.scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "systems",
        nargs="+",
        help="xs[:r], lora[:r], tiny:N[/groups], sparse:N, trl[:rate], base; whit's also @targets[@first layer[-last]]",
    )
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--dev", type=int, help="only the first N dev rows")
    parser.add_argument("--epochs", type=float, default=2.0, help="of xs and tiny (whit's default for 2,000 rows)")
    parser.add_argument("--lora-epochs", type=float, default=1.0)
    parser.add_argument("--trl-epochs", type=float, default=1.0)
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="of whit's: the best on validation, or their mean")
    parser.add_argument("--scores", type=Path, help="keep each dev row's score in this file; compare with those in it")
    options = parser.parse_args()
    of = task("sst2", rows=options.rows, validation=options.validation, dev=options.dev)
    base = open_base(options.base)
    exam = examiner(base, of, max_tokens=4)
    found: list[dict[str, Any]] = []
    scores: dict[str, list[Score]] = {}
    for name in options.systems:
        if name == "base":
            held = exam.system("base", "base", of.dev)
            row, scores[name] = {"system": "base", "dev_accuracy": round(mean(held), 4)}, list(held.scores)
        elif name.startswith("trl"):
            row, scores[name] = run_trl(name, of, exam, options)
        else:
            row, scores[name] = run_whit(name, of, exam, options)
        found.append(row)
        report([row])
    first = options.systems[0]
    if options.scores:
        earlier = json.loads(options.scores.read_text()) if options.scores.is_file() else {}
        scores |= {name: [Score(value) for value in values] for name, values in earlier.items() if name not in scores}
        options.scores.write_text(json.dumps({name: [item.value for item in each] for name, each in scores.items()}))
    for name in scores:
        if name == first:
            continue
        against = compare(scores[name], scores[first])
        pair = {"difference": round(against.difference, 4), "interval": [round(bound, 4) for bound in against.interval]}
        report([{"compare": f"{first} minus {name}", **pair, "p_value": against.p_value}])


if __name__ == "__main__":
    main()
