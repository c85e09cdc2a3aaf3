from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whit.data.rows import Row, Turn
from whit.errors import DataError, ScoreError, UsageError
from whit.evaluation.choosing import choose
from whit.evaluation.scoring import Score, make_scorer, restore_scorer

Make = Callable[..., Row]


def rows_of(*completions: str) -> list[Row]:
    return [Row(f"r{n}", (Turn("user", "?"),), text) for n, text in enumerate(completions)]


def test_a_score_is_checked() -> None:
    assert Score(0.5).lenient == 0.5
    assert Score(0.0, lenient=1.0).lenient == 1.0
    assert Score(1.0, lenient=0.2).lenient == 1.0
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ScoreError):
            Score(bad)


def test_label(row: Make) -> None:
    scorer = make_scorer("label", rows_of("positive", "negative"))
    gold = row("positive")
    assert scorer.score(" Positive.\n", gold) == Score(1.0, True)
    assert scorer.score("negative", gold) == Score(0.0, True)
    assert scorer.score("It is positive", gold) == Score(0.0, False, None, 1.0)
    assert scorer.score("dunno", gold) == Score(0.0, False)
    assert (scorer.read("POSITIVE"), scorer.read("dunno")) == ("positive", "")


def test_a_label_unseen_in_training_can_still_be_right(row: Make) -> None:
    scorer = make_scorer("label", rows_of("a", "b"))
    assert scorer.score("c", row("c")) == Score(1.0, True)


def test_exact(row: Make) -> None:
    scorer = make_scorer("exact", rows_of("Paris"))
    assert scorer.score(" Paris\n", row("Paris")).value == 1
    assert scorer.score("paris.", row("Paris")) == Score(0.0, True, None, 1.0)
    assert scorer.score("Paris\nis in France", row("Paris")) == Score(0.0, True, None, 1.0)
    assert scorer.score("", row("Paris")) == Score(0.0, False)


def test_numeric(row: Make) -> None:
    scorer = make_scorer("numeric", rows_of("1"))
    gold = row("work\n#### 1,200")
    assert scorer.score("so #### 1200", gold) == Score(1.0, True)
    assert scorer.score("$1200.00", gold) == Score(1.0, True)
    assert scorer.score("1200, not 5", gold) == Score(0.0, True, None, 1.0)
    assert scorer.score("five", gold) == Score(0.0, False)
    with pytest.raises(ScoreError, match="r1"):
        scorer.score("1", row("none"))


def test_json_whole_and_by_field(row: Make) -> None:
    training = rows_of('{"intent": "play", "artist": "Abba"}', '{"intent": "stop"}')
    gold = row('{"intent": "play", "artist": "Abba"}')
    scorer = make_scorer("json", training)
    assert scorer.score('{"artist": "Abba", "intent": "play"}', gold).value == 1
    half = scorer.score('{"intent": "play", "artist": "Beck"}', gold)
    assert (half.value, half.valid, half.fields) == (0.0, True, {"intent": True, "artist": False})
    extra = scorer.score('{"intent": "play", "artist": "Abba", "album": "x"}', gold)
    assert (extra.value, extra.valid, extra.fields["album"]) == (0.0, False, False)  # type: ignore[index]
    assert not scorer.score('{"artist": "Abba"}', gold).valid
    wrapped = scorer.score('Here: {"intent": "PLAY", "artist": "abba "}', gold)
    assert (wrapped.value, wrapped.valid, wrapped.lenient) == (0.0, False, 1.0)
    assert wrapped.fields == {"intent": False, "artist": False}
    graded = make_scorer("json-fields", training)
    assert graded.graded and graded.score('{"intent": "play", "artist": "Beck"}', gold).value == 0.5
    assert graded.score("[1]", gold) == Score(0.0, False, {"intent": False, "artist": False})


def test_json_that_is_no_object(row: Make) -> None:
    scorer = make_scorer("json", rows_of("[1]", "[2]"))
    assert scorer.score("[1.0]", row("[1]")) == Score(1.0, True)
    assert scorer.score("nope", row("[1]")) == Score(0.0, False)
    assert scorer.score("null", row("null")) == Score(1.0, True)
    assert scorer.score("nope", row("null")) == Score(0.0, False)


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.text(max_size=5), min_size=1), st.text())
def test_the_gold_answer_is_always_right_and_noise_never_raises(gold: dict[str, object], noise: str) -> None:
    text = json.dumps(gold)
    for kind in ("json", "json-fields", "exact"):
        scorer = make_scorer(kind, rows_of(text))
        assert scorer.score(text, rows_of(text)[0]) == Score(1.0, True, scorer.score(text, rows_of(text)[0]).fields)
        got = scorer.score(noise, rows_of(text)[0])
        assert got.value <= got.lenient <= 1


@pytest.mark.parametrize(
    ("completions", "kind"),
    [
        (['{"a": 1}', '{"a": 2}'], "json"),
        (["because\n#### 3", "as\n#### 4"], "numeric"),
        (["3", "$1,200", "5 apples", "7"], "numeric"),
        (["spam", "ok"] * 5, "label"),
        (["1", "2", "3", "4", "5"] * 30, "label"),
        (["1", "2"], "numeric"),
        (["one sentence here", "another one", "a third"], "exact"),
        ([""] * 9, "exact"),
    ],
)
def test_auto_says_what_and_why(completions: list[str], kind: str) -> None:
    chosen, reason = choose(rows_of(*completions))
    assert chosen == kind and reason
    if completions[0]:
        scorer = make_scorer("auto", rows_of(*completions))
        assert (scorer.name, scorer.reason) == (kind, reason)


