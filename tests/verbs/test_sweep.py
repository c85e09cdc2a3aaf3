"""`whit sweep`: grids and what is wrong with them, the winner and its proof, halving, going on, the figure."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from whit.errors import TrainingError, UsageError, WhitError
from whit.evaluation.scatter import Dot, scatter
from whit.settings import SweepSettings
from whit.talk import Talk
from whit.verbs.grid import read_grid
from whit.verbs.sweep import SweepResult, climb, remarks_on, sweep
from whit.verbs.trial import Trial, try_variant


def written(place: Path, text: str) -> SweepSettings:
    path = place / "grid.toml"
    path.write_text(text, "utf-8")
    return SweepSettings(grid=path, out=place / "out", threads=1)


@pytest.fixture
def grid(rows: Path, base: Path, tmp_path: Path) -> Callable[[str], SweepSettings]:
    """A grid over the tiny base: what varies is added."""

    def of(varied: str) -> SweepSettings:
        return written(
            tmp_path,
            f"data = '{rows}'\n[train]\nbase = '{base}'\ndtype = 'float32'\ninstruction = 'card or cash?'\nbatch = 8\n"
            f"evaluations = 2\nepochs = 1.0\nshots = []\nbaselines = false\n{varied}",
        )

    return of


def test_a_grid_is_every_combination_and_the_list(grid: Callable[[str], SweepSettings]) -> None:
    found = read_grid(
        grid(
            "[grid]\nkind = ['xs', 'tiny']\nrank = [1, 2]\n[[variant]]\nname = 'big one'\nlearning-rate = 1\n"
            "[[variant]]\nrank = 3"
        )
    )
    assert [each.name for each in found] == [
        "kind=xs, rank=1", "kind=xs, rank=2", "kind=tiny, rank=1", "kind=tiny, rank=2", "big one", "rank=3",
    ]  # fmt: skip
    assert [each.settings.rank for each in found] == [1, 2, 1, 2, None, 3]
    assert found[4].settings.learning_rate == 1.0 and found[4].slug == "big_one"
    assert all(each.settings.batch == 8 and each.settings.shots == () for each in found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[grid]\nrank = [1]", r'say which rows to learn from.*data = "FILE"'),
        ("data = 'x'", "nothing varies"),
        ("data = 'x'\ngird = 1", "a grid has no 'gird'; did you mean grid"),
        ("data = 'x'\n[grid]\nrank = 2", "rank: give a list"),
        ("data = 'x'\n[grid]\nrank = []", "rank: give a list"),
        ("data = 'x'\n[grid]\nrnak = [1]", "no option 'rnak'; did you mean rank"),
        ("data = 'x'\n[grid]\nrank = [1, 'two']", "rank=two: rank = 'two': must be a whole number"),
        ("data = 'x'\n[grid]\nrank = [1, 100]", "must be from 1 to 64"),
        ("data = 'x'\n[grid]\nseed = [1, 2]", "the same for all variants"),
        ("data = 'x'\n[grid]\nscore = ['label']", "the same for all variants"),
        ("data = 'x'\n[grid]\nkind = ['auto']", "kind auto"),
        ("data = 'x'\n[grid]\noptimizer = ['es']", "by reward"),
        ("data = 'x'\n[grid]\nrank = [1, 1]", "two variants are called 'rank=1'"),
        ("data = 'x'\n[train]\nout = 'y'\n[grid]\nrank = [1]", "not for a sweep"),
        ("data = 'x'\n[train]\nbach = 8\n[grid]\nrank = [1]", "no option 'bach'; did you mean batch"),
        ("data = 'x'\nvariant = 3", "write each variant as a table"),
        ("data = 'x'\n[[variant]]\nname = 3", "must be a text"),
        ("data = 'x'\n[grid]\nrank = [" + "1," * 40 + "]\nbatch = [" + "1," * 40 + "]", "1,600 combinations"),
        ("data = ", "not TOML"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        read_grid(written(tmp_path, text))
    assert "grid.toml" in str(error.value)


@pytest.mark.slow
def test_the_winner_is_proved_and_the_rest_listed(grid: Callable[[str], SweepSettings], tmp_path: Path) -> None:
    settings = grid(
        "[grid]\nkind = ['tiny', 'xs']\n[[variant]]\nname = 'lora'\nkind = 'lora'\nlearning-rate = 0.005\nepochs = 6\n"
        "evaluations = 3\n[[variant]]\nname = 'too many'\nkind = 'tiny'\nnumbers = 1000000000\n"
    )
    result = sweep(settings)
    assert isinstance(result, SweepResult)
    names = [row["name"] for row in result.variants]
    assert names[0] == "lora" and names[-1] == "too many" and result.variants[0]["kept"]
    assert result.card.kind == "lora" and result.card.result is not None
    assert "--kind lora" in result.card.command and result.card.settings["learning_rate"] == 0.005
    assert result.variants[-1]["error"] and "failed" in result.to_text() and "<- kept" in result.to_text()
    plain = result.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain and plain["verdict"] == result.card.verdict
    out = tmp_path / "out"
    assert {"card.json", "report.html", "sweep.json", "sweep.svg", "variants"} <= {each.name for each in out.iterdir()}
    assert "The variants" in (out / "report.html").read_text("utf-8")
    ElementTree.parse(out / "sweep.svg")
    # No held-out row was answered for the variants.
    assert not list((out / "variants").rglob("held-out.jsonl"))
    # What is there is not made again, and not overwritten unasked.
    with pytest.raises(UsageError, match="variants of an earlier sweep"):
        sweep(settings)
    again = sweep(SweepSettings(**{**vars(settings), "resume": True}))
    assert isinstance(again, SweepResult)
    assert [row["seconds"] for row in again.variants] == [row["seconds"] for row in result.variants]
    assert again.card.result == result.card.result


def test_a_variant_takes_the_kind_that_its_rows_call_for(
    grid: Callable[[str], SweepSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whit.training.sft.SMALL", 0)  # the tiny base is then no small one, whose kind is lora anyway
    monkeypatch.setattr("whit.verbs.train.MANY_ANSWERS", 1)
    (open_kind,) = read_grid(grid("[grid]\nrank = [2]"))
    (given,) = read_grid(grid("[grid]\nkind = ['xs']"))
    found = [
        try_variant(each.name, replace(each.settings, out=tmp_path / each.slug), 0.1, Talk(quiet=True))
        for each in (open_kind, given)
    ]
    assert [each.kind for each in found] == ["lora", "xs"]


@pytest.mark.slow
def test_nothing_but_failures_is_an_error(grid: Callable[[str], SweepSettings]) -> None:
    with pytest.raises(TrainingError, match=r"every one of the 2 variants failed; numbers="):
        sweep(grid("[grid]\nnumbers = [1000000000, 2000000000]\n"))


def trial(name: str, score: float, payload: int, share: float) -> Trial:
    right = round(20 * score)
    values = tuple([1.0] * right + [0.0] * (20 - right))
    return Trial(name, share, "xs", payload // 2, payload, values, (True,) * 20, 1.0, {})


def test_one_is_spoken_of_as_one() -> None:
    best, even = trial("a", 0.9, 20, 1.0), trial("b", 0.9, 30, 1.0)
    said = " ".join(remarks_on([best, even], best, {"c": "no"}))
    assert "1 other is not separably worse" in said and "1 variant failed and was left out: c." in said
    said = " ".join(remarks_on([best, even, even], best, {"c": "no", "d": "no"}))
    assert "2 others are not separably worse" in said and "2 variants failed and were left out: c, d." in said


def test_halving_keeps_the_better_half_and_the_smaller_among_equals(grid: Callable[[str], SweepSettings]) -> None:
    variants = read_grid(grid("[grid]\nrank = [1, 2, 3, 4, 5, 6]"))
    scores = {"rank=1": 0.5, "rank=2": 0.5, "rank=3": 0.9, "rank=4": 0.1, "rank=5": 0.5, "rank=6": 0.2}
    tried: list[tuple[float, list[str]]] = []

    class Fake:
        def try_all(self, some: Any, share: float) -> Any:
            tried.append((share, [each.name for each in some]))
            for each in some:
                outcome: Trial | WhitError = trial(each.name, scores[each.name], 10 * int(each.name[-1]), share)
                yield each, TrainingError("no") if each.name == "rank=4" else outcome

        def prove(self, *given: Any) -> Any:
            raise AssertionError

    found, failed = climb(variants, 2, Fake(), Talk(quiet=True))
    assert tried == [
        (0.25, [f"rank={number}" for number in range(1, 7)]), (0.5, ["rank=1", "rank=2", "rank=3"]),
        (1.0, ["rank=1", "rank=3"]),
    ]  # fmt: skip
    assert failed == {"rank=4": "no"} and found["rank=5"].share == 0.25 and found["rank=3"].share == 1.0


def test_the_figure_stands_alone_and_escapes() -> None:
    dots = [Dot("<b>&", 26, 0.5, 0.4, 0.6), Dot("two\x00", 26, 0.5, 0.4, 0.6, True), Dot("c", 10**6, 1.0, 0.9, 1.0)]
    text = scatter(dots, title="3 <variants>", scored="score")
    tree = ElementTree.fromstring(text)
    assert len(tree.findall(".//{*}circle")) == 3 and "<b>" not in text and "\x00" not in text
    assert not re.search(r"(href|src|url)\s*[=(]", text)
    places = {circle.get("cx") for circle in tree.findall(".//{*}circle")}
    assert len(places) == 3, "dots of one size hide each other"
    scatter(dots[:1], title="one", scored="score")
