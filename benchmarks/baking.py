"""Baking some 900 tokens of instruction and examples into an adapter: what it keeps of the teacher, and what it saves.

    python benchmarks/baking.py

`whit bake benchmarks/baking-guide.md --examples benchmarks/baking-examples.jsonl` with SmolLM2 on inputs of sms_spam,
whose labels only judge. The teacher is the base with the instruction and the examples, all written for this; agreement
with it, gold scores of the bare base, the teacher and the adapter, prompt tokens and milliseconds of single requests
are on dev. Inputs to learn from are taken as they come, or, with --even, with as many of each label (the labels do this
alone). Seven of eight messages are no spam, so that who says "ok" to everything looks well: on dev the classes are also
given apart, with their mean (`balanced`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import data_folder, report

from whit.settings import BakeSettings
from whit.talk import Talk
from whit.verbs.bake import bake


def even(lines: list[str], rows: int) -> list[str]:
    """The first of a file's lines with as many of each label, in the file's order."""
    labels = [json.loads(line)["completion"] for line in lines]
    each = rows // len(set(labels))
    left = dict.fromkeys(labels, each)
    found = []
    for line, label in zip(lines, labels, strict=True):
        if left[label]:
            left[label] -= 1
            found.append(line)
    return found


def by_class(answers: list[dict[str, Any]], gold: dict[str, str]) -> dict[str, dict[str, float]]:
    """How often teacher and adapter give each gold label where it is due."""
    found: dict[str, dict[str, float]] = {}
    for label in sorted(set(gold.values())):
        # `completion` is what the teacher said, `tuned` what the adapter says.
        some = [row for row in answers if gold[row["id"].removeprefix("held out ")] == label]
        for who, key in (("teacher", "completion"), ("adapter", "tuned")):
            right = sum(row[key].strip().lower() == label.lower() for row in some)
            found.setdefault(label, {"rows": len(some)})[who] = round(right / len(some), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--guide", type=Path, default=Path(__file__).with_name("baking-guide.md"))
    parser.add_argument("--examples", type=Path, default=Path(__file__).with_name("baking-examples.jsonl"))
    parser.add_argument("--task", default="sms_spam")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--even", action="store_true", help="inputs with as many of each label")
    parser.add_argument("--dev", type=int, default=300)
    parser.add_argument("--kind", default="xs")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--validation-rows", type=int, default=150)
    parser.add_argument("--instruction", help="a short instruction that stays")
    options = parser.parse_args()
    folder = data_folder() / options.task
    with tempfile.TemporaryDirectory() as place:
        held = Path(place) / "dev.jsonl"
        held.write_text(
            "\n".join((folder / "dev.jsonl").read_text("utf-8").splitlines()[: options.dev]) + "\n", "utf-8"
        )
        inputs = Path(place) / "inputs.jsonl"
        every = (folder / "train.jsonl").read_text("utf-8").splitlines()
        taken = even(every, options.rows) if options.even else every[: options.rows]
        inputs.write_text("\n".join(taken) + "\n", "utf-8")
        settings = BakeSettings(
            guide=options.guide, examples=options.examples, inputs=inputs, test_data=held,
            base=options.base, kind=options.kind, epochs=options.epochs,
            instruction=options.instruction, out=Path(place) / "out", evaluations=4,
            validation_rows=options.validation_rows,
        )  # fmt: skip
        result = bake(settings, talk=Talk())
        found = result.to_json()
        held_out = [json.loads(line) for line in (result.folder / "held-out.jsonl").read_text("utf-8").splitlines()]
        gold_of = {row["id"]: row["completion"] for row in map(json.loads, held.read_text("utf-8").splitlines())}
    gold, classes = found["gold"], by_class(held_out, gold_of)
    balanced = {
        who: round(sum(each[who] for each in classes.values()) / len(classes), 4) for who in ("teacher", "adapter")
    }
    report([{
        "guide_tokens": round(found["saved"]["tokens_with"] - found["saved"]["tokens_without"]),
        "agreement": round(found["agreement"], 4), "base_agreement": round(found["base_agreement"], 4),
        "verdict": found["verdict"], "bare_base": round(gold["bare"], 4), "teacher": round(gold["base"], 4),
        "adapter": round(gold["tuned"], 4),
        "kept_of_teacher": round(gold["tuned"] / gold["base"], 4) if gold["base"] else None,
        "adapter_minus_teacher": [round(bound, 4) for bound in gold["interval"]],
        "prompt_tokens_saved": round(found["saved"]["tokens_saved"], 4),
        "ms_with": round(found["saved"]["ms_with"]), "ms_without": round(found["saved"]["ms_without"]),
        "lost": len(found["lost"]), "dev_rows": gold["rows"], "by_class": classes, "balanced": balanced,
    }])  # fmt: skip


if __name__ == "__main__":
    main()