def test_labels_are_spelt_as_most_rows_spell_them() -> None:
    assert make_scorer("label", rows_of("spam", "Ok", "Spam", "Spam", "Ok")).labels == ("Spam", "Ok")


def test_a_row_that_cannot_be_scored_is_told_with_its_line() -> None:
    row = Row("row-0123456789abcdef", (Turn("user", "?"),), "two", line=42, source="t.jsonl")
    for kind, gold in (("numeric", "1"), ("json", "{}")):
        with pytest.raises(ScoreError, match=r"^t\.jsonl, line 42 \(id row-0123456789abcdef\): "):
            make_scorer(kind, rows_of(gold, gold)).score("3", row)
    with pytest.raises(DataError, match=r"row line 42 \(row-0123456789abcdef\)"):
        make_scorer("numeric", [*rows_of("1"), row])


def test_rows_that_do_not_suit_are_named() -> None:
    with pytest.raises(DataError, match="row r1"):
        make_scorer("numeric", rows_of("1", "two"))
    with pytest.raises(DataError, match=r"2 rows .r0, r2"):
        make_scorer("json", rows_of("{", "{}", "x"))
    with pytest.raises(DataError, match="at least two labels"):
        make_scorer("label", rows_of("a", "a", "A"))
    with pytest.raises(DataError, match="no rows"):
        make_scorer("auto", [])
    with pytest.raises(DataError, match="no closed set"):
        make_scorer("label", rows_of(*(f"t{n}" for n in range(1001))))
    with pytest.raises(UsageError, match="unknown"):
        make_scorer("bleu", rows_of("a"))


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    code = """
def near(answer, row):
    return 1 - abs(len(answer) - len(row["completion"])) / 10 if row["level"] == 2 else answer == "x"
def broken(answer, row): return row["absent"]
def nan(answer, row): return float("nan")
def big(answer, row): return 2
def text(answer, row): return "good"
"""
    (tmp_path / "my_scores.py").write_text(code)
    return tmp_path


@pytest.mark.parametrize("place", ["my_scores", "my_scores.py"])
def test_a_users_function(functions: Path, row: Make, place: str) -> None:
    scorer = make_scorer(f"{place}:near", [])
    assert scorer.graded
    assert scorer.score("abcd", row("abc", level=2)) == Score(0.9)
    assert scorer.score("x", row("abc", level=1)).value == 1.0
    same = make_scorer("function", [], module_function=f"{place}:near")
    assert same.score("y", row("abc", level=1)).value == 0.0


@pytest.mark.parametrize("name", ["broken", "nan", "big", "text"])
def test_a_failing_function_is_told_with_row_and_name(functions: Path, row: Make, name: str) -> None:
    with pytest.raises(ScoreError, match=rf"id r7.*my_scores.py:{name}"):
        make_scorer(f"my_scores.py:{name}", []).score("a", row("a", id="r7"))


@pytest.mark.parametrize(
    "name", ["my_scores.py:absent", "absent.py:f", "no_such_module:f", "my_scores:", ":f", "x.y:f"]
)
def test_a_function_that_is_not_there(functions: Path, name: str) -> None:
    with pytest.raises(UsageError):
        make_scorer(name, [])


def test_a_module_that_fails_to_import(functions: Path) -> None:
    (functions / "bad_scores.py").write_text("import no_such_thing\n")
    with pytest.raises(UsageError, match="no_such_thing"):
        make_scorer("bad_scores:f", [])


@pytest.mark.parametrize(
    ("kind", "completions", "answer"),
    [
        ("label", ["Spam", "ok"], "it is spam"),
        ("exact", ["a"], "A"),
        ("numeric", ["5"], "5 or 6"),
        ("json", ['{"a": 1}', '{"a": 1, "b": 2}'], '{"b": 2}'),
        ("json-fields", ['{"a": 1, "b": 2}'], '{"a": 1, "c": 3}'),
    ],
)
def test_a_scorer_is_restored_from_its_state(kind: str, completions: list[str], answer: str) -> None:
    rows = rows_of(*completions)
    scorer = make_scorer(kind, rows)
    again = restore_scorer(json.loads(json.dumps(scorer.state)))
    assert (again.name, again.graded, again.reason, again.labels) == (
        scorer.name, scorer.graded, scorer.reason, scorer.labels,
    )  # fmt: skip
    assert again.score(answer, rows[0]) == scorer.score(answer, rows[0])


def test_a_state_never_chooses_what_code_runs(functions: Path) -> None:
    state = make_scorer("my_scores.py:near", []).state
    with pytest.raises(UsageError, match=r"my_scores.py:near"):
        restore_scorer(state)
    assert restore_scorer(state, function="my_scores.py:near").name == "my_scores.py:near"
    for bad in ({}, {"kind": "label"}, {"kind": "odd"}, {"kind": "label", "labels": 3}):
        with pytest.raises(DataError):
            restore_scorer(bad)
