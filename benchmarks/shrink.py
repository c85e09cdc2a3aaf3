"""sst2: a LoRA, and the adapter of a two-thousandth of its numbers that learns what the LoRA expects.

    python benchmarks/shrink.py --threads 1

The LoRA (r=8, all projections) learns 2,000 rows with their labels. The small one (`xs`, r=3 in layers 11 to 29: 1,197
numbers) learns, by `whit train --teacher --unlabelled`, the LoRA's distributions on these and on 3,920 rows whose
labels nobody is told. Both are chosen by validation rows of their own, and answer dev, which neither saw. Printed are
both scores, and the small one's difference to the LoRA with its 95 % interval.
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
from whit.verbs.train import train

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
    parser.add_argument("--epochs", type=float, default=1.0, help="of the small adapter")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
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
            data=folder / "labelled.jsonl", test_data=folder / "dev.jsonl", base=options.base, out=folder / "large",
            kind="lora", rank=8, alpha=16.0, epochs=1.0, instruction=INSTRUCTIONS["sst2"], score="label", shots=(),
            baselines=False, validation=options.validation / labelled, seed=options.seed, threads=options.threads,
            evaluations=1, max_tokens=4,
        )  # fmt: skip
        small = replace(
            large, out=folder / "small", kind="xs", rank=options.rank, targets=tuple(options.targets), alpha=None,
            epochs=options.epochs, teacher=folder / "large", unlabelled=folder / "more.jsonl", baselines=True,
        )  # fmt: skip
        talk, found = Talk(), []
        for settings in (large, small):
            began = time.monotonic()
            found.append((train(settings, talk=talk), time.monotonic() - began))
    (teacher, first), (pupil, second) = found
    against = pupil.card.baselines["the teacher"]
    report([
        {"system": "LoRA r=8", "numbers": teacher.adapter.numbers, "right": round(teacher.card.result.tuned, 4),
         "rows": len(dev), "seconds": round(first, 1)},
        {"system": "xs by the LoRA", "numbers": pupil.adapter.numbers, "right": round(pupil.card.result.tuned, 4),
         "rows": len(dev), "seconds": round(second, 1),
         "times_fewer_numbers": round(teacher.adapter.numbers / pupil.adapter.numbers)},
        {"compare": "xs minus LoRA", "difference": round(against.difference, 4),
         "interval": [round(bound, 4) for bound in against.interval], "p_value": round(against.p_value, 4)},
    ])  # fmt: skip


if __name__ == "__main__":
    main()
