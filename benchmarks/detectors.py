"""The detectors on the `pii` set: recall by type and by template, false alarms, and time for a text of 4 kB.

    python benchmarks/detectors.py                          the fast detectors, and the built-in adapter `names`
    python benchmarks/detectors.py --adapter FOLDER         another adapter, made by whit route learn
    python benchmarks/detectors.py --adapter ""             the fast detectors alone

Structured types: a span counts as found where a detector of its kind found anything in its row (that is what keeps a
row inside). Names and places, by the adapter: `row` counts in the same way, `span` where one mark or more of any kind
overlaps the span. No template of dev occurs in train. Health is not among the set's types, so its recall is on rows
written for this project, of templates and terms that training never saw (`examples/sensitive-later.jsonl`). False
alarms are rows that hold nothing and were kept inside all the same: of dev, of those examples, and of banking77 dev,
whose messages hold hardly any names (a few name a country). Time is this process's CPU time, one thread, so that a
busy machine does not count.
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


def named(rows: list[dict[str, Any]], marks: tagger.Tagger, split: str) -> None:
    """Recall of the adapter by type and by template, and its false alarms."""
    spans: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    in_row: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    templates: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    bare, other = [0, 0], [0, 0]
    for row in rows:
        marked = marks.marks(row["text"])
        wanted = [span for span in row["spans"] if span["type"] in KIND_OF]
        for span in wanted:
            hit = any(mark.start < span["end"] and span["start"] < mark.stop for mark in marked)
            for counts in (spans[span["type"]], templates[str(row.get("template"))]):
                counts[0] += hit
                counts[1] += 1
            in_row[span["type"]][0] += bool(marked)
            in_row[span["type"]][1] += 1
        if not wanted:
            counts = other if row["spans"] else bare
            counts[0] += bool(marked)
            counts[1] += 1
    every = [sum(each[0] for each in spans.values()), sum(each[1] for each in spans.values())]
    ranked = sorted(templates.items(), key=lambda each: each[1][0] / each[1][1])
    print(json.dumps({
        "rows": split, "detectors": "adapter", "spans found of": every,
        "recall": round(every[0] / max(1, every[1]), 4), "by type": dict(sorted(spans.items())),
        "rows kept inside, by type": dict(sorted(in_row.items())),
        "by template, worst first": dict(ranked), "false alarms in rows without any span": bare,
        "marked in rows with other types only": other,
    }, ensure_ascii=False))  # fmt: skip


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
    named(rows["dev"], marks, "pii dev")
    later = [
        {"text": row.text, "template": row.template,
         "spans": [{"type": span.type, "start": span.start, "end": span.stop} for span in row.spans]}
        for row in read_marked(ROOT / "examples" / "sensitive-later.jsonl")
    ]  # fmt: skip
    named(later, marks, "examples/sensitive-later")
    said = [row["prompt"] for row in read(data / "banking77" / "dev.jsonl")]
    alarms = [text for text in said if marks(text)]
    print(json.dumps({"rows": "banking77 dev", "detectors": "adapter", "false alarms": [len(alarms), len(said)]}))
    for marks.threshold in (0.5, 0.7):
        spans = [(row["text"], [each for each in row["spans"] if each["type"] in KIND_OF]) for row in rows["dev"]]
        seen = [
            any(mark.start < span["end"] and span["start"] < mark.stop for mark in found)
            for text, wanted in spans
            for found in [marks.marks(text)]
            for span in wanted
        ]
        alarms = [text for text in said if marks(text)]
        print(json.dumps({
            "detectors": "adapter", "threshold": marks.threshold, "pii dev, spans found of": [sum(seen), len(seen)],
            "banking77 dev, false alarms": [len(alarms), len(said)],
        }))  # fmt: skip
    timed("adapter", marks, texts)


if __name__ == "__main__":
    main()
