"""`whit route learn`: an adapter that marks names, places and health, from texts with marked spans."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whit.errors import UsageError
from whit.settings import RouteSettings
from whit.talk import Talk
from whit.verbs import common


@dataclass(frozen=True)
class LearnResult:
    """Where the adapter is, and what it found on held-out templates: words of each kind, found and all."""

    out: Path
    base: str
    numbers: int
    bytes: int
    rows: int
    held_out: int
    threshold: float
    found: dict[str, tuple[int, int]]
    false_words: tuple[int, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "contract": common.CONTRACT, "out": str(self.out), "base": self.base, "numbers": self.numbers,
            "bytes": self.bytes, "rows": self.rows, "held_out": self.held_out, "threshold": self.threshold,
            "found": {kind: list(counts) for kind, counts in self.found.items()},
            "false_words": list(self.false_words), "seconds": round(self.seconds, 1),
        }  # fmt: skip

    def to_text(self) -> str:
        """A few lines."""
        found = ", ".join(f"{kind} {some} of {every}" for kind, (some, every) in self.found.items() if every)
        wrong, plain = self.false_words
        return (
            f"{self.numbers:,} numbers ({self.bytes:,} bytes) learnt from {self.rows:,} rows in {self.seconds:.0f} s\n"
            f"on {self.held_out:,} rows of held-out templates, by word: {found}; "
            f"marked for nothing {wrong} of {plain:,}\n"
            f'written to {self.out}; name it in tiers.toml: [detectors] adapter = "{self.out}"'
        )


def learn(words: list[str], settings: RouteSettings, talk: Talk) -> LearnResult:
    """Train on the rows of the files `words`. Raises `UsageError`, `DataError`, `TrainingError`."""
    if not words:
        raise UsageError("whit route learn takes one or more files of rows with text and spans")
    from whit.bases import load_base
    from whit.files import atomic_write
    from whit.routing.detection import teaching
    from whit.routing.detection.tagger import LABELS

    began = time.monotonic()
    rows = [row for word in words for row in teaching.read_marked(Path(word))]
    out = settings.out or Path(words[0]).with_suffix("")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    with talk.task(f"Loading {settings.base}"):
        base = load_base(settings.base, dtype="float32")

    def watch(step: int, steps: int, loss: float) -> None:
        talk.progress("Learning", step, steps, time.monotonic() - began, f"loss {loss:.3f}")

    learnt = teaching.learn(base, rows, rank=settings.rank, epochs=settings.epochs,
                            learning_rate=settings.learning_rate, seed=settings.seed, watch=watch)  # fmt: skip
    saved = learnt.adapter.save(out)
    card = {
        **learnt.adapter.describe(), "base": settings.base, "fingerprint": base.fingerprint,
        "marks": {"labels": list(LABELS), "threshold": learnt.threshold},
        "held_out": {"rows": learnt.held_out, "found": learnt.found, "false_words": learnt.false_words},
        "settings": {"rows": learnt.rows, "rank": settings.rank, "epochs": settings.epochs,
                     "learning_rate": settings.learning_rate, "seed": settings.seed},
    }  # fmt: skip
    atomic_write(out / "card.json", json.dumps(card, indent=1) + "\n")
    return LearnResult(
        out, base.name, learnt.adapter.numbers, saved.stat().st_size, learnt.rows, learnt.held_out, learnt.threshold,
        learnt.found, learnt.false_words, time.monotonic() - began,
    )  # fmt: skip
