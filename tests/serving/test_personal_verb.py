"""`whit train --per`: constructed users who truly differ each get their own, in a store that serves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from whit.errors import DataError, UsageError
from whit.serving.payload import from_payload
from whit.serving.store import open_store
from whit.settings import TrainSettings
from whit.verbs.personal import train_personal

WORDS = {"ann": "red", "bob b.": "blue", "cat": "green"}


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ratings") / "ratings.jsonl"
    things = ("card", "money", "weather", "paris", "apples", "pears", "boxes", "cities")
    lines = [
        json.dumps({"prompt": f"{things[at % 8]} number {at * 37 % 101}", "completion": word, "user": user})
        for user, word in WORDS.items()
        for at in range(24)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def settings(base: Any, ratings: Path, out: Path, **more: Any) -> TrainSettings:
    return TrainSettings(
        data=ratings, base=str(base.path), out=out, per="user", kind="xs", dtype="float32", epochs=6.0, validation=0.2,
        batch=12, learning_rate=0.1, score="exact", **more,
    )  # fmt: skip


def test_every_user_gets_an_adapter_and_a_verdict(base: Any, ratings: Path, tmp_path: Path) -> None:
    result = train_personal(settings(base, ratings, tmp_path / "out"))
    about = json.loads((tmp_path / "out" / "personal.json").read_text())
    assert result.to_json() == {"contract": 1, **about}
    assert [each["user"] for each in about["users"]] == sorted(WORDS)
    assert sum(about["counts"].values()) == 3
    low, high = about["personal_over_shared"]["interval"]
    assert low <= about["personal_over_shared"]["difference"] <= high
    assert about["personal"] >= about["shared"]
    with open_store(tmp_path / "out" / "adapters.db") as store:
        assert store.count() == 4
        kept = {each["user"]: store.find(each["adapter"], card=True) for each in about["users"]}
        for held in kept.values():
            from_payload(held.payload).check_fits(base)
            assert held.card is not None and held.card["base_fingerprint"] == base.fingerprint
        if about["shrinkage"] is not None:
            assert len({held.digest for held in kept.values()}) == 3
    assert "users, own over shared" in result.to_text()


def test_what_cannot_be_is_told(base: Any, ratings: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tiny or xs"):
        train_personal(TrainSettings(data=ratings, per="user", kind="lora"))
    with pytest.raises(DataError, match="customer"):
        train_personal(TrainSettings(data=ratings, per="customer", out=tmp_path / "none"))


def test_adapters_that_act_on_answers_alone(base: Any, ratings: Path, tmp_path: Path) -> None:
    """From training to the store, `run`, `eval` and the base they are refused on."""
    from whit.adapters import learned
    from whit.errors import AdapterError
    from whit.settings import EvalSettings, ExportSettings, RunSettings
    from whit.verbs.evaluate import evaluate
    from whit.verbs.export import command as export
    from whit.verbs.personal import command
    from whit.verbs.run import run

    wanted = replace(
        settings(base, ratings, tmp_path / "out", learn_basis=True, answers_only=True),
        kind="tiny", numbers=3, groups=1, rank=4, epochs=8.0,
    )  # fmt: skip
    with pytest.raises(UsageError, match="--learn-basis"):
        command(replace(wanted, learn_basis=False))
    about = train_personal(wanted).to_json()
    found = learned.LearnedBasis.load(tmp_path / "out" / "basis.whit")
    assert found.answers_only and about["basis"]["fingerprint"] == found.fingerprint
    assert about["personal"] >= about["base"]
    learned._known.clear()
    where = f"{tmp_path / 'out' / 'adapters.db'}#{about['users'][0]['adapter']}"
    said = run(RunSettings(adapter=where, prompt="card", dtype="float32", max_tokens=4)).answers
    assert said == run(RunSettings(adapter=where, prompt="card", dtype="float32", max_tokens=4)).answers
    result = evaluate(EvalSettings(adapter=where, data=ratings, dtype="float32", max_tokens=2, score="exact"))
    assert result.result.rows == 72
    for to in ("lora", "merged", "gguf-lora", "peft"):
        with pytest.raises(AdapterError, match="learned" if to == "peft" else "answers alone"):
            export(ExportSettings(adapter=where, out=tmp_path / to, to=to))


def test_a_learned_basis_goes_wherever_the_adapters_go(base: Any, ratings: Path, tmp_path: Path) -> None:
    from whit.adapters import learned
    from whit.errors import AdapterError
    from whit.settings import EvalSettings, RunSettings, StoreSettings
    from whit.verbs.evaluate import evaluate
    from whit.verbs.run import run
    from whit.verbs.store import store as command

    with pytest.raises(UsageError, match="--learn-basis"):
        train_personal(settings(base, ratings, tmp_path / "out", learn_basis=True))
    wanted = replace(
        settings(base, ratings, tmp_path / "out", learn_basis=True), kind="tiny", numbers=2, groups=1, epochs=2.0
    )
    about = train_personal(wanted).to_json()
    found = learned.LearnedBasis.load(tmp_path / "out" / "basis.whit")
    assert about["basis"] == {"fingerprint": found.fingerprint, "bytes": len(found.to_bytes())}
    name = next(each["adapter"] for each in about["users"] if each["user"] == "ann")
    where = f"{tmp_path / 'out' / 'adapters.db'}#{name}"

    def forget() -> None:
        learned._known.clear()
        learned._cached(found.fingerprint).unlink(missing_ok=True)

    forget()
    said = run(RunSettings(adapter=where, prompt="card", dtype="float32", max_tokens=4)).answers
    result = evaluate(EvalSettings(adapter=where, data=ratings, dtype="float32", max_tokens=2, score="exact"))
    assert result.result.rows == 72
    # Into another store, and out of it again as a whole: the basis goes along.
    one, two, export = str(tmp_path / "one.db"), str(tmp_path / "two.db"), str(tmp_path / "all.jsonl")
    command(StoreSettings(action="add", words=("ann", where), store=one))
    command(StoreSettings(action="export", words=(export,), store=one))
    command(StoreSettings(action="import", words=(export,), store=two))
    forget()
    assert run(RunSettings(adapter=f"{two}#ann", base=str(base.path), prompt="card", dtype="float32", max_tokens=4)
               ).answers == said  # fmt: skip
    with open_store(two) as store:
        store.remove(f"basis/{found.fingerprint[:16]}", by="test")
        shown = from_payload(store.find("ann").payload)
    forget()
    with pytest.raises(AdapterError, match=r"basis\.whit"):
        run(RunSettings(adapter=shown.to_text(), base=str(base.path), prompt="card", dtype="float32"))
