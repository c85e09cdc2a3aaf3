"""The page's LoRA run (rank 4, batch 8) in Python, on the same rows, and adapters carried between the two as zips.

Settings are those that the page takes for small bases (`whit.bundle.pack`); the optimiser and what is kept of a run are
`whit.training.sft`'s own. Knows no browser.
"""

from __future__ import annotations

import io
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from whit.bases import Base
from whit.data.rows import Row


class Twin:
    """A base, rows to learn and rows to answer."""

    def __init__(self, base: Base, learned: list[Row], test: list[Row]) -> None:
        from whit.evaluation.proof import Examiner
        from whit.evaluation.scoring import make_scorer

        self.base, self.learned, self.test = base, learned, test
        # As the page bounds its held-out answers.
        self.most = max(len(base.encode(row.completion)) for row in learned) + 8
        self.examiner = Examiner(base, make_scorer("auto", learned), None, self.most)

    def train(self, steps: int) -> dict[str, Any]:
        from whit.adapters.targets import all_targets
        from whit.adapters.tunable import tune_lora
        from whit.training.sft import Plan, train

        targets = all_targets(name for name, _ in self.base.model.named_modules())
        bound = tune_lora(self.base, targets, rank=4, alpha=8.0, dropout=0.0, seed=0)
        encoded = self.examiner.encode(self.learned, learn=True)
        plan = Plan(epochs=8 * steps / len(encoded), batch=8, learning_rate=3e-3, evaluations=1)
        began, spent = time.perf_counter(), time.process_time()
        trained = train(self.base, bound, encoded, plan, lambda: 0.0)
        took, used = time.perf_counter() - began, time.process_time() - spent
        bound.detach()
        with tempfile.TemporaryDirectory() as folder:
            trained.adapter.save(Path(folder) / "python")
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                for file in sorted((Path(folder) / "python").iterdir()):
                    archive.write(file, f"python/{file.name}")
        file = packed.getvalue()
        return {"seconds": took, "cores": used / took, "file": file, "answers": self.answers(file)}

    def answers(self, file: bytes) -> list[str]:
        """What a LoRA answers the held-out rows with, read from a zip of its folder."""
        from whit.adapters.adapter import Adapter
        from whit.adapters.tunable import bind

        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(io.BytesIO(file)) as archive:
                archive.extractall(folder)
            bound = bind(self.base, Adapter.load(next(Path(folder).iterdir())))
            try:
                return [text.strip() for text in self.examiner.answer(self.examiner.encode(self.test), bound)]
            finally:
                bound.detach()

    def score(self, answers: list[str]) -> float:
        scores = self.examiner.score(answers, self.test)
        return round(sum(score.value for score in scores) / len(scores), 3)
