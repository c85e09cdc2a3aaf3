"""Shared tasks with the kind and size that whit picks by itself, with every baseline, scored on dev.

    python benchmarks/tasks.py clinc150 snips

Exactly what `whit train train.jsonl --test-data dev.jsonl` does with its defaults; --rows bounds the training rows and
--dev the dev rows (the first of each), --kind and --numbers choose another adapter.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common import INSTRUCTIONS, data_folder, report, tell

import whit
from whit.talk import Talk, clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=sorted(INSTRUCTIONS))
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--dev", type=int)
    parser.add_argument("--kind")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--epochs", type=float)
    options = parser.parse_args()
    for name in options.tasks:
        with tempfile.TemporaryDirectory() as folder:
            held = Path(folder) / "dev.jsonl"
            lines = (data_folder() / name / "dev.jsonl").read_text("utf-8").splitlines()[: options.dev]
            held.write_text("\n".join(lines) + "\n", "utf-8")
            result = whit.train(
                data_folder() / name / "train.jsonl", test_data=held, base=options.base, limit=options.rows,
                instruction=INSTRUCTIONS[name], kind=options.kind, rank=options.rank, epochs=options.epochs,
                out=Path(folder) / "out", talk=Talk(),
            )  # fmt: skip
        found = result.to_json()
        tell(json.dumps(found))
        baselines = {
            other: {"score": round(item["score"], 4), "adapter_minus_it": round(item["difference"], 4)}
            for other, item in found["baselines"].items()
        }
        row = {
            "task": name, "kind": found["kind"], "numbers": found["numbers"], "payload_bytes": found["payload_bytes"],
            "dev_rows": found["rows"], "base": round(found["base"], 4), "base_skill": round(found["base_skill"], 4),
            "tuned": round(found["tuned"], 4), "interval_of_gain": [round(bound, 4) for bound in found["interval"]],
            "verdict": found["verdict"], "baselines": baselines, "training": clock(result.card.cost.seconds),
        }  # fmt: skip
        report([row])


if __name__ == "__main__":
    main()
