"""The detectors on the `pii` set's dev rows: recall by type, false alarms, and time for a text of 4 kB.

    python benchmarks/detectors.py

A span counts as found where a detector of its kind found anything in its row (that is what keeps a row inside). A
false alarm is any find in a row without a span of a structured type. Names and places have no pattern: without an
adapter their recall is zero, and is printed so. Time is this process's CPU time, so that a busy machine does not count.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

from whit.routing.config import Detection
from whit.routing.detection.scanner import Scanner

STRUCTURED = {
    "CREDIT_CARD": "card", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "PHONE_NUMBER": "phone",
    "US_SSN": "national_id", "IP_ADDRESS": "ip", "US_DRIVER_LICENSE": "document",
}  # fmt: skip


def main() -> None:
    named = os.environ.get("WHIT_SHARED_DATA")
    data = (Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data") / "tasks" / "pii"
    scanner = Scanner(Detection())
    texts: list[str] = []
    for split in ("train", "dev"):
        found: Counter[str] = Counter()
        total: Counter[str] = Counter()
        plain = alarms = 0
        for line in (data / f"{split}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            texts.append(row["text"])
            scan = scanner([row["text"]])
            kinds = {span["type"] for span in row["spans"]}
            for span in row["spans"]:
                total[span["type"]] += 1
                found[span["type"]] += STRUCTURED.get(span["type"]) in scan.kinds
            if not kinds & set(STRUCTURED):
                plain += 1
                alarms += not scan.clean
        structured = [kind for kind in total if kind in STRUCTURED]
        recall = sum(found[kind] for kind in structured) / max(1, sum(total[kind] for kind in structured))
        by_type = {kind: [found[kind], total[kind]] for kind in sorted(total)}
        print(json.dumps({"split": split, "structured recall": round(recall, 4), "false alarms": [alarms, plain],
                          "found of": by_type}))  # fmt: skip
    joined = " ".join(texts)
    pieces = [joined[at : at + 4096] for at in range(0, min(len(joined) - 4096, 4096 * 60), 4096)]
    times = []
    for piece in pieces * 5:
        began = time.process_time()
        scanner([piece])
        times.append(1000 * (time.process_time() - began))
    times.sort()
    print(
        json.dumps({"4 kB, ms p50": round(times[len(times) // 2], 2), "p99": round(times[int(0.99 * len(times))], 2)})
    )


if __name__ == "__main__":
    main()
