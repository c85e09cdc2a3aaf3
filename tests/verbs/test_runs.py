"""Several seeds: the best on validation is kept, or the mean of their adapters where it scores no worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import whit as api
from whit.adapters.adapter import Adapter
from whit.adapters.vector import xs_spec
from whit.data.rows import Row, Turn
from whit.settings import TrainSettings
from whit.talk import Talk
from whit.training.loop import Point, Trained
from whit.verbs import runs
from whit.verbs.runs import best_or_mean
from whit.verbs.train import with_kind


class Heard(Talk):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Place:
    """Holds an adapter, and remembers whether it was taken out."""

    def __init__(self) -> None:
        self.held: Adapter | None = None
        self.gone = False

    def load(self, adapter: Adapter) -> None:
        self.held = adapter

    def detach(self) -> None:
        self.gone = True


def seeds(*each: tuple[float, float]) -> list[Trained]:
    """Runs of (value of every number, score)."""
    spec = xs_spec([0, 1], 2)
    found = []
    for value, score in each:
        adapter = Adapter("xs", "a" * 64, "b" * 64, spec, np.full(8, value, np.float32), layers=1)
        point = Point(3, 0.5, score, 1.0)
        found.append(Trained(adapter, (point,), point, 3, 1.0, 10, False))
    return found


@pytest.mark.parametrize(("mean_scores", "kept"), [(0.9, 2.0), (0.8, 2.0), (0.7, 3.0)])
def test_the_mean_is_kept_where_it_is_no_worse(mean_scores: float, kept: float) -> None:
    place, talk = Place(), Heard()

    def score(bound: Any) -> float:
        assert bound.held is not None and float(bound.held.vector[0]) == 2.0
        return mean_scores

    found = best_or_mean(seeds((1.0, 0.6), (3.0, 0.8)), lambda: place, score, talk)  # type: ignore[arg-type, return-value]
    assert found.adapter.vector is not None and np.all(found.adapter.vector == kept)
    assert found.best.score == max(mean_scores, 0.8) and found.mean_of == (2 if kept == 2.0 else 1)
    assert place.gone and f"{100 * mean_scores:.1f}" in talk.lines[-1]


def test_the_place_is_left_though_scoring_fails() -> None:
    place = Place()

    def score(bound: Any) -> float:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        best_or_mean(seeds((1.0, 0.6), (3.0, 0.8)), lambda: place, score, Heard())  # type: ignore[arg-type, return-value]
    assert place.gone


def test_one_seed_and_adapters_without_a_mean_are_as_before() -> None:
    def never(*given: Any) -> Any:
        raise AssertionError("nothing is to be tried")

    (one,) = seeds((1.0, 0.6))
    assert best_or_mean([one], never, never, Heard()) is one
    bare = [
        Trained(Adapter("lora", "a" * 64), run.curve, run.best, 3, 1.0, 10, False) for run in seeds((1, 0.6), (2, 0.7))
    ]
    assert best_or_mean(bare, never, never, Heard()) is bare[1]


def test_train_says_what_was_kept(
    rows: Path, tmp_path: Path, options: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real run of two seeds: the numbers in its folder are those that were chosen, and the report says which."""
    talk, seen = Heard(), list[Adapter]()

    def watched(every: Sequence[Trained], *more: Any) -> Trained:
        seen.extend(trained.adapter for trained in every)
        return best_or_mean(every, *more)

    monkeypatch.setattr(runs, "best_or_mean", watched)
    given = {**options("xs"), "shots": (), "baselines": False, "limit": 60}
    result = api.train(rows, out=tmp_path / "both", seeds=2, talk=talk, **given)
    one, other, mean = *(adapter.vector for adapter in seen), Adapter.mean(seen)
    assert one is not None and other is not None and not np.array_equal(one, other)
    assert mean is not None and mean.vector is not None
    assert any("the mean of 2 seeds:" in line for line in talk.lines)
    page = (result.folder / "report.html").read_text("utf-8")
    choices = [mean.vector] if "the mean of their adapters was kept" in page else [one, other]
    held = Adapter.load(result.folder).vector
    assert held is not None and any(np.array_equal(held, choice) for choice in choices)


@pytest.mark.parametrize(
    ("parameters", "answers", "given", "kind"),
    [
        (135_000_000, 20, {}, "xs"),
        (135_000_000, 21, {}, "lora"),
        (135_000_000, 21, {"kind": "xs"}, "xs"),
        (135_000_000, 21, {"numbers": 13}, None),  # which makes it tiny
        (135_000_000, 21, {"optimizer": "natural"}, "xs"),  # for vectors alone
        (5_800_000, 2, {}, "lora"),
    ],
)
def test_the_kind_that_is_left_open(parameters: int, answers: int, given: dict[str, Any], kind: str | None) -> None:
    rows = [Row(str(at), (Turn("user", f"question {at}"),), f"answer {at % answers}") for at in range(3 * answers)]
    base: Any = SimpleNamespace(parameters=parameters)
    heard = Heard()
    settings = TrainSettings(data="rows.jsonl", **given)
    assert with_kind(settings, base, rows, heard).kind == kind
    assert any("different answers" in line for line in heard.lines) == (kind == "lora" and parameters > 2e7)


def test_train_takes_the_kind_that_its_rows_call_for(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whit.training.sft.SMALL", 0)  # the tiny base is then no small one
    monkeypatch.setattr("whit.verbs.train.MANY_ANSWERS", 1)
    told = api.train(
        rows, base=str(base), dtype="float32", rank=2, epochs=0.2, evaluations=1, shots=(), out=tmp_path / "out"
    )
    assert told.card.kind == "lora" and told.card.settings["kind"] == "lora"
