"""Baking a guide of some 900 tokens into an adapter: what of the teacher's dev score is kept, and what a request saves.

    python benchmarks/baking.py

`whit bake benchmarks/baking-guide.md` with SmolLM2 on inputs of sst2, whose labels only judge. The teacher is the
base with the guide; agreement with it, gold scores of the bare base, the teacher and the adapter, prompt tokens and
milliseconds of single requests are on dev.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import data_folder, report

from whit.settings import BakeSettings
from whit.talk import Talk
from whit.verbs.bake import bake


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--guide", type=Path, default=Path(__file__).with_name("baking-guide.md"))
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--dev", type=int, default=400)
    parser.add_argument("--kind", default="xs")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--instruction", help="a short instruction that stays")
    options = parser.parse_args()
    folder = data_folder() / "sst2"
    with tempfile.TemporaryDirectory() as place:
        held = Path(place) / "dev.jsonl"
        held.write_text(
            "\n".join((folder / "dev.jsonl").read_text("utf-8").splitlines()[: options.dev]) + "\n", "utf-8"
        )
        settings = BakeSettings(
            guide=options.guide, inputs=folder / "train.jsonl", test_data=held, base=options.base, limit=options.rows,
            kind=options.kind, epochs=options.epochs, instruction=options.instruction, out=Path(place) / "out",
            evaluations=4, validation_rows=100,
        )  # fmt: skip
        found = bake(settings, talk=Talk()).to_json()
    gold = found["gold"]
    report([{
        "guide_tokens": round(found["saved"]["tokens_with"] - found["saved"]["tokens_without"]),
        "agreement": round(found["agreement"], 4), "base_agreement": round(found["base_agreement"], 4),
        "verdict": found["verdict"], "bare_base": round(gold["bare"], 4), "teacher": round(gold["base"], 4),
        "adapter": round(gold["tuned"], 4), "kept_of_teacher": round(gold["tuned"] / gold["base"], 4),
        "adapter_minus_teacher": [round(bound, 4) for bound in gold["interval"]],
        "prompt_tokens_saved": round(found["saved"]["tokens_saved"], 4),
        "ms_with": round(found["saved"]["ms_with"]), "ms_without": round(found["saved"]["ms_without"]),
        "lost": len(found["lost"]), "dev_rows": gold["rows"],
    }])  # fmt: skip


if __name__ == "__main__":
    main()
