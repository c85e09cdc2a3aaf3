"""The detectors on the `pii` set: recall by type and by template, false alarms, and time for a text of 4 kB.

    python benchmarks/detectors.py                          the fast detectors, and the built-in adapter `names`
    python benchmarks/detectors.py --adapter FOLDER         another adapter, made by whit route learn
    python benchmarks/detectors.py --adapter ""             the fast detectors alone

Structured types: a span counts as found where a detector of its kind found anything in its row (that is what keeps a
row inside). Names and places, by the adapter, at several thresholds: a span counts as found where a mark of any kind
overlaps it. No template of dev occurs in train. Health is not among the set's types, so its recall is on rows written
for this project, of templates and terms that training never saw (`examples/sensitive-later.jsonl`). False alarms are
rows that hold nothing and were marked all the same: of dev, of those examples, and of every second message of banking77
dev, which hold hardly any names (a few name a country). Time is this process's CPU time, one thread, so that a busy
machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from whit.routing.config import Detection
from whit.routing.detection import tagger
from whit.routing.detection.scanner import Scanner
from whit.routing.detection.teaching import KIND_OF, read_marked

THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.8)
ROOT = Path(__file__).resolve().parents[1]
STRUCTURED = {
    "CREDIT_CARD": "card", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "PHONE_NUMBER": "phone",
    "US_SSN": "national_id", "IP_ADDRESS": "ip", "US_DRIVER_LICENSE": "document",
}  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def structured(rows: list[dict[str, Any]], scanner: Scanner, split: str) -> None:
    """Recall of the fast detectors, and their false alarms."""
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    plain = alarms = 0
    for row in rows:
        scan = scanner([row["text"]])
        for span in row["spans"]:
            if span["type"] in STRUCTURED:
                total[span["type"]] += 1
                found[span["type"]] += STRUCTURED[span["type"]] in scan.kinds
        if not {span["type"] for span in row["spans"]} & set(STRUCTURED):
            plain += 1
            alarms += not scan.clean
    recall = sum(found.values()) / max(1, sum(total.values()))
    print(json.dumps({
        "rows": split, "detectors": "fast", "recall of structured types": round(recall, 4),
        "false alarms": [alarms, plain], "found of": {kind: [found[kind], total[kind]] for kind in sorted(total)},
    }))  # fmt: skip


class Seen:
    """Texts with the chances of their words, computed once: what is marked at any threshold."""

    def __init__(self, marks: tagger.Tagger, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self._words = [marks._words(row["text"]) for row in rows]
        self._chances = [marks.chances(words) for words in self._words]

    def marked(self, threshold: float) -> list[list[tagger.Mark]]:
        """The marks of each row."""
        every = zip(self.rows, self._words, self._chances, strict=True)
        return [list(tagger._joined(row["text"], words, chances, threshold)) for row, words, chances in every]

    def found(self, threshold: float, by: Any) -> dict[str, list[int]]:
        """Spans that a mark overlaps, and all, by what `by` says of a row and a span (None: not counted)."""
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row, marks in zip(self.rows, self.marked(threshold), strict=True):
            for span in row["spans"]:
                if (name := by(row, span)) is not None:
                    counts[name][0] += any(mark.start < span["end"] and span["start"] < mark.stop for mark in marks)
                    counts[name][1] += 1
        return dict(counts)

    def alarms(self, threshold: float) -> list[int]:
        """Rows without any span that are marked all the same, and all rows without any."""
        pairs = [(row, marks) for row, marks in zip(self.rows, self.marked(threshold), strict=True) if not row["spans"]]
        return [sum(bool(marks) for _, marks in pairs), len(pairs)]


def named(dev: Seen, later: Seen, plain: Seen, threshold: float) -> dict[str, Any]:
    """What the adapter finds and what it keeps inside for nothing, at one threshold: the table of docs/routing.md."""
    kinds = dev.found(threshold, lambda row, span: span["type"] if span["type"] in KIND_OF else None)
    templates = dev.found(threshold, lambda row, span: str(row.get("template")) if span["type"] in KIND_OF else None)
    every = [sum(counts[at] for counts in kinds.values()) for at in (0, 1)]
    worst = sorted(templates.items(), key=lambda each: each[1][0] / each[1][1])[:3]
    return {
        "threshold": threshold, "pii dev, names and places": every, "by type": dict(sorted(kinds.items())),
        "worst templates": dict(worst), "alarms in pii dev rows that hold nothing": dev.alarms(threshold),
        "alarms in every second message of banking77 dev": plain.alarms(threshold),
        "alarms in plain rows of sensitive-later": later.alarms(threshold),
        "sensitive-later, by type": dict(sorted(later.found(threshold, lambda row, span: span["type"]).items())),
    }  # fmt: skip


def timed(name: str, look: Any, texts: list[str]) -> None:
    """Milliseconds of CPU time for a text of 4 kB."""
    joined = " ".join(texts)
    pieces = [joined[at : at + 4096] for at in range(0, min(len(joined) - 4096, 4096 * 60), 4096)]
    look(pieces[0])
    times = []
    for piece in pieces * 5 if name == "fast" else pieces[:30]:
        began = time.process_time()
        look(piece)
        times.append(1000 * (time.process_time() - began))
    times.sort()
    print(json.dumps({"detectors": name, "4 kB, ms p50": round(times[len(times) // 2], 2),
                      "p99": round(times[int(0.99 * len(times))], 2), "texts": len(times)}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default=tagger.BUILT_IN)
    parser.add_argument("--base", default="")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    where = os.environ.get("WHIT_SHARED_DATA")
    data = (Path(where) if where else ROOT.parent / "shared" / "data") / "tasks"
    rows = {split: read(data / "pii" / f"{split}.jsonl") for split in ("train", "dev")}
    scanner = Scanner(Detection())
    for split in ("train", "dev"):
        structured(rows[split], scanner, f"pii {split}")
    texts = [row["text"] for split in rows.values() for row in split]
    timed("fast", lambda text: scanner([text]), texts)
    if not given.adapter:
        return
    import torch

    torch.set_num_threads(1)
    marks = tagger.Tagger.load(given.adapter, given.base)
    later = [
        {"text": row.text, "spans": [{"type": span.type, "start": span.start, "end": span.stop} for span in row.spans]}
        for row in read_marked(ROOT / "examples" / "sensitive-later.jsonl")
    ]  # fmt: skip
    said = [{"text": row["prompt"], "spans": []} for row in read(data / "banking77" / "dev.jsonl")[::2]]
    sets = [Seen(marks, each) for each in (rows["dev"], later, said)]
    for threshold in sorted({*THRESHOLDS, marks.threshold}):
        own = {"its own": True} if threshold == marks.threshold else {}
        print(json.dumps({"detectors": "adapter", **own, **named(*sets, threshold)}, ensure_ascii=False), flush=True)
    timed("adapter", marks, texts)


if __name__ == "__main__":
    main()
