"""`whit sweep --ray`: every variant ends though a node is killed half-way, and the table is that of a sweep here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from whit.settings import SweepSettings
from whit.talk import Talk
from whit.verbs.sweep import SweepResult, sweep


class Disturbing(Talk):
    """Does something once, when the first variant has ended."""

    def __init__(self, disturb: Callable[[], object]) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._disturb: Callable[[], object] | None = disturb

    def say(self, text: str) -> None:
        self.lines.append(text)
        if self._disturb is not None and "on validation (" in text:
            disturb, self._disturb = self._disturb, None
            disturb()

    def progress(self, *given: Any, **more: Any) -> None:
        pass


@pytest.mark.slow
def test_all_variants_end_though_a_node_is_killed(
    cluster: Any, second: Callable[..., Any], kill: Callable[[Any], None], rows: Path, base: Path, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(
        f"data = '{rows}'\n[train]\nbase = '{base}'\ndtype = 'float32'\ninstruction = 'card or cash?'\nbatch = 8\n"
        "evaluations = 4\nepochs = 8.0\nshots = []\nbaselines = false\nvalidation-rows = 8\n"
        "[grid]\nkind = ['tiny', 'xs']\nlearning-rate = [0.01, 0.05]\n"
        "[[variant]]\nname = 'too many'\nkind = 'tiny'\nnumbers = 1000000000\n"
    )
    node = second()
    heard = Disturbing(lambda: kill(node))
    settings = SweepSettings(grid=grid, out=tmp_path / "away", ray=cluster.address, threads=1)
    away = sweep(settings, talk=heard)
    assert isinstance(away, SweepResult)
    assert sum(row["error"] is None for row in away.variants) == 4
    assert (away.variants[-1]["name"] == "too many" and "weights" in away.variants[-1]["error"]) or "numbers" in (
        away.variants[-1]["error"]
    )
    assert "it goes on from" in "\n".join(heard.lines) or "was lost" in "\n".join(heard.lines), heard.lines
    here = sweep(replace(settings, out=tmp_path / "here", ray=None))
    assert isinstance(here, SweepResult)
    scores = {row["name"]: row["score"] for row in here.variants}
    assert {row["name"]: row["score"] for row in away.variants} == pytest.approx(scores)
    assert away.card.result == here.card.result and away.card.base == here.card.base
    assert {"card.json", "sweep.json", "sweep.svg", "report.html"} <= {each.name for each in away.folder.iterdir()}
    # What was fetched is kept there no longer.
    stopped = sweep(replace(settings, stop=True))
    assert stopped.to_json()["stopped"] is False
    assert "ray" in sys.modules
