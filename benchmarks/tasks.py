"""Shared tasks with the kind and size that whit picks by itself, with every baseline, scored on dev.

    python benchmarks/tasks.py clinc150 snips

Exactly what `whit train train.jsonl --test-data dev.jsonl` does with its defaults. --rows bounds the training rows and
--dev the dev rows (drawn by their ids' hashes); --kind, --rank, --epochs, --batch and --rate choose otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common import INSTRUCTIONS, data_folder, report, sample, tell

import whit
from whit.data.rows import read_rows
from whit.talk import Talk, clock


def drawn(name: str, split: str, rows: int | None, folder: Path) -> Path:
    """A file of `rows` rows of a split, drawn by their ids' hashes."""
    source, path = data_folder() / name / f"{split}.jsonl", folder / f"{split}.jsonl"
    by_id = {str(json.loads(line)["id"]): line for line in source.read_text("utf-8").splitlines()}
    path.write_text("\n".join(by_id[row.id] for row in sample(read_rows(source))[:rows]) + "\n", "utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=sorted(INSTRUCTIONS))
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--dev", type=int)
    parser.add_argument("--kind")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    for name in options.tasks:
        with tempfile.TemporaryDirectory() as folder:
            data = drawn(name, "train", options.rows, Path(folder))
            held = drawn(name, "dev", options.dev, Path(folder))
            result = whit.train(
                data, test_data=held, base=options.base, instruction=INSTRUCTIONS[name], kind=options.kind,
                rank=options.rank, epochs=options.epochs, batch=options.batch, learning_rate=options.rate,
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
