"""`whit sweep --ray`: every variant ends though a node is killed half-way, and the table is that of a sweep here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from whit.settings import SweepSettings
from whit.talk import Talk
from whit.verbs.sweep import SweepResult, sweep


class Disturbing(Talk):
    """Does something once: as soon as it may, after the first variant has ended."""

    def __init__(self, may: Callable[[], bool], disturb: Callable[[], object]) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._may, self._disturb = may, disturb
        self._ended: float | None = None  # when a variant last did
        self.done = False

    def say(self, text: str) -> None:
        self.lines.append(text)
        if "on validation (" in text:
            self._ended = time.monotonic()
        self.look()

    def progress(self, *given: Any, **more: Any) -> None:
        self.look()

    def look(self) -> None:
        # Ray tells a little late what a node has left: what it says right after an end may be of the one that ended.
        late = self._ended is not None and time.monotonic() - self._ended > 1.5
        if late and not self.done and self._may():
            self.done = True
            self._disturb()


def at_work(node: Any) -> bool:
    """Whether something runs on a node of one CPU; killed idle, it would cost nothing."""
    from ray._private.state import available_resources_per_node

    return float(available_resources_per_node().get(node.node_id, {}).get("CPU", 0.0)) < 1.0


@pytest.mark.slow
def test_all_variants_end_though_a_node_is_killed(
    cluster: Any, second: Callable[..., Any], kill: Callable[[Any], None], rows: Path, base: Path, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(
        f"data = '{rows}'\n[train]\nbase = '{base}'\ndtype = 'float32'\ninstruction = 'card or cash?'\nbatch = 8\n"
        "evaluations = 4\nepochs = 40.0\nshots = []\nbaselines = false\nvalidation-rows = 8\n"
        "[grid]\nkind = ['tiny', 'xs']\nlearning-rate = [0.01, 0.05]\n"
        "[[variant]]\nname = 'too many'\nkind = 'tiny'\nnumbers = 1000000000\n"
    )
    node = second()
    heard = Disturbing(lambda: at_work(node), lambda: kill(node))
    settings = SweepSettings(grid=grid, out=tmp_path / "away", ray=cluster.address, threads=1)
    away = sweep(settings, talk=heard)
    assert heard.done
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
