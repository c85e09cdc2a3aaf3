"""eeny and meeny after five minutes of tuning: LoRA, all weights, and a linear classifier without a language model.

    python benchmarks/small.py sms_spam clinc150 banking77 snips sst2 --base meeny

Every way learns from the same rows (drawn by their ids' hashes; clinc150 without those out of scope), LoRA and all
weights for the same `--seconds` by the clock, rates falling, batches alike; each is scored once, on dev. "All weights"
trains the dequantised matrices, embedding and norms of the same base in float32, by the same loop. Of snips, `score` is
the share of answers whose intent is right, and `slots` the micro-averaged F1 of slot and value. --validation scores on
rows drawn from the training split in place of dev: to choose rates and batches by.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from common import INSTRUCTIONS, Task, data_folder, examiner, open_base, report, sample, tell
from torch import nn

from whit.adapters.adapter import Adapter
from whit.adapters.targets import all_targets
from whit.adapters.tunable import Bound, tune_lora
from whit.bases import Base
from whit.data.rows import Row, read_rows
from whit.data.templates import Encoded
from whit.errors import AdapterError
from whit.evaluation.baselines import TextBaseline
from whit.evaluation.scoring import Score
from whit.evaluation.verdict import compare
from whit.training.sft import Plan, Supervised, default_rate

TASKS = ("sms_spam", "clinc150", "banking77", "snips", "sst2")
TOKENS = {"snips": 96}


class AllWeights(Bound):
    """Every weight of the base in the place of an adapter; `detach` puts back what it was."""

    def __init__(self, base: Base) -> None:
        self._parameters = list(base.model.parameters())
        self._before = [parameter.detach().clone() for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.requires_grad_(True)

    @property
    def numbers(self) -> int:
        return sum(parameter.numel() for parameter in self._parameters)

    def parameters(self) -> list[nn.Parameter]:
        return self._parameters

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        yield

    def export(self) -> Adapter:
        raise AdapterError("all weights are no adapter")

    def load(self, adapter: Adapter) -> None:
        raise AdapterError("all weights are no adapter")

    def detach(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._before, strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(False)


def drawn(name: str, rows: int, validation: int) -> Task:
    """Training rows, and those to score on: dev, or `validation` rows drawn after the training rows."""
    folder = data_folder() / name
    train = [row for row in sample(read_rows(folder / "train.jsonl")) if row.completion != "oos"]
    held = [row for row in read_rows(folder / "dev.jsonl") if row.completion != "oos"]
    if validation:
        train, held = train[: len(train) - validation], train[len(train) - validation :]
    return Task(name, train[:rows], [], held, INSTRUCTIONS[name].replace(", or oos", ""))


def steps_within(run: Supervised, seconds: float) -> int:
    """The steps that fit, from the time of a few; the run stands where it stood."""
    run.advance()  # the first allocates
    began = time.monotonic()
    for run.step in range(1, 9):
        run.advance()
    each = (time.monotonic() - began) / 8
    return max(1, round(seconds / each))


def trained(base: Base, bound: Bound, encoded: Sequence[Encoded], options: argparse.Namespace, way: str) -> Supervised:
    """Tune for `--seconds`; the numbers are then the mean over the last steps."""

    def fresh(epochs: float, rate: float = 1e-3) -> Supervised:
        plan = Plan(epochs=epochs, batch=options.batch, learning_rate=rate, evaluations=1, patience=9)
        return Supervised(base, bound, encoded, plan, lambda: 0.0, lambda progress: None)

    start = [parameter.detach().clone() for parameter in bound.parameters()]
    steps = steps_within(fresh(1e6), options.seconds)
    asked = options.rate if way == "lora" else options.all_rate
    rate = asked or default_rate(base, "lora", "adam", steps)
    assert rate is not None
    run = fresh(steps * options.batch / len(encoded), rate)
    run.put(start)
    began = time.monotonic()
    while run.step < run.steps:
        run.advance()
        run.step += 1
        if run.step % 100 == 0:
            spent, loss = time.monotonic() - began, sum(run.losses[-100:]) / 100
            tell(f"step {run.step}/{run.steps}, loss {loss:.3f}, {spent:.0f} s")
    run.seconds = time.monotonic() - began
    run.put(run.kept())
    return run


def read(answer: str) -> tuple[str, set[tuple[str, str]]]:
    """Intent, and slots with their values, of an answer of snips, as far as they can be read."""
    try:
        found = json.loads(answer)
    except ValueError:
        found = dict(re.findall(r'"(\w+)": "((?:[^"\\]|\\.)*)"', answer))
    found = found if isinstance(found, dict) else {}
    slots = {(str(key), str(value)) for key, value in found.items() if key != "intent"}
    return str(found.get("intent", "")), slots


def scored(of: Task, answers: Sequence[str], scores: Sequence[Score]) -> tuple[list[Score], dict[str, float]]:
    """What counts for a task, and what is told beside it."""
    if of.name != "snips":
        return list(scores), {}
    both = said = wanted = 0
    intents = []
    for answer, row in zip(answers, of.dev, strict=True):
        (intent, slots), (gold, expected) = read(answer), read(row.completion)
        intents.append(Score(float(intent == gold)))
        both, said, wanted = both + len(slots & expected), said + len(slots), wanted + len(expected)
    return intents, {"slots": round(2 * both / max(1, said + wanted), 4)}


def linear(of: Task) -> list[str]:
    """The linear classifier's answers; of snips, its intents."""
    if of.name != "snips":
        return TextBaseline("label").fit(of.train).predict(of.dev)
    rows = [Row(row.id, row.turns, read(row.completion)[0]) for row in of.train]
    return [json.dumps({"intent": intent}) for intent in TextBaseline("label").fit(rows).predict(of.dev)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--base", default="meeny")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=270.0, help="of training, for each way")
    parser.add_argument("--ways", nargs="+", choices=("lora", "all"), default=["lora", "all"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, help="of LoRA; twice its rank unless given")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, help="of LoRA; whit's own for as many steps unless given")
    parser.add_argument("--all-rate", type=float, default=1e-3, help="of all weights")
    parser.add_argument("--validation", type=int, default=0, help="score on so many training rows in place of dev")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = open_base(options.base, "float32")
    for parameter in base.model.parameters():
        parameter.requires_grad_(False)
    for name in options.tasks:
        of = drawn(name, options.rows, options.validation)
        exam = examiner(base, of, max_tokens=TOKENS.get(name, 16))
        encoded = exam.encode(of.train, learn=True)
        asked = exam.encode(of.dev)
        about = {"task": name, "base": options.base, "rows": len(of.train), "scored_on": len(of.dev),
                 "split": "training rows held out" if options.validation else "dev"}  # fmt: skip
        found: dict[str, list[Score]] = {}
        for way in options.ways:
            if way == "lora":
                targets = all_targets(module for module, _ in base.model.named_modules())
                bound: Bound = tune_lora(
                    base, targets, rank=options.rank, alpha=options.alpha or 2.0 * options.rank, dropout=0.0, seed=0
                )
            else:
                bound = AllWeights(base)
            run = trained(base, bound, encoded, options, way)
            answers = exam.answer(asked, bound if way == "lora" else None)
            bound.detach()
            found[way], more = scored(of, answers, exam.score(answers, of.dev))
            row = {**about, "way": way, "numbers": bound.numbers, "batch": options.batch,
                   "rate": round(run.plan.learning_rate, 6), "seconds": round(run.seconds, 1),
                   "passes": round(run.steps * options.batch / len(encoded), 2),
                   "last_loss": round(sum(run.losses[-100:]) / len(run.losses[-100:]), 4),
                   "score": round(sum(score.value for score in found[way]) / len(of.dev), 4), **more}  # fmt: skip
            report([row])
        answers = linear(of)
        found["linear"], _ = scored(of, answers, exam.score(answers, of.dev))
        report([{**about, "way": "TF-IDF + linear",
                 "score": round(sum(score.value for score in found["linear"]) / len(of.dev), 4)}])  # fmt: skip
        for one, other in itertools.combinations(found, 2):
            against = compare(found[other], found[one])
            interval = [round(bound, 4) for bound in against.interval]
            pair: dict[str, Any] = {"difference": round(against.difference, 4), "interval": interval}
            report([{**about, "compare": f"{one} minus {other}", **pair}])


if __name__ == "__main__":
    main()
