"""`whit train` as a command, from its start to the verdict: seconds and peak memory, with whit's own defaults.

    python benchmarks/whole.py --base meeny --task sms_spam --rows 500

The rows are drawn by their ids' hashes from the training split; whit splits them itself, and its verdict is on the part
that it held out. The linear classifier of the same proof stands beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import INSTRUCTIONS, report
from tasks import drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="meeny")
    parser.add_argument("--task", default="sms_spam", choices=sorted(INSTRUCTIONS))
    parser.add_argument("--rows", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data = drawn(options.task, "train", options.rows, Path(place))
        words = ["train", str(data), "--base", options.base, "--instruction", INSTRUCTIONS[options.task]]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "whit", *words, "--out", str(Path(place) / "out"), "--json"],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        seconds = time.monotonic() - began
    found = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    report([{"base": options.base, "task": options.task, "rows": options.rows, "seconds": round(seconds, 1),
             "peak_gigabytes": round(peak / 1e9, 2), "verdict": found["verdict"], "held_out": found["rows"],
             "base_score": round(found["base"], 4), "tuned": round(found["tuned"], 4),
             "linear": found["baselines"].get("TF-IDF + linear", {}).get("score")}])  # fmt: skip


if __name__ == "__main__":
    main()
