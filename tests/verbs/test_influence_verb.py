"""`whit check --influence`: flipped rows are found and named, retraining is judged, and what cannot be is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import whit
from whit.errors import AdapterError, DataError, UsageError
from whit.evaluation.card import load_card, save_card
from whit.testing import write_rows
from whit.verbs.check import CheckResult

FLIPPED = 24


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows, of which 24 have the other label, one stands twice with two answers, and one is written otherwise."""
    path = write_rows(tmp_path_factory.mktemp("noisy") / "noisy.jsonl", 300)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    other = {"card": "cash", "cash": "card"}
    for row in random.Random(1).sample(rows, FLIPPED):
        row["completion"], row["flipped"] = other[row["completion"]], True
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def adapter(
    cache: Path, noisy: Path, options: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("noisy") / "out"
    whit.train(noisy, out=folder, shots=(), baselines=False, **options("lora"))
    return folder


@pytest.fixture(scope="module")
def found(noisy: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckResult, Path]:
    clean = tmp_path_factory.mktemp("fixed") / "clean.jsonl"
    return whit.check(noisy, influence=True, adapter=str(adapter), fix=clean, threads=1), clean


def flipped(path: Path) -> set[str]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {row["id"] for row in rows if row.get("flipped")}


def test_flipped_rows_are_found_and_named(found: tuple[CheckResult, Path], noisy: Path) -> None:
    report = found[0].influence
    assert report is not None
    bad = flipped(noisy)
    worst = [suspect.row.id for suspect in report.worst]
    trained = load_card(Path(report.adapter) / "card.json").data.train
    assert len(worst) == round(0.1 * trained) and report.rows == trained
    # Three times as many as chance would bring; an adapter with more numbers than rows learns some by heart.
    assert sum(identity in bad for identity in worst) >= 3 * len(worst) * FLIPPED / 300
    first = report.worst[0]
    assert first.cause == "wrong-label" and first.row.completion not in first.answer and first.removed
    assert all(one.doubt >= two.doubt for one, two in zip(report.worst, report.worst[1:], strict=False))
    assert set(report.removed) == {s.row.id for s in report.worst if s.cause != "unclear"}


def test_retraining_is_judged_and_the_copy_is_clean(found: tuple[CheckResult, Path], noisy: Path) -> None:
    result, clean = found
    report = result.influence
    assert report is not None and report.retrained is not None
    kept = {json.loads(line)["id"] for line in clean.read_text("utf-8").splitlines()}
    left = set() if str(report.retrained.verdict) == "harmed" else set(report.removed)
    assert not kept & left
    assert all(any(identity in change and "hurts" in change for change in result.changes) for identity in left)
    text = result.to_text()
    assert f"retraining without {len(report.removed):,} rows" in text and "wrong-label: the adapter answers" in text
    plain = result.to_json()["influence"]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["retrained"]["verdict"] in ("helped", "no worse", "harmed", "not enough data")
    assert plain["worst"][0].keys() >= {"id", "line", "prompt", "completion", "answer", "harm", "loss", "cause", "why"}


def test_it_finds_the_same_again(found: tuple[CheckResult, Path], noisy: Path, adapter: Path) -> None:
    again = whit.check(noisy, influence=True, adapter=str(adapter), retrain=False, threads=1).influence
    first = found[0].influence
    assert again is not None and first is not None and again.retrained is None
    assert [one.row.id for one in again.worst] == [one.row.id for one in first.worst]


def test_labels_that_were_changed_since_are_noticed(
    noisy: Path, adapter: Path, tmp_path: Path, found: tuple[CheckResult, Path]
) -> None:
    first = found[0].influence
    assert first is not None and first.notes == ()
    rows = [json.loads(line) for line in noisy.read_text("utf-8").splitlines()]
    other = {"card": "cash", "cash": "card"}
    row = next(row for row in rows if row["id"] == first.worst[0].row.id)
    row["completion"] = other[row["completion"]]
    mended = tmp_path / noisy.name
    mended.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    again = whit.check(mended, influence=True, adapter=str(adapter), retrain=False, threads=1).influence
    assert again is not None and len(again.notes) == 1 and "their SHA-256 is another" in again.to_text()


def test_what_is_not_retrained_is_said(
    noisy: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[CheckResult, Path]
) -> None:
    import shutil

    from whit.evaluation.causes import Cause, Causes
    from whit.verbs import influence

    def scored(*given: Any) -> list[Any]:
        raise AssertionError("the held-out rows were answered, though nothing is retrained")

    first = found[0].influence
    assert first is not None and first.notes == ()
    monkeypatch.setattr(influence, "_scores", scored)
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    save_card(replace(load_card(copy / "card.json"), kind="sparse"), copy / "card.json")
    sparse = whit.check(noisy, influence=True, adapter=str(copy), threads=1).influence
    assert sparse is not None and sparse.retrained is None
    assert "note: nothing was retrained: the weights of a sparse adapter are chosen anew" in sparse.to_text()
    monkeypatch.setattr(Causes, "of", lambda *given: Cause("unclear", "none"))
    unclear = whit.check(noisy, influence=True, adapter=str(adapter), threads=1).influence
    assert unclear is not None and unclear.retrained is None and unclear.removed == ()
    assert unclear.to_json()["notes"] == [
        "nothing was retrained: none of these rows has a likely cause, so that none would be left out"
    ]
    asked = whit.check(noisy, influence=True, adapter=str(adapter), retrain=False, threads=1).influence
    assert asked is not None and asked.notes == ()


def test_other_rows_and_other_adapters_are_refused(
    noisy: Path, adapter: Path, tmp_path: Path, trained: Callable[[str], Any]
) -> None:
    with pytest.raises(UsageError, match="add --adapter"):
        whit.check(noisy, influence=True)
    with pytest.raises(UsageError, match="--adapter does nothing without --influence"):
        whit.check(noisy, adapter=str(adapter))
    strange = write_rows(tmp_path / "strange.jsonl", 60, seed=9)
    with pytest.raises(DataError, match=r"was trained on 0 of these \d+ rows; give the file that it was trained on"):
        whit.check(strange, influence=True, adapter=str(adapter))
    with pytest.raises(AdapterError, match="needs the folder that whit train made"):
        whit.check(noisy, influence=True, adapter=trained("xs").adapter.to_text())


def test_a_card_runs_no_code_and_is_checked(noisy: Path, adapter: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    card = load_card(copy / "card.json")

    def with_settings(**changed: Any) -> None:
        save_card(replace(card, settings={**card.settings, **changed}), copy / "card.json")

    with_settings(score="os:system")
    with pytest.raises(UsageError, match="say it again with --score"):
        whit.check(noisy, influence=True, adapter=str(copy))
    with_settings(batch="eight")
    with pytest.raises(AdapterError, match="the card's setting batch is 'eight'"):
        whit.check(noisy, influence=True, adapter=str(copy))
    with_settings(test_data="held.jsonl")
    with pytest.raises(UsageError, match=r"proved on held.jsonl; say where it is with --held-out"):
        whit.check(noisy, influence=True, adapter=str(copy))
    with_settings(reward=["exact"])
    with pytest.raises(AdapterError, match="learned the rows' own answers"):
        whit.check(noisy, influence=True, adapter=str(copy))
    save_card(replace(card, baked="Baked from an instruction of 9 tokens."), copy / "card.json")
    with pytest.raises(AdapterError, match="learned the rows' own answers; this one was baked"):
        whit.check(noisy, influence=True, adapter=str(copy))


def test_too_few_validation_rows_say_so(
    found: tuple[CheckResult, Path], rows: Path, trained: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from whit.verbs import influence

    # 120 rows leave 6 to choose by.
    with pytest.raises(DataError, match="6 validation rows are too few to say which rows hurt; give 10 or more"):
        whit.check(rows, influence=True, adapter=str(trained("lora").folder))
    report = found[0].influence
    assert report is not None
    monkeypatch.setattr(influence, "LEAST_AGREEMENT", 1.1)
    assert not report.enough and "too few validation rows to say what a single row does" in report.to_text()
