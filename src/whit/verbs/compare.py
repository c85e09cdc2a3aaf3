"""`whit compare`: base and adapter side by side, on the held-out rows that `whit train` kept the answers of.

Rows that one got right and the other wrong come first. Nothing is loaded or computed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whit.errors import AdapterError, DamagedAdapter
from whit.settings import CompareSettings
from whit.talk import Talk
from whit.verbs import common

_LARGEST = 1 << 30
_WIDTH = 76


@dataclass(frozen=True)
class CompareResult:
    """Rows with both answers and scores; `held_out` counts all that there were."""

    adapter: str
    held_out: int
    rows: tuple[dict[str, Any], ...]
    wins: int
    losses: int

    def to_json(self) -> dict[str, Any]:
        """`rows`: each with `id`, `prompt`, `completion`, `base`, `tuned`, `base_score`, `tuned_score`."""
        return {
            "contract": common.CONTRACT,
            "adapter": self.adapter,
            "held_out": self.held_out,
            "wins": self.wins,
            "losses": self.losses,
            "rows": list(self.rows),
        }

    def to_text(self) -> str:
        """A block a row."""
        blocks = [f"{self.held_out:,} held-out rows: the adapter won {self.wins:,} and lost {self.losses:,}"]
        for row in self.rows:
            better, worse = row["tuned_score"] > row["base_score"], row["tuned_score"] < row["base_score"]
            mark = "+" if better else "-" if worse else "="
            blocks.append(
                f"{mark} {_short(row['prompt'])}\n    wanted  {_short(row['completion'])}\n"
                f"    base    {_short(row['base'])}\n    tuned   {_short(row['tuned'])}"
            )
        return "\n".join(blocks)


def compare(settings: CompareSettings, *, talk: Talk | None = None) -> CompareResult:
    """Read the held-out answers of an adapter's folder. Raises `AdapterError` where there are none."""
    path = Path(settings.adapter) / common.HELD_OUT_NAME
    if not path.is_file():
        raise AdapterError(f"{path}: no held-out answers there; give a folder that `whit train` made")
    if path.stat().st_size > _LARGEST:
        raise DamagedAdapter(f"{path}: too large to be held-out answers of whit")
    keys = {"id", "prompt", "completion", "base", "tuned", "base_score", "tuned_score"}
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DamagedAdapter(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or set(row) != keys:
            raise DamagedAdapter(f"{path}, line {number}: not a held-out answer of whit")
        rows.append(row)
    ordered = sorted(rows, key=lambda row: (-abs(row["tuned_score"] - row["base_score"]), row["id"]))
    wins = sum(row["tuned_score"] > row["base_score"] for row in rows)
    losses = sum(row["tuned_score"] < row["base_score"] for row in rows)
    return CompareResult(settings.adapter, len(rows), tuple(ordered[: settings.rows]), wins, losses)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
