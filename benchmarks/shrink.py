"""sst2: a LoRA, and the adapter of a two-thousandth of its numbers that learns what the LoRA expects.

    python benchmarks/shrink.py --threads 1

LoRAs of `--teachers` seeds (r=8, all projections) learn 2,000 rows with their labels. The small adapter (`xs`, r=3 in
layers 11 to 29: 1,197 numbers) learns, by `whit train --teacher --unlabelled`, the mean of their distributions on these
and on 3,920 rows whose labels nobody is told. The last state of each is taken, and answers dev, which none saw. Printed
are the scores, and the small one's difference to each LoRA with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from common import INSTRUCTIONS, data_folder, report

from whit.data.rows import read_rows
from whit.settings import TrainSettings
from whit.talk import Talk
from whit.verbs.train import TrainResult, train

UPPER = ("*.layers.1[1-9].*", "*.layers.2[0-9].*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--rows", type=int, default=2000, help="labelled rows to learn from")
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--unlabelled", type=int, default=3920)
    parser.add_argument("--dev", type=int, help="only the first N dev rows")
    parser.add_argument("--rank", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=list(UPPER))
    parser.add_argument("--teachers", type=int, default=2, help="LoRAs to learn from, of as many seeds")
    parser.add_argument("--epochs", type=float, default=2.0, help="of the small adapter")
    parser.add_argument(
        "--seeds", type=int, default=1, help="of the small adapter: the best on validation, or their mean"
    )
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    rows = read_rows(data_folder() / "sst2" / "train.jsonl")
    dev = read_rows(data_folder() / "sst2" / "dev.jsonl")[: options.dev]
    labelled = options.rows + options.validation
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {"labelled": rows[:labelled], "more": rows[labelled : labelled + options.unlabelled], "dev": dev}
        for part, some in parts.items():
            lines = [
                json.dumps({"id": row.id, "prompt": row.prompt}
                           | ({"completion": row.completion} if part != "more" else {}))
                for row in some
            ]  # fmt: skip
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
        large = TrainSettings(
            data=folder / "labelled.jsonl", test_data=folder / "dev.jsonl", base=options.base, kind="lora", rank=8,
            alpha=16.0, epochs=1.0, instruction=INSTRUCTIONS["sst2"], score="label", shots=(), baselines=False,
            validation=options.validation / labelled, threads=options.threads, evaluations=1, max_tokens=4,
        )  # fmt: skip
        teachers = tuple(folder / f"large-{seed}" for seed in range(options.teachers))
        found = [timed(replace(large, out=out, seed=seed)) for seed, out in enumerate(teachers)]
        small = replace(
            large, out=folder / "small", kind="xs", rank=options.rank, targets=tuple(options.targets), alpha=None,
            epochs=options.epochs, teacher=teachers, unlabelled=folder / "more.jsonl", baselines=True,
            seeds=options.seeds,
        )  # fmt: skip
        pupil, seconds = timed(small)
    numbers = [result.adapter.numbers for result, _ in found]
    report([
        *({"system": f"LoRA r=8, seed {seed}", "numbers": numbers[seed], "seconds": round(took, 1),
           "right": round(result.card.result.tuned, 4), "rows": len(dev)} for seed, (result, took) in enumerate(found)),
        {"system": "xs, by what they expect", "numbers": pupil.adapter.numbers, "seconds": round(seconds, 1),
         "right": round(pupil.card.result.tuned, 4), "rows": len(dev),
         "times_fewer_numbers": round(numbers[0] / pupil.adapter.numbers)},
        *({"compare": f"xs minus {name}", "difference": round(against.difference, 4),
           "interval": [round(bound, 4) for bound in against.interval], "p_value": round(against.p_value, 4)}
          for name, against in pupil.card.baselines.items() if name.startswith(("the teacher", "teacher"))),
    ])  # fmt: skip


def timed(settings: TrainSettings) -> tuple[TrainResult, float]:
    """What training made, and its seconds, proof included."""
    began = time.monotonic()
    return train(settings, talk=Talk()), time.monotonic() - began


if __name__ == "__main__":
    main()
