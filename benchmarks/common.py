"""What the benchmarks share: the task data, one machine line, rows as JSON.

Data is found through WHIT_SHARED_DATA, else ../shared/data beside the checkout; none of it is in the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from whit.adapters.adapter import Adapter
from whit.adapters.lora import LoraWeights
from whit.adapters.targets import all_targets
from whit.bases import Base, load_base
from whit.data.rows import Row, read_rows
from whit.evaluation.proof import Examiner
from whit.evaluation.report import System
from whit.evaluation.scoring import make_scorer

INSTRUCTIONS = {
    "sst2": "Classify the sentiment of the movie review. Answer with one word, positive or negative.",
    "banking77": "Name the customer's intent.",
    "clinc150": "Name the intent, or oos.",
    "snips": "Turn the command into JSON.",
    "sms_spam": "Is this message spam or ok?",
}


@dataclass
class Task:
    """A task: rows to learn from, rows to choose by (both of the train split), and dev, for the report alone."""

    name: str
    train: list[Row]
    validation: list[Row]
    dev: list[Row]
    instruction: str = field(default="")


def data_folder() -> Path:
    named = os.environ.get("WHIT_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "tasks").is_dir():
        sys.exit(f"no task data at {folder}; set WHIT_SHARED_DATA to its folder")
    return folder / "tasks"


def sample(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """The rows in an order of their ids' hashes: clinc150's file is sorted by intent, and its head has a few only."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row.id}".encode()).digest())


def task(name: str, *, rows: int, validation: int, dev: int | None = None) -> Task:
    """The first `rows` training rows, and the `validation` rows after them; dev whole unless bounded."""
    folder = data_folder() / name
    train = read_rows(folder / "train.jsonl", limit=rows + validation)
    held = read_rows(folder / "dev.jsonl", limit=dev)
    if len(train) < rows + validation:
        rows = len(train) - validation
    return Task(name, train[:rows], train[rows:], held, INSTRUCTIONS[name])


def examiner(base: Base, of: Task, *, max_tokens: int) -> Examiner:
    return Examiner(base, make_scorer("auto", of.train), of.instruction, max_tokens)


def open_base(name: str, dtype: str = "auto") -> Base:
    return load_base(name, dtype=dtype)


def random_lora(base: Base, rank: int, *, size: float, seed: int) -> Adapter:
    """A LoRA of every module, its numbers drawn with standard deviation `size`; its scale is 1."""
    draw = torch.Generator().manual_seed(seed)
    names = [target.name for target in all_targets(name for name, _ in base.model.named_modules())]
    shapes = {name: base.model.get_submodule(name).weight.shape for name in names}
    A = {name: size * torch.randn((rank, shape[1]), generator=draw) for name, shape in shapes.items()}
    B = {name: size * torch.randn((shape[0], rank), generator=draw) for name, shape in shapes.items()}
    return Adapter("lora", base.fingerprint, lora=LoraWeights(rank, float(rank), A, B, base.fingerprint, base.name))


def mean(system: System) -> float:
    return sum(score.value for score in system.scores) / len(system.scores)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print results to stdout, a JSON object a line, the machine first."""
    import torch

    machine = {"cpu": _cpu(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["day"] = time.strftime("%F")
    for row in ({"machine": machine}, *rows):
        print(json.dumps(row, ensure_ascii=False), flush=True)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(__doc__)
